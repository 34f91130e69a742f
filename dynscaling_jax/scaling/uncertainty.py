"""How uncertain the answer of a query still is, from its answer counts.

Every measure takes the counts of one query, int32 [N] in any order with
zeros for answers that were not seen, and gives a float32 in [0, 1]; without
a single readable sample it gives 1. vmap over queries at the edge.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc, gammainc, gammaincc, xlogy

from dynscaling_jax.scaling.spec import choose
from dynscaling_jax.types import Candidates

Measure = Callable[[jax.Array], jax.Array]


def answer_counts(
    answer_N: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Counts of each answer id, int32 [N], and of unreadable samples, []."""
    slots = answer_N.shape[0]
    readable_N = (jnp.arange(slots) < count) & (answer_N >= 0)
    counts_N = tally(jnp.where(readable_N, answer_N, slots), slots)
    return counts_N, count - jnp.sum(counts_N)


def tally(values: jax.Array, length: int) -> jax.Array:
    """How often each of 0 .. length - 1 occurs; others are left out."""
    return jnp.zeros(length, jnp.int32).at[values].add(1, mode="drop")


def leaders(counts_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two largest counts: of the leader and of the runner-up."""
    at = jnp.argmax(counts_N)
    slot_N = jnp.arange(counts_N.shape[0])
    return counts_N[at], jnp.max(jnp.where(slot_N == at, 0, counts_N))


def two_leaders(candidates: Candidates) -> tuple[jax.Array, jax.Array]:
    """Returns the leaders of every query, each int32 [Q]."""

    def of_one(answer_N: jax.Array, count: jax.Array):
        return leaders(answer_counts(answer_N, count)[0])

    return jax.vmap(of_one)(candidates.answer_QN, candidates.count_Q)


def entropy(counts_N: jax.Array) -> jax.Array:
    """H(p) / log(max(2, n)): 0 for one answer, 1 for n different ones."""
    n, p_N = _shares(counts_N)
    return jnp.where(
        n == 0,
        1.0,
        jnp.sum(-xlogy(p_N, p_N)) / jnp.log(jnp.maximum(n, 2.0)),
    )


def gini(counts_N: jax.Array) -> jax.Array:
    """1 - sum p^2: the chance that two samples disagree."""
    n, p_N = _shares(counts_N)
    return jnp.where(n == 0, 1.0, 1 - jnp.sum(p_N**2))


def top_share(counts_N: jax.Array) -> jax.Array:
    """1 - p_1: the share of samples that do not vote for the leader."""
    n, p_N = _shares(counts_N)
    return jnp.where(n == 0, 1.0, 1 - jnp.max(p_N))


def margin(counts_N: jax.Array) -> jax.Array:
    """1 - (p_1 - p_2)."""
    n, _ = _shares(counts_N)
    first, second = leaders(counts_N)
    return 1 - (first - second).astype(jnp.float32) / jnp.maximum(n, 1.0)


def beta(counts_N: jax.Array) -> jax.Array:
    """I_1/2(c_1 + 1, c_2 + 1), at most 1/2 once something was read.

    The posterior probability that the leader is not ahead of the runner-up,
    under a uniform prior on their split (Aggarwal et al. 2023,
    arXiv 2305.11860, the Beta criterion).
    """
    first, second = leaders(counts_N)
    return jnp.where(first == 0, 1.0, behind(first, second))


def behind(
    first: jax.Array,
    second: jax.Array,
    prior_first: float = 1.0,
    prior_second: float = 1.0,
) -> jax.Array:
    """Posterior probability that the first answer is the rarer of two.

    first and second are their counts; their split is a priori
    Beta(prior_first, prior_second).
    """
    return betainc(
        first.astype(jnp.float32) + prior_first,
        second.astype(jnp.float32) + prior_second,
        jnp.full(first.shape, 0.5, jnp.float32),
    )


def dirichlet(counts_N: jax.Array) -> jax.Array:
    """Posterior probability that the mode is not the leader.

    The posterior is a Dirichlet with c_a + 1 for each answer seen and 1 for
    all that was not seen. Its normalised Gammas turn the probability that
    the leader is the largest into one integral over the leader's Gamma,
        integral of f(x; c_1 + 1) * product over others of F(x; c_a + 1) dx,
    taken by Gauss-Legendre quadrature in sqrt(x), where every factor is
    smooth on one scale whatever its count.
    """
    slots = counts_N.shape[0]
    top = math.sqrt(slots + 1) + 5  # ten standard deviations: beyond float32
    node_X, weight_X = np.polynomial.legendre.leggauss(12 * math.ceil(top))
    root_X = jnp.asarray(top / 2 * (node_X + 1), jnp.float32)
    # log F(x; c + 1) for every count that can be: by the upper tail where F
    # is near 1, clipped where it underflows so that 0 * log 0 stays 0.
    shape_C1 = jnp.arange(1, slots + 2, dtype=jnp.float32)[:, None]
    x_1X = root_X[None, :] ** 2
    log_cdf_CX = jnp.where(
        x_1X > shape_C1,
        jnp.log1p(-gammaincc(shape_C1, x_1X)),
        jnp.log(jnp.maximum(gammainc(shape_C1, x_1X), 1e-37)),
    )
    seen_C = tally(jnp.where(counts_N > 0, counts_N, slots + 1), slots + 1)
    first = jnp.max(counts_N)
    # The others: all seen but the leader, and the unseen one with count 0.
    others_C = seen_C.at[first].add(-1).at[0].add(1)
    log_others_X = jnp.dot(
        others_C.astype(jnp.float32),
        log_cdf_CX,
        precision=jax.lax.Precision.HIGHEST,
    )
    # The leader's density in the root, 2 root f(root^2), about its peak, so
    # that no large terms cancel; one minus the product, not one minus the
    # integral, keeps small probabilities exact.
    peak = jnp.sqrt(first.astype(jnp.float32) + 0.5)
    density_X = jnp.exp(
        2 * peak**2 * jnp.log(root_X / peak) + (peak - root_X) * (peak + root_X)
    )
    density_X *= jnp.asarray(weight_X, jnp.float32)
    behind_X = density_X * -jnp.expm1(log_others_X)
    value = jnp.sum(behind_X) / jnp.sum(density_X)
    return jnp.where(first == 0, 1.0, jnp.clip(value, 0.0, 1.0))


MEASURES: dict[str, Measure] = {
    "entropy": entropy,
    "gini": gini,
    "top_share": top_share,
    "margin": margin,
    "beta": beta,
    "dirichlet": dirichlet,
}


def _ignore(measure: Measure, counts_N: jax.Array, blank: jax.Array):
    """Unreadable samples say nothing."""
    del blank
    return measure(counts_N)


def _dilute(measure: Measure, counts_N: jax.Array, blank: jax.Array):
    """Each unreadable sample weighs as one sample of uncertainty 1."""
    readable = jnp.sum(counts_N)
    share = readable / jnp.maximum(readable + blank, 1)
    return share * measure(counts_N) + (1 - share)


def _distinct(measure: Measure, counts_N: jax.Array, blank: jax.Array):
    """Each unreadable sample is an answer of its own, given once."""
    empty_N = counts_N == 0
    fill_N = empty_N & (jnp.cumsum(empty_N) <= blank)
    filled_N = counts_N + fill_N.astype(counts_N.dtype)
    return jnp.where(jnp.sum(counts_N) == 0, 1.0, measure(filled_N))


UNREADABLE = {"ignore": _ignore, "dilute": _dilute, "distinct": _distinct}


def measure_by_name(
    name: str, unreadable: str = "dilute"
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(answer ids [N], samples drawn []) of one query -> uncertainty [].

    Raises:
      ValueError: name is not in MEASURES, or unreadable not in UNREADABLE.
    """
    measure = choose("uncertainty", name, MEASURES)
    how = choose("unreadable", unreadable, UNREADABLE)

    def of_one(answer_N: jax.Array, count: jax.Array) -> jax.Array:
        counts_N, blank = answer_counts(answer_N, count)
        return how(measure, counts_N, blank)

    return of_one


def _shares(counts_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Readable samples [] and the share of each answer [N]."""
    n = jnp.sum(counts_N).astype(jnp.float32)
    return n, counts_N.astype(jnp.float32) / jnp.maximum(n, 1.0)
