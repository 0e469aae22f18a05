"""Labels of artifacts are made and read in data/labels.py alone, and say what others used to guess from their text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data import labels
from data.errors import CampaignError
from data.labels import Label
from data.store.campaign import Campaign

CHECKOUT = Path(__file__).parents[1]
SUITE, PROBE = labels.suite("far"), labels.probe(2)
TRAINING = [
    labels.GENERATE,
    labels.POOL_OBSERVED,
    labels.score("tests.micro:ends_even"),
    labels.generate_for_pool("base"),
    labels.rollouts("steps", "verdicts"),
    labels.moving_average(12),
    labels.REFERENCE_LOGPROBS,
]
EVALUATION = [
    labels.BIAS,
    labels.ANCHORS,
    labels.ANCHOR_COMPLETIONS,
    labels.anchor_scores("completions"),
    labels.judge_health("judge"),
    labels.HELD_OUT.scores("greedy"),
    labels.evaluation("test").metrics,
    SUITE.prompts,
    SUITE.given,
    SUITE.logprobs,
    SUITE.scores("greedy"),
    PROBE.observed,
    PROBE.of_counterfactuals("prompts"),
    labels.probe().logprobs("base"),
    labels.PROBE_REWARD,
    labels.probe_score("completions"),
]


@pytest.mark.parametrize("label", [*TRAINING, *EVALUATION], ids=str)
def test_a_label_is_read_back_as_it_was_made(label: Label) -> None:
    # text, use and both flags survive the Round, which holds the text alone
    read = labels.read(label.text)
    assert (read.text, read.use, read.looked_back, read.copied) == (label.text, label.use, label.looked_back, label.copied)


def test_labels_say_which_data_is_training_data() -> None:
    # suites, anchors, judge health and the probe are evaluation data, whatever their text begins with
    assert {label.use for label in TRAINING} == {"training"}
    assert {label.use for label in EVALUATION} == {"evaluation"}


def test_no_two_constructors_make_one_label() -> None:
    # a scorer, suite or round of any name gets a label of its own
    every = labels._all("{}")
    assert len({label.text for label in every}) == len({id(label) for label in every})


@pytest.mark.parametrize("text", ["", "nothing", "evaluate/greedy/more", "probe/twins/asked", "suite/far", "score"])
def test_an_unknown_label_is_refused(text: str) -> None:
    # a Round of another version is named, not guessed at
    with pytest.raises(CampaignError, match="expected the label of an artifact"):
        labels.read(text)


def test_what_later_rounds_read_is_marked() -> None:
    # a lost artifact of these is made again by going through the finished rounds, before a later round needs it
    samples = labels.probe()
    read_later = [
        samples.observed,
        samples.verdicts,
        samples.counterfactuals,
        labels.PROBE_REWARD,
        labels.BIAS,
        labels.GENERATE,
    ]
    read_later += [
        labels.GENERATE,
        labels.score("x"),
        labels.anchor_scores("x"),
        SUITE.scores("greedy"),
        SUITE.logprobs,
        labels.PREPARE,
        labels.CURATE,
        labels.DRAW,
    ]
    assert all(label.looked_back for label in read_later)
    assert not any(label.looked_back for label in (samples.completions, labels.PAIR, labels.HELD_OUT.metrics, labels.TRAIN))


def test_mlflow_accepts_every_label() -> None:
    # MLflow refuses other characters in tags and folders
    assert labels.score("pass@4, mine!").mlflow == "score/pass_at_4_ mine_"
    assert all(re.fullmatch(r"[/\w.\- :]+", label.mlflow) for label in [*TRAINING, *EVALUATION])


@pytest.mark.minutes
def test_a_campaign_has_no_other_labels(run_micro: Callable[..., Campaign]) -> None:
    # Claim: every artifact of real rounds has a label that a constructor makes.
    campaign = run_micro("tiny_dpo", "rounds=1", "probe.samples=2", "probe.baseline=1", fresh=True)
    for finished in campaign.rounds():
        assert [labels.read(text).text for text in finished.artifacts] == list(finished.artifacts)


def test_nobody_else_takes_a_label_apart() -> None:
    # Claim: outside data/labels.py no code splits, matches or compares the beginning of an artifact's label.
    pattern = re.compile(r"(evaluate|probe|suite|anchors|score|judge_health|rollouts|generate)/")
    decoding = {"startswith", "endswith", "split", "partition", "removeprefix", "removesuffix", "match", "fullmatch", "search"}
    guilty = []
    for room in ("data", "tasks", "registry", "flows"):
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in decoding:
                    texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                    guilty += [f"{path.relative_to(CHECKOUT)}:{node.lineno}" for text in texts if pattern.match(text)]
    allowed = {"tasks/gate/training_alarms.py"}  # suite/<name>/... are names of metrics there
    assert [place for place in guilty if place.split(":")[0] not in allowed] == []
