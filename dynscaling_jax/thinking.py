r"""Hidden thought: which part of a model's text is for the reader.

A model that reasons writes a thought and then an answer, and marks where the
one ends and the other begins: <think> ... </think>, [THINK], or channels as
those of gpt-oss. The thought has no vote and no chain shows it. A thought
that does not end, because the model was cut off, hides all that follows.

What begins a thought may stand in the prompt, where a chat template writes
it; there the text begins inside the thought. A template may as well end an
empty thought in the prompt, and then the text is visible from its start.

    prompt             text                        visible
    ...assistant\n     <think>2 + 2</think>Four.   Four.
    ...<think>\n       2 + 2</think>Four.          Four.
    ...<think>\n       2 + 2 is                    nothing: unfinished
    ...</think>\n\n    Four.                       Four.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the worker of tokenizers imports this, and must not JAX
    from dynscaling_jax.types import Message


class Marks(NamedTuple):
    """How one family marks its thoughts: patterns, whatever the case.

    parts are control tokens that the marks are made of where these are longer
    than one token; a model that has the first of them has the marks. answer
    has to stand before an answer without a thought. closing is the whole of
    an end, where the pattern takes less.
    """

    begin: str
    end: str
    parts: tuple[str, ...] = ()
    answer: str = ""
    closing: str = ""


NOTHING = "(?!)"  # a pattern that no text has
# <think>, <THINK>, <thinking>, <thought>, <reasoning>, <scratchpad>,
# <seed:think>, <mm:think>, <longcat_think>, <think:opensource>
_NAME = (
    "(?:[a-z]{1,16}[:_])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|scratchpad)"
    r"(?:[:_][\w-]{1,32})?"
)


def _tag(pattern: str) -> str:
    """A tag that begins a thought; in "why <think> is a tag" it does not."""
    apart = rf"(?<![\w,] ){pattern}|{pattern}(?![ ,.;:)])"
    return rf"(?<![`\"'\u2018\u201c])(?:{apart})"


TAGS = Marks(_tag(f"<{_NAME}>"), f"</{_NAME}>")
KNOWN = (
    TAGS,
    Marks(r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    Marks("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    Marks(  # Command A; OpenThoughts
        r"<\|(?:start|begin)(?:_of)?_(?:thinking|thought|reasoning)\|>",
        r"<\|end(?:_of)?_(?:thinking|thought|reasoning)\|>",
    ),
    Marks(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    Marks(  # gpt-oss: whatever channel is not the final one
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?"
        r"<\|channel\|>(?:[^<]{0,99}<\|message\|>)?",
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final\b"
        r"[^<]{0,99}(?:<\|constrain\|>[^<]{0,99})?<\|message\|>",
        (
            "<|channel|>",
            "<|message|>",
            "<|start|>",
            "<|end|>",
            "<|constrain|>",
        ),
        "<|channel|>final<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    # the same where a server left the control tokens out
    Marks(r"\Aanalysis(?=[a-z])", "assistantfinal"),
    Marks(r"<\|channel>(?:thought\n)?", r"<channel\|>"),  # Gemma 4
    Marks(  # Kimi K3
        r"<\|open\|>think<\|sep\|>",
        r"<\|close\|>think<\|sep\|>(?:<\|open\|>response<\|sep\|>)?",
        ("<|open|>", "<|close|>", "<|sep|>"),
        closing="<|close|>think<|sep|><|open|>response<|sep|>",
    ),
    Marks(  # Inkling
        r"<\|content_thinking\|>",
        r"(?:<\|end_message\|>)?(?:<\|message_model\|>)?<\|content_text\|>",
        closing="<|end_message|><|message_model|><|content_text|>",
    ),
)
# What others may write without a thought: it counts if the template has it.
PHRASES = (
    Marks(  # Granite 3
        "Here(?:'s| is) my thought process:", "Here(?:'s| is) my response:"
    ),
    Marks("Here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),
    Marks(r"\[unused16\]", r"\[unused17\]"),  # Pangu
)
HEADS = "[<\\[\u25c1ah]"  # what all of these begin with


def assistant_words(messages: Sequence[Message]) -> str:
    """Returns the words of the assistant's turn that the messages end with."""
    last = messages[-1] if messages else None
    return last.content if last and last.role == "assistant" else ""


class Thinking(NamedTuple):
    """How a model hides its thoughts.

    marks are all that count; with none, nothing is hidden. turn_start gives, of
    the messages of a request, how its prompt begins the assistant's turn. end
    is the mark that ends the model's own thoughts; "" if it has none.
    """

    marks: tuple[Marks, ...] = KNOWN
    turn_start: Callable[[Sequence[Message]], str] = assistant_words
    end: str = ""


def find(template: str, tokens: Iterable[str]) -> tuple[Marks, ...]:
    """Finds the marks that a model has by its chat template and its tokens."""
    text = "\n".join((template, *tokens))
    return tuple(
        marks
        for marks in (*KNOWN, *PHRASES)
        if (marks.parts and marks.parts[0] in text)
        or _pattern((marks,)).search(text)
    )


def ending(template: str, tokens: Iterable[str]) -> str:
    """Finds the mark that ends a model's thoughts; "" where it has none.

    Arguments are those of find. Where a template has <think> alone, it is
    </think>.
    """
    tokens = [*tokens]
    text = "\n".join((*tokens, template))
    for marks in find(template, tokens):
        if marks.closing:
            return marks.closing
        if found := re.search(marks.end, text, re.IGNORECASE):
            return found[0]
        if marks is TAGS and (found := _pattern((marks,)).search(text)):
            return found[0].replace("<", "</", 1)
    return ""


def named(end: str) -> tuple[Marks, ...]:
    """Returns the marks of a thought that ends with this text, if any."""
    if not end:
        return ()
    for marks in (*KNOWN[1:], *PHRASES):
        if re.fullmatch(marks.end, end, re.IGNORECASE):
            return (marks,)
    begin = re.escape(end.replace("/", "", 1))
    return (Marks(_tag(begin) if "/" in end else NOTHING, re.escape(end)),)


def parts(marks: Sequence[Marks], tokens: Iterable[str]) -> set[str]:
    """Returns those of a model's tokens that its marks are made of."""
    mark = _pattern(tuple(marks))
    made = {part for family in marks for part in family.parts}
    return {t for t in tokens if t in made or mark.fullmatch(t)}


def visible(
    text: str,
    thinking: Thinking = Thinking(),  # noqa: B008, immutable
    turn_start: str = "",
) -> str | None:
    """Returns a text without its thoughts; None if the last is unfinished.

    An end without a beginning ends what began in the prompt, and hides all
    before it.

    Args:
      text: what the model wrote.
      thinking: how it marks its thoughts.
      turn_start: how its prompt begins the turn; see Thinking.
    """
    if not thinking.marks:
        return text.strip()
    _, inside = _outside(turn_start, thinking.marks, None)
    shown, inside = _outside(text, thinking.marks, inside)
    return _bare("".join(shown)) if inside is None else None


def unfinished(text: str, thinking: Thinking, turn_start: str = "") -> bool:
    """Tells whether a text ends within a thought.

    Where a mark ends thoughts and none begins them, as "The answer is" may,
    they begin with the turn.
    """
    marks = thinking.marks
    if marks and all(mark.begin == NOTHING for mark in marks):
        return not _pattern(marks).search(turn_start + text)
    return visible(text, thinking, turn_start) is None


def thought(text: str, thinking: Thinking) -> tuple[str, str]:
    """Returns the mark that begins the first thought, and the thought.

    Where a text has no mark, these are "" and all of it.
    """
    begin, start, inside = "", 0, None
    for mark, kind, ends in _marks(text, thinking.marks):
        if ends and inside in (None, kind):
            return begin, text[start : mark.start()].strip()
        if not ends and inside is None:
            begin, start, inside = mark[0], mark.end(), kind
    return begin, text[start:].strip()


def split(text: str, thinking: Thinking) -> str:
    """Takes the force of a text's marks, and of known ones: a space in each."""
    marks = tuple(dict.fromkeys((*thinking.marks, *KNOWN)))
    mark = _pattern(marks).pattern
    return re.sub(f"(?={mark})(.)", r"\g<0> ", text, flags=re.I | re.S)


def around(
    text: str, marks: Sequence[Marks], change: Callable[[str], str]
) -> str:
    """Changes all of a text but its marks."""
    changed, at = [], 0
    for mark in _pattern(tuple(marks)).finditer(text):
        changed += change(text[at : mark.start()]), mark[0]
        at = mark.end()
    return "".join((*changed, change(text[at:])))


def _outside(
    text: str, marks: tuple[Marks, ...], inside: str | None
) -> tuple[list[str], str | None]:
    """The parts of a text outside its thoughts, and the thought it ends in.

    `inside` is the kind of the thought that it begins in; None is outside.
    """
    shown, at = [], 0
    for mark, kind, ends in _marks(text, marks):
        if inside is None and ends:
            shown, at = [], mark.end()
        elif inside is None:
            shown.append(text[at : mark.start()])
            inside = kind
        elif ends and kind == inside:
            inside, at = None, mark.end()
    if inside is None:
        shown.append(text[at:])
    return shown, inside


def _marks(
    text: str, marks: tuple[Marks, ...]
) -> Iterator[tuple[re.Match[str], str, bool]]:
    """The marks of a text in turn: (match, kind, whether it ends a thought).

    What is of another kind than what began a thought does not end it.
    """
    for mark in _pattern(marks).finditer(text):
        which = str(mark.lastgroup)  # e0, b0, e1, ...
        kind = which[1:]
        if marks[int(kind)] is TAGS:
            kind = mark[0].strip("</>").casefold()
        yield mark, kind, which[0] == "e"


@functools.lru_cache(64)
def _pattern(marks: tuple[Marks, ...]) -> re.Pattern[str]:
    ends = [f"(?P<e{i}>{mark.end})" for i, mark in enumerate(marks)]
    begins = [f"(?P<b{i}>{mark.begin})" for i, mark in enumerate(marks)]
    either = "|".join((*ends, *begins)) or NOTHING
    if {*marks} <= {*KNOWN, *PHRASES}:  # a look at one letter is soon done
        either = f"(?={HEADS})(?:{either})"
    return re.compile(either, re.IGNORECASE)


_FIRST = re.compile(r"\A\s*(?:<\|\w{3,40}\|>\s*)*")
_LAST = re.compile(r"\A\s*(?:>\|\w{3,40}\|<\s*)*")  # of the text turned round


def _bare(text: str) -> str:
    """The text without control tokens at its ends, such as <|return|>."""
    turned = _FIRST.sub("", text, count=1)[::-1]
    return _LAST.sub("", turned, count=1)[::-1]
