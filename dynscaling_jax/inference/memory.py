"""Device memory of decoding, predicted by formula before any of it is taken.

    weights   of the model
    prefixes  keys and values of prompts that are kept for reuse
    state     keys and values of G prompts and GR slots
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
MOST_SLOTS = 1024
FLOAT = 4  # bytes of what is computed in float32


class Memory(NamedTuple):
    """Bytes of a device."""

    weights: int
    prefixes: int
    state: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Size(NamedTuple):
    """The size of a state."""

    groups: int  # G
    per_group: int  # R
    prefix: int  # P
    suffix: int  # S

    @property
    def slots(self) -> int:
        """GR."""
        return self.groups * self.per_group


def predicted(
    config: ModelConfig, size: Size, weights: int, itemsize: int, prefixes: int
) -> Memory:
    """Predicts what decoding takes at its peak.

    weights and prefixes are bytes, of parameters and of kept prompts;
    itemsize those of a number of keys, values and hidden states.
    """
    token = token_bytes(config, itemsize)
    suffix = size.slots * size.suffix * token
    prompts = size.prefix * token + config.vocab_size * FLOAT
    # a suffix grows by doubling: the half as long is held beside it
    state = size.groups * prompts + suffix + suffix // 2
    return Memory(weights, prefixes, state, working(config, size))


def token_bytes(config: ModelConfig, itemsize: int) -> int:
    """Counts the bytes of the keys and values of one token."""
    heads = config.num_hidden_layers * config.num_key_value_heads
    return 2 * heads * config.head_dim * itemsize


def working(config: ModelConfig, size: Size) -> int:
    """Predicts the working memory of the greatest compiled function.

    That is a layer's step, the head with sampling, or a layer's prefill.
    """
    heads = config.num_attention_heads
    q = heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    experts = config.num_experts_per_tok * config.moe_intermediate_size
    inner = max(config.intermediate_size, experts)
    features = 4 * config.hidden_size + 4 * q + 2 * kv + 3 * inner
    keys = size.prefix + size.suffix
    step = size.slots * (features + 3 * heads * keys)
    head = 7 * size.slots * config.vocab_size
    prefill = size.prefix * (features + 3 * heads * size.prefix)
    return FLOAT * max(step, head, prefill)


def most_groups(
    per_group: int, available: float, predict: Callable[[int], Memory]
) -> int:
    """Finds the most groups whose predicted memory is available.

    It is a power of two, with at most MOST_SLOTS slots.

    Raises:
        ValueError: not even one group fits; with what it would take.
    """
    groups = max(1, MOST_SLOTS // per_group)
    groups = 1 << (groups.bit_length() - 1)
    while groups and predict(groups).total > available:
        groups //= 2
    if not groups:
        least = predict(1)
        parts = ", ".join(f"{k} {v:.2e}" for k, v in least._asdict().items())
        raise ValueError(
            f"one group of {per_group} slots takes {least.total:.2e} bytes "
            f"({parts}); {available:.2e} are there. Take fewer slots_per_group "
            "or max_new_tokens, bfloat16 or int8"
        )
    return groups


def available() -> float:
    """Finds the bytes of the first device that decoding may take.

    On a CPU that is its part of half of the host's memory. It never changes,
    so that a resumed run has the slots that it began with.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return SHARE * stats["bytes_limit"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host / 2 / jax.local_device_count()
