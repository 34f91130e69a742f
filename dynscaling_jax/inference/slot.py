"""The sample that a sequence slot is generating, and when it is finished."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import sampling
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.types import Request, Sample

UNKNOWN = "\ufffd"  # what stands for bytes that are no character yet
MARGIN = 16  # characters at the beginning of a tail that may be spelt otherwise


class Prompt(NamedTuple):
    """The token ids of a request."""

    ids: tuple[int, ...]
    base: tuple[int, ...]  # of the query alone; ids may begin like it
    common: int  # length of that beginning, where it is worth reusing


class Numbered(NamedTuple):
    """A request, by its number among all that an engine was given."""

    number: int
    request: Request


@dataclasses.dataclass(eq=False)
class Slot:
    """A sample that is being generated."""

    number: int  # of its request
    request: Request
    prompt: Prompt
    limit: int  # completion tokens at most
    tokens: list = dataclasses.field(default_factory=list)
    count: int = 0  # of tokens
    checked: int = 0  # tokens whose text has no stop string
    # the tokens that are forced, not sampled; None: not known yet
    forced: range | None = None
    # of confidences, up to each of the last tokens that were sampled
    sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1))
    unsure: bool = False  # the last window is; see Request.least_confidence

    def append(
        self, tokens: sampling.ScoredToken, column: int, steps: int
    ) -> None:
        """Adds the first steps of a column of tokens, each [C, GR].

        Those behind a window that is not sure enough are left out.

        Raises:
            ValueError: the model gave logits that are not finite.
        """
        if not steps or self.unsure:
            return
        # a copy, or the whole of the tokens would be kept
        new = jax.tree.map(lambda x: x[:steps, column].copy(), tokens)
        if not np.isfinite(new.logprob).all():
            raise ValueError(
                f"query {self.request.query.id!r}: the model gives logits "
                "that are not finite; its weights are damaged or overflow its "
                "dtype"
            )
        end = self._unsure(new.confidence)
        if end is not None:
            new, self.unsure = jax.tree.map(lambda x: x[:end], new), True
        self.tokens.append(new)
        self.count += len(new.token)

    def _unsure(self, confidence: np.ndarray) -> int | None:
        """Finds the first window of new tokens that is not sure enough.

        Forced tokens are in none. With windows of 3, the bound 4, and
        confidences 6 5 before, of which the host holds the sums [0 6 11]:

            confidences   4  3  9        new
            sums         15 18 27
            three back    0  6 11
            means         5  4 5.3       none is less than 4

        The sums are those of sampling.windowed, to the bit.

        Returns:
            How many of the new tokens it ends with; None: there is none.
        """
        bound, size = self.request.least_confidence, sampling.WINDOW
        if bound is None:
            return None
        forced = self.forced or ()
        own = [
            i for i in range(len(confidence)) if self.count + i not in forced
        ]
        known = len(self.sums)
        new = np.concatenate([self.sums[-1:], confidence[own]], dtype=float)
        sums = np.concatenate([self.sums, new.cumsum()[1:]])
        self.sums = sums[-size:]
        (low,) = np.nonzero((sums[size:] - sums[:-size]) / size < bound)
        return own[low[0] + size - known] + 1 if len(low) else None

    def last(self, count: int) -> list[int]:
        """Returns the ids of the last tokens, so many."""
        parts, missing = [], count
        for part in reversed(self.tokens):
            if missing <= 0:
                break
            parts.append(part.token[-missing:])
            missing -= len(part.token)
        return [int(i) for part in reversed(parts) for i in part]


def finished(slot: Slot, model: Model, stop: Sequence[str]) -> Sample | None:
    """Returns the sample of a slot if it is finished.

    A stop id, a stop string, the slot's limit or a window of tokens that is
    not sure enough finishes it, whichever is first; at the same token the
    window is the last to count. One that goes on is told by its newest tokens
    and, where there are stop strings, by the end of its text, however long it
    is.
    """
    ends = slot.tokens[-1].token[-1] in model.eos_ids
    full = slot.count >= slot.limit
    done = ends or full or slot.unsure
    decode_text = model.tokenizer.decode
    spelt = lambda ids: _holds(decode_text(ids), stop)
    first = _tail(slot, decode_text, stop) if stop else 0
    if not done:
        if not stop or not spelt(slot.last(slot.count - first)):
            slot.checked = slot.count
            return None
    tokens = jax.tree.map(lambda *parts: np.concatenate(parts), *slot.tokens)
    slot.tokens[:] = [tokens]
    request, prompt = slot.request, slot.prompt
    ids = tokens.token.tolist()
    text = decode_text(ids[:-1] if ends else ids)
    reason = "stop" if ends else "length" if full else "confidence"
    if _holds(text, stop):
        # the tokens that spell the first stop string, and no more
        count = next(
            n
            for n in range(first + 1, len(ids) + 1)
            if spelt(ids[first:n]) and (not first or spelt(ids[:n]))
        )
        tokens = jax.tree.map(lambda x: x[:count], tokens)
        text = decode_text(ids[:count])
        found = [at for at in map(text.find, stop) if at >= 0]
        reason, text = "stop", text[: min(found)]
    elif not done:
        slot.checked = slot.count
        return None
    (read, cached), new = paid(request, prompt), len(tokens.token)
    if slot.forced:
        own = np.array([i for i in range(new) if i not in slot.forced])
        tokens = jax.tree.map(lambda x: x[own], tokens)
    return Sample(
        query_id=request.query.id,
        index=request.index,
        round=request.round,
        parents=request.parents,
        text=text,
        answer=None,
        finish_reason=reason,
        prompt_tokens=read,
        cached_tokens=cached,
        new_tokens=new,
        flops=sample_flops(model.config, read, cached, new),
        logprob=float(tokens.logprob.mean()),
        confidence=float(tokens.confidence.mean()),
        signals={
            **sampling.windowed(tokens.confidence),
            "certainty": float(tokens.certainty.mean()),
        },
    )


def paid(request: Request, prompt: Prompt) -> tuple[int, int]:
    """The tokens of a prompt, and those that were paid for before."""
    read = len(prompt.ids)
    if request.shared:
        return read, read
    return read, prompt.common if request.index else 0


def _holds(text: str, stop: Sequence[str]) -> bool:
    return any(s in text for s in stop)


def _tail(
    slot: Slot, decode_text: Callable[[list[int]], str], stop: Sequence[str]
) -> int:
    """The token from which on a stop string may lie that was not seen before.

    What is checked is followed by new tokens, and a stop string may begin in
    it. Tokens are decoded from so far behind that the longest one fits, and
    MARGIN: there a word may lose its space. A tail that begins within a
    character is longer. Bytes at the end of what is checked, which were no
    character yet, may have become one, so they do not count. With a longest
    stop string of 2, a margin of 1 and a token for each letter:

        checked  ... a b c d e f        new  g h i
        tail               d e f             g h i
    """
    needed = max(map(len, stop)) + MARGIN
    size, new = needed, slot.count - slot.checked
    while size < slot.checked:
        known = decode_text(slot.last(new + size)[:size])
        sure = len(known) - known.count(UNKNOWN)
        if sure >= needed and not known.startswith(UNKNOWN):
            return slot.checked - size
        size *= 2
    return 0
