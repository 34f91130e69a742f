"""Chains: a query and some of its samples -> the messages of one more try.

A synthetic sequential chain lays out earlier samples, which were drawn apart
from one another, as if one reasoner had made those attempts in turn. That
chains of parallel samples carry sequential reasoning is the idea of
DynScaling (arXiv 2506.16043); its prompts are not public, and the words, the
options and their defaults here are ours.

A chain is built in four steps: which samples, in which order, what is shown
of each, in which layout. Every random draw is keyed by (key, query id, index
of the new sample), so that each sample has parents of its own and the same
ones in every batch. What a model wrote is data: `inert` takes the force from
whatever in it could pass for a control token or for the turn of another.
"""

import bisect
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from dynscaling_jax.scaling.spec import choose
from dynscaling_jax.thinking import Thinking, split, visible
from dynscaling_jax.types import Message, Query, Reader, Sample

Messages = tuple[Message, ...]
Render = Callable[[Query, Sequence[str]], Messages]

Which = Literal["distinct", "random", "recent", "all"]
Order = Literal["shuffled", "by_confidence"]
Content = Literal["answer_and_reasoning", "answer_only", "tail"]
Layout = Literal["transcript", "context"]


class Chain(NamedTuple):
    """The options of a chain of up to k samples.

    which: `distinct` takes one sample of each different answer, drawn at
    random, then the most confident of the others; `random` any; `recent` the
    last ones; `all` every one, whatever k.
    order: `shuffled`, or `by_confidence`, the most confident last.
    content: all that is visible of a sample, its answer alone, or its last
    `tail` tokens.
    layout: in a `transcript` the assistant's turn goes on after the attempts;
    in a `context` the user's turn lists them.
    corrupted: how many of those shown come once more with another answer in
    place of their own, to see what wrong attempts do. It is for experiments.
    """

    k: int = 4
    which: Which = "distinct"
    order: Order = "shuffled"
    content: Content = "answer_and_reasoning"
    layout: Layout = "transcript"
    tail: int = 128
    corrupted: int = 0

    def checked(self) -> "Chain":
        """Itself; raises ValueError where an option does not exist."""
        choose("chain option which", self.which, _WHICH)
        choose("chain option order", self.order, _ORDER)
        choose("chain option content", self.content, _CONTENT)
        choose("chain option layout", self.layout, _LAYOUT)
        for name in ("k", "tail"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"chain option {name}={getattr(self, name)} is not at "
                    "least 1"
                )
        if self.corrupted < 0:
            raise ValueError(
                f"chain option corrupted={self.corrupted} is not at least 0"
            )
        return self


def build(
    chain: Chain,
    reader: Reader,
    query: Query,
    pool: Sequence[Sample],
    draws: np.random.Generator,
) -> tuple[Messages, tuple[int, ...]]:
    """The messages of a chain and the indices of the samples that it holds.

    pool are samples of the query; those without a readable answer are never
    shown. Where a chain is longer than the reader's limit, its longest member
    is dropped until it fits; with none left, the query stands alone.

    Raises ValueError for by_confidence where a sample has no confidence.
    """
    readable = [s for s in pool if s.answer is not None]
    chosen = _WHICH[chain.which](readable, chain.k, draws)
    chosen = [
        *chosen,
        *(_corrupted(s, draws) for s in chosen[: chain.corrupted]),
    ]
    members = _ORDER[chain.order](chosen, draws)
    return fit(
        reader,
        query,
        [(s.index, shown(chain, reader, s)) for s in members],
        _LAYOUT[chain.layout],
    )


def fit(
    reader: Reader,
    query: Query,
    members: Sequence[tuple[int, str]],
    render: Render,
) -> tuple[Messages, tuple[int, ...]]:
    """Renders (index, text) members, less the longest ones if need be."""
    members = list(members)
    while members:
        messages = render(query, [text for _, text in members])
        limit = reader.max_prompt_tokens
        if limit is None or reader.count_tokens(messages) <= limit:
            return messages, tuple(dict.fromkeys(i for i, _ in members))
        members.remove(max(members, key=lambda member: len(member[1])))
    return query.messages, ()


def keyed_draws(
    key: jax.Array, query: Query, index: int
) -> np.random.Generator:
    """Random draws on the host for one sample of one query."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.asarray(jax.random.key_data(key)).tobytes())
    digest.update(index.to_bytes(8, "little"))
    digest.update(query.id.encode("utf-8", "surrogatepass"))
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(digest.digest(), "little"))
    )


def shown(chain: Chain, reader: Reader, sample: Sample) -> str:
    """What a chain shows of one sample, inert."""
    text = visible(sample.text, reader.thinking) or ""
    text = _CONTENT[chain.content](text, chain.tail, reader)
    text = text or f"The answer is {sample.answer}."
    return inert(text, reader.thinking)


# <|im_end|>, <｜User｜>, </s>, <start_of_turn>, <seed:eos>, [INST], <<SYS>>: a
# space after the first bracket, and no tokenizer takes it for one token.
_TOKEN = re.compile(r"<(?=[|｜])|<(?=/?[^\W\d][\w:-]*>)|\[(?=/?[A-Z][A-Z_]*\])")
# A line that would open another turn, or another attempt: quoted.
_TURN = re.compile(
    r"^(?=\s*(?:user|human|assistant|system|(?:attempt|agent|response)\s+\d+)\s*:)",
    re.IGNORECASE | re.MULTILINE,
)


def inert(
    text: str,
    thinking: Thinking = Thinking(),  # noqa: B008, immutable
) -> str:
    """Model output as data: readable as before, without force on a prompt.

    Control tokens and marks of thoughts are split by a space, lines that open
    a turn are quoted, and what is no valid Unicode becomes "?".
    """
    text = text.encode("utf-8", "replace").decode()
    text = _TURN.sub("> ", _TOKEN.sub(lambda found: found[0] + " ", text))
    return split(text, thinking)


def listed(texts: Sequence[str], name: str = "Attempt") -> str:
    """Numbers texts from 1 and joins them."""
    return "\n\n".join(
        f"{name} {i}:\n{text}" for i, text in enumerate(texts, 1)
    )


def transcript(query: Query, texts: Sequence[str]) -> Messages:
    """The assistant's own turn goes on after its attempts.

    It ends without white space, which some chat templates cut off.
    """
    attempts = (
        f"I try this more than once.\n\n{listed(texts)}\n\n"
        "Any of these may be wrong. I compare them, check every step, and "
        "write out one complete solution with its final answer:"
    )
    return with_turn(query.messages, Message("assistant", attempts))


def context(query: Query, texts: Sequence[str]) -> Messages:
    """The user's turn lists the attempts."""
    attempts = (
        "Here are earlier attempts at this question; any of them may be "
        f"wrong.\n\n{listed(texts)}\n\nCompare them, check every step, and "
        "give one complete solution of your own, with its final answer in "
        "the form asked for."
    )
    return with_turn(query.messages, Message("user", attempts))


def with_turn(messages: Messages, turn: Message) -> Messages:
    """Adds a turn, or joins it to a last turn of the same role.

    Chat templates may refuse two turns of one role in a row.
    """
    last = messages[-1]
    if last.role != turn.role:
        return (*messages, turn)
    return (
        *messages[:-1],
        Message(last.role, f"{last.content}\n\n{turn.content}"),
    )


def _distinct(
    pool: Sequence[Sample], k: int, draws: np.random.Generator
) -> list[Sample]:
    shuffled = _random(pool, len(pool), draws)
    first: dict[str | None, Sample] = {}
    for sample in shuffled:
        first.setdefault(sample.answer, sample)
    heads = list(first.values())[:k]
    taken = {s.index for s in heads}
    others = [s for s in shuffled if s.index not in taken]
    others.sort(key=lambda s: -(s.confidence or 0.0))  # stable where unknown
    return heads + others[: k - len(heads)]


def _random(
    pool: Sequence[Sample], k: int, draws: np.random.Generator
) -> list[Sample]:
    return [pool[i] for i in draws.permutation(len(pool))[:k]]


def _recent(
    pool: Sequence[Sample], k: int, draws: np.random.Generator
) -> list[Sample]:
    return list(pool[-k:])


def _all(
    pool: Sequence[Sample], k: int, draws: np.random.Generator
) -> list[Sample]:
    return list(pool)


def _shuffled(
    chosen: Sequence[Sample], draws: np.random.Generator
) -> list[Sample]:
    return _random(chosen, len(chosen), draws)


def _by_confidence(
    chosen: Sequence[Sample], draws: np.random.Generator
) -> list[Sample]:
    def confidence(sample: Sample) -> float:
        if sample.confidence is None:
            raise ValueError(
                f"chain option order=by_confidence: sample {sample.index} of "
                f"query {sample.query_id!r} has no confidence; use a model "
                "that offers log-probabilities, or order=shuffled"
            )
        return sample.confidence

    return sorted(chosen, key=confidence)


def _tail(text: str, tail: int, reader: Reader) -> str:
    """The longest run of last words within `tail` tokens; at least one."""

    def tokens(part: str) -> int:
        return reader.count_tokens((Message("assistant", part),))

    empty = tokens("")
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    if not starts:
        return ""
    fits = bisect.bisect_left(
        range(len(starts) - 1),
        True,
        key=lambda i: tokens(text[starts[i] :]) - empty <= tail,
    )
    return text[starts[fits] :]


_WHICH = {
    "distinct": _distinct,
    "random": _random,
    "recent": _recent,
    "all": _all,
}
_ORDER = {"shuffled": _shuffled, "by_confidence": _by_confidence}
_CONTENT = {
    "answer_and_reasoning": lambda text, tail, reader: text,
    "answer_only": lambda text, tail, reader: "",
    "tail": _tail,
}
_LAYOUT: dict[str, Render] = {"transcript": transcript, "context": context}


def _corrupted(sample: Sample, draws: np.random.Generator) -> Sample:
    """Puts another answer wherever the text of an attempt has its own.

    It is a near number, another letter, or none that anyone would give.
    """
    answer = str(sample.answer)
    if re.fullmatch(r"-?\d+", answer):
        other = str(int(answer) + int(draws.integers(1, 10)))
    elif re.fullmatch("[A-J]", answer):
        other = "ABCDEFGHIJ"["ABCDEFGHIJ".index(answer) ^ 1]
    else:
        other = f"not {answer}"
    own = rf"(?<!\w){re.escape(answer)}(?!\w)"
    text, found = re.subn(own, lambda _: other, sample.text)
    if not found:  # its text spells the answer otherwise
        text = f"{text}\n\nThe answer is {other}."
    return sample._replace(text=text, answer=other)
