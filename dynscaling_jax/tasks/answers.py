r"""Where in a model's text the answer stands.

Looked for in this order, and of each sort the last one that can be read:

1. \boxed{...} with balanced braces; of nested boxes the inner one
2. #### ..., the mark of GSM8K's solutions
3. "the answer is ...", "Answer: ..."
4. where nothing is announced, and the text was not cut off, by kind: the
   last number; the last option letter that is called correct, in parentheses
   or alone on its line; the last true, false, yes or no; the last line of a
   free text; for mathematics nothing

The text is untrusted: nothing here raises on it, and every step takes time
linear in its length.
"""

import functools
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from dynscaling_jax.tasks.forms import LONGEST, TRUTH, canonical, check_kind
from dynscaling_jax.tasks.markup import INLINE
from dynscaling_jax.tasks.numbers import NUMBER
from dynscaling_jax.thinking import Thinking, visible
from dynscaling_jax.types import Message, Request, Sample, SampleFn

Prompts = Mapping[tuple[str, int], Sequence[Message]]
_TRIED = 20  # announcements of one sort, from the last one back

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"(?<!#)#### *+(?=[^A-Za-z\s#]|[A-Za-z]\b)")
_ANSWER = re.compile(
    r"\banswers?\b[^\n.:=]{0,60}?(?::|=|\b(?:is|are)\b:?)[\s*]*+", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?][*\"')\]]*+(?:\s|$)")
_TEXT_MACRO = re.compile(r"\\text\s*+\{[^{}]*\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}")
_OPTION = re.compile(
    r"\(([A-Z])\)|^[ *]*+([A-Z])[ *.:)]*+$"
    r"|\b(?:correct|right|best)\s(?:option|choice|statement)\sis:?\s([A-Z])\b"
    r"|\b([A-Z])\sis\s(?:the\s)?(?:correct|right|best)\b",
    re.MULTILINE,
)


def extract(
    text: str,
    kind: str,
    thinking: Thinking = Thinking(),  # noqa: B008, immutable
    begun: str = "",
    cut: bool = False,
) -> str | None:
    """The canonical answer that `text` gives; None where none can be read.

    Only what stands outside the thoughts of the model is searched.

    Args:
      thinking: how the model marks its thoughts.
      begun: how its prompt began the turn; see thinking.visible.
      cut: the text ends by its length, so that its last number may be none
        that answers: what is not announced is not read.

    Raises:
      ValueError: an unknown kind.
    """
    check_kind(kind)
    shown = visible(text, thinking, begun)
    if shown is None:
        return None
    for segment in _announced(shown):
        answer = _read(segment, kind)
        if answer is not None:
            return answer
    return None if cut else _unannounced(shown, kind)


def answered(
    sample_fn: SampleFn,
    kind: str,
    thinking: Thinking = Thinking(),  # noqa: B008
) -> SampleFn:
    """Reads the canonical answer of each sample, but for failed ones.

    Raises:
      ValueError: an unknown kind.
    """
    check_kind(kind)

    def read(prompts: Prompts, sample: Sample) -> Sample:
        reason = sample.finish_reason
        if reason.startswith("error"):
            return sample
        begun = thinking.begun(prompts[sample.query_id, sample.index])
        cut = reason == "length"
        answer = extract(sample.text, kind, thinking, begun, cut)
        return sample._replace(answer=answer)

    def draw(requests: Sequence[Request]) -> Iterator[Sample]:
        prompts = {(r.query.id, r.index): r.messages for r in requests}
        return map(functools.partial(read, prompts), sample_fn(requests))

    return draw


def _announced(text: str) -> Iterator[str]:
    yield from reversed(_boxed(text))
    for mark in (_HASHES, _ANSWER):
        ends = deque((m.end() for m in mark.finditer(text)), maxlen=_TRIED)
        for end in reversed(ends):
            line = text[end : end + LONGEST].partition("\n")[0]
            yield _SENTENCE_END.split(line, maxsplit=1)[0]


def _boxed(text: str) -> list[str]:
    """The contents of balanced boxes, ordered by where they open."""
    spans: list[tuple[int, int]] = []
    opened: list[int | None] = []  # None is a brace that opens no box
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{":
            opened.append(None)
        elif token == "}":
            start = opened.pop() if opened else None
            if start is not None:
                spans.append((start, match.start()))
        elif token.startswith((r"\boxed", r"\fbox")):
            opened.append(match.end())
    # A nest of boxes repeats its text once a level: copy only what is tried.
    return [text[i:j] for i, j in sorted(spans)[-_TRIED:] if j - i <= LONGEST]


def _read(segment: str, kind: str) -> str | None:
    """The answer at the head of an announced segment. Where that is a whole
    sentence about mathematics, its first formula with those that are listed
    beside it, or else its number."""
    if kind == "math":
        formulas = _listed(segment)
        if formulas:
            segment = ", ".join(formulas)
        elif _PROSE.search(_TEXT_MACRO.sub("", segment)):
            number = canonical(segment, "number")
            return number or canonical(segment, kind)
    return canonical(segment, kind)


def _listed(segment: str) -> list[str]:
    """The first formula, and those after it that only "or", "and" or a comma
    parts from the one before."""
    formulas: list[str] = []
    end = 0
    for match in INLINE.finditer(segment):
        between = segment[end : match.start()].strip(" ,")
        if formulas and between not in ("", "or", "and"):
            break
        formulas.append(match[1] or match[2] or match[3])
        end = match.end()
    return formulas


def _unannounced(text: str, kind: str) -> str | None:
    if kind == "number":
        found = [match[0] for match in NUMBER.finditer(text)]
    elif kind == "choice":
        found = [next(filter(None, m.groups())) for m in _OPTION.finditer(text)]
    elif kind == "boolean":
        found = TRUTH.findall(text)
    elif kind == "text":
        found = [text.strip().rpartition("\n")[2]]
    else:
        found = []
    return canonical(found[-1], kind) if found else None
