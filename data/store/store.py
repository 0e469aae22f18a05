"""The artifact store: immutable, content-addressed stage outputs. Resume, fork and sweep all rest on it.

An artifact is a folder `artifacts/<kk>/<key>/` with `manifest.json`, `log.json` and `payload/`. Its **key** is the sha256 of
everything that shapes it (the `Job`). Its **digest** is the sha256 over the sorted (path, sha256) of the payload files. It is
written under `partial/<key>/`, fsynced, and renamed into place last. So it is either complete or absent, and never changes.
`partial/<key>/scratch/` survives a crash: a second attempt continues from the shards and trainer checkpoints in it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DamagedArtifact, HomeError
from data.store.locks import LockHeld, check_locks, locked


def canonical(value: Any) -> str:
    """JSON that is the same text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def derive_seed(campaign_seed: int, stage: str, round_number: int) -> int:
    """Seeds differ by stage and round, so a round after a roll-back does not repeat the failure."""
    return int(sha256_text(f"{campaign_seed}/{stage}/{round_number}")[:8], 16) & 0x7FFFFFFF


@dataclass(frozen=True)
class Job:
    """Everything that shapes one stage's output, and nothing else: no campaign names, no times, no hardware."""

    stage: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]  # input name -> digest
    seed: int
    parts: Mapping[str, str] = field(default_factory=dict)  # "scorer:exact_match" -> version, or hash of a user's file
    libraries: Mapping[str, str] = field(default_factory=dict)  # name -> version

    @property
    def key(self) -> str:
        return sha256_text(canonical(asdict(self)))


@dataclass(frozen=True)
class Artifact:
    """A finished stage output. `path` is its payload folder.

    `absent` is "" where the payload exists. Where only manifest and digest are left it is "evicted" or "damaged", and a stage
    that needs the payload computes it again.
    """

    key: str
    digest: str
    stage: str
    path: Path
    absent: str = ""
    reused: bool = True

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class External:
    """A user's own file or folder as a stage input. Its digest enters the key, its path does not."""

    digest: str
    path: Path
    key: str | None = None


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of a payload: sha256 over its sorted (path, sha256)."""
    return sha256_text(canonical(sorted(files.items())))


def hash_folder(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


class Store:
    """A folder of artifacts that processes on one file system may share.

    Correctness rests on the atomic rename. Locks only avoid computing an artifact twice; the kernel frees them when a process
    dies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for name in ("artifacts", "partial", "locks", "stamps", "quarantine"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(f"expected a writable home, cannot create {root}: {error.strerror}; pass another --home") from error

    # -- paths ------------------------------------------------------------------------------------------------------
    def folder(self, key: str) -> Path:
        """The folder of an artifact, whether it exists or not."""
        return self.root / "artifacts" / key[:2] / key

    def scratch(self, key: str) -> Path:
        return self.root / "partial" / key / "scratch"

    def keys(self) -> list[str]:
        return sorted(p.parent.name for p in (self.root / "artifacts").glob("*/*/manifest.json"))

    def manifest(self, key: str) -> dict[str, Any]:
        """The manifest of an artifact.

        Raises:
            DamagedArtifact: it is missing, unreadable, or contradicts itself or the key.
        """
        try:
            loaded: dict[str, Any] = json.loads((self.folder(key) / "manifest.json").read_text())
            if loaded["digest"] != digest_of({name: f["sha256"] for name, f in loaded["files"].items()}):
                raise ValueError("its digest does not match its list of files")
            if Job(**loaded["job"]).key != key:
                raise ValueError("its job does not match its key")
            if not all(inner is None or isinstance(inner, str) for inner in loaded["input_keys"].values()):
                raise ValueError("an input's key is no text")
            return loaded
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise DamagedArtifact(f"manifest of {key[:12]}: {error}") from error

    # -- reading ----------------------------------------------------------------------------------------------------
    def find(self, key: str, full: bool = False) -> Artifact | None:
        """The artifact, or None. Its files are checked by size and mtime; with `full`, or on first use on this host, by hash.

        A damaged payload is moved to the quarantine, and the artifact is returned with `absent` = "damaged".
        """
        folder = self.folder(key)
        if not folder.exists():
            return None
        _drop_scratch(folder)
        try:
            manifest = self.manifest(key)
        except DamagedArtifact as damage:
            self.quarantine(key, str(damage))
            return None
        if not self._absent(key):
            try:
                self._check_files(key, manifest, full)
            except DamagedArtifact as damage:
                self.quarantine(key, str(damage))
        return Artifact(key, manifest["digest"], manifest["job"]["stage"], folder / "payload", self._absent(key))

    def _absent(self, key: str) -> str:
        marker = self.folder(key) / "absent"
        return (marker.read_text(errors="replace") or "damaged") if marker.exists() else ""

    def _check_files(self, key: str, manifest: Mapping[str, Any], full: bool) -> None:
        payload = self.folder(key) / "payload"
        present = {p.relative_to(payload).as_posix(): p for p in payload.rglob("*") if p.is_file()}
        if set(present) != set(manifest["files"]):
            changed = sorted(set(present) ^ set(manifest["files"]))
            raise DamagedArtifact(f"{manifest['job']['stage']} {key[:12]}: files added or missing: {', '.join(changed[:3])}")
        stamp = self._stamp(payload, present)
        if not full and self._stamp_file(key).exists() and self._stamp_file(key).read_bytes() == stamp.encode():
            return
        for name, path in present.items():
            if sha256_file(path) != manifest["files"][name]["sha256"]:
                raise DamagedArtifact(f"{manifest['job']['stage']} {key[:12]}: {name} no longer matches its hash")
        self._stamp_file(key).write_text(stamp)

    def _stamp_file(self, key: str) -> Path:
        return self.root / "stamps" / f"{key}.{socket.gethostname()}"

    @staticmethod
    def _stamp(payload: Path, present: Mapping[str, Path]) -> str:
        stats = {name: path.stat() for name, path in present.items()}
        return canonical({name: [s.st_size, s.st_mtime_ns] for name, s in stats.items()})

    def since(self, when: float) -> list[str]:
        """Keys of the artifacts that were made, or came here, at `when` (a Unix time) or later."""
        return [key for key in self.keys() if (self.folder(key) / "manifest.json").stat().st_mtime >= when]

    def verify(
        self, tick: Callable[[int, int], None] = lambda done, total: None, keys: Sequence[str] | None = None
    ) -> list[str]:
        """Hash every file of all artifacts, or of `keys`. Returns a line per damaged artifact.

        Each damaged one is quarantined, and the next run computes it again.
        """
        damaged = []
        keys = self.keys() if keys is None else keys
        stray = [p.name for p in (self.root / "artifacts").glob("*/*") if not (p / "manifest.json").exists()]
        for done, key in enumerate([*keys, *stray], 1):
            try:
                manifest = self.manifest(key)
                if not self._absent(key):
                    self._check_files(key, manifest, full=True)
            except DamagedArtifact as damage:
                damaged.append(str(damage))
                self.quarantine(key, str(damage))
            tick(done, len(keys) + len(stray))
        return damaged

    def quarantine(self, key: str, why: str) -> None:
        """Move a damaged payload, or the whole artifact where the manifest is damaged, to the quarantine with the reason.

        A valid manifest stays where it is, so that the payload can be computed again. The quarantine keeps what it holds, as
        evidence.
        """
        quarantined = self.root / "quarantine" / f"{key}.{time.time_ns()}"
        try:
            self.manifest(key)
            damaged = self.folder(key) / "payload"
            write_atomic(self.folder(key) / "absent", "damaged")
        except DamagedArtifact:
            damaged = self.folder(key)
        quarantined.mkdir()
        (quarantined / "why.txt").write_text(why + "\n")
        with contextlib.suppress(FileNotFoundError):  # another process moved it first
            damaged.rename(quarantined / damaged.name)

    @contextlib.contextmanager
    def in_use(self, alone: bool = False) -> Iterator[None]:
        """Hold the store while artifacts of it are needed, so that they are not deleted; `alone` to delete some.

        Raises:
            HomeError: a deletion is running, or with `alone` anything else that uses the store; or locks do not work there.
        """
        other = "another command" if alone else "`ratchet gc`"
        try:
            check_locks(self.root)
            with locked(self.root / "in_use.lock", wait=False, shared=not alone):
                yield
        except LockHeld as error:
            raise HomeError(f"{other} is running on {self.root}; run this again when it has finished") from error

    # -- writing ----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def attempt(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """Lock `key` while it is computed; yields `partial/<key>` with an empty `payload/`.

        `scratch/` in it holds what an earlier attempt left. `waiting` is called once if another process holds the lock.
        """
        with locked(self.root / "locks" / f"{key}.lock", waiting):
            partial = self.root / "partial" / key
            shutil.rmtree(partial / "payload", ignore_errors=True)
            (partial / "payload").mkdir(parents=True)
            (partial / "scratch").mkdir(exist_ok=True)
            try:
                yield partial
            finally:
                if partial.exists() and not any((partial / "scratch").glob("*")):
                    shutil.rmtree(partial)  # the next attempt has nothing to continue from

    def commit(self, job: Job, input_keys: Mapping[str, str | None], fingerprint: str, log: Mapping[str, Any]) -> Artifact:
        """Hash, fsync and rename `partial/<key>` into place. Where the artifact exists already, that one stays.

        The scratch folder is moved along and deleted last, so that a process killed before the rename can continue from it.
        """
        key, partial, target = job.key, self.root / "partial" / job.key, self.folder(job.key)
        hashes = hash_folder(partial / "payload")
        files = {n: {"sha256": sha256, "size": (partial / "payload" / n).stat().st_size} for n, sha256 in hashes.items()}
        digest = digest_of(hashes)
        manifest = {
            "key": key,
            "digest": digest,
            "job": asdict(job),
            "input_keys": dict(input_keys),
            "files": files,
            "fingerprint": fingerprint,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        (partial / "log.json").write_text(json.dumps({"host": socket.gethostname(), **log}, indent=1))
        payload = partial / "payload"
        for path in (*payload.rglob("*"), payload, partial / "manifest.json", partial / "log.json", partial):
            fsync(path)
        if not self._move_into_place(partial, target):
            return Artifact(key, self.manifest(key)["digest"], job.stage, target / "payload")
        fsync(target.parent)
        _drop_scratch(target)
        payload = target / "payload"
        self._stamp_file(key).write_text(self._stamp(payload, {name: payload / name for name in files}))
        return Artifact(key, digest, job.stage, payload, reused=False)

    def _move_into_place(self, partial: Path, target: Path) -> bool:
        """Whether the attempt became the artifact. An existing artifact stays, even if this attempt gave other bytes."""
        target.parent.mkdir(exist_ok=True)
        if self._absent(target.name):
            self._refill(partial, target)
            shutil.rmtree(partial)
            return True
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(partial)
            return False
        return True

    @staticmethod
    def _refill(partial: Path, target: Path) -> None:
        """Put a new payload into an evicted or damaged artifact.

        The marker `absent` is removed last and there is a manifest at all times. So a process killed at any moment leaves an
        artifact whose payload can be computed again.
        """
        shutil.rmtree(target / "payload", ignore_errors=True)
        for name in ("payload", "log.json", "manifest.json"):
            (partial / name).rename(target / name)
        fsync(target)
        (target / "absent").unlink()
        fsync(target)

    def evict(self, key: str) -> int:
        """Delete the payload and keep manifest and digest; returns the bytes freed. A stage that needs it computes it again."""
        folder = self.folder(key)
        freed: int = sum(f["size"] for f in self.manifest(key)["files"].values())
        write_atomic(folder / "absent", "evicted")
        shutil.rmtree(folder / "payload", ignore_errors=True)
        return freed


def _drop_scratch(folder: Path) -> None:
    """Delete the scratch of a complete artifact. `commit` may be killed before it does; then the next `find` does."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file completely or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text)
    fsync(part)
    part.rename(path)
    fsync(path.parent)
