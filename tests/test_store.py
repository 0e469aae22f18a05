from __future__ import annotations

import inspect
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DamagedArtifact, HomeError
from data.rows import tables
from data.store.locks import LockHeld, locked
from data.store.store import Artifact, Job, Store, derive_seed, digest_of, hash_folder, sha256_file

CHECKOUT = Path(__file__).parents[1]

JOB = Job("stage", 1, {"n": 1}, {"prompts": "d" * 64}, 0, {"scorers:x": "1"}, {"numpy": "2.3"})
PAIRS = [{"prompt_id": f"p{i}", "chosen_id": "a", "rejected_id": "b", "margin": float(i), "weight": 1.0} for i in range(40)]
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.dictionaries(TEXT, TEXT, max_size=3)
JOBS = st.builds(Job, TEXT, st.integers(1, 9), st.dictionaries(TEXT, PLAIN, max_size=3), TEXTS, st.integers(), TEXTS, TEXTS)
FILES = st.dictionaries(st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4})?\.x", fullmatch=True), st.binary(max_size=20), max_size=4)


def light(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "notes.txt").write_text("a note, long enough to flip a byte in")


def full(folder: Path) -> None:
    light(folder)
    tables.write(tables.from_rows(PAIRS, tables.PAIRS), tables.PAIRS, folder / "pairs.parquet")


def make(store: Store, job: Job = JOB, fill: Callable[[Path], None] = light) -> Artifact:
    with store.attempt(job.key) as partial:
        fill(partial / "payload")
        return store.commit(job, {"prompts": None}, "source", {"seconds": 1})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def whole(store: Store) -> Artifact:
    return make(store, fill=full)


# -- keys and digests -------------------------------------------------------------------------------------------------


@given(JOBS, PLAIN)
def test_every_field_of_a_job_is_in_its_key(job: Job, value: Any) -> None:
    # whatever shapes an artifact changes its key: each field, each nested value, each name
    others = [
        replace(job, stage=job.stage + "x"),
        replace(job, version=job.version + 1),
        replace(job, settings={**job.settings, "new setting": value}),
        replace(job, inputs={**job.inputs, "new input": "d"}),
        replace(job, seed=job.seed + 1),
        replace(job, parts={**job.parts, "new part": "1"}),
        replace(job, libraries={**job.libraries, "new library": "1"}),
    ]
    assert len({job.key, *(other.key for other in others)}) == len(others) + 1


@given(JOBS)
def test_nothing_else_is_in_a_key(job: Job) -> None:
    # the order of a dictionary is no part of a key, and a job read back from its manifest has the key it had
    def turned(value: Any) -> Any:
        return {k: turned(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    fields = {name: turned(getattr(job, name)) for name in reversed(Job.__dataclass_fields__)}
    assert Job(**fields).key == job.key
    assert Job(**json.loads(json.dumps(fields))).key == job.key


def test_a_value_json_cannot_hold_has_no_key() -> None:
    # NaN equals nothing, so a key made of it would never be found again
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = replace(JOB, settings={"x": float("nan")}).key


@settings(max_examples=40)
@given(FILES, FILES)
def test_a_digest_is_the_names_and_bytes_of_the_files(tmp_path_factory: pytest.TempPathFactory, one: Any, two: Any) -> None:
    # equal files give equal digests whatever their times and order of writing; any other byte or name gives another one
    def digest(files: dict[str, bytes], when: int) -> str:
        folder = tmp_path_factory.mktemp("payload")
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            os.utime(folder / name, (when, when))
        return digest_of(hash_folder(folder))

    assert digest(one, 1) == digest(dict(reversed(one.items())), 2)
    assert (digest(one, 1) == digest(two, 1)) == (one == two)


@given(st.integers(0, 2**31), st.text(max_size=9), st.integers(0, 1000))
def test_seeds_differ_by_stage_and_round(seed: int, stage: str, number: int) -> None:
    # a round after a roll-back has new seeds; the same round has the same seeds
    assert derive_seed(seed, stage, number) == derive_seed(seed, stage, number) < 2**31
    assert derive_seed(seed, stage, number) != derive_seed(seed, stage, number + 1)
    assert derive_seed(seed, stage, number) != derive_seed(seed, stage + "x", number)


# -- whole or absent --------------------------------------------------------------------------------------------------


def test_a_committed_artifact_is_found_by_key(store: Store, whole: Artifact) -> None:
    # a committed artifact is found by its key with the same digest, and its scratch and partial folders are gone
    found = store.find(JOB.key)
    assert found == replace(whole, reused=True)
    assert found is not None
    assert found.digest == digest_of(hash_folder(found.path))
    assert list((store.root / "partial").iterdir()) == []
    assert store.keys() == [JOB.key]
    assert store.find(replace(JOB, seed=1).key) is None


def test_times_and_hosts_are_outside_the_digest(store: Store, tmp_path: Path) -> None:
    # two machines that make the same thing at different times agree on its digest
    other = Store(tmp_path / "elsewhere")
    with other.attempt(JOB.key) as partial:
        light(partial / "payload")
        again = other.commit(JOB, {"prompts": None}, "another source", {"seconds": 99})
    assert again.digest == make(store).digest


# What a child process runs: `make` and what it needs, without the rest of this file, so that it starts and forks fast.
MAKE = "\n".join(
    [
        "from __future__ import annotations",
        "import os, shutil, signal, sys, traceback",
        "from dataclasses import replace",
        "from pathlib import Path",
        "from data.store.store import Artifact, Job, Store",
        f"JOB = {JOB!r}",
        inspect.getsource(light),
        inspect.getsource(make),
    ]
)
KILLED = """
WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.truncate", "shutil.rmtree")

def attempt(root, kill_at):
    # make the artifact; this process dies at its kill_at-th operation on a file
    left = kill_at
    def hook(event, args):
        nonlocal left
        if event in WATCHED:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    make(Store(root))

start, root = Path(sys.argv[1]), Path(sys.argv[2])
for kill_at in range(1, 1000):
    place = root / f"{kill_at:03d}"
    shutil.copytree(start, place)
    pid = os.fork()
    if pid == 0:
        try:
            attempt(place, kill_at)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(place, code, flush=True)
    if code != -signal.SIGKILL:
        break
"""


def killed_at_every_instant(start: Path, places: Path) -> Iterator[Store]:
    """Stores left by processes killed at their first, second, ... file operation while making JOB in a copy of `start`."""
    places.mkdir()
    command = [sys.executable, "-c", MAKE + KILLED, str(start), str(places)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=120)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 20, done.stderr
    assert lines[-1][1] == "0", done.stderr
    assert {code for _, code in lines[:-1]} == {str(-signal.SIGKILL)}
    for place, _ in lines:
        yield Store(Path(place))


def test_a_commit_is_whole_or_absent_wherever_it_is_killed(store: Store, tmp_path: Path) -> None:
    # SIGKILL before any single file operation leaves nothing or a whole artifact; the next attempt succeeds at once
    whole = 0
    for left in killed_at_every_instant(store.root, tmp_path / "places"):
        found = left.find(JOB.key)
        whole += found is not None
        assert left.verify() == []
        assert list((left.root / "quarantine").iterdir()) == []
        with locked(left.root / "locks" / f"{JOB.key}.lock", wait=False):
            pass
        again = make(left)
        assert found is None or found.digest == again.digest
        assert left.find(JOB.key) == replace(again, reused=True)
        assert list((left.root / "partial").iterdir()) == []
    assert whole > 1  # some kills fell after the rename


def test_scratch_lasts_until_the_artifact_is_whole(store: Store, tmp_path: Path) -> None:
    # SIGKILL in the midst of a commit costs no shard: it is in scratch or in the whole artifact, and no scratch is left then
    shard = store.scratch(JOB.key) / "shard"
    shard.parent.mkdir(parents=True)
    shard.touch()
    for left in killed_at_every_instant(store.root, tmp_path / "places"):
        whole = left.find(JOB.key) is not None
        assert whole != (left.scratch(JOB.key) / "shard").exists()
        assert not (left.folder(JOB.key) / "scratch").exists()
        assert not whole or list((left.root / "partial").iterdir()) == []


@pytest.mark.parametrize("how", ["evicted", "damaged"])
def test_an_evicted_artifacts_manifest_survives_every_kill(store: Store, tmp_path: Path, how: str) -> None:
    # while a payload is made again its manifest is never away: after SIGKILL anywhere it can still be made from it
    whole = make(store)
    if how == "evicted":
        store.evict(JOB.key)
    else:
        store.quarantine(JOB.key, "a test")
    for left in killed_at_every_instant(store.root, tmp_path / "places"):
        found = left.find(JOB.key)
        assert found is not None
        assert found.digest == whole.digest
        assert left.manifest(JOB.key)["job"]["stage"] == "stage"
        assert make(left).digest == whole.digest
        found = left.find(JOB.key)
        assert found is not None
        assert found.absent == ""
        assert left.verify() == []


def test_everything_is_on_the_disk_before_it_is_in_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # a power cut after the rename finds every file and folder of the artifact already fsynced
    synced: set[str] = set()
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        if target == store.folder(JOB.key):
            assert synced >= {p.relative_to(self).as_posix() for p in (*self.rglob("*"), self)} - {"scratch"}
            synced.add("renamed")
        return rename(self, target)

    partial = store.root / "partial" / JOB.key
    monkeypatch.setattr("data.store.store.fsync", lambda path: synced.add(os.path.relpath(path, partial)))
    monkeypatch.setattr(Path, "rename", watched)
    make(store)
    assert "renamed" in synced


LOOP = """
store = Store(Path(sys.argv[1]))
for seed in range(100_000):
    make(store, replace(JOB, seed=seed))
    print(seed, flush=True)
"""


def test_a_process_killed_at_random_leaves_only_whole_artifacts(store: Store) -> None:
    # SIGKILL at random instants: everything found verifies, nothing stays locked, the interrupted one can be made
    chance = random.Random(7)
    for _ in range(4):
        command = [sys.executable, "-c", MAKE + LOOP, str(store.root)]
        with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(chance.randint(1, 12)):
                child.stdout.readline()
            time.sleep(chance.uniform(0, 0.03))
            child.kill()
        assert child.returncode == -signal.SIGKILL
        assert store.verify() == []
        for lock in (store.root / "locks").iterdir():
            with locked(lock, wait=False):
                pass
    made = len(store.keys())
    assert made > 0
    for seed in range(made + 1):
        make(store, replace(JOB, seed=seed))
    assert len(store.keys()) == made + 1
    assert list((store.root / "partial").iterdir()) == []


TWO = """
sys.stdin.readline()
print(make(Store(Path(sys.argv[1]))).digest)
"""


def test_two_processes_that_make_the_same_key_agree(store: Store) -> None:
    # both get the same digest and one artifact is there, whoever came first
    command = [sys.executable, "-c", MAKE + TWO, str(store.root)]
    children = [
        subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    digests = [child.communicate(timeout=60)[0].strip() for child in children]
    found = store.find(JOB.key)
    assert found is not None
    assert digests == [found.digest] * 2
    assert store.verify() == []
    assert list((store.root / "partial").iterdir()) == []


def test_the_first_artifact_stands(store: Store, whole: Artifact) -> None:
    # a second attempt with other bytes (possible on a GPU) does not replace the first artifact, and is reported
    def other(folder: Path) -> None:
        (folder / "other.txt").write_text("different")

    again = make(store, fill=other)
    assert again.digest == whole.digest
    assert (again.path / "pairs.parquet").exists()
    assert store.verify() == []


def test_what_an_attempt_leaves_in_scratch_survives_it(store: Store) -> None:
    # a failed attempt loses its payload and keeps its scratch for the next attempt; a commit removes the scratch
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        (folder.parent / "scratch" / "shard").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make(store, fill=fails)
    assert store.find(JOB.key) is None
    with store.attempt(JOB.key) as partial:
        assert list((partial / "payload").iterdir()) == []
        assert [p.name for p in store.scratch(JOB.key).iterdir()] == ["shard"]
        store.commit(JOB, {}, "source", {})
    assert list((store.root / "partial").iterdir()) == []
    assert hash_folder(store.folder(JOB.key) / "payload") == {}


def test_a_full_disk_at_commit_keeps_the_scratch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # the error that stops a commit is the one the caller sees, and the shards that cost hours are still there
    def full(self: Path, text: str, *args: Any) -> int:
        raise OSError(28, "No space left on device")

    with store.attempt(JOB.key) as partial:
        (partial / "scratch" / "shard").touch()
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            store.commit(JOB, {}, "source", {})
    monkeypatch.undo()
    assert (store.scratch(JOB.key) / "shard").exists()
    assert make(store).digest


# -- damage -----------------------------------------------------------------------------------------------------------


def flip(folder: Path) -> None:
    path = folder / "payload" / "deep" / "notes.txt"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    os.truncate(folder / "payload" / "pairs.parquet", 100)


def half(folder: Path) -> None:
    tables.write(tables.from_rows(PAIRS[:20], tables.PAIRS), tables.PAIRS, folder / "payload" / "pairs.parquet")


def extra(folder: Path) -> None:
    (folder / "payload" / "deep" / "extra").touch()


def missing(folder: Path) -> None:
    (folder / "payload" / "pairs.parquet").unlink()


def no_payload(folder: Path) -> None:
    shutil.rmtree(folder / "payload")


PAYLOAD_DAMAGE: dict[Callable[[Path], None], str] = {
    flip: "notes.txt",
    cut: "pairs.parquet",
    half: "pairs.parquet",
    extra: "deep/extra",
    missing: "pairs.parquet",
    no_payload: "missing",
}


@pytest.mark.parametrize("notice", ["find", "verify"])
@pytest.mark.parametrize("harm", PAYLOAD_DAMAGE, ids=lambda harm: harm.__name__)
def test_a_damaged_payload_is_named_set_aside_and_made_again(
    store: Store, whole: Artifact, harm: Callable[[Path], None], notice: str
) -> None:
    # one flipped byte or a missing half is never read: the file is named, the bytes are kept as evidence, the digest too
    harm(store.folder(JOB.key))
    if notice == "verify":
        [line] = store.verify()
        assert PAYLOAD_DAMAGE[harm] in line
        assert JOB.key[:12] in line
    found = store.find(JOB.key)
    assert found is not None
    assert (found.absent, found.digest) == ("damaged", whole.digest)
    [place] = (store.root / "quarantine").iterdir()
    assert place.name.startswith(JOB.key)
    assert PAYLOAD_DAMAGE[harm] in (place / "why.txt").read_text()
    assert (place / "payload").exists() == (harm is not no_payload)
    assert not (store.folder(JOB.key) / "payload").exists()
    assert store.verify() == []
    assert make(store, fill=full).digest == whole.digest
    assert store.find(JOB.key) == replace(whole, reused=True)


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edited_digest(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 64}))


def edited_job(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["job"]["seed"] += 1
    path.write_text(json.dumps(manifest))


def no_object(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("notice", ["find", "verify"])
@pytest.mark.parametrize("harm", [torn, edited_digest, edited_job, no_object, Path.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_manifest_takes_the_artifact_with_it(
    store: Store, whole: Artifact, harm: Callable[[Path], None], notice: str
) -> None:
    # if the manifest is damaged the whole artifact is set aside, and its key is free again
    harm(store.folder(JOB.key) / "manifest.json")
    with pytest.raises(DamagedArtifact, match=f"manifest of {JOB.key[:12]}"):
        store.manifest(JOB.key)
    if notice == "verify":
        assert len(store.verify()) == 1
    assert store.find(JOB.key) is None
    [place] = (store.root / "quarantine").iterdir()
    assert "manifest of" in (place / "why.txt").read_text()
    assert (place / JOB.key / "payload" / "pairs.parquet").exists()
    assert make(store, fill=full).digest == whole.digest


def test_find_trusts_size_and_mtime_and_verify_does_not(store: Store, whole: Artifact) -> None:
    # reading is cheap because a stamp vouches for unchanged files; only the full hash sees a byte that flipped in silence
    path = whole.path / "deep" / "notes.txt"
    before = path.stat()
    flip(store.folder(JOB.key))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = store.find(JOB.key)
    assert found is not None
    assert found.absent == ""
    assert len(store.verify()) == 1


def test_without_a_stamp_everything_is_hashed(store: Store, whole: Artifact) -> None:
    # a host that has never read this artifact (or whose stamp is torn) trusts nothing
    path = whole.path / "deep" / "notes.txt"
    before = path.stat()
    [stamp] = (store.root / "stamps").iterdir()
    good = stamp.read_text()
    torn(stamp)
    assert store.find(JOB.key) == replace(whole, reused=True)
    assert stamp.read_text() == good
    flip(store.folder(JOB.key))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    stamp.unlink()
    found = store.find(JOB.key)
    assert found is not None
    assert found.absent == "damaged"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_verify_sees_any_flipped_bit(store: Store, place: int, bit: int) -> None:
    # no bit of a payload can change unseen
    path = make(store, fill=full).path / "pairs.parquet"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    assert len(store.verify()) == 1


def test_verify_reports_every_artifact_and_its_progress(store: Store) -> None:
    # one damaged artifact does not hide another, the whole ones stay
    jobs = [replace(JOB, seed=seed) for seed in range(4)]
    for job in jobs:
        make(store, job)
    flip(store.folder(jobs[1].key))
    torn(store.folder(jobs[2].key) / "manifest.json")
    seen: list[tuple[int, int]] = []
    assert len(store.verify(lambda done, total: seen.append((done, total)))) == 2
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(artifact := store.find(job.key)) is not None and not artifact.absent for job in jobs] == [True, False, False, True]


# -- eviction, locks, homes -------------------------------------------------------------------------------------------


def test_evicting_keeps_manifest_and_digest(store: Store, whole: Artifact) -> None:
    # evicting deletes the payload and keeps the manifest with the digest
    size = sum(p.stat().st_size for p in whole.path.rglob("*") if p.is_file())
    assert store.evict(JOB.key) == size
    assert store.find(JOB.key) == replace(whole, absent="evicted", reused=True)
    assert not whole.path.exists()
    assert store.manifest(JOB.key)["digest"] == whole.digest
    assert store.verify() == []
    assert make(store, fill=full).digest == whole.digest
    assert store.find(JOB.key) == replace(whole, reused=True)


def test_verify_since_checks_what_was_stored_since(
    store: Store, ratchet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # damage in what was stored since then is found, and older artifacts are not read; a date and a number of days both do
    made = [make(store, replace(JOB, seed=seed)) for seed in range(3)]
    for days, artifact in zip((10, 3, 0), made, strict=True):
        when = time.time() - 86400 * days
        os.utime(store.folder(artifact.key) / "manifest.json", (when, when))
        file = artifact.file("deep/notes.txt")
        before = file.stat()
        file.write_text(file.read_text().swapcase())
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for since, found in ((time.strftime("%Y-%m-%d", time.localtime(time.time() - 86400)), 1), ("5 days", 1), ("11", 1)):
        assert ratchet("verify", "--home", store.root.parent, "--since", since) == 1
        assert f"{found} damaged" in capsys.readouterr().out
    assert store.verify() == []
    assert ratchet("verify", "--home", store.root.parent, "--since", "last week") == 2
    assert "expected a date such as 2026-11-01, or a number of days" in capsys.readouterr().err


HOLD = """
import sys, time
from pathlib import Path
from data.store.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    # a held lock is waited for (and said so), refused with wait=False, and free once its holder is SIGKILLed
    path, said = tmp_path / "lock", threading.Event()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], cwd=CHECKOUT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(LockHeld), locked(path, wait=False):
            pass
        killer = threading.Thread(target=lambda: child.kill() if said.wait(30) else None)
        killer.start()
        with locked(path, waiting=said.set):
            pass
        killer.join()
    assert said.is_set()
    assert child.returncode == -signal.SIGKILL


def test_a_home_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    # a file where the store should be is the user's to move
    (tmp_path / "taken").touch()
    with pytest.raises(HomeError, match=r"cannot create .*taken.*--home"):
        Store(tmp_path / "taken")


def test_sha256_file_is_sha256sum(tmp_path: Path) -> None:
    # digests can be checked with the tools everybody has
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
