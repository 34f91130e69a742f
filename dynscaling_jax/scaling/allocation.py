"""Where the pulls of one round go: the best scores first, all at once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynscaling_jax.types import Candidates, Policy

NARROW = 16  # pulls of one query in a round that are looked at first
LOWEST, HIGHEST = -(2**31), 2**31 - 1  # beyond all scores, in _ordered's terms

Table = Callable[[jax.Array], jax.Array]
"""Virtual pulls, int32 [V]: 0, 1, 2, ... -> the score of each query after
so many, float32 [V, Q]; for any V."""


Score = Callable[[Candidates, jax.Array], jax.Array]
"""(candidates, virtual pulls [Q]) -> the score of each query [Q]; see
`scored`."""


def place(
    key: jax.Array,
    table: Table,
    free_Q: jax.Array,
    budget: jax.Array,
    slots: int,
) -> jax.Array:
    """Hands out a round's pulls; equals one argmax over queries a pull.

    The sequential rule pulls the
    query of the highest present score, again and again; since scores fall,
    what it pulls are the budget highest entries of the whole table.
    So their lowest value is found by bisection on the bits of a float, all
    above it is granted, and what is left goes to entries equal to it, query
    by query in an order drawn from key. This costs 64 passes for any budget,
    over NARROW columns unless some query would get as many pulls.

    Args:
      key: breaks ties.
      table: pulls v, int32 [V] -> what each query is worth once v pulls of
        this round went to it, [V, Q]; never NaN, and it must not rise with v.
      free_Q: int32, slots that are still empty; 0 where a query is done.
      budget: int32 scalar, may be traced.
      slots: what free_Q is at most.

    Returns:
      grants_Q: int32, sums to min(budget, sum of free_Q).
    """
    budget = jnp.minimum(budget, jnp.sum(free_Q))

    def levels(start: jax.Array, columns: int) -> jax.Array:
        """The first columns of the table; int32 [V, Q]. start is 0."""
        virtual_V = start + jnp.arange(columns, dtype=jnp.int32)
        open_VQ = virtual_V[:, None] < free_Q[None, :]
        return jnp.where(open_VQ, _ordered(table(virtual_V)), LOWEST)

    def search(level_VQ: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The lowest level that is granted, entries above and at it [Q]."""
        low = _bisect(lambda bar: jnp.sum(_reaching(level_VQ, bar)) >= budget)
        above_Q = _reaching(level_VQ, low + 1)
        return low, above_Q, _reaching(level_VQ, low) - above_Q

    start = jnp.int32(0)
    if slots <= NARROW:
        low, above_Q, tied_Q = search(levels(start, slots))
    else:
        level_VQ = levels(start, NARROW + 1)
        narrow = low, above_Q, tied_Q = search(level_VQ[:NARROW])
        # Scores fall: if no next entry reaches low, none beyond it does. Else
        # a loop takes one turn: of a cond, vmap would compute both branches,
        # and XLA would take out of it what does not depend on its state.
        missed = jnp.any(level_VQ[NARROW] >= low)
        _, (low, above_Q, tied_Q) = jax.lax.while_loop(
            lambda carry: carry[0] == start,
            lambda carry: (start + 1, search(levels(carry[0], slots))),
            (jnp.where(missed, start, start + 1), narrow),
        )
    return above_Q + _shared(key, tied_Q, budget - jnp.sum(above_Q))


def _shared(key: jax.Array, tied_Q: jax.Array, rest: jax.Array) -> jax.Array:
    """Shares the rest of the pulls among tied queries, in a random order.

    Each query takes a random number. Those of the highest numbers get all that
    they are tied for, found by bisection too.
    """
    number_Q = _lots(key, tied_Q.shape)
    # the highest numbers that rest entries reach, each tied_Q times
    last = _bisect(
        lambda n: jnp.sum(jnp.where(number_Q >= n, tied_Q, 0)) >= rest
    )
    ahead_Q = jnp.where(number_Q > last, tied_Q, 0)
    at_Q = jnp.where(number_Q == last, tied_Q, 0)
    before_Q = jnp.cumsum(at_Q) - at_Q  # two of one number come as they stand
    left = rest - jnp.sum(ahead_Q)
    return ahead_Q + jnp.clip(left - before_Q, 0, at_Q)


def _lots(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers of the queries, int32 from 0 on."""
    bits_Q = jax.random.bits(key, shape)
    return jax.lax.bitcast_convert_type(bits_Q >> 1, jnp.int32)


def _bisect(holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Finds the highest int32 below HIGHEST where a falling condition holds.

    It is LOWEST where the condition holds nowhere.
    """

    def halve(bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = holds(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = jnp.int32(LOWEST), jnp.int32(HIGHEST)
    return jax.lax.fori_loop(0, 32, lambda _, b: halve(b), bounds)[0]


def _reaching(level_VQ: jax.Array, bar: jax.Array) -> jax.Array:
    """Counts the entries of each query from bar on, [Q]."""
    # Rows are added one by one, in blocks: XLA's CPU compiler vectorises that,
    # but not a sum over an axis.
    reached_VQ = (level_VQ >= bar).astype(jnp.int32)
    padding = -len(reached_VQ) % NARROW
    blocks = jnp.pad(reached_VQ, ((0, padding), (0, 0)))
    blocks = blocks.reshape(-1, NARROW, blocks.shape[1])
    rows = [blocks[:, row] for row in range(NARROW)]
    return functools.reduce(jnp.add, rows).sum(axis=0)


def _ordered(score: jax.Array) -> jax.Array:
    """Floats -> int32 in the same order, both zeros to 0.

    The bits of a float rise with its size; of a negative one they fall.
    """
    score = jnp.where(score == 0, 0.0, score)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    return jnp.where(score < 0, bits ^ 0x7FFFFFFF, bits)


def scored(
    score: Score, reads: str | None = None, alone: bool = False
) -> Policy:
    """The policy that pulls the query with the highest score, again and again.

    Samples under way are virtual pulls too.

    Args:
      score: (candidates, virtual pulls int32 [Q]) -> the score of each query
        after them, float32 [Q]; never NaN, and it must not rise with the
        pulls. Every query with a free slot may be pulled.
      reads: the field or signal of Sample that score finds in weight_QN.
      alone: whether the score of a query reads nothing of other queries, so
        that without rounds only that of one that changed is computed.
    """

    def allocate(
        key: jax.Array, candidates: Candidates, budget: jax.Array
    ) -> jax.Array:
        pending_Q = under_way(candidates)
        table = jax.vmap(lambda virtual: score(candidates, virtual + pending_Q))
        slots = candidates.answer_QN.shape[1]
        return place(key, table, free_slots(candidates), budget, slots)

    return Policy(allocate, reads, score=score if alone else None)


def best(key: jax.Array, score_Q: jax.Array, free_Q: jax.Array) -> jax.Array:
    """The query that `place` gives a single pull; -1 where none has a slot.

    Args:
      key: breaks ties.
      score_Q: what each query is worth now.
      free_Q: int32, slots that are still empty.
    """
    open_Q = free_Q > 0
    level_Q = jnp.where(open_Q, _ordered(score_Q), LOWEST)
    tied_Q = open_Q & (level_Q == jnp.max(level_Q))
    query = jnp.argmax(jnp.where(tied_Q, _lots(key, tied_Q.shape), -1))
    return jnp.where(jnp.any(open_Q), query, -1).astype(jnp.int32)


def under_way(candidates: Candidates) -> jax.Array:
    """Samples that are being generated, int32 [Q]; 0 in rounds."""
    if candidates.pending_Q is None:
        return jnp.zeros_like(candidates.count_Q)
    return candidates.pending_Q


def free_slots(candidates: Candidates) -> jax.Array:
    """Slots still empty, and not awaiting a sample, int32 [Q]."""
    slots = candidates.answer_QN.shape[1]
    return slots - candidates.count_Q - under_way(candidates)
