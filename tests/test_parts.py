from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from data.errors import PartError
from tasks.run import parts
from tasks.run.parts import check_settings, configure, find, listing, public, version_of

ALL = [(family, name) for family in parts.FAMILIES for name in public(family)]
OWN = '''
from tasks.score.scorers import Score
def mine(prompts, completions, *, scale: float = 1.0, workers: int = 1):
    """Scores by length."""
    return [Score(scale * len(c["text"]) + 100 * workers) for c in completions]
class Loaded:
    """Loads once."""
    loads = 0
    def __init__(self, *, start: int):
        Loaded.loads += 1
        self.start = start
    def __call__(self, prompts, completions):
        return [Score(float(self.start)) for _ in completions]
number = 7
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module `my_judges` on the path."""
    path = tmp_path / "my_judges.py"
    path.write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield path
    sys.modules.pop("my_judges", None)


# -- the shelves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", parts.FAMILIES)
def test_every_shelf_has_parts(family: str) -> None:
    # a shelf without parts, or one whose helpers became public, would be noticed
    assert public(family)
    assert all(not name.startswith("_") for name in public(family))
    for module in parts.modules(family):
        helpers = set(getattr(module, "NOT_PARTS", ()))
        assert not helpers & public(family).keys()
        assert all(hasattr(module, name) for name in helpers)


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_part_says_what_it_does_and_checks_all_it_takes(family: str, name: str) -> None:
    # a docstring whose first line is a sentence, and settings that are keyword-only with a type pydantic can check
    part = find(family, name)
    assert (inspect.getdoc(part) or "").split("\n")[0].endswith((".", ")", "?"))
    hints = get_type_hints(part.__init__ if inspect.isclass(part) else part)
    for parameter in inspect.signature(part).parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert hints[parameter.name] is not Any
        else:
            assert parameter.default is parameter.empty  # what is given by the stage has no default


@pytest.mark.parametrize(("family", "name"), ALL)
def test_an_unknown_setting_is_refused(family: str, name: str) -> None:
    # a typo in a setting never runs with the default instead; the known ones are named
    with pytest.raises(PartError, match=rf"{family} '{name}': .*no_such: Extra inputs .*; its settings: "):
        check_settings(family, name, {"no_such": 1})


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_setting_of_the_wrong_type_is_refused(family: str, name: str) -> None:
    # each single setting, before anything runs
    part = find(family, name)
    known = [p for p in inspect.signature(part).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for setting in (p for p in known if p.name not in parts.SUPPLIED):
        wrong = ["a list"] if "dict[" in str(setting.annotation) else {"a": "table"}
        with pytest.raises(PartError, match=rf"{family} '{name}': .*{setting.name}[.\d]*: "):
            check_settings(family, name, {setting.name: wrong})


@pytest.mark.parametrize(("family", "name"), ALL)
def test_what_the_hardware_gives_is_no_setting(family: str, name: str) -> None:
    # the number of workers must not reach a key, so a recipe cannot set it
    for supplied in parts.SUPPLIED:
        with pytest.raises(PartError, match=f"{supplied}: "):
            check_settings(family, name, {supplied: 2})
    row = next(row for row in listing(family) if row["name"] == name)
    assert "workers" not in row["settings"]


@pytest.mark.parametrize(
    ("family", "name", "says"),
    [
        (
            "scorers",
            "exact_mach",
            r"scorers: no 'exact_mach' \(did you mean 'exact_match'\?\); expected one of .*package.module:name",
        ),
        ("scorers", "Score", "scorers: no 'Score'"),
        ("scorers", "_gold", "scorers: no '_gold'"),
        ("pairers", "all_correct", "pairers: no 'all_correct'; expected one of "),
        ("engines", "Engine", "engines: no 'Engine'"),
        ("selectors", "by_prompt", "selectors: no 'by_prompt'"),
    ],
)
def test_an_unknown_part_suggests_one(family: str, name: str, says: str) -> None:
    # helpers, types and imported names of a shelf are no parts
    with pytest.raises(PartError, match=says):
        find(family, name)


def test_a_required_setting_is_asked_for() -> None:
    # a part without a default for something says so before anything runs
    with pytest.raises(PartError, match=r"scorers 'format': pattern: Field required; its settings: pattern"):
        check_settings("scorers", "format", {})


def test_binding_fills_settings_in_and_leaves_defaults_to_the_part() -> None:
    # what is bound is the shelf's own function with the recipe's settings
    scorer = configure("scorers", "exact_match", {"after": "#"}, workers=9)
    row = {"prompt_id": "p", "answer": "7"}
    done = {"prompt_id": "p", "text": "so #7", "finish_reason": "stop"}
    assert [score.value for score in scorer([row], [done])] == [1.0]
    assert [score.value for score in configure("scorers", "exact_match", {})([row], [done])] == [0.0]
    assert check_settings("pairers", "right_vs_wrong", {"cap": 2}) == {"cap": 2}


@pytest.mark.parametrize("family", parts.FAMILIES)
def test_the_listing_is_the_shelf(family: str) -> None:
    # one row per part, with settings and defaults, first line of the docstring, and the line it is defined on
    rows = listing(family)
    assert [row["name"] for row in rows] == list(public(family))
    for row in rows:
        path, _, line = row["source"].rpartition(":")
        source = (Path(parts.__file__).parents[2] / path).read_text().splitlines()
        assert source[int(line) - 1].startswith((f"def {row['name']}(", f"class {row['name']}"))
        assert row["about"] == (inspect.getdoc(find(family, row["name"])) or "").split("\n")[0]


def test_the_listing_shows_defaults() -> None:
    # required ones bare, others with their default
    shown = {row["name"]: row["settings"] for row in listing("scorers")}
    assert shown["exact_match"] == "after=''"
    assert shown["format"] == "pattern"
    assert shown["math_equivalence"].startswith("timeout=")


# -- versions ---------------------------------------------------------------------------------------------------------


def test_a_shelf_part_has_version_one_until_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    # raising the VERSIONS entry of one part changes its key and no other part's
    monkeypatch.setattr(sys.modules[find("scorers", "exact_match").__module__], "VERSIONS", {"exact_match": 2}, raising=False)
    assert (version_of("scorers", "exact_match"), version_of("scorers", "format")) == ("2", "1")
    monkeypatch.undo()
    assert version_of("scorers", "exact_match") == "1"


def test_two_files_of_a_shelf_cannot_define_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a name in a recipe means one thing: a second definition is refused and both files are named
    for file in ("first", "second"):
        (tmp_path / f"{file}.py").write_text('def twin(prompts, completions):\n    """A twin."""\n')
    shelf = importlib.import_module("tasks.score.scorers")
    monkeypatch.setattr(shelf, "__path__", [*shelf.__path__, str(tmp_path)])
    said = r"'twin' is defined in tasks\.score\.scorers\.first and in tasks\.score\.scorers\.second"
    with pytest.raises(PartError, match=said):
        public("scorers")
    for file in ("first", "second"):
        sys.modules.pop(f"tasks.score.scorers.{file}")
        delattr(shelf, file)


# -- a user's own -----------------------------------------------------------------------------------------------------


def test_a_users_own_function_is_a_part(own: Path) -> None:
    # named by module and name, its settings checked like any other, workers supplied where it wants them
    scorer = configure("scorers", "my_judges:mine", {"scale": 2.0}, workers=3, hardware="not wanted")
    assert [score.value for score in scorer([{}], [{"text": "four"}])] == [308.0]
    with pytest.raises(PartError, match=r"scorers 'my_judges:mine': scale: .*; its settings: scale"):
        configure("scorers", "my_judges:mine", {"scale": "long"})
    with pytest.raises(PartError, match="my_judges:mine': workers: "):
        configure("scorers", "my_judges:mine", {"workers": 3})


def test_a_users_own_class_is_made_once(own: Path) -> None:
    # what loads a model loads it when bound, not per batch
    scorer = configure("scorers", "my_judges:Loaded", {"start": 5}, workers=3)
    for _ in range(3):
        assert [score.value for score in scorer([{}], [{}])] == [5.0]
    assert sys.modules["my_judges"].Loaded.loads == 1
    with pytest.raises(PartError, match="my_judges:Loaded': start: Field required"):
        configure("scorers", "my_judges:Loaded", {})


def test_a_users_own_parts_version_is_its_files_hash(own: Path) -> None:
    # any edit of the file makes its scores anew
    assert version_of("scorers", "my_judges:mine") == hashlib.sha256(OWN.encode()).hexdigest()
    own.write_text(OWN + "# a comment\n")
    assert version_of("scorers", "my_judges:mine") == hashlib.sha256((OWN + "# a comment\n").encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_judges:absent", "AttributeError: .*no attribute 'absent'"),
        ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("my_judges:", "AttributeError"),
        (":mine", "ValueError: Empty module name"),
        ("..tasks:mine", "TypeError: .*relative import"),
        ("broken:x", "SyntaxError: "),
        ("raises:x", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_users_own_part_that_cannot_be_imported_is_a_part_error(own: Path, name: str, says: str) -> None:
    # whatever is wrong with the name or the file, it is said in one line before anything runs
    (own.parent / "broken.py").write_text("def x(:")
    (own.parent / "raises.py").write_text("1 / 0")
    with pytest.raises(
        PartError, match=rf"scorers: cannot import '{name}': {says}.*expected package.module:name on PYTHONPATH"
    ):
        find("scorers", name)


def test_a_users_own_thing_that_cannot_be_called_is_refused(own: Path) -> None:
    # a number is no scorer
    with pytest.raises(PartError, match="scorers: expected 'my_judges:number' to be a function or class, found int"):
        find("scorers", "my_judges:number")
