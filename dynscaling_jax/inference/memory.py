"""Device memory that decoding takes, by formula, before any of it is taken.

    weights   of the model
    prompts   keys and values that are kept, to read on from
    state     keys and values of G prompts and GR rows while they are drawn
    working   what the largest of the compiled functions needs for itself

`tests/inference/test_memory.py` holds state to the bytes of the arrays, working
to what XLA says that it will take.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import jax

from dynscaling_jax.models.config import ModelConfig

SHARE = 0.85  # of the device; the rest is XLA's own and gaps between arrays
MOST_ROWS = 1024
FLOAT = 4  # bytes of what is computed in float32


class Memory(NamedTuple):
    """Bytes."""

    weights: int
    prompts: int
    state: int
    working: int

    @property
    def total(self) -> int:
        return sum(self)


class Size(NamedTuple):
    """Of one decoding."""

    groups: int  # G
    per: int  # R, rows of a group
    prompt: int  # P, slots of a prompt
    new: int  # S, slots of drawn tokens


def predicted(
    config: ModelConfig, size: Size, weights: int, itemsize: int, prompts: int
) -> Memory:
    """What drawing so many rows takes, at its peak.

    Args:
        weights: bytes of the parameters.
        itemsize: bytes of a number of keys, values and hidden states.
        prompts: bytes of kept prompts.
    """
    rows = size.groups * size.per
    token = token_bytes(config, itemsize)
    suffix = rows * size.new * token
    state = (
        size.groups * (size.prompt * token + config.vocab_size * FLOAT)
        + suffix
        # room for drawn tokens doubles: the half as long is held beside it
        + suffix // 2
    )
    return Memory(weights, prompts, state, working(config, size))


def token_bytes(config: ModelConfig, itemsize: int) -> int:
    """Of the keys and values of one token."""
    return (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.head_dim
        * itemsize
    )


def working(config: ModelConfig, size: Size) -> int:
    """Of a layer's step, of the head with its draw, and of a layer that reads
    a prompt, the greatest."""
    rows = size.groups * size.per
    q, kv = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    inner = max(
        config.intermediate_size,
        config.num_experts_per_tok * config.moe_intermediate_size,
    )
    features = 4 * config.hidden_size + 4 * q + 2 * kv + 3 * inner
    keys = size.prompt + size.new
    step = rows * (features + 3 * config.num_attention_heads * keys)
    draw = 7 * rows * config.vocab_size
    read = size.prompt * (
        features + 3 * config.num_attention_heads * size.prompt
    )
    return FLOAT * max(step, draw, read)


def most_groups(
    per: int, available: float, predict: Callable[[int], Memory]
) -> int:
    """The most groups, a power of two with at most MOST_ROWS rows, whose
    memory is available.

    Raises:
        ValueError: there is none; with what one group would take.
    """
    groups = max(1, MOST_ROWS // per)
    groups = 1 << (groups.bit_length() - 1)
    while groups and predict(groups).total > available:
        groups //= 2
    if not groups:
        least = predict(1)
        parts = ", ".join(f"{k} {v:.2e}" for k, v in least._asdict().items())
        raise ValueError(
            f"one group of {per} rows takes {least.total:.2e} bytes ({parts}); "
            f"{available:.2e} are there. Take fewer rows_per_group or "
            "max_new_tokens, bfloat16 or int8"
        )
    return groups


def available() -> float:
    """Bytes of the first device that decoding may take; on a CPU its part of
    half of the host's memory. The same whenever it is asked, so that a run
    goes on with the rows that it began with."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return SHARE * stats["bytes_limit"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host / 2 / jax.local_device_count()
