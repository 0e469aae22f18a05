"""The reads of test splits on a home: which campaign measured which prompts, when, and how many checkpoints.

A **read** is a campaign that measures its checkpoints on a split after its last round, for from then on a person can decide by
the numbers. It counts whether a model answers or the store has the answers already. A campaign that is resumed, repeated or
shown does not read again. A fork and a second campaign do. A split is known by its prompts, so their file may have any name.

There is a file per read, `<home>/test_reads/<split>.<campaign>.<read>.json`. Its name follows from what is read, and it is
written whole before the first checkpoint is measured. So no kill hides a read, no resume repeats one, and campaigns that end at
the same time write different files. Deleting a campaign leaves its reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data import labels
from data.store.campaign import Campaign, Ref, checkpoints_at_end, read_rounds
from data.store.store import canonical, sha256_text, write_atomic

SPLITS = ("test", "ood")
DAMAGED = frozenset({"?"})  # the checkpoints of a read whose file cannot be read: it still counts, by the name of its file


@dataclass(frozen=True)
class Read:
    """One campaign's read of a split."""

    campaign: str
    when: str  # UTC, as 2026-11-28T10:15:00
    checkpoints: frozenset[str]  # digests
    prompts: frozenset[str]  # prompt ids


def note(campaign: Campaign, split: str) -> None:
    """Write down that the campaign reads a split, before it does. Called again it changes nothing.

    The campaign's last round must be finished, and its prompts must be in the store.
    """
    ids, checkpoints = prompts_of(campaign, split), checkpoints_at_end(campaign.rounds())
    path = _path(campaign.home, campaign.name, ids, checkpoints)
    if path.exists():
        return
    digests = {which: ref.digest for which, ref in checkpoints.items()}
    when = datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    path.parent.mkdir(exist_ok=True)
    record = {"campaign": campaign.name, "split": split, "when": when, "checkpoints": digests, "prompts": sorted(ids)}
    write_atomic(path, json.dumps(record, indent=1))


def _path(home: Path, name: str, ids: Iterable[str], checkpoints: Mapping[str, Ref]) -> Path:
    digests = sorted({ref.digest for ref in checkpoints.values()})
    return home / "test_reads" / f"{digest(ids)}.{name}.{sha256_text(canonical(digests))[:12]}.json"


def digest(ids: Iterable[str]) -> str:
    """The name of a split: a hash of its prompts, in any order."""
    return sha256_text(canonical(sorted(ids)))[:12]


def prompts_of(campaign: Campaign, split: str) -> frozenset[str]:
    """The ids of the campaign's prompts in a split; empty if it has none, or if its prompts are not in the store."""
    import pyarrow.parquet as pq

    rounds = read_rounds(campaign.folder)
    ref = rounds[0].artifacts.get(labels.PREPARE.text) if rounds else None
    prepared = campaign.store.find(ref.key) if ref else None
    if prepared is None or prepared.absent or not prepared.file(f"{split}.parquet").exists():
        return frozenset()
    return frozenset(pq.read_table(prepared.file(f"{split}.parquet"), columns=["prompt_id"])["prompt_id"].to_pylist())


def reads(home: Path, ids: frozenset[str]) -> list[Read]:
    """The reads of a split, and of any split that shares prompts with it, the earliest first."""
    found = [_read(path, ids) for path in sorted((home / "test_reads").glob("*.json"))]
    return sorted((read for read in found if read.prompts & ids), key=lambda read: (read.when, read.campaign))


def readers(campaign: Campaign) -> set[str]:
    """Names of the other campaigns that read one of its test splits, or part of it."""
    found = (read for split in SPLITS for read in reads(campaign.home, prompts_of(campaign, split)))
    return {read.campaign for read in found} - {campaign.name}


def _read(path: Path, ids: frozenset[str]) -> Read:
    try:
        record = json.loads(path.read_text())
        digests = frozenset(record["checkpoints"].values())
        return Read(str(record["campaign"]), str(record["when"]), digests, frozenset(record["prompts"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        split, *name, _, _ = path.name.split(".")
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
        return Read(".".join(name), when, DAMAGED, ids if split == digest(ids) else frozenset())


def in_words(campaign: Campaign) -> dict[str, str]:
    """How often the home has read each of the campaign's test splits, and by which campaigns; by the name of the split."""
    prompts = {split: prompts_of(campaign, split) for split in SPLITS}
    return {split: _in_words(campaign, split, ids) for split, ids in prompts.items() if ids}


def _in_words(campaign: Campaign, split: str, ids: frozenset[str]) -> str:
    found = reads(campaign.home, ids)
    start = f"{split} split {digest(ids)}, {len(ids)} prompts"
    told = f"{start}: {_counted(found, ids)}" if found else f"{start}: not read yet on this home"
    if not campaign.reads_test and campaign.final() is None:
        told += f". This campaign does not read it: sweep '{campaign.origin['sweep']}' reads it for its best campaign alone"
    return told


def _counted(found: list[Read], ids: frozenset[str]) -> str:
    times = "once" if len(found) == 1 else f"{len(found)} times"
    checkpoints = len(frozenset().union(*(read.checkpoints for read in found)))
    by = ", ".join(f"{read.campaign} ({read.when[:10]}{_share(read, ids)})" for read in found)
    return f"read {times} on this home, {checkpoints} checkpoint{'s' if checkpoints > 1 else ''}, by {by}"


def _share(read: Read, ids: frozenset[str]) -> str:
    shared = len(read.prompts & ids)
    return f", {shared} of the {len(ids)} prompts" if shared < len(ids) else ""
