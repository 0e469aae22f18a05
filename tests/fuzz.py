"""Hostile inputs for everything that Ratchet reads: what each target reads, and how an input is made.

An input is made from a seed of its own, "TARGET/NUMBER", so one number makes it again. Most inputs are a sound one with a few
changes, since pure noise is refused at the first byte. A target calls the code that reads such inputs in a campaign.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from data.errors import RatchetError

HOSTILE: tuple[Any, ...] = (
    *("", " ", "\n", "\0", "\x1b[2J", "[/x]", "[red]", "\u202e", "\ufeff", "é" * 40, "\ud800", "a" * 5000, "9" * 5000),
    *(
        "../../x",
        "/etc/passwd",
        "~",
        "hf:x",
        "os:system",
        "tests.micro:ends_even",
        "$(touch x)",
        "{prompt}",
        "{{prompt}}",
        "%s",
    ),
    *("nan", "inf", "-inf", "1e999", "true", "null", "[[", "}", '"', "'", "\\", "(" * 300, "[" * 2000, "=" * 9, "#### 3"),
    *(0, -1, 1, 2**63, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, None),
    *([], {}, [[]], {"": None}, [None], ["a", 1], {"a": {"b": []}}, [{"role": "user", "content": "x"}], [{"role": 1}]),
)
TEXTS = tuple(value for value in HOSTILE if isinstance(value, str))
LIMIT = 60  # seconds an input may take before it counts as a hang
Row = dict[str, Any]


class Hang(BaseException):
    """An input that took longer than LIMIT."""


class Escape(BaseException):
    """An input that wrote outside the folder it was given, or started something."""


@dataclass(frozen=True)
class Target:
    """Something that reads what comes from outside."""

    read: Callable[[random.Random, Path], Any]  # makes an input from the seed and reads it
    weight: float = 1.0  # of the inputs that the bench tries; a quarter where an input is costly


# -- changing what is sound ------------------------------------------------------------------------------------------------
def text(sound: str, draw: random.Random) -> str:
    """A text with up to four changes: cut, doubled, swapped or replaced pieces, and hostile ones."""
    for _ in range(draw.randrange(5)):
        first, last = sorted(draw.randrange(len(sound) + 1) for _ in range(2))
        last = min(last, first + draw.choice((1, 8, 200)))
        piece = draw.choice(
            ("", sound[first:last] * 2, sound[first:last][::-1], draw.choice(TEXTS), chr(draw.randrange(0x300)))
        )
        sound = sound[:first] + piece + sound[last:]
    return sound


def raw(sound: bytes, draw: random.Random) -> bytes:
    """Bytes with up to three changes: flipped, cut, or replaced by noise."""
    for _ in range(draw.randrange(4)):
        place = draw.randrange(len(sound) + 1)
        end = b"" if draw.random() < 0.2 else sound[place + 1 :]
        sound = sound[:place] + draw.randbytes(draw.choice((0, 1, 1, 9))) + end
    return sound


def value(sound: Any, draw: random.Random) -> Any:
    """A JSON value with up to three changes: an inner value replaced, dropped, or put elsewhere."""
    changed = copy.deepcopy(sound)
    for _ in range(draw.randrange(1, 4)):
        changed = _changed(changed, draw)
    return changed


def _changed(inner: Any, draw: random.Random) -> Any:
    if not isinstance(inner, (dict, list)) or not inner or draw.random() < 0.1:
        return text(inner, draw) if isinstance(inner, str) and draw.random() < 0.5 else copy.deepcopy(draw.choice(HOSTILE))
    key = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    if draw.random() < 0.15:
        del inner[key]
    elif draw.random() < 0.1 and isinstance(inner, dict):
        inner[draw.choice(TEXTS)] = inner[key]
    else:
        inner[key] = _changed(inner[key], draw)
    return inner


def encoded(changed: Any, draw: random.Random) -> bytes:
    """JSON as some program may have written it."""
    return json.dumps(changed, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


# -- recipes ---------------------------------------------------------------------------------------------------------------
OVERRIDES = {"prompts.source": "file", "prompts.path": "p.jsonl", "model.path": "m"}  # as --prompts and --model set them


def recipe_file(draw: random.Random, place: Path) -> object:
    """A shipped recipe's text, changed; its parts are checked too."""
    from data.recipe import recipe as recipes

    sound = draw.choice(list(recipes.shipped().values())).read_text()
    lines = sound.splitlines()
    if draw.random() < 0.5:  # a line of another recipe, or the same setting with another value
        other = draw.choice(list(recipes.shipped().values())).read_text().splitlines()
        where = draw.randrange(len(lines))
        lines[where] = draw.choice(
            (draw.choice(other), f"{lines[where].partition('=')[0]}= {json.dumps(draw.choice(HOSTILE))}")
        )
    path = place / "recipe.toml"
    changed = text("\n".join(lines), draw) if draw.random() < 0.3 else "\n".join(lines)
    content = changed.encode("utf-8", "surrogatepass")
    path.write_bytes(raw(content, draw) if draw.random() < 0.1 else content)
    return _checked(recipes.load(path, (), OVERRIDES))


def setting(draw: random.Random, place: Path) -> object:
    """`--set PATH=VALUE`, of which both may be anything."""
    from data.recipe import recipe as recipes
    from data.recipe.dotted import flatten

    name = draw.choice(sorted(recipes.shipped()))
    paths = list(flatten(recipes.load(name, (), OVERRIDES).plain()))
    items = []
    for _ in range(draw.randrange(1, 4)):
        chosen = draw.choice(HOSTILE)
        word = draw.choice((str(chosen), json.dumps(chosen), text("{a = 1, b = [2, 'x']}", draw)))
        where = draw.choice(paths)
        items.append(f"{text(where, draw) if draw.random() < 0.3 else where}={word}")
    if draw.random() < 0.1:
        items.append(text(items[0], draw))
    return _checked(recipes.load(name, items, OVERRIDES))


def _checked(recipe: Any) -> object:
    from flows.commands.check import rounds_of
    from flows.commands.part_rules import check_parts

    check_parts(*rounds_of(recipe)[:3])
    return recipe


# -- files of rows ---------------------------------------------------------------------------------------------------------
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
RECORDS: tuple[Row, ...] = (
    {"question": "What is 2 + 2?", "answer": "It is <<2+2=4>>4\n#### 4", "level": 3},
    {"messages": CHAT, "answer": "4"},
    {"prompt": "Say it", "completions": ["4", "5"], "finish_reason": ["stop", "length"], "reward": [1, 0]},
    {"prompt": "Say it", "chosen": "4", "rejected": "5"},
    {"chosen": CHAT, "rejected": [*CHAT[:2], {"role": "assistant", "content": "5"}]},
    {"target": 24, "nums": [1, 2, 3, 4]},
    {"reward_model": {"ground_truth": {"target": 24, "numbers": [4, 6]}}, "data_source": "countdown", "prompt": "x"},
    {"quiz": "Zoey says", "solution_text_format": "(1) Zoey is a knight", "names": ["Zoey"], "solution": [True]},
)


def _rows_file(draw: random.Random, place: Path, records: Sequence[Row] = RECORDS) -> Path:
    """A file of records in one of the formats, changed as values and as bytes."""
    sound = [draw.choice(records) | {"id": number, "prompt": f"{number}?"} for number in range(4)]
    sound = [draw.choice(records)] * 4 if draw.random() < 0.5 else sound
    rows = [value(row, draw) if draw.random() < 0.3 else row for row in sound]
    suffix = draw.choice((".jsonl", ".jsonl", ".jsonl", ".jsonl.gz", ".parquet"))
    path = place / f"rows{suffix}"
    content = b"\n".join(encoded(row, draw) for row in rows)
    if suffix == ".parquet":
        content = _parquet(rows, place) or content
    content = raw(content, draw) if draw.random() < 0.1 else content
    if suffix == ".jsonl.gz":
        content = gzip.compress(content, 1)
        content = raw(content, draw) if draw.random() < 0.1 else content
    path.write_bytes(content)
    return path


def _parquet(rows: list[Row], place: Path) -> bytes | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), place / "made.parquet")
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError, OSError):  # no table has such columns
        return None
    return (place / "made.parquet").read_bytes()


def _columns(draw: random.Random) -> Row:
    names = ("question", "answer", "prompt", "completions", "level", "a.b", "reward_model.ground_truth.target", "")
    roles = ("prompt", "answer", "system", "stratum", "completion")
    return {role: draw.choice(names) for role in roles if draw.random() < 0.03}


def prompts_file(draw: random.Random, place: Path) -> object:
    """A prompts file, through the stage that splits it."""
    from tasks.prompts import prepare

    path = _rows_file(draw, place)
    counts = {
        "seed": draw.choice((0, 0, 1)),
        "held_out": 1,
        "probe": 0,
        "test": 0,
        "ood": 0,
        "rounds": 0,
        "limit": draw.choice((0, 2)),
    }
    settings = prepare.Settings(
        source="file", path=str(path), map=_columns(draw), answer_after=draw.choice(("", "####")), **counts
    )
    work: Any = SimpleNamespace(settings=settings, inputs={"file": path}, seed=0, out=place)
    prepare.prepare(work)
    return settings


def completions_file(draw: random.Random, place: Path) -> object:
    """A file of recorded completions, through the stage that stores it; then it is read back."""
    from data.rows import completions
    from tasks.generate import import_completions

    path = _rows_file(draw, place, RECORDS[1:5])
    settings = import_completions.Settings(map=_columns(draw), template="{prompt}")
    work = SimpleNamespace(settings=settings, inputs={"file": path}, key="k", out=place)
    import_completions.import_completions(work)  # type: ignore[arg-type]
    return completions.as_rows(completions.read_completions(place))


# -- replies of models and servers -----------------------------------------------------------------------------------------
def judge_reply(draw: random.Random, place: Path) -> object:
    """A judge's answer, for every shipped template: a value of a label, or none."""
    from data.recipe import templates
    from tasks.score.scorers.judge import judge

    template = templates.load(draw.choice(sorted(path.stem for path in templates.FOLDER.glob("*.toml"))))
    label = draw.choice(list(template.labels))
    sound = f"It is fine.\n**{template.lead}** {label}"
    answer = text(sound * draw.choice((1, 1, 500)), draw)
    found = template.read(answer)
    assert found is None or found in template.labels.values(), found
    reason = draw.choice(("stop", "length", "error", None))
    return judge._read(SimpleNamespace(template=template), [{"text": answer, "finish_reason": reason}])  # type: ignore[arg-type]


REPLY = {
    "id": "x",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "four"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def endpoint_reply(draw: random.Random, place: Path) -> object:
    """A server's reply: status, headers and body may be anything. The journal of an earlier attempt may too."""
    import anyio
    import httpx

    from data.recipe.settings import Requests
    from tasks.generate import openai_client as client

    def handle(request: httpx.Request) -> httpx.Response:
        body = encoded(value(REPLY, draw), draw)
        body = raw(body, draw) if draw.random() < 0.3 else body
        names = ("content-encoding", "retry-after", "content-type", "content-length", "location", "x")
        words = ("gzip", "deflate", "br", "-1", "nan", "inf", "9" * 400, "soon", "text/html", "a" * 4000)
        headers = {draw.choice(names): draw.choice(words) for _ in range(draw.randrange(3))}
        return httpx.Response(draw.choice((200,) * 12 + (204, 400, 404, 418, 429, 500, 503)), headers=headers, content=body)

    async def ask() -> client.Reply:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as connection:
            server, one = (
                client.Server(url="http://127.0.0.1:9/v1", model="m"),
                client.Ask("x", [{"role": "user", "content": "2?"}]),
            )
            return await client._ask(connection, client._Pace(0), server, one, {}, Requests(attempts=2, backoff=1e-6))

    journal = place / "replies.jsonl"
    journal.unlink(missing_ok=True)
    with _no_waiting(client):
        reply = anyio.run(ask)
    assert reply.text is None or isinstance(reply.text, str)
    client._write(journal, reply)
    if journal.exists():
        journal.write_bytes(
            raw(journal.read_bytes(), draw) + b"\n" + encoded(value(json.loads(journal.read_text()), draw), draw)
        )
        return client._read(journal)
    return reply


@contextlib.contextmanager
def _no_waiting(client: Any) -> Iterator[None]:
    longest, client.LONGEST_RETRY_AFTER = client.LONGEST_RETRY_AFTER, 1e-6
    try:
        yield
    finally:
        client.LONGEST_RETRY_AFTER = longest


# -- files of a campaign ---------------------------------------------------------------------------------------------------
def campaign_file(draw: random.Random, place: Path) -> object:
    """A file of a campaign, a record of a read or a manifest, changed. `runs`, `show` and `gc` read it."""
    home = place / "home"
    files = [path for path in (home / "campaigns").rglob("*") if path.is_file() and path.stat().st_size]
    files += [*(home / "test_reads").glob("*.json"), *sorted((home / "store" / "artifacts").glob("*/*/manifest.json"))[:5]]
    path = draw.choice(sorted(files))
    sound = path.read_bytes()
    try:
        path.write_bytes(_damaged(sound, draw))
        return _shown(home, draw)
    finally:
        path.write_bytes(sound)


def _damaged(sound: bytes, draw: random.Random) -> bytes:
    with contextlib.suppress(ValueError):
        if draw.random() < 0.7:
            return encoded(value(json.loads(sound), draw), draw)
    return raw(sound, draw)


def _shown(home: Path, draw: random.Random) -> list[RatchetError]:
    """Two of the questions that a person can ask about a home. One may be refused; the others are asked all the same."""
    from data.store import garbage
    from data.store.campaign import folders
    from data.store.store import Store
    from flows import cli
    from flows.commands import lineage, show

    name, store = folders(home)[0], Store(home / "store")

    def collect() -> None:
        with garbage.at_rest(home) as used:
            garbage.find(home, used)

    questions: list[Callable[[], object]] = [
        lambda: show.runs(home, as_json=True),
        lambda: show.show(name, home=home, as_json=True),
        lambda: show.show(name, draw.randrange(2), home=home, as_json=True),
        lambda: show.show(name, home=home) if draw.randrange(8) == 0 else None,  # tables are slow to draw
        lambda: lineage.lineage(name, home=home) if draw.randrange(8) == 0 else None,
        lambda: [store.manifest(key) for key in draw.sample(store.keys(), 5)],
        collect,
    ]
    refused = []
    for question in draw.sample(questions, 2):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                question()
        except RatchetError as error:
            cli._tell(error)
            refused.append(error)
    return refused


# -- verifiers -------------------------------------------------------------------------------------------------------------
ANSWERS = ("4", "-1,234", "\\frac{3}{4}", "x^2+1", "(B)", "Paris", "72 dollars", "35%", "1e-7", "\\sqrt{2}", "[1,2)", "0.1")
WORLDS = ('{"numbers": [1, 2, 3, 4], "target": 24}', "Zoey is a knight, and Oliver is a knave.")
COMPLETIONS = (
    "So 2 + 2 = 4. The answer is 4.",
    "We get \\boxed{\\frac{3}{4}} and $x^2 + 1$.",
    "<think>a</think><answer>(1 + 2 + 3) * 4</answer>",
    "(1) Zoey is a knight\n(2) Oliver is a knave",
    "Final answer: $\\frac{2^{99^{99}}}{0}$, or 3 or 4",
    "\\boxed{9^{9^{9^{9}}}} \\int_0^\\infty \\sum_{i=1}^{10^9} i \\, dx",
)
SETTINGS: dict[str, Row] = {
    "math_equivalence": {"timeout": 0.5},
    "format": {"pattern": r"(?s).*<answer>.*</answer>\s*"},
    "language_share": {"script": "LATIN"},
    "imported": {"column": "reward"},
}
RULES = (  # scorers that need no model and no server
    *("exact_match", "math_equivalence", "countdown", "knights_knaves", "multiple_choice", "normalised_text", "quantity"),
    *("format", "language_share", "repetition", "votes", "imported"),
)


def verifier(draw: random.Random, place: Path, names: tuple[str, ...] = RULES) -> object:
    """Hostile completions and gold answers, for every scorer that works by rule: one finite value or None each."""
    from tasks.run import parts
    from tasks.score.score import scored

    name = draw.choice(names)
    count = draw.randrange(1, 4)
    prompts = {f"p{i}": {"prompt_id": f"p{i}", "messages": CHAT, "answer": _gold(draw)} for i in range(count)}
    rows = [_completion(i, draw) for i in range(count)]
    scorer = parts.configure("scorers", name, SETTINGS.get(name, {}), workers=1)
    found = scored(name, scorer, prompts, rows, None)
    assert [row["completion_id"] for row in found] == [row["completion_id"] for row in rows]
    assert all(row["value"] is None or math.isfinite(row["value"]) for row in found), found
    return [f"{row['status']} {row['detail']}".encode() for row in found]  # what is stored must be text


def _gold(draw: random.Random) -> str | None:
    sound = draw.choice((*ANSWERS, *WORLDS, None))
    return None if sound is None else text(sound, draw).encode("utf-8", "replace").decode()


def _completion(number: int, draw: random.Random) -> Row:
    said = text(draw.choice(COMPLETIONS) + draw.choice(("", " ", "\n", "\\boxed{4}", "4")), draw) * draw.choice((1, 1, 1, 50))
    return {
        "completion_id": f"c{number}",
        "prompt_id": f"p{number}",
        "sample": 0,
        "text": said.encode("utf-8", "replace").decode(),  # a tokenizer writes no half of a character
        "token_ids": draw.choice((None, [], [1, 1, 1, 1], list(range(50)))),
        "logprobs": None,
        "finish_reason": draw.choice(("stop", "stop", "length", "error", None)),
        "record": {"reward": draw.choice(HOSTILE)},
    }


def math_verifier(draw: random.Random, place: Path) -> object:
    """The verifier that parses mathematics, in workers with a time limit of half a second."""
    return verifier(draw, place, ("math_equivalence",))


TARGETS = {
    "recipe": Target(recipe_file),
    "set": Target(setting),
    "prompts": Target(prompts_file),
    "completions": Target(completions_file),
    "judge": Target(judge_reply),
    "endpoint": Target(endpoint_reply),
    "campaign": Target(campaign_file, 0.25),
    "verifiers": Target(lambda draw, place: verifier(draw, place, tuple(name for name in RULES if name != "math_equivalence"))),
    "math": Target(math_verifier, 0.25),
}


# -- one input -------------------------------------------------------------------------------------------------------------
def trouble(target: str, seed: str, place: Path) -> str:
    """What is wrong with how one input is read; "" if it gives a result, or an error of ours that can be printed."""
    from flows import cli

    place.mkdir(parents=True, exist_ok=True)
    try:
        with _time_limit(), _inside(place):
            TARGETS[target].read(random.Random(seed), place)
    except RatchetError as error:
        with contextlib.suppress(UnicodeEncodeError):
            cli._tell(error)
            return "" if str(error).strip() else f"an empty {type(error).__name__}"
        return f"a message that cannot be printed: {error!r:.300}"
    except (Exception, Hang, Escape) as error:
        return f"{type(error).__name__}: {error!s:.300}"
    return ""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"took more than {LIMIT} s")

    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


_allowed: list[str] = []  # the folder that may be written; empty while nothing is watched
_hooked = False


@contextlib.contextmanager
def _inside(place: Path) -> Iterator[None]:
    """Raise Escape where this process writes outside `place` or starts a command. Python tells its audit hooks of both."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked = True
    _allowed.append(os.path.realpath(place))
    try:
        yield
    finally:
        _allowed.pop()


COMMANDS = ("os.system", "os.exec", "os.posix_spawn", "os.startfile", "webbrowser.open", "pty.spawn")
CHANGES = (
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    if event in COMMANDS:
        raise Escape(f"{event} {arguments!r:.200}")
    if (event == "open" and (arguments[2] or 0) & WRITES) or event in CHANGES:
        path = arguments[0]
        if isinstance(path, (str, bytes, os.PathLike)) and not _within(os.fsdecode(path)):
            raise Escape(f"{event} {os.fsdecode(path)!r:.200}")


def _within(path: str) -> bool:
    real = os.path.realpath(path)
    return real.startswith((_allowed[-1] + os.sep, "/dev/", "/proc/")) or real == _allowed[-1] or "__pycache__" in real
