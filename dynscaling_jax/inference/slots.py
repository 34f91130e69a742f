"""What a device knows of sequence slots: how samples begin and go on.

grouped.runner and paged.runner call these within their jitted functions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.sampling import LogitSums, Settings


class Slots(NamedTuple):
    """The newest token of each slot; inactive ones compute for nothing."""

    token: Int32[Array, " S"]  # not read yet
    count: Int32[Array, " S"]  # completion tokens
    active: Bool[Array, " S"]
    limit: Int32[Array, " S"]  # of count
    key: UInt32[Array, "S 2"]  # key data of the sample

    @classmethod
    def idle(cls, count: int) -> "Slots":
        """Makes inactive slots."""
        return cls(
            jnp.zeros((count,), jnp.int32),
            jnp.ones((count,), jnp.int32),
            jnp.zeros((count,), bool),
            jnp.zeros((count,), jnp.int32),
            jnp.zeros((count, 2), jnp.uint32),
        )


class Forced(NamedTuple):
    """What ends thoughts that are as long as they may be; all are traced.

    Samples wait at that length until the host has looked at their texts.
    """

    mark: Int32[Array | np.ndarray, " mark"]  # the ids that end a thought
    after: Int32[Array | np.ndarray, ""]  # completion tokens before the mark
    ends: Bool[Array | np.ndarray, " S"]  # slots whose thought it ends
    resumed: Bool[Array | np.ndarray, " S"]  # slots that have waited and go on


def begin(
    slots: Slots,
    logits: Float32[Array, "S V"],
    seed: UInt32[Array, ""],
    fresh: Bool[Array, " S"],
    name: UInt32[Array, "S 3"],
    limit: Int32[Array, " S"],
    active: Bool[Array, " S"],
    stops: Int32[Array, " stops"],
    settings: Settings,
    after: Int32[Array, ""] | None = None,
) -> tuple[Slots, LogitSums]:
    """Samples the first token of fresh slots from the logits of their prompts.

    Args:
        slots: as they are.
        logits: behind the prompt of each slot.
        seed: of the run.
        fresh: slots that begin a sample.
        name: of fresh slots, as sampling.sample_key takes it.
        limit: of fresh slots, completion tokens at most.
        active: which of the other slots go on.
        stops: token ids that end a sample, padded with -1.
        settings: how to sample.
        after: of Forced, where thoughts have a limit.

    Returns:
        The slots, and the tokens; those of fresh slots count.
    """
    key = jax.vmap(sampling.sample_key, (None, 0))(seed, name)
    sums = sampling.choose_each(key, jnp.zeros_like(limit), logits, settings)
    goes_on = ~_stops(sums.token, stops) & (limit > 1)
    if after is not None:
        goes_on &= after != 1
    begun = Slots(
        jnp.where(fresh, sums.token, slots.token),
        jnp.where(fresh, 1, slots.count),
        jnp.where(fresh, goes_on, active),
        jnp.where(fresh, limit, slots.limit),
        jnp.where(fresh[:, None], key, slots.key),
    )
    return begun, sums


def advance(
    slots: Slots,
    logits: Float32[Array, "S V"],
    stops: Int32[Array, " stops"],
    settings: Settings,
    forced: Forced | None = None,
) -> tuple[Slots, LogitSums]:
    """Samples the next token of each slot.

    The tokens count of slots that were active before. Where a token is forced,
    its measures are those of the one that would have been sampled. With the
    mark [7 8] after 3 tokens, which ends the thought of slot 0 and not of
    slot 1, whose text has an end:

        step        0        1     | the host looks at both
        count       1 1      2 2   | 3 3      4 4      5 5
        sampled     5 4      2 4   | 6 1      3 9      1 2
        token       5 4      2 4   | 7 1      8 9      1 2
        active      1 1      1 1   | 1 1      1 1      1 1
        and then    1 1      0 0   | 1 1      1 1      1 1

    A slot that waits is inactive, and keeps its token and its count.
    """
    sums = sampling.choose_each(slots.key, slots.count, logits, settings)
    if forced is not None:
        sums = sums._replace(token=_forced(slots.count, sums.token, forced))
    count = slots.count + 1
    active = slots.active & ~_stops(sums.token, stops) & (count < slots.limit)
    moved = slots._replace(token=sums.token, count=count, active=active)
    if forced is not None:
        moved = moved._replace(
            token=jnp.where(slots.active, moved.token, slots.token),
            count=jnp.where(slots.active, count, slots.count),
            active=active & (count != forced.after),
        )
    return moved, sums


def resumed(slots: Slots, forced: Forced) -> Slots:
    """Makes slots active that have waited."""
    return slots._replace(active=slots.active | forced.resumed)


def _forced(count, token, forced: Forced) -> Int32[Array, " S"]:
    at = count - forced.after
    here = forced.ends & (at >= 0) & (at < len(forced.mark))
    return jnp.where(here, jnp.take(forced.mark, at, mode="clip"), token)


def _stops(token, stops) -> Bool[Array, " S"]:
    return (token[:, None] == stops[None]).any(-1)
