"""Numbers with units in answers: how they are read, converted and compared."""

from __future__ import annotations

from fractions import Fraction

import regex

_TABLE = """
length  m 1, meter 1, metre 1, inch 0.0254, foot 0.3048, feet 0.3048, ft 0.3048, yard 0.9144, mile 1609.344
mass    g 1, gram 1, pound 453.59237, lb 453.59237, ounce 28.349523125, ton 1000000, tonne 1000000
time    s 1, sec 1, second 1, min 60, minute 60, h 3600, hr 3600, hour 3600, day 86400, week 604800
volume  l 1, liter 1, litre 1
power   w 1, watt 1
energy  j 1, joule 1
dollar  $ 1, dollar 1, cent 0.01
euro    € 1, euro 1
pound   £ 1
share   % 0.01, percent 0.01
"""  # dimension, then unit and size
_SHORT = {"k": "1000", "c": "0.01", "d": "0.1", "m": "0.001", "µ": "0.000001"}  # before m, g, s, l, w, j
_LONG = {"kilo": "1000", "centi": "0.01", "milli": "0.001"}  # before meter, gram, ...


def _units() -> dict[str, tuple[str, Fraction]]:
    units = {}
    for line in _TABLE.strip().splitlines():
        dimension, _, entries = line.partition(" ")
        for entry in entries.split(","):
            name, size = entry.split()
            units[name] = (dimension, Fraction(size))
    for prefixes, bases in ((_SHORT, "m g s l w j"), (_LONG, "meter metre gram liter litre watt joule second")):
        units |= {
            prefix + base: (units[base][0], units[base][1] * Fraction(factor))
            for prefix, factor in prefixes.items()
            for base in bases.split()
        }
    return units


UNITS = _units()
QUANTITY = regex.compile(
    r"(?P<sign>[-\u2212])?(?P<money>[$€£])?(?<![\w.,])(?P<whole>[0-9]{1,3}(?:,[0-9]{3}){1,6}|[0-9]{1,30})"
    r"(?P<rest>\.[0-9]{1,30}|/[1-9][0-9]{0,20})?(?:e(?P<power>[-+]?[0-9]{1,2})\b)?\s{0,3}(?P<unit>%|[a-zA-Zµ]{1,20})?"
)

Quantity = tuple[Fraction, tuple[str, Fraction] | None]  # the number as written; its dimension and the size of its unit


def last_quantity(text: str) -> Quantity | None:
    """The last number in a text, with the unit that follows it or the currency before it."""
    match = next(reversed(list(QUANTITY.finditer(text))), None)
    if match is None:
        return None
    number = Fraction(match["whole"].replace(",", ""))
    if rest := match["rest"]:
        number = number / int(rest[1:]) if rest[0] == "/" else number + Fraction("0" + rest)
    number *= Fraction(10) ** int(match["power"] or 0) * (-1 if match["sign"] else 1)
    return number, _unit(match["unit"] or "") or _unit(match["money"] or "")


def _unit(name: str) -> tuple[str, Fraction] | None:
    word = name.casefold().replace("μ", "µ")
    return next((UNITS[stem] for stem in (word, word.removesuffix("s"), word.removesuffix("es")) if stem in UNITS), None)


def in_base_units(quantity: Quantity) -> str:
    """A text that is equal for equal quantities, whatever their units."""
    number, unit = quantity
    return f"{number * unit[1]} {unit[0]}" if unit else str(number)


def agree(a: Quantity, b: Quantity, tolerance: float) -> bool:
    """Whether two quantities are equal within a relative tolerance. They are converted if both have a unit."""
    (x, unit), (y, other) = a, b
    if unit and other:
        if unit[0] != other[0]:
            return False
        x, y = x * unit[1], y * other[1]
    return abs(x - y) <= Fraction(tolerance) * abs(x)
