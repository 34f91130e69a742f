"""Sampling: logits to a token, its log-probability, the model's confidence.

Written for one slot and vmapped by the caller. The vocabulary is never
sorted: a token is found by inverting the distribution function in two levels,
and top-k and top-p find their cutoff by bisection over the bits of the logits.
"""

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int32, UInt32

from dynscaling_jax.models.attention import row_sums
from dynscaling_jax.models.sharding import (
    BOTH,
    DATA,
    MODEL,
    ambient,
    constrained,
    fitting,
    on_shards,
)

BLOCK = 256  # tokens of one block of the two-level inverse
TOP = 20  # likeliest tokens whose log-probability makes the confidence
WINDOW = 2048  # tokens of DeepConf's windows


class Settings(NamedTuple):
    """How to sample. All are traced: no value causes a compilation."""

    temperature: Float32[Array, ""]  # 0 takes the likeliest token
    top_k: Int32[Array, ""]  # 0 keeps all
    top_p: Float32[Array, ""]  # 1 keeps all
    min_p: Float32[Array, ""]  # 0 keeps all


class ScoredToken(NamedTuple):
    """A token and measures of the model's own distribution.

    That is the one before temperature and truncation.
    """

    token: Int32[Array, "..."]
    logprob: Float32[Array, "..."]  # of the token
    confidence: Float32[Array, "..."]  # minus the mean of the TOP greatest
    certainty: Float32[Array, "..."]  # KL(uniform || p), arXiv 2502.18581


class LogitSums(NamedTuple):
    """A token, and sums over the vocabulary."""

    token: Int32[Array, "..."]
    logit: Float32[Array, "..."]  # of the token
    log_total: Float32[Array, "..."]  # log of the sum of exponentials
    top: Float32[Array, "..."]  # sum of the TOP greatest logits
    all: Float32[Array, "..."]  # sum of all


def settings(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Settings:
    """Checks and packs the settings.

    Raises:
        ValueError: a value outside its range.
    """
    for name, value, low, high in (
        ("temperature", temperature, 0, 1e6),
        ("top_k", top_k, 0, 2**31 - 1),
        ("top_p", top_p, 1e-6, 1),
        ("min_p", min_p, 0, 1),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")
    f = jnp.float32
    return Settings(f(temperature), jnp.int32(top_k), f(top_p), f(min_p))


def query_words(query_id: str) -> tuple[int, int]:
    """Hashes a query's id to two uint32, the head of its SHA-256."""
    digest = hashlib.sha256(query_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])


def sample_key(
    seed: UInt32[Array, ""], name: UInt32[Array, " 3"]
) -> UInt32[Array, " 2"]:
    """Derives the key data of one sample.

    name holds the two words of the query and the sample's index. The
    key of token t folds t in at the end. For token 5 of sample 2 of "q/0" in
    a run with seed 7:

        key(7) -> fold w0 -> fold w1 -> fold 2    here, once a sample
               -> fold 5                          in decode, once a token

    No slot, group, batch or earlier token is in that chain. So a sample is
    the same wherever it is generated, and two samples share no key.
    """
    key = jax.random.key(seed)
    for word in name:
        key = jax.random.fold_in(key, word)
    return jax.random.key_data(key)


def score(sums: LogitSums, vocabulary: int) -> ScoredToken:
    """Computes the measures from sums, NumPy arrays of any shape.

    NumPy rounds a product and a sum one after the other; XLA leaves that open.
    """
    return ScoredToken(
        sums.token,
        sums.logit - sums.log_total,
        sums.log_total - sums.top / min(TOP, vocabulary),
        sums.log_total - sums.all / vocabulary - np.float32(np.log(vocabulary)),
    )


def choose(
    key: jax.Array, logits: Float32[Array, " V"], settings: Settings
) -> LogitSums:
    """Samples one token.

    The vocabulary is read as blocks [B, BLOCK] whose sums and greatest
    values answer the rest. One uniform chooses a block, a second one a token
    within it, so that each search runs over a few hundred float32 sums and no
    precision is lost in a sum over the whole vocabulary. With blocks of four:

        weights      [1 0 2 1] [0 0 0 4]    sums of blocks 4, 4
        u = 0.75     0.75 x 8 = 6: running sums 4, 8; the first above 6
                     is that of block 1
        v = 0.1      0.1 x 4 = 0.4: running sums 0, 0, 0, 4; place 3
        token        1 x 4 + 3 = 7
    """
    vocabulary = logits.shape[0]
    # A branch on whole vocabularies would be computed on one core: it gives
    # no more than where to cut.
    cutoff = jax.lax.cond(
        (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0),
        lambda: _cutoff(logits, settings),
        lambda: jnp.float32(-jnp.inf),
    )
    heat = jnp.where(settings.temperature > 0, settings.temperature, 1.0)
    blocks = _blocks(logits)
    max_B = blocks.max(1)
    top = max_B.max()
    weigh = lambda x: jnp.where(x >= cutoff, jnp.exp((x - top) / heat), 0.0)
    u, v = jax.random.uniform(key, (2,))
    block = _invert(u, weigh(blocks).sum(1))
    best_block = max_B.argmax()
    token = jnp.where(
        settings.temperature > 0,
        block * BLOCK + _invert(v, weigh(blocks[block])),
        best_block * BLOCK + blocks[best_block].argmax(),
    ).astype(jnp.int32)
    total_B = jnp.exp(blocks - top).sum(1)
    # the greatest logits lie in the blocks with the greatest of their own
    _, best = jax.lax.top_k(max_B, min(TOP, len(max_B)))
    greatest, _ = jax.lax.top_k(blocks[best].ravel(), min(TOP, vocabulary))
    return LogitSums(
        token,
        logits[token],
        top + jnp.log(row_sums(total_B)[0]),
        # or the slices of the sum would each become a sort of their own
        row_sums(jax.lax.optimization_barrier(greatest))[0],
        row_sums(_blocks(logits, 0.0).sum(1))[0],
    )


def choose_each(
    key: UInt32[Array, "S 2"],
    count: Int32[Array, " S"],
    logits: Float32[Array, "S V"],
    settings: Settings,
) -> LogitSums:
    """Samples a token for each slot.

    The token's number in the sample, count, ends the chain of keys. On a mesh
    it is sampled on one device, from all of the vocabulary, and all devices
    know it. Where the slots of a part do not divide evenly among its devices,
    they are padded: 60 on eight devices become 64, eight each. Else each device
    would sample for all. No logits leave their part.
    """

    def one(key, count, logits, settings):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), count)
        return choose(key, logits, settings)

    sizes, total = ambient(), len(count)
    parts = sizes.get(DATA, 1)
    parts = 1 if total % parts else parts
    each = total // parts
    missing = -each % (math.prod(sizes.values()) // parts)

    def padded(x):
        """[S, ...] with as many slots more in each part."""
        x = x.reshape(parts, each, *x.shape[1:])
        x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
        # of logits each device goes on with its part of the vocabulary
        x = constrained(x, DATA, None, MODEL)
        return x.reshape(-1, *x.shape[2:])

    rows = (key, count, logits)
    if missing:
        rows = jax.tree.map(padded, rows)
    slots = fitting(sizes, rows[1].shape, (BOTH,))
    sample = on_shards(
        jax.vmap(one, (0, 0, 0, None)), (slots, slots, slots, P()), slots
    )
    sums = replicated(sample(*rows, settings))
    if not missing:
        return sums
    own = lambda x: x.reshape(parts, -1)[:, :each].reshape(-1)
    return jax.tree.map(own, sums)


def replicated(tree: Any) -> Any:
    """Lays a tree out in full on all devices of the ambient mesh."""
    return jax.tree.map(constrained, tree)


def windowed(
    confidence_T: Float[np.ndarray, " T"], size: int = WINDOW
) -> dict[str, float]:
    """Computes DeepConf's measures (arXiv 2508.15260, section 3).

    confidence_T is, for each completion token, minus the mean log-probability
    of the likeliest tokens. Windows slide by one token; a sample shorter than
    a window is one window. tail is the mean of the last window, bottom of the
    lowest tenth of windows, lowest of the lowest one.
    """
    trace_T = np.asarray(confidence_T, np.float64)
    size = min(size, len(trace_T))
    sums = np.concatenate([[0.0], trace_T.cumsum()])
    means = np.sort((sums[size:] - sums[:-size]) / size)
    return {
        "tail": float(trace_T[-size:].mean()),
        "bottom": float(means[: max(1, len(means) // 10)].mean()),
        "lowest": float(means[0]),
    }


def _blocks(
    logits: Float32[Array, " V"], padding: float = -np.inf
) -> Float32[Array, "B BLOCK"]:
    """The vocabulary in blocks, padded by tokens that are never sampled."""
    missing = -len(logits) % BLOCK
    padded = jnp.pad(logits, (0, missing), constant_values=padding)
    return padded.reshape(-1, BLOCK)


def _invert(
    uniform: Float32[Array, ""], weights: Float32[Array, " weights"]
) -> Int32[Array, ""]:
    """The first index of weight whose running sum passes uniform x total."""
    sums = weights.cumsum()
    # Rounding may let no sum pass, and, where sums are added up as a tree,
    # may lift one at an index without weight.
    passed = (sums > uniform * sums[-1]) & (weights > 0)
    last = weights.shape[0] - 1 - jnp.argmax(weights[::-1] > 0)
    return jnp.where(passed.any(), passed.argmax(), last).astype(jnp.int32)


def _cutoff(
    logits: Float32[Array, " V"], settings: Settings
) -> Float32[Array, ""]:
    """The least logit that top-k, top-p and min-p keep, in this order.

    They follow temperature (min-p: arXiv 2407.01082), and ties at a cutoff
    stay. Logits 3, 2, 2, 0, -1 with top_k = 2, top_p = 0.8 and temperature 1:

        logits               3     2     2     0   -1
        top-k keeps          x     x     x              the second is 2: a tie
        weights              1   .37   .37     0    0   exp(logit - 3)
        top-p wants 0.8 x 1.74 = 1.39; from 3 on there is 1, from 2 on 1.74:
        top-p keeps          x     x     x
        min_p = 0.5 keeps    x                          of weight 1: cutoff 3
    """
    heat = jnp.where(settings.temperature > 0, settings.temperature, 1.0)
    order = _sortable(logits)
    vocabulary = logits.shape[0]
    k = jnp.where(settings.top_k > 0, settings.top_k, vocabulary)
    kept = order >= _bisect(
        lambda cut: (order >= cut).sum() >= jnp.minimum(k, vocabulary)
    )
    weights = jnp.where(kept, jnp.exp((logits - logits.max()) / heat), 0.0)
    enough = settings.top_p * weights.sum()
    kept &= order >= _bisect(
        lambda cut: jnp.where(order >= cut, weights, 0.0).sum() >= enough
    )
    kept &= weights >= settings.min_p  # the greatest weight is 1
    return jnp.where(kept, logits, jnp.inf).min()


def _sortable(logits: Float32[Array, " V"]) -> UInt32[Array, " V"]:
    """uint32 that sort as the float32 do.

    Bits of floats sort as sign and magnitude: 2.0 is 0x40000000, -2.0 is
    0xC0000000, -3.0 is 0xC0400000. Setting the sign of positive ones and
    flipping all bits of negative ones puts them in order:

        -3.0 -> 3FBFFFFF    -2.0 -> 3FFFFFFF    2.0 -> C0000000
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits < sign, bits | sign, ~bits)


def _bisect(holds) -> UInt32[Array, ""]:
    """The greatest uint32 cut for which holds(cut), true at 0, falling."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2 + (high - low) % 2
        ok = holds(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

    bounds = (jnp.uint32(0), jnp.uint32(0xFFFFFFFF))
    return jax.lax.fori_loop(0, 32, halve, bounds)[0]
