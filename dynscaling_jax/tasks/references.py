"""Reference answers: read whole or not at all, and the kind that they tell."""

import re
from collections.abc import Sequence

from dynscaling_jax.tasks.forms import canonical, check_kind
from dynscaling_jax.tasks.markup import TEXT, clean, unwrap
from dynscaling_jax.tasks.numbers import CLOCK, rational, show

_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[).:]*")
_OPTION = re.compile(_LETTER.pattern + r"|\(?([A-Za-z])[).:]\s.*", re.DOTALL)
_TRUTH = re.compile(r"true|false|yes|no", re.IGNORECASE)
_UNIT = re.compile(r"(?<=[\d.}])\s*(?!e?\d)[A-Za-z][A-Za-z .]*$")
_SCALE = re.compile(r"hundred|thousand|[mb]illion|trillion", re.IGNORECASE)
_MATHEMATICS = re.compile(
    r"\\[A-Za-z{]|[\^_=<>√π∞]|[\dA-Za-z)]\s*[+*/]\s*[\w(\\]"
    r"|\d\s*[,;-]\s*[-\d(\\]|[(\[{]\s*-?[\d\\]"
)
_SAID = re.compile(  # dates and words
    r"\d+/\d+/\d+|\d{4}-\d\d-\d\d"
    r"|\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?\s\d"
    r"|(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}"
)


def reference(text: str, kind: str) -> str | None:
    """The canonical form of a reference; None where `kind` does not read all
    of it: "1,2" is no number, "A train" no option.

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
    """The kind of answer that reads every reference as it stands: choice for
    letters alone, boolean, number, else math where one of them is written so
    and all can be read, else text."""
    bare = [_bare(text) for text in references]
    if all(map(_LETTER.fullmatch, bare)):
        return "choice"
    if all(map(_TRUTH.fullmatch, bare)):
        return "boolean"
    others = [
        text
        for text, plain in zip(references, bare, strict=True)
        if rational(plain) is None
    ]
    if not others:
        return "number"
    marked = any(map(_MATHEMATICS.search, others))
    said = any(_SAID.search(TEXT.sub("", text)) for text in others)
    if marked and not said and all(canonical(t, "math") for t in references):
        return "math"
    return "text"


def _bare(text: str) -> str:
    return unwrap(clean(TEXT.sub(r" \1 ", text))).strip()
