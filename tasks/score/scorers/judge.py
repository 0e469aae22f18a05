"""Judges: a language model as scorer, prompted with a template of `data/judges/`; and its comparisons as a table."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator

from data.errors import PartError, RecipeError
from data.recipe import templates
from data.recipe.settings import Requests
from data.recipe.templates import Template
from data.rows.completions import by_prompt, unique_texts
from tasks.generate.engines import Batch, Decoding
from tasks.models import models
from tasks.run import parts as all_parts
from tasks.run.work import chunks
from tasks.score.scorers import Row, Score

NOT_PARTS = ("Reply", "comparisons")
VERSIONS = {"judge": 3}  # 3: an unreadable verdict counts as the prompt's mean; a floor for the mass on labels
LIBRARIES = {"judge": ("torch", "transformers", "tokenizers")}

# Control tokens of chat formats. If a judged text spells one out, a tokenizer would read it as the end of the user's turn.
CONTROL = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>")


def _is_template(name: str) -> str:
    try:
        templates.load(name)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    return name


@dataclass(frozen=True)
class Reply:
    """What a judge replied to one question."""

    values: tuple[float | None, ...]  # of its verdicts, None where one cannot be read
    detail: str | None
    status: str = "ok"  # why it has no value, if it has none


class judge:
    """A model's rating of a completion, from 0 to 1, with a template of `data/judges/`. score.checkpoint names the model.

    To use a server, set `engine` = "endpoint" and score.checkpoint = "", and give url and model in `engine_settings`.

    There is one verdict per distinct (prompt, text). A template that compares gets pairs of a prompt's texts, in both orders.
    Each text meets the next `opponents` texts in a circle (0 = all others), and its value is the mean share won. If none of a
    text's verdicts can be read, it has status parse_failure and no value, so that it is neither chosen nor rejected.

    `reading` = "sampled" samples `samples` verdicts and averages them (3 at temperature 0.7, top-p 0.9: Self-Rewarding Language
    Models, https://arxiv.org/abs/2401.10020). A verdict that cannot be read counts as the mean of its prompt's verdicts, and as
    0.5 in a comparison: else a mean over one verdict, which varies most, would be the highest and the lowest most often.

    "expected" weights the value of each label by its probability right after the lead (G-Eval,
    https://arxiv.org/abs/2303.16634). It needs the model in this process. If all labels together have a probability below
    `minimum_mass`, the judge would rather answer something else: status low_label_mass and no value.
    """

    def __init__(
        self,
        *,
        template: Annotated[str, AfterValidator(_is_template)],
        reading: Literal["sampled", "expected"] = "sampled",
        opponents: Annotated[int, Ge(0)] = 0,
        samples: Annotated[int, Ge(1)] = 3,
        temperature: Annotated[float, Ge(0)] = 0.7,
        top_p: Annotated[float, Gt(0), Le(1)] = 0.9,
        max_tokens: Annotated[int, Ge(1)] = 400,
        minimum_mass: Annotated[float, Ge(0), Lt(1)] = 0.1,
        batch: Annotated[int, Ge(1)] = 64,
        engine: str = "transformers",
        engine_settings: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        trust_remote_code: bool = False,
        requests: Requests | None = None,
        scratch: Path | None = None,
        record: Callable[[str], None] | None = None,
    ) -> None:
        self.template, self.opponents, self.samples, self.batch = templates.load(template), opponents, samples, batch
        self.decoding, self.minimum_mass = Decoding(samples, temperature, top_p, max_tokens), minimum_mass
        loading: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        self.control = CONTROL
        if checkpoint is not None:
            self.tokenizer = models.load_tokenizer(checkpoint, trust_remote_code)
            special = [re.escape(t.content) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
            self.control = re.compile("|".join([CONTROL.pattern, *special]))
        if reading == "expected":
            if checkpoint is None:
                raise PartError(
                    "scorers 'judge': reading = 'expected' needs a model in this process, found none; set score.checkpoint"
                )
            self.model = models.load_model(checkpoint, **loading)
            self.lead, self.labels = _label_tokens(self.tokenizer, self.template)
            self.ask = self._expected
        else:
            surroundings = {"requests": requests, "scratch": scratch, "record": record}
            self.engine = all_parts.configure("engines", engine, engine_settings or {}, **loading, **surroundings)(checkpoint)
            self.ask = self._sampled

    @staticmethod
    def parts(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What a verdict depends on: the template's text and, if verdicts are sampled, the engine.

        Raises:
            PartError: a wrong setting of the engine.
        """
        if settings["reading"] != "sampled":
            return [("judges", settings["template"])]
        all_parts.check_settings("engines", settings["engine"], settings["engine_settings"] or {})
        return [("judges", settings["template"]), ("engines", settings["engine"])]

    def close(self) -> None:
        """Close the engine, which frees its memory or records the cost of its requests."""
        if hasattr(self, "engine"):
            self.engine.close()

    def __call__(self, prompts: Sequence[Row], completions: Sequence[Row]) -> list[Score]:
        prompt_texts = {prompt["prompt_id"]: self._plain(prompt) for prompt in prompts}
        score_all = self._compare if self.template.compares else self._rate
        scores = score_all(prompt_texts, completions)
        return [scores[row["prompt_id"], row["text"]] for row in completions]

    # -- one text, or two -------------------------------------------------------------------------------------------------
    def _rate(self, prompt_texts: Mapping[str, str], completions: Sequence[Row]) -> dict[tuple[str, str], Score]:
        texts = list(dict.fromkeys((row["prompt_id"], row["text"]) for row in completions))
        replies = self.ask([self._fill(prompt_texts[p], completion=text) for p, text in texts])
        verdicts: dict[str, list[float]] = defaultdict(list)
        for (prompt, _), reply in zip(texts, replies, strict=True):
            verdicts[prompt] += [value for value in reply.values if value is not None]
        usual = {prompt: sum(values) / len(values) for prompt, values in verdicts.items() if values}
        return {text: _score(reply, usual.get(text[0], 0.0)) for text, reply in zip(texts, replies, strict=True)}

    def _compare(self, prompt_texts: Mapping[str, str], completions: Sequence[Row]) -> dict[tuple[str, str], Score]:
        games = [
            (first, second)
            for rows in by_prompt(completions).values()
            for pair in _circle(unique_texts(rows), self.opponents)
            for first, second in (pair, pair[::-1])
        ]
        questions = [self._fill(prompt_texts[a["prompt_id"]], first=a["text"], second=b["text"]) for a, b in games]
        won: dict[str, list[float | None]] = {}
        first_against: dict[str, dict[str, float | None]] = {}
        for (a, b), reply in zip(games, self.ask(questions), strict=True):
            value = _mean(reply.values, EVEN)
            won.setdefault(a["completion_id"], []).append(value)
            won.setdefault(b["completion_id"], []).append(None if value is None else 1 - value)
            first_against.setdefault(a["completion_id"], {})[b["completion_id"]] = value
        scores = {}
        for row in (row for rows in by_prompt(completions).values() for row in unique_texts(rows)):
            own = row["completion_id"]
            detail = json.dumps({"as": own, "first_against": first_against.get(own, {})})
            status = "parse_failure" if own in won else "no_opponent"
            scores[row["prompt_id"], row["text"]] = _score(Reply(tuple(won.get(own, ())), detail, status), EVEN)
        return scores

    # -- the question -----------------------------------------------------------------------------------------------------
    def _plain(self, prompt: Row) -> str:
        """The conversation as one text. A single message is used as it is."""
        messages = prompt["messages"]
        return messages[0]["content"] if len(messages) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)

    def _fill(self, prompt: str, **judged: str) -> str:
        """The template, filled with the texts. Control tokens in them are broken: only the chat template may end a turn."""
        broken = {name: self.control.sub(lambda t: f"{t[0][0]}\u200b{t[0][1:]}", text) for name, text in judged.items()}
        return self.template.fill({"prompt": prompt, **broken})

    # -- two ways to read a verdict ---------------------------------------------------------------------------------------
    def _sampled(self, questions: Sequence[str]) -> list[Reply]:
        distinct = list(dict.fromkeys(questions))  # two texts may be equal once their control tokens are broken
        rows: list[Row] = [{"prompt_id": _hash(q), "messages": [{"role": "user", "content": q}]} for q in distinct]
        batches = []
        for part in chunks(len(rows), max(1, self.batch // self.samples)):
            seeds = [
                int(rows[i]["prompt_id"][:12], 16) for i in part
            ]  # from the question alone, so that it gets the same answer again
            batches.append(Batch([rows[i] for i in part], seeds[0] & 0x7FFFFFFF, seeds))
        answers = dict(self.engine.sample(batches, self.decoding))
        flat = [row for index in range(len(batches)) for row in answers[index]]
        reply_of = {q: self._read(flat[i * self.samples : (i + 1) * self.samples]) for i, q in enumerate(distinct)}
        return [reply_of[question] for question in questions]

    def _read(self, answers: Sequence[Row]) -> Reply:
        """The verdicts of the answers. An answer that was cut off has none.

        If the server refused every request, the status is refused.
        """
        if all(row["finish_reason"] == "error" for row in answers):
            return Reply((), None, "refused")
        cut = ("length", "error")
        values = tuple(None if row["finish_reason"] in cut else self.template.read(row["text"]) for row in answers)
        readable = any(value is not None for value in values)
        detail = {"values": values} if readable else {"answer": ascii(answers[0]["text"][-200:])}
        return Reply(values, json.dumps(detail), "ok" if readable else "parse_failure")

    def _expected(self, questions: Sequence[str]) -> list[Reply]:
        sequences = [models.render(self.tokenizer, [{"role": "user", "content": q}]) + self.lead for q in questions]
        tokens, worth = list(self.labels), list(self.labels.values())
        replies = []
        pad = self.tokenizer.pad_token_id
        for p in models.next_token_probabilities(self.model, sequences, tokens, pad, self.batch):
            mass = sum(p)  # near 0 if the judge would rather answer with something other than a label
            known = mass > 0 and mass >= self.minimum_mass
            values = (sum(a * b for a, b in zip(p, worth, strict=True)) / mass,) if known else ()
            replies.append(Reply(values, json.dumps({"mass": round(mass, 6)}), "ok" if known else "low_label_mass"))
        return replies


def _label_tokens(tokenizer: Any, template: Template) -> tuple[list[int], dict[int, float]]:
    """The token ids of the lead, and the token of each label with its worth.

    Raises:
        PartError: a label is not a single token after the lead, so that its probability cannot be read at one position.
    """
    space = "" if len(template.lead) == 1 else " "
    ids = {label: tokenizer(template.lead + space + label, add_special_tokens=False)["input_ids"] for label in template.labels}
    shared = 0
    while len({tuple(i[: shared + 1]) for i in ids.values()}) == 1:
        shared += 1
    if any(len(i) != shared + 1 for i in ids.values()) or len({i[-1] for i in ids.values()}) < len(ids):
        raise PartError(
            f"scorers 'judge': reading = 'expected' needs labels of one token each after '{template.lead}', found {ids} with "
            "this tokenizer; use reading = 'sampled', or a template with other labels"
        )
    return next(iter(ids.values()))[:shared], {ids[label][-1]: worth for label, worth in template.labels.items()}


def _circle(rows: Sequence[Row], opponents: int) -> list[tuple[Row, Row]]:
    """All pairs of rows, or with a limit the pairs of each row and its next `opponents` rows in a circle."""
    count = len(rows)
    reach = min(opponents or count, count - 1)
    pairs = {tuple(sorted((i, (i + step) % count))) for i in range(count) for step in range(1, reach + 1)}
    return [(rows[i], rows[j]) for i, j in sorted(pairs)]


EVEN = 0.5  # what a comparison that cannot be read counts for either text


def _score(reply: Reply, unread: float) -> Score:
    value = _mean(reply.values, unread)
    return Score(value, reply.status if value is None else "ok", reply.detail)


def _mean(values: Sequence[float | None], unread: float) -> float | None:
    """The mean, where a value that cannot be read counts as `unread`; None if none can be read."""
    if all(value is None for value in values):
        return None
    return sum(unread if value is None else value for value in values) / len(values)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def comparisons(scores: Sequence[Row]) -> list[Row]:
    """Every verdict on two texts, from the SCORES rows of a judge that compares: prompt_id, first_id, second_id, first_wins.

    `first_wins` is between 0.0 and 1.0, or None if the verdict could not be read. Each order of a pair has a row.
    """
    verdicts = {}
    for row in scores:
        if row["detail"] and row["status"] != "no_opponent":
            detail = json.loads(row["detail"])
            for second, value in detail.get("first_against", {}).items():  # a judge that rates has other details
                verdicts[detail["as"], second] = {"prompt_id": row["prompt_id"], "first_wins": value}
    return [{"first_id": first, "second_id": second, **verdict} for (first, second), verdict in verdicts.items()]
