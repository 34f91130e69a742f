"""Device memory of decoding, predicted by formula before any of it is taken.

Of groups, which one CPU decodes:

    weights   of the model
    prefixes  keys and values of prompts that are kept for reuse
    state     keys and values of G prompts and GR slots
    working   what the largest of the compiled functions needs for itself

Of pages, which accelerators and meshes decode, on each device:

    weights   of the model
    pool      keys and values in pages, kept prompts among them
    logits    behind prompts that slots begin from
    working   as above

`tests/inference/test_memory.py` holds state to the bytes of the arrays, working
to what XLA says that it will take; tests/aot does so with the compilers of
accelerators.
"""

import bisect
import os
from collections.abc import Callable
from typing import NamedTuple

import jax

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.experts import FEW

SHARE = 0.85  # of the device; the rest is XLA's own and gaps between arrays
MOST_SLOTS = 1024
FLOAT = 4  # bytes of what is computed in float32
PAGE = 128  # W, positions of a page
PREFILL = 512  # tokens of a prompt that are computed at a time
KEYS_AT_ONCE = 1024  # that a chunk of prefill meets in one product, at most
# Of a pool, what live keys take on average, where it is known how many they
# are. In simulated runs (benchmarks/pages.py) a share of 0.86, nearly this
# one, keeps preemption rare.
FULL = 7 / 8


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
    # an upper bound: pages hold what is filled, and where a pool grows the
    # old pages of one layer are held beside the new ones
    state = size.groups * prompts + suffix + suffix // 2
    return Memory(weights, prefixes, state, working(config, size))


def doubled(size: int, needed: int) -> int:
    """Doubles a size until it is enough, for few shapes to compile."""
    while size < needed:
        size *= 2
    return size


def token_bytes(config: ModelConfig, itemsize: int) -> int:
    """Counts the bytes of the keys and values of one token."""
    heads = config.num_hidden_layers * config.num_key_value_heads
    return 2 * heads * config.head_dim * itemsize


def working(config: ModelConfig, size: Size) -> int:
    """Predicts the working memory of the greatest compiled function.

    That is a layer's step, the head with sampling, or a layer's prefill.
    """
    heads, features = config.num_attention_heads, _features(config)
    keys = size.prefix + size.suffix
    step = size.slots * (features + 3 * heads * keys)
    head = 7 * size.slots * config.vocab_size
    prefill = size.prefix * (features + 3 * heads * size.prefix)
    return FLOAT * max(step, head, prefill)


class PagedMemory(NamedTuple):
    """Bytes of a device that decodes from pages."""

    weights: int
    pool: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Lengths(NamedTuple):
    """Tokens that are expected."""

    prompt: int
    new: int  # of a sample, at most
    live: int = 0  # of a slot while it samples, on average, its prompt
    # included; 0 takes samples as half done

    @property
    def longest(self) -> int:
        """Of a sample with its prompt, at most."""
        return self.prompt + self.new

    @property
    def mean(self) -> float:
        """Of a slot while it samples."""
        return min(self.live or self.prompt + self.new / 2, self.longest)

    @property
    def room(self) -> float:
        """Of a pool, for each slot; some is left where the mean is known."""
        return self.mean / FULL if self.live else self.mean


class Pool(NamedTuple):
    """What one part of a mesh's data axis has."""

    slots: int
    pages: int
    memory: PagedMemory


def paged(
    config: ModelConfig,
    itemsize: int,
    weights: int,
    available: float,
    lengths: Lengths,
    keys: str = "",
    slots: int = 0,
) -> Pool:
    """Finds how many slots and pages the devices of one part hold.

    A pool takes all memory that is left, at most the context for each slot:
    what slots do not need keeps prompts. There are as many slots as it has
    `lengths.room` for. What a slot may come to is not reserved: where a pool
    runs full, the youngest slot gives way.

    Args:
        config: what one device holds of the model's heads, as of mesh.share.
        itemsize: bytes of a number of hidden states, and of keys.
        weights: bytes of the parameters on one device.
        available: bytes of one device that decoding may take.
        lengths: of the work.
        keys: int8, or empty for the model's own dtype.
        slots: where they are chosen; 0 takes as many as there is room for.

    Raises:
        ValueError: not one sample fits; with what it would take.
    """
    page = PAGE * paged_token_bytes(config, itemsize, keys)
    least = -(-lengths.longest // PAGE)
    context = max(least, -(-config.max_position_embeddings // PAGE))

    def held(pages: int) -> Pool:
        room = min(MOST_SLOTS, max(1, int(pages * PAGE / lengths.room)))
        count = slots or room
        logits = count * config.vocab_size * FLOAT
        work = paged_working(config, count, pages)
        return Pool(
            count, pages, PagedMemory(weights, pages * page, logits, work)
        )

    # one more: of a lone slot the last page of the prompt is copied
    most = (slots or MOST_SLOTS) * context + 1
    pages = (
        bisect.bisect_right(
            range(most + 1), available, key=lambda n: held(n).memory.total
        )
        - 1
    )
    if pages < least:
        takes = held(least).memory
        parts = ", ".join(f"{k} {v:.2e}" for k, v in takes._asdict().items())
        raise ValueError(
            f"one sample of {lengths.longest} tokens takes {takes.total:.2e} "
            f"bytes ({parts}); {available:.2e} are there. Take fewer "
            "max_new_tokens, bfloat16, int8 or keys in int8"
        )
    return held(pages)


def paged_token_bytes(
    config: ModelConfig, itemsize: int, keys: str = ""
) -> int:
    """Counts the bytes of the keys and values of one token in all layers.

    In int8 a key or value of a head has a float32 scale.
    """
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    if keys == "int8":
        return heads * (config.head_dim + FLOAT)
    return heads * config.head_dim * itemsize


def paged_working(config: ModelConfig, slots: int, pages: int) -> int:
    """Predicts the working memory of the greatest compiled function.

    That is a step of all slots, which gives each page a state of its own, the
    sampler, or a chunk of prefill.
    """
    heads, dim = config.num_attention_heads, config.head_dim
    features = _features(config)
    step = slots * features + pages * heads * (2 * dim + 3 * PAGE)
    head = 7 * slots * config.vocab_size
    prefill = PREFILL * (features + 3 * heads * KEYS_AT_ONCE)
    # models.experts.mix_all: what every expert makes of every token
    inner = config.hidden_size + config.moe_intermediate_size
    step += min(slots, FEW) * config.num_experts * inner
    prefill += PREFILL * config.num_experts * inner
    return FLOAT * max(step, head, prefill)


def _features(config: ModelConfig) -> int:
    """Numbers that a layer computes of one token, attention aside."""
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    experts = config.num_experts_per_tok * config.moe_intermediate_size
    inner = max(config.intermediate_size, experts)
    return 4 * config.hidden_size + 4 * q + 2 * kv + 3 * inner


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

    On CPUs they share half of the host's memory alike. It never changes,
    so that a resumed run has the slots that it began with.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return SHARE * stats["bytes_limit"]
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host / 2 / jax.local_device_count()
