"""Logits to a token, its log-probability and the model's confidence.

Written for one row and vmapped by the caller. The vocabulary is never
sorted: a draw inverts the distribution function in two levels, top-k and
top-p find their threshold by bisection over the bits of the logits.
"""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.models.attention import row_sums

BLOCK = 256  # tokens of one block of the two-level inverse
TOP = 20  # likeliest tokens whose log-probability makes the confidence


class Settings(NamedTuple):
    """How to sample. All traced: no value causes a compilation."""

    temperature: jax.Array  # float32; 0 takes the likeliest token
    top_k: jax.Array  # int32; 0 keeps all
    top_p: jax.Array  # float32; 1 keeps all
    min_p: jax.Array  # float32; 0 keeps all


class Draw(NamedTuple):
    """One drawn token. The measures are those of the model's own
    distribution, before temperature and filters."""

    token: jax.Array  # int32
    logprob: jax.Array  # float32, of the token
    confidence: jax.Array  # float32, minus the mean of the TOP greatest
    certainty: jax.Array  # float32, KL(uniform || p), arXiv 2502.18581


class Sums(NamedTuple):
    """A drawn token, and sums over the vocabulary. float32."""

    token: jax.Array  # int32
    logit: jax.Array  # of the token
    log_total: jax.Array  # log of the sum of exponentials
    top: jax.Array  # sum of the TOP greatest logits
    all: jax.Array  # sum of all


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
    return Settings(
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        jnp.float32(min_p),
    )


def query_words(query_id: str) -> tuple[int, int]:
    """Two uint32 that stand for a query in keys: the head of its SHA-256."""
    digest = hashlib.sha256(query_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]), int.from_bytes(digest[4:8])


def row_key(seed: jax.Array, name: jax.Array) -> jax.Array:
    """Key data uint32 [2] of one sample.

    Args:
        seed: uint32, of the run.
        name: uint32 [3], the two words of the query and the sample's index.

    The key of a token folds its position in after this. It depends on
    nothing else, so neither on the batch nor on what was drawn before.
    """
    key = jax.random.key(seed)
    for word in name:
        key = jax.random.fold_in(key, word)
    return jax.random.key_data(key)


def draw(key: jax.Array, logits: jax.Array, settings: Settings) -> Draw:
    """Draws one token from logits float32 [V]."""
    return measures(choose(key, logits, settings), logits.shape[0])


def measures(sums: Sums, vocabulary: int) -> Draw:
    """What a draw tells of the distribution; of NumPy arrays of any shape
    too. There a product and a sum are rounded one after the other, which XLA
    leaves open."""
    return Draw(
        sums.token,
        sums.logit - sums.log_total,
        sums.log_total - sums.top / min(TOP, vocabulary),
        sums.log_total - sums.all / vocabulary - np.float32(np.log(vocabulary)),
    )


def choose(key: jax.Array, logits: jax.Array, settings: Settings) -> Sums:
    """Draws one token from logits float32 [V].

    The vocabulary is read as blocks [B, BLOCK] whose sums and greatest
    values answer the rest. One uniform chooses a block, a second one a token
    within it, so that each search runs over a few hundred float32 sums and no
    precision is lost in a sum over the whole vocabulary.
    """
    vocabulary = logits.shape[0]
    # A branch on whole vocabularies would be computed on one core: it gives
    # no more than where to cut.
    cut = jax.lax.cond(
        (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0),
        lambda: _cut(logits, settings),
        lambda: jnp.float32(-jnp.inf),
    )
    heat = jnp.where(settings.temperature > 0, settings.temperature, 1.0)
    blocks = _blocks(logits)
    peak_B = blocks.max(1)
    peak = peak_B.max()
    weigh = lambda x: jnp.where(x >= cut, jnp.exp((x - peak) / heat), 0.0)
    u, v = jax.random.uniform(key, (2,))
    drawn = _pick(u, weigh(blocks).sum(1))
    best_block = peak_B.argmax()
    token = jnp.where(
        settings.temperature > 0,
        drawn * BLOCK + _pick(v, weigh(blocks[drawn])),
        best_block * BLOCK + blocks[best_block].argmax(),
    ).astype(jnp.int32)
    total_B = jnp.exp(blocks - peak).sum(1)
    # the greatest logits lie in the blocks with the greatest of their own
    _, best = jax.lax.top_k(peak_B, min(TOP, len(peak_B)))
    top, _ = jax.lax.top_k(blocks[best].ravel(), min(TOP, vocabulary))
    return Sums(
        token,
        logits[token],
        peak + jnp.log(row_sums(total_B)[0]),
        # or the slices of the sum would each become a sort of their own
        row_sums(jax.lax.optimization_barrier(top))[0],
        row_sums(_blocks(logits, 0.0).sum(1))[0],
    )


def _blocks(logits: jax.Array, rest: float = -np.inf) -> jax.Array:
    """[V] -> [B, BLOCK], padded with `rest`: tokens that are never drawn."""
    padding = -len(logits) % BLOCK
    padded = jnp.pad(logits, (0, padding), constant_values=rest)
    return padded.reshape(-1, BLOCK)


def _pick(uniform: jax.Array, weights: jax.Array) -> jax.Array:
    """The first index of weight whose running sum passes uniform x the
    whole."""
    sums = weights.cumsum()
    # Rounding may let no sum pass, and, where sums are added up as a tree,
    # may lift one at an index without weight.
    passed = (sums > uniform * sums[-1]) & (weights > 0)
    last = weights.shape[0] - 1 - jnp.argmax(weights[::-1] > 0)
    return jnp.where(passed.any(), passed.argmax(), last).astype(jnp.int32)


def _cut(logits: jax.Array, settings: Settings) -> jax.Array:
    """The least logit that top-k, then top-p and min-p (arXiv 2407.01082)
    keep after temperature; ties at a threshold stay."""
    heat = jnp.where(settings.temperature > 0, settings.temperature, 1.0)
    order = _order(logits)
    vocabulary = logits.shape[0]
    k = jnp.where(settings.top_k > 0, settings.top_k, vocabulary)
    kept = order >= _threshold(
        lambda cut: (order >= cut).sum() >= jnp.minimum(k, vocabulary)
    )
    peak = logits.max()
    weights = jnp.where(kept, jnp.exp((logits - peak) / heat), 0.0)
    enough = settings.top_p * weights.sum()
    kept &= order >= _threshold(
        lambda cut: jnp.where(order >= cut, weights, 0.0).sum() >= enough
    )
    kept &= weights >= settings.min_p  # the greatest weight is 1
    return jnp.where(kept, logits, jnp.inf).min()


def _order(logits: jax.Array) -> jax.Array:
    """uint32 that sort as the float32 do."""
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits < sign, bits | sign, ~bits)


def _threshold(holds) -> jax.Array:
    """The greatest uint32 cut for which holds(cut), true at 0, falling."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2 + (high - low) % 2
        ok = holds(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

    bounds = (jnp.uint32(0), jnp.uint32(0xFFFFFFFF))
    return jax.lax.fori_loop(0, 32, halve, bounds)[0]
