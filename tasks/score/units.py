"""Quantities in answers: a number and its unit. pint knows the units and converts them.

pint hangs on towers of powers such as m^9^9^9. So a text is cut into short names with exponents of at most two digits before
pint sees them, and only worker processes of verify_pool call `verdict`.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import regex

from tasks.score import claims
from tasks.score.math_verdict import Verdict
from tasks.score.scorers import printable

if TYPE_CHECKING:
    import pint

MOST_FACTORS = 8  # in one unit; kg m^2 s^-2 K^-1 has 4
OURS = (  # what pint does not define
    "dollar = [dollar] = _ = USD",
    "cent = 0.01 * dollar",
    "euro = [euro] = _ = EUR",
    "sterling = [sterling] = _ = GBP",
    "pence = 0.01 * sterling",
    "share = [share]",  # not pint's percent: it has no dimension, so 50% would equal 0.5 rad
)
ALIASES = {
    "$": "dollar",
    "€": "euro",
    "£": "sterling",
    "%": "share",
    "percent": "share",
    "pct": "share",
    "Min": "minute",
    "Mins": "minute",
    "mins": "minute",
    "secs": "second",
    "hrs": "hour",
    "yrs": "year",
    "lbs": "pound",
    "kilo": "kilogram",
    "kilos": "kilogram",  # not kiloseconds
    "Celsius": "degC",
    "celsius": "degC",
    "Fahrenheit": "degF",
    "fahrenheit": "degF",
}
# Units only where no word follows: "5 in" has one, "5 in total" has none.
WORDS = frozenset({"a", "am", "an", "are", "as", "at", "de", "has", "he", "in", "me", "pm", "re", "to", "us"})
# What people count, and pint takes for units: "cats" for centi-atmospheres. From the words after numbers in GSM8K, and our own.
NEVER = frozenset(
    """
    acts ad apps bag bags bar bars candle candles can cat cats cd cds circle circles count counts cycle cycles dot dots fat
    fifth finches fly grade grades grain grains had hand hands hares hat hats kim kit line lines link links mad main man mat
    mats mercury pad page pages pan par pat petal pie pin pins point points pole poles quarter quarters rare rat rats section
    sections shake shakes share shares shot shots stone stones times tin toes turn turns tv unit units water
    """.split()  # noqa: SIM905
)

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {sign: f"{above}/{below}" for sign, above, below in zip("½¼¾⅓⅔⅛⅜⅝⅞⅕", "1131213571", "2443388885", strict=True)}
_DEGREES = r"(?:°|\bdeg(?:rees?)?\b)\s?"
_SPELLINGS = tuple(  # LaTeX and other spellings -> one spelling, in this order
    (regex.compile(pattern, regex.IGNORECASE), spelling)
    for pattern, spelling in (
        (r"\\[dt]?frac\{(\d{1,20})\}\{(\d{1,20})\}", r" \1/\2"),
        (r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname|rm|left|right)\b", ""),
        (r"(?<=\d)\\,(?=\d{3})", ""),
        (r"\\[,;:! ]|~|[\u00a0\u202f\u2009]", " "),
        (r"\\times\b|×", " x "),
        (r"\\cdot\b|⋅", "·"),
        (r"\^?\{?\\circ\}?|º", "°"),
        (r"\\%", "%"),
        (r"(?<!\\)\$([^$\n]{1,200}?)(?<!\\)\$(?!\d)", r" \1 "),  # a formula between dollars, not an amount
        (r"\\\$", "$"),
        (r"\\[()\[\]]", " "),
        (r"[{}]", ""),
        (r"(?<=[\w)])\*\*(?=[-+(\d])", "^"),
        (r"\*\*", " "),
        (r"[−–—](?=\d)", "-"),
        (_DEGREES + r"(?:celsius|centigrade|c)\b", " degC"),
        (_DEGREES + r"(?:fahrenheit|f)\b", " degF"),
        (_DEGREES + r"(?:kelvin|k)\b", " kelvin"),
        ("°", " degree "),
        ("μ", "µ"),
        (r"\b(light|nautical|fluid|metric|foot)[\s-](years?|miles?|ounces?|tons?|pounds?)\b", r"\1_\2"),
        (r"\b((?:kilo|mega|giga)?watt|ampere|amp)[\s-]hours?\b", r"\1*hour"),
    )
)
_NUMBER = regex.compile(
    r"(?P<sign>(?<![\w)\]])[-+])?(?P<money>[$€£]\s?)?(?<![\w.^]|\d,)(?=\.?\d)"
    r"(?:(?P<base>\d{1,4})\^\(?(?P<exponent>[-+]?\d{1,2})\)?(?![\d.])"
    r"|(?:(?P<mixed>\d{1,9})\s+(?=\d{1,9}/))?"
    r"(?P<whole>\d{1,3}(?:,\d{3}){1,6}(?!\d)|\d{1,30}(?!\d))?(?P<decimals>\.\d{1,30})?(?:/(?P<below>[1-9]\d{0,20})(?![\d.]))?"
    r"(?:\s{0,3}[x*·]\s{0,3}10\s?\^\s?\(?(?P<ten>[-+]?\d{1,2})\)?|[eE](?P<e>[-+]?\d{1,2})\b)?)"
)
_FACTOR = regex.compile(
    r"(?:(?P<shape>square|sq\.?|cubic|cu\.?)\s)?(?P<name>[a-zA-ZµÅΩ_]{1,30}|[%$€£])"
    r"(?:\s(?P<after>squared|cubed)\b|\s?\^\s?\(?(?P<power>[-+]?\d{1,2})\)?(?!\d)|(?P<digit>[-+]?[1-4])(?![\w.]))?"
)
_GAP = regex.compile(r"\s{0,2}-?(?=[a-zA-ZµÅΩ%$€£])")
_JOIN = regex.compile(r"\s?/\s?(?P<group>\()?|\s(?P<per>per|an?|each)\s|\s?[*·]\s?|[.-](?=[a-zA-Z])|(?P<space>\s)")
_A_WORD_FOLLOWS = regex.compile(r"\s+(?!per\b)[a-zA-Z]")
_AND = regex.compile(r"\s?,?\s?(?:and\s)?")
_OR = regex.compile(r"\s?,?\s?or\s+(?:(?:even|maybe|perhaps|possibly|about)\s+)?")
_OPERAND = regex.compile(r"[\d)]\s*[a-zA-Z]{0,3}\s*[-+*·/÷x]\s*\Z")  # the number after it is a part of a sum or a range
_POWER_LEFT = regex.compile(r"\)?\s?\^")
_BETWEEN = regex.compile(r"\bbetween\s+\Z")
_SHAPES = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cu.": 3, "cubed": 3}


@dataclass(frozen=True)
class Quantity:
    """A number as written, and its unit as pint reads it, such as "meter / second ** 2"; "" without a unit."""

    number: Fraction
    unit: str
    start: int  # where it stands in the text
    end: int


# -- the verdict -----------------------------------------------------------------------------------------------------------
def verdict(gold: str, text: str, tolerance: float) -> Verdict:
    """Whether the last quantity of the answer equals that of the gold answer. Call it in a worker process."""
    truth = last_quantity(plain(gold))
    if truth is None:
        return None, "gold_parse_failure", None
    in_boxes = claims.boxes(text)
    answered = plain(text[in_boxes[-1].inside : in_boxes[-1].end - 1] if in_boxes else text)
    answer = last_quantity(answered)
    if answer is None or not _commits(answered, answer, tolerance):
        return 0.0, "no_answer_found", None
    return float(agree(truth, answer, tolerance)), "ok", printable(in_base_units(answer))


def no_shortcut(gold: str, text: str) -> Verdict | None:
    return None


def warm_up() -> None:
    """Load pint and its definitions, so that this does not count as time of the first item."""
    _registry()


def agree(a: Quantity, b: Quantity, tolerance: float) -> bool:
    """Whether two quantities are equal within a relative tolerance of `a`. They are converted if both have a unit."""
    number = b.number
    if a.unit and b.unit:
        if not _registry().is_compatible_with(a.unit, b.unit):
            return False
        number = _registry().convert(b.number, b.unit, a.unit)
    return bool(abs(a.number - number) <= Fraction(tolerance) * abs(a.number))


def in_base_units(quantity: Quantity) -> str:
    """A text that is equal for equal quantities, whatever their units."""
    if not quantity.unit:
        return f"{float(quantity.number):.12g}"
    base = _registry().Quantity(quantity.number, quantity.unit).to_base_units()
    names = [name if power == 1 else f"{name}^{power}" for name, power in sorted(base.unit_items())]
    return " ".join([f"{float(base.magnitude):.12g}", *names])


# -- reading ---------------------------------------------------------------------------------------------------------------
def plain(text: str) -> str:
    """The text with LaTeX, superscripts and signs in one spelling, for `last_quantity`."""
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction} ") if sign in text else text
    text = regex.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text


def last_quantity(text: str) -> Quantity | None:
    """The last number in a plain text, with the unit that follows it or the currency before it.

    Numbers that only together are one quantity are added: 1 hour 30 minutes, 5 ft 3 in.
    """
    found = quantities(text)
    if not found:
        return None
    last = found[-1]
    for earlier in reversed(found[:-1]):
        if not _continues(text, earlier, last):
            break
        last = _sum(earlier, last)
    return last


def quantities(text: str) -> list[Quantity]:
    """Every number of a plain text in order, with its unit."""
    found = []
    at = 0
    while match := _NUMBER.search(text, at):
        unit, at = _unit_after(text, match.end(), ALIASES[match["money"].strip()] if match["money"] else "")
        if match["whole"] or match["decimals"] or match["base"]:
            found.append(Quantity(_value(match), unit, match.start(), at))
        at = max(at, match.start() + 1)
    return found


def _value(match: regex.Match[str]) -> Fraction:
    sign = -1 if match["sign"] == "-" else 1
    if match["base"]:
        return sign * Fraction(int(match["base"])) ** int(match["exponent"]) if int(match["base"]) else Fraction(0)
    number = Fraction((match["whole"] or "0").replace(",", "") + (match["decimals"] or ""))
    number = number / int(match["below"] or 1) + int(match["mixed"] or 0)
    return sign * number * Fraction(10) ** int(match["ten"] or match["e"] or 0)


def _unit_after(text: str, at: int, first: str) -> tuple[str, int]:
    """The unit at a place of the text, and where it ends. `first` is a currency that stood before the number."""
    powers: Counter[str] = Counter([first] if first else [])
    end, sign, in_group = at, 1, False
    at = at if first else (gap.end() if (gap := _GAP.match(text, at)) else at)
    for _ in range(MOST_FACTORS):
        join = _JOIN.match(text, at) if powers else None
        if powers and not join:
            break
        if join:
            at, in_group = join.end(), in_group or bool(join["group"])
            sign = -1 if in_group or join["per"] or "/" in join[0] else 1
        factor = _FACTOR.match(text, at)
        name = _name(factor["name"]) if factor else ""
        if not factor or not name or (join and join["space"] and not _are_symbols(powers, factor["name"])):
            break
        if _is_word(factor["name"]) and _A_WORD_FOLLOWS.match(text, factor.end()):
            break
        powers[name] += sign * _power(factor)
        end = at = factor.end()
        if in_group and text.startswith(")", end):
            end, at, in_group = end + 1, end + 1, False
    return " * ".join(f"{name} ** {power}" for name, power in sorted(powers.items()) if power), end


def _are_symbols(powers: Counter[str], name: str) -> bool:
    """Whether a space may join them: "kg m" is a product, "miles today" is not."""
    return max(map(len, powers)) <= 3 and len(name) <= 3 and not _is_word(name)


def _is_word(name: str) -> bool:
    return (name if len(name) == 1 else name.lower()) in WORDS  # A is the ampere


def _power(factor: regex.Match[str]) -> int:
    shape = _SHAPES.get(factor["shape"] or factor["after"] or "", 1)
    return shape * int(factor["power"] or factor["digit"] or 1)


def _continues(text: str, earlier: Quantity, later: Quantity) -> bool:
    """Whether two quantities are one, as 1 hour and 30 minutes: whole units first, then less than one of them."""
    if not (earlier.unit and later.unit and earlier.number.denominator == 1 and later.number >= 0):
        return False
    if not _AND.fullmatch(text, earlier.end, later.start) or "deg" in earlier.unit:
        return False
    compatible = _registry().is_compatible_with(earlier.unit, later.unit) and earlier.unit != later.unit
    return compatible and bool(_registry().convert(later.number, later.unit, earlier.unit) < 1)


def _sum(earlier: Quantity, later: Quantity) -> Quantity:
    more = _registry().convert(later.number, later.unit, earlier.unit)
    return replace(earlier, number=earlier.number + (more if earlier.number >= 0 else -more), end=later.end)


def _commits(text: str, answer: Quantity, tolerance: float) -> bool:
    """Whether the text stands by its last quantity: not "it is not 3 km", "either 3 km or 4 km", nor "10 - 7 km"."""
    if claims.denied(text, answer.start, answer.end) or _OPERAND.search(text, max(0, answer.start - 40), answer.start):
        return False
    if _POWER_LEFT.match(text, answer.end):  # m^123 or m^9^9, which was read as m or m^9
        return False
    other = next((q for q in reversed(quantities(text)) if q.end <= answer.start), None)
    if other is None:
        return True
    ranged = _BETWEEN.search(text, 0, other.start) and _AND.fullmatch(text, other.end, answer.start)
    offered = ranged or _OR.fullmatch(text, other.end, answer.start)
    return not offered or agree(other, answer, tolerance)


# -- pint ------------------------------------------------------------------------------------------------------------------
@functools.cache
def _registry() -> pint.UnitRegistry[Any]:
    import pint

    registry: pint.UnitRegistry[Any] = pint.UnitRegistry(non_int_type=Fraction, cache_folder=None)
    for definition in OURS:
        registry.define(definition)
    return registry


@functools.lru_cache(maxsize=4096)
def _name(word: str) -> str:
    """The name by which pint knows a unit; "" if it does not. Its symbols depend on case, and people write "Km"."""
    spellings = (ALIASES.get(word, word), ALIASES.get(word.lower(), word.lower())) if word.lower() not in NEVER else ()
    return next((name for name in spellings if name in _registry()), "")
