r"""Canonical forms: one spelling for an answer.

kind     what it reads                            examples
number   an exact rational                        "$1,000.00" -> "1000"
                                                  "1/2" -> "0.5"
math     LaTeX or plain mathematics, also lists,  "\dfrac12" -> "0.5"
         sets and intervals of it                 "3,\pi/2" -> "3, \pi/2"
choice   the letter of an option                  "(b)" -> "B"
boolean  true or false; yes, no: the same words   "yes." -> "True"
text     all else; case, spaces and dates made    "May 1, 2021" ->
         uniform                                  "2021-05-01"

Percent signs, currencies, degree signs and units are dropped: benchmarks ask
"what percentage" and want "50". A date in digits is month/day/year.
"""

import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

from dynscaling_jax.tasks.choices import choice
from dynscaling_jax.tasks.formulas import formula
from dynscaling_jax.tasks.markup import TEXT, phrase
from dynscaling_jax.tasks.numbers import number, rational, show

LONGEST = 2_000  # characters; what is longer is no answer
_ROUNDS = 8  # layers of markup, brackets and units that are peeled off


@lru_cache(maxsize=65_536)
def canonical(answer: str, kind: str) -> str | None:
    """Returns the one spelling of an answer; None if `kind` cannot read it.

    Idempotent: the canonical form of a canonical form is itself.

    Raises:
      ValueError: an unknown kind.
    """
    check_kind(kind)
    if len(answer) > LONGEST:
        return None
    read = _READERS[kind]
    for _ in range(_ROUNDS):
        before, answer = answer, read(answer) or ""
        if len(answer) > LONGEST:
            return None
        if answer == before:
            return answer or None
    return None


def check_kind(kind: str) -> None:
    """Raises ValueError for an unknown kind of answer."""
    if kind not in KINDS:
        raise ValueError(
            f"unknown kind of answer {kind!r}; known: {', '.join(KINDS)}"
        )


# Truth and free text.

TRUTH = re.compile(  # "no" before a noun denies nothing
    r"(?:\b(?:not|never)\s|n't\s)?\b(?:true|false|yes"
    r"|no(?!\s+(?!(?:because|since|as|it|the|this|that)\b)[a-z]))\b",
    re.IGNORECASE,
)
EITHER = re.compile(r"\b(?:true or false|yes or no)\b", re.IGNORECASE)
_TRUE = frozenset(
    "true yes t y 1 是 是的 对 正确 真 はい 네 예 да верно oui vrai ja wahr "
    "richtig sí si verdadero sim verdadeiro vero".split()
)
_FALSE = frozenset(
    "false no f n 0 否 不是 不对 错 错误 假 いいえ 아니요 нет неверно non faux "
    "nein falsch falso não".split()
)
_DATES = (
    "%m/%d/%Y",
    "%Y-%m-%d",
    "%B %d, %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%d %b %Y",
)


def _boolean(text: str) -> str | None:
    match = TRUTH.search(EITHER.sub(" ", text))
    if match:
        words = match[0].lower()  # "not true" has two
        return str(words.endswith(("true", "yes")) != (" " in words))
    words = re.findall(r"\w+", text.replace(r"\text", " ").lower())
    first = words[0] if words else ""
    if first in _TRUE | _FALSE and (len(words) == 1 or len(first) > 1):
        return str(first in _TRUE)
    return None


def _text(text: str) -> str | None:
    text = (
        _EMPHASIS.sub(r"\2", TEXT.sub(r"\1", text))
        .lstrip(_EDGES)
        .rstrip(_EDGES + ".")
    )
    value = rational(text)
    if value is not None:
        return show(value)
    if 8 <= len(text) <= 20:
        for form in _DATES:
            try:
                day = datetime.strptime(text, form)
            except ValueError:
                continue
            return day.date().isoformat()
    return phrase(text)


_EMPHASIS = re.compile(r"(\*{1,3})([^*\n]+)\1|(?<=\w)\*+(?!\w)")
_EDGES = " \t\r\n*_`\"',;:!\u2018\u2019\u201c\u201d\u00ab\u00bb"

_READERS: dict[str, Callable[[str], str | None]] = {
    "number": number,
    "math": formula,
    "choice": choice,
    "boolean": _boolean,
    "text": _text,
}
KINDS = tuple(_READERS)
