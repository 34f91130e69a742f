"""Mathematics: LaTeX or plain formulas, lists, sets and intervals of them."""

import re
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from dynscaling_jax.tasks.markup import TEXT, clean, phrase, unwrap
from dynscaling_jax.tasks.numbers import rational, show

_DEEPEST = 20  # brackets within brackets
_UNITS = (
    "degrees?",
    "cm",
    "mm",
    "km",
    "inch(?:es)?",
    "feet",
    "foot",
    "ft",
    "yards?",
    "miles?",
    "met(?:er|re)s?",
    "square",
    "cubic",
    "units?",
    "dollars?",
    "cents?",
    "percent",
    "hours?",
    "minutes?",
    "seconds?",
    "days?",
    "weeks?",
    "months?",
    "years?",
    "mph",
    "kg",
    "grams?",
    "pounds?",
    "lit(?:er|re)s?",
    "per",
    "points?",
    "people",
    "students?",
    "ways?",
)
_UNIT = re.compile(
    rf"\s*+(?:\\text\s*+\{{[^{{}}]*\}}|(?:\b|(?<=\d))(?:{'|'.join(_UNITS)})\b)"
    r"(?:\s*+(?:\^\d|\^\{\d\}))?$",
    re.IGNORECASE,
)
_NAME = r"\\?[A-Za-z]+(?:_\w)?\s*+"
_ASSIGNED = re.compile(rf"{_NAME}=\s*+([^=<>]+)")
_MEMBER = re.compile(rf"{_NAME}\\in\b\s*+")
_CONJUNCTION = re.compile(r"\s*+(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*+")
_WORD = re.compile(r"[A-Za-z][A-Za-z .'-]*")
_SPACE = re.compile(r"(\\[A-Za-z]+)\s++(?=[A-Za-z])|\s++")
_BRACKET = re.compile(r"\\[{}]|\\(?:begin|end)\b|[][(){},;]")


class Listing(NamedTuple):
    """A list "1, 2", a tuple or interval "(1, 2]", a set "\\{1, 2\\}"."""

    opening: str  # "" for a bare list
    items: tuple[str, ...]
    closing: str


def listing(text: str) -> Listing:
    """The parts between the commas at the top level of `text` and the
    brackets around them all. A single value is a bare list of one."""
    tokens = list(_BRACKET.finditer(text))
    depth, closes_at = 0, len(text)
    for token in tokens:  # where does the first bracket close?
        depth += _depth(token[0])
        if depth <= 0 and token[0] not in ",;":
            closes_at = token.end()
            break
    opening = tokens[0][0] if tokens and tokens[0].start() == 0 else ""
    if opening not in ("(", "[", r"\{") or closes_at != len(text):
        opening = ""
    closing = tokens[-1][0] if opening else ""
    if _depth(closing) >= 0:  # never closed
        opening = closing = ""
    level = 1 if opening else 0
    items, depth, start = [], 0, len(opening)
    for token in tokens:
        depth += _depth(token[0])
        if token[0] in ",;" and depth == level:
            items.append(text[start : token.start()].strip())
            start = token.end()
    items.append(text[start : len(text) - len(closing)].strip())
    return Listing(opening, tuple(items), closing)


def _depth(token: str) -> int:
    if token in ("(", "[", "{", r"\{", r"\begin"):
        return 1
    return -1 if token in (")", "]", "}", r"\}", r"\end") else 0


def is_word(text: str) -> bool:
    """A name or a phrase, no formula: letters alone, at least three."""
    return bool(_WORD.fullmatch(text)) and sum(map(str.isalpha, text)) >= 3


def formula(text: str) -> str | None:
    text = unwrap(clean(text))
    if whole := TEXT.fullmatch(text):
        text = unwrap(whole[1])
    text, value = _measured(text)
    if value is not None:
        return show(value)
    if is_word(text):
        return phrase(text)
    depths = accumulate(map(_depth, _BRACKET.findall(text)))
    if max(depths, default=0) > _DEEPEST:
        return None
    text = _MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text
    opening, items, closing = listing(_CONJUNCTION.sub(", ", text))
    if len(items) == 1 and (opening, closing) in (("", ""), ("(", ")")):
        return _scalar(items[0])
    inner = ", ".join(filter(None, map(_scalar, items)))
    return opening + inner + closing if inner else None


def _scalar(text: str) -> str | None:
    text, value = _measured(text)
    if value is not None:
        return show(value)
    return _SPACE.sub(lambda m: m[1] + " " if m[1] else "", text)


def _measured(text: str) -> tuple[str, Fraction | None]:
    """The text without its unit, and its value where it is a number or names
    one: "x = 5 \\text{ cm}" is 5, "y = 2x + 3" has none."""
    text = _UNIT.sub("", text) or text
    assigned = _ASSIGNED.fullmatch(text)
    return text, rational(assigned[1] if assigned else text)
