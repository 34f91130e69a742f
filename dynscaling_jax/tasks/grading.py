"""Reference answers, and predicted ones graded by them.

A reference is read whole or not at all. Predictions are compared with it by
the relation that the votes use.
"""

import re
from collections.abc import Sequence
from typing import Literal

from dynscaling_jax.tasks.equivalence import Compare
from dynscaling_jax.tasks.forms import canonical, check_kind
from dynscaling_jax.tasks.markup import TEXT, clean, unwrap
from dynscaling_jax.tasks.numbers import CLOCK, rational, show

Verdict = Literal["right", "wrong", "unreadable", "timeout"]

_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[).:]*")
_OPTION = re.compile(_LETTER.pattern + r"|\(?([A-Za-z])[).:]\s.*", re.DOTALL)
_TRUTH = re.compile(r"true|false|yes|no", re.IGNORECASE)
_UNIT = re.compile(r"(?<=[\d.}])\s*(?!e?\d)[A-Za-z][A-Za-z .]*$")
_SCALE = re.compile(r"hundred|thousand|[mb]illion|trillion", re.IGNORECASE)
_MATHEMATICS = re.compile(
    r"\\[A-Za-z{]|[\^_=<>√π∞]|[\dA-Za-z)]\s*[+*/]\s*[\w(\\]"
    r"|\d\s*[,;-]\s*[-\d(\\]|[(\[{]\s*-?[\d\\]"
)
_WORDS = re.compile(  # and dates
    r"\d+/\d+/\d+|\d{4}-\d\d-\d\d"
    r"|\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?\s\d"
    r"|(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}"
)


def read_reference(text: str, kind: str) -> str | None:
    """Returns the canonical form of a reference.

    It is None where `kind` does not read all of the text: "1,2" is no number,
    "A train" no option.

    Raises:
      ValueError: an unknown kind.
    """
    check_kind(kind)
    if kind == "number":
        text = _bare(text)
        unit = _UNIT.search(text)
        if unit and not _SCALE.search(unit[0]):
            text = text[: unit.start()]
        if CLOCK.fullmatch(text.strip()):
            return canonical(text, kind)
        value = rational(text)
        return None if value is None else show(value)
    if kind == "choice" and not _OPTION.fullmatch(_bare(text)):
        return None
    if kind == "boolean" and not _TRUTH.fullmatch(_bare(text)):
        return None
    return canonical(text, kind)


def kind_of(references: Sequence[str]) -> str:
    """Returns the kind of answer that reads every reference as it stands.

    It is choice for letters alone, boolean, number, else math where one of
    them is written so and all can be read, else text.
    """
    bare = [_bare(text) for text in references]
    if all(map(_LETTER.fullmatch, bare)):
        return "choice"
    if all(map(_TRUTH.fullmatch, bare)):
        return "boolean"
    plain = zip(references, bare, strict=True)
    others = [text for text, bare in plain if rational(bare) is None]
    if not others:
        return "number"
    marked = any(map(_MATHEMATICS.search, others))
    worded = any(_WORDS.search(TEXT.sub("", text)) for text in others)
    if marked and not worded and all(canonical(t, "math") for t in references):
        return "math"
    return "text"


def _bare(text: str) -> str:
    return unwrap(clean(TEXT.sub(r" \1 ", text))).strip()


def grade(
    predicted: str | None, reference: str, kind: str, compare: Compare
) -> Verdict:
    """Returns the verdict on a predicted answer; None is an unreadable one.

    Raises:
      ValueError: a reference that cannot be read whole as `kind`; an unknown
        kind.
    """
    if read_reference(reference, kind) is None:
        raise ValueError(f"the reference {reference!r} is no {kind} answer")
    if predicted is None or canonical(predicted, kind) is None:
        return "unreadable"
    outcome = compare(predicted, reference, kind)
    if outcome == "timeout":
        return "timeout"
    return "right" if outcome == "equal" else "wrong"
