"""Sentence lengths of the Markdown files and of what the program prints: `python -m tests.prose [FILES] [--before REV]`.

Code blocks, tables and headings are left out of a Markdown file. What the program prints are the docstrings of commands, the
help of their options, the messages of raise statements and of rules, and the descriptions of recipe settings.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

N = TypeVar("N", bound=ast.AST)
ROOT = Path(__file__).parent.parent
ROOMS = ("data", "tasks", "registry", "flows")
SKIPPED = re.compile(r"^\s*(#|\||<!--|!\[)")  # headings, tables, comments, images
ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+")
END = re.compile(r"(?<=[.!?])[\"')*_`]*\s+(?=[\"'(*_`\[]*[A-Z0-9`\[.])")
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|et al|vs|cf|Fig|No|approx)\.")


@dataclass(frozen=True)
class Prose:
    """What a table row says of one text."""

    lines: int
    lengths: tuple[int, ...]  # words of each sentence

    @property
    def median(self) -> float:
        return median(self.lengths) if self.lengths else 0.0

    def over(self, words: int) -> float:
        """Share of the sentences with more than so many words."""
        return sum(length > words for length in self.lengths) / len(self.lengths) if self.lengths else 0.0


# -- Markdown ------------------------------------------------------------------------------------------------------------
def paragraphs(markdown: str) -> Iterator[str]:
    """Paragraphs and list items, each on one line."""
    kept: list[str] = []
    fenced = False
    for line in [*markdown.splitlines(), ""]:
        if line.lstrip().startswith("```"):
            fenced = not fenced
            line = ""
        ends = fenced or not line.strip() or SKIPPED.match(line) or ITEM.match(line)
        if ends and kept:
            yield " ".join(kept)
            kept = []
        if not fenced and line.strip() and not SKIPPED.match(line):
            kept.append(ITEM.sub("", line).strip())


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph. A link counts as its text, and each word of inline code as a word."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
    plain = ABBREVIATIONS.sub(r"\1", plain)
    return [part for part in END.split(plain) if words(part)]


def words(sentence: str) -> int:
    """Runs between spaces that hold a letter or a digit."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def of_markdown(text: str) -> Prose:
    return Prose(len(text.splitlines()), tuple(words(one) for p in paragraphs(text) for one in sentences(p)))


# -- what the program prints ---------------------------------------------------------------------------------------------
def command_docstrings(sources: Mapping[str, str]) -> Iterator[str]:
    """Docstrings of the functions that flows/commands/all_commands.py registers as commands, without their examples."""
    cli = sources.get("flows/commands/all_commands.py")
    if cli is None:
        return
    functions = {(path, f.name): f for path, text in sources.items() for f in _functions(ast.parse(text))}
    for place in registered(ast.parse(cli)):
        yield re.split(r"\n\s*Examples?:", ast.get_docstring(functions[place]) or "")[0]


def registered(cli: ast.Module) -> Iterator[tuple[str, str]]:
    """(file, function) of each command: `@app.command()`, `app.command()(f)`, and `for c in (f, g): app.command()(c)`."""
    modules = {alias.asname or alias.name: node.module for node in _nodes(cli, ast.ImportFrom) for alias in node.names}
    for own in _functions(cli):
        if any(_is_command(decorator) for decorator in own.decorator_list):
            yield "flows/commands/all_commands.py", own.name
    in_loop = {loop.target.id: loop.iter for loop in _nodes(cli, ast.For) if isinstance(loop.target, ast.Name)}
    for call in _nodes(cli, ast.Call):
        if _is_command(call.func) and isinstance(call.func, ast.Call):
            arguments = (name for argument in call.args for name in _nodes(argument, ast.Name))
            for function in (f for name in arguments for f in _nodes(in_loop.get(name.id, name), ast.Name)):
                module = modules.get(function.id)
                yield (module.replace(".", "/") + ".py" if module else "flows/commands/all_commands.py"), function.id


def _nodes(tree: ast.AST, kind: type[N]) -> Iterator[N]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return _nodes(tree, ast.FunctionDef)


def _is_command(node: ast.AST) -> bool:
    called = node.func if isinstance(node, ast.Call) else node
    return isinstance(called, ast.Attribute) and called.attr in ("command", "callback")


def option_helps(tree: ast.Module) -> Iterator[str]:
    """`typer.Option(..., help="...")`, also of arguments."""
    for call in _nodes(tree, ast.Call):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("Option", "Argument"):
            yield from (_text(keyword.value) for keyword in call.keywords if keyword.arg == "help")


def messages(tree: ast.Module) -> Iterator[str]:
    """The texts of raise statements, and those that rules yield; what an f-string fills in counts as one word."""
    for node in _nodes(tree, ast.Raise):
        if isinstance(node.exc, ast.Call):
            yield from _sentences(node.exc.args)
    for function in _functions(tree):
        if function.returns and ast.unparse(function.returns) == "Messages":
            yield from _sentences(node.value for node in _nodes(function, ast.Yield) if node.value)


def _sentences(nodes: Iterable[ast.expr]) -> Iterator[str]:
    """Texts of more than two words; fewer are a name or a path."""
    return (text for node in nodes if words(text := _text(node)) > 2)


def _text(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(_text(value) for value in values)
        case ast.FormattedValue():
            return "X"
        case ast.BinOp(left=left, right=right):
            return _text(left) + _text(right)
    return ""


def descriptions(tree: ast.Module) -> Iterator[str]:
    """`Field(..., description="...")`, the words of the recipe reference."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Field":
            yield from (_text(keyword.value) for keyword in node.keywords if keyword.arg == "description")


PRINTED = ("docstrings of commands", "help of options", "error messages", "recipe settings")


def printed(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """What the program prints, by kind, from Python sources by path."""
    trees = [ast.parse(text) for text in sources.values()]
    of_trees = (option_helps, messages, descriptions)
    texts = [list(command_docstrings(sources)), *([text for tree in trees for text in of(tree)] for of in of_trees)]
    return dict(zip(PRINTED, texts, strict=True))


def of_texts(texts: Sequence[str]) -> Prose:
    lengths = (words(one) for text in texts for p in paragraphs(text) for one in sentences(p))
    return Prose(sum(len(text.splitlines()) for text in texts), tuple(lengths))


# -- this checkout, and another revision ---------------------------------------------------------------------------------
def here() -> dict[str, str]:
    """The checkout's Markdown files and the rooms' Python files, by path."""
    found = [*ROOT.glob("*.md"), *(path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.md"))]
    found += [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(found)}


def at_revision(revision: str) -> dict[str, str]:
    """The same files of a git revision."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout

    names = [name for name in git("ls-tree", "-r", "--name-only", revision).splitlines() if _counts(name)]
    return {name: git("show", f"{revision}:{name}") for name in names}


def _counts(name: str) -> bool:
    room = name.split("/")[0]
    return (name.endswith(".md") and ("/" not in name or room in (*ROOMS, "tests"))) or (name.endswith(".py") and room in ROOMS)


def rows(files: Mapping[str, str], wanted: Sequence[str] = ()) -> Iterator[tuple[str, Prose]]:
    """A row per Markdown file, one for all of them, and one per kind of printed sentence."""
    markdown = {name: of_markdown(text) for name, text in files.items() if name.endswith(".md")}
    chosen = {name: prose for name, prose in markdown.items() if not wanted or name in wanted}
    yield from chosen.items()
    if len(chosen) > 1:
        lengths = tuple(length for prose in chosen.values() for length in prose.lengths)
        yield "all of these", Prose(sum(prose.lines for prose in chosen.values()), lengths)
    if not wanted:
        sources = {name: text for name, text in files.items() if name.endswith(".py")}
        yield from ((kind, of_texts(texts)) for kind, texts in printed(sources).items())


def table(files: Mapping[str, str], wanted: Sequence[str] = ()) -> str:
    head = "| text | lines | sentences | median words | over 30 | over 35 |\n|---|---|---|---|---|---|"
    return "\n".join(
        [
            head,
            *(
                f"| {name} | {p.lines} | {len(p.lengths)} | {p.median:g} | {p.over(30):.1%} | {p.over(35):.1%} |"
                for name, p in rows(files, wanted)
            ),
        ]
    )


def longest(text: str, above: int) -> list[str]:
    """The sentences of a text with more than `above` words, the longest first."""
    long = [sentence for p in paragraphs(text) for sentence in sentences(p) if words(sentence) > above]
    return sorted(long, key=words, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", help="Markdown files, from the checkout (default: all, and what is printed)")
    parser.add_argument("--before", metavar="REV", help="a git revision to show first")
    parser.add_argument("--longest", type=int, metavar="N", help="also print every sentence of more than N words")
    options = parser.parse_args()
    if options.before:
        print(f"At {options.before}:\n\n{table(at_revision(options.before), options.files)}\n\nNow:\n")
    files = here()
    print(table(files, options.files))
    if options.longest is not None:
        for name in options.files or [name for name in files if name.endswith(".md")]:
            for sentence in longest(files[name], options.longest):
                print(f"\n{name}, {words(sentence)} words: {sentence}")


if __name__ == "__main__":
    main()
