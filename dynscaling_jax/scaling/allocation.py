"""Where the pulls of one round go: the best scores first, all at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynscaling_jax.types import Candidates, Policy

NARROW = 16  # pulls of one query in a round that are looked at first
LOWEST, HIGHEST = -(2**31), 2**31 - 1  # beyond all scores, in _ordered's terms


def place(
    key: jax.Array,
    score_QN: jax.Array,
    free_Q: jax.Array,
    budget: jax.Array,
) -> jax.Array:
    """Hands out a round's pulls; equals one argmax over queries a pull.

    score_QN[q, v] is the score of query q once v pulls of this round went to
    it, float32 and never NaN; it must not rise with v, and only its first
    free_Q[q] entries count. The sequential rule pulls the query of the
    highest present score, again and again; since scores fall, what it pulls
    are the budget highest entries of the table. So their lowest value is
    found by bisection on the bits of a float, all above it is granted, and
    what is left goes to entries equal to it, query by query in an order
    drawn from key. This costs 32 passes for any budget, over the first
    columns alone unless some query would get all of those.

    Args:
      key: breaks ties.
      score_QN: as above.
      free_Q: int32, slots that are still empty; 0 where a query is done.
      budget: int32 scalar, may be traced.

    Returns:
      grants_Q: int32, sums to min(budget, sum of free_Q).
    """
    # Queries last: XLA's CPU compiler vectorises sums over the first axis.
    open_NQ = jnp.arange(score_QN.shape[1])[:, None] < free_Q[None, :]
    level_NQ = jnp.where(open_NQ, _ordered(score_QN.T), LOWEST)
    budget = jnp.minimum(budget, jnp.sum(free_Q))

    low, high = jnp.int32(LOWEST), jnp.int32(HIGHEST)
    if level_NQ.shape[0] > NARROW:
        low = _lowest(level_NQ[:NARROW], budget, low, high)
        # Scores fall: if no next entry reaches low, none beyond it does.
        enough = jnp.all(level_NQ[NARROW] < low)
        high = jnp.where(enough, low + 1, high)
    low = _lowest(level_NQ, budget, low, high)
    above_Q = _reaching(level_NQ, low + 1)
    tied_Q = _reaching(level_NQ, low) - above_Q
    order_Q = jax.random.permutation(key, score_QN.shape[0])
    before_Q = jnp.cumsum(tied_Q[order_Q]) - tied_Q[order_Q]
    rest = budget - jnp.sum(above_Q)
    share_Q = jnp.clip(rest - before_Q, 0, tied_Q[order_Q])
    return above_Q.at[order_Q].add(share_Q)


def _lowest(
    level_NQ: jax.Array, budget: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    """The highest level that at least budget entries reach, where low is
    known to be reached by as many, or is LOWEST, and high by fewer."""

    def halve(bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = jnp.sum(_reaching(level_NQ, middle)) >= budget
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return jax.lax.while_loop(lambda b: b[0] + 1 < b[1], halve, (low, high))[0]


def _reaching(level_NQ: jax.Array, level: jax.Array) -> jax.Array:
    return jnp.sum((level_NQ >= level).astype(jnp.int32), axis=0)


def _ordered(score: jax.Array) -> jax.Array:
    """Floats -> int32 in the same order, both zeros to 0.

    The bits of a float rise with its size; of a negative one they fall.
    """
    score = jnp.where(score == 0, 0.0, score)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    return jnp.where(score < 0, bits ^ 0x7FFFFFFF, bits)


def free_slots(candidates: Candidates) -> jax.Array:
    """Slots still empty, int32 [Q]."""
    return candidates.answer_QN.shape[1] - candidates.count_Q


def pulls(candidates: Candidates) -> jax.Array:
    """Samples of a query once v of this round's pulls went to it, [Q, N]."""
    slots = candidates.answer_QN.shape[1]
    virtual_N = jnp.arange(slots, dtype=jnp.int32)
    return candidates.count_Q[:, None] + virtual_N[None, :]


def stateless(
    allocate: Callable[..., jax.Array], weight: str | None = None
) -> Policy:
    """A policy that needs nothing but the candidates themselves."""
    return Policy(
        init=lambda queries: (),
        allocate=allocate,
        update=lambda state, candidates, grants_Q: state,
        weight=weight,
    )
