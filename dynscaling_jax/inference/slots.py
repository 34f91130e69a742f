"""What a device knows of sequence slots: how samples begin and go on.

grouped.runner and paged.runner call these within their jitted functions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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

    Returns:
        The slots, and the tokens; those of fresh slots count.
    """
    key = jax.vmap(sampling.sample_key, (None, 0))(seed, name)
    sums = sampling.choose_each(key, jnp.zeros_like(limit), logits, settings)
    goes_on = ~_stops(sums.token, stops) & (limit > 1)
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
) -> tuple[Slots, LogitSums]:
    """Samples the next token of each slot.

    The tokens count of slots that were active before.
    """
    sums = sampling.choose_each(slots.key, slots.count, logits, settings)
    count = slots.count + 1
    active = slots.active & ~_stops(sums.token, stops) & (count < slots.limit)
    return slots._replace(token=sums.token, count=count, active=active), sums


def _stops(token, stops) -> Bool[Array, " S"]:
    return (token[:, None] == stops[None]).any(-1)
