"""Thoughts that are as long as they may be: which ones the engine ends.

Tokens may spell a mark in several ways, so the host tells by the text. A
sample waits on the device at max_thinking_tokens, for the rest of a chunk of
steps at most, until the host has looked at it; then it goes on, or the mark is
forced. All of that follows from its own tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference.slot import Slot
from dynscaling_jax.inference.slots import Forced
from dynscaling_jax.thinking import Thinking, unfinished


class Cap(NamedTuple):
    """How long a thought may be, and what ends a longer one."""

    model: Model
    thinking: Thinking
    mark: np.ndarray  # the ids that end a thought, int32
    after: np.ndarray  # completion tokens before it, int32

    def look(self, slot: Slot) -> None:
        """Settles, when a sample waits, which of its tokens will be forced.

        The mark is where it ends a thought: of a sample that has ended its
        own, that thinks none, or that the mark would leave in a thought of
        another kind, none is forced.
        """
        if slot.forced is not None or slot.count != self.after:
            return
        decode_text, ids = self.model.tokenizer.decode, slot.last(slot.count)
        start = self.thinking.turn_start(slot.request.messages)
        within = lambda ids: unfinished(decode_text(ids), self.thinking, start)
        ends = within(ids) and not within([*ids, *self.mark])
        slot.forced = range(
            slot.count, slot.count + (len(self.mark) if ends else 0)
        )

    def laid_out(self, slots: Sequence[Slot | None]) -> Forced:
        """Lays out for a device what is known of its slots."""
        known = [slot.forced if slot else None for slot in slots]
        waits = [
            slot is not None and slot.count == self.after for slot in slots
        ]
        return Forced(
            self.mark,
            self.after,
            np.array([bool(forced) for forced in known]),
            np.array([k is not None for k in known]) & np.array(waits),
        )


def cap(
    model: Model, thinking: Thinking, most: int, max_new_tokens: int
) -> Cap:
    """Makes a cap of so many tokens.

    Raises:
        ValueError: the model has no thoughts, its tokenizer cannot spell what
            ends them, or max_new_tokens leaves no room for an answer.
    """
    end, tokenizer = thinking.end, model.tokenizer
    asked = f"max_thinking_tokens={most}"
    if not end:
        raise ValueError(
            f"{asked}: neither the template nor the tokens of this model have "
            "marks of a thought, so none can be ended. Leave it out, or name "
            "the mark (config.end_of_thinking, such as </think>)"
        )
    mark = tokenizer.encode(end)
    if end not in tokenizer.decode(mark):
        raise ValueError(
            f"{asked}: the tokenizer spells the mark {end!r} as "
            f"{tokenizer.decode(mark)!r}, which ends no thought"
        )
    if {*mark} & {*model.eos_ids}:
        raise ValueError(
            f"{asked}: the mark {end!r} holds a token that ends a turn, so no "
            "answer could follow it"
        )
    if most + len(mark) >= max_new_tokens:
        raise ValueError(
            f"{asked}: max_new_tokens ({max_new_tokens}) leaves no room for "
            f"{most} tokens of thought, {len(mark)} of the mark {end!r} and an "
            "answer"
        )
    return Cap(
        model, thinking, np.array(mark, np.int32), np.array(most, np.int32)
    )
