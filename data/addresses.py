"""Addresses of servers, as people write them in variables and recipes: checked before anything is sent."""

from __future__ import annotations

from urllib.parse import urlsplit

from data.errors import EndpointError


def http_address(address: str, where: str, example: str) -> str:
    """The address, which is one of an HTTP server.

    Args:
        where: what holds it, such as the name of a variable.

    Raises:
        EndpointError: it has no host, another protocol, a bad port, or characters that no address has.
    """
    if reason := _wrong(address):
        raise EndpointError(f"expected {where} to be the address of a server, such as {example}, found '{address}': {reason}")
    return address


def _wrong(address: str) -> str:
    """Why an address is none; an empty text if it is one."""
    if not address.isprintable() or " " in address:
        return "it has spaces or control characters"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:  # UnicodeError is one
        return str(error)
    if parts.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    return "" if host and port != 0 else "it has no host or no port"
