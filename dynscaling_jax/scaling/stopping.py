"""Stopping rules as policies: each query stops by itself, budget may be left.

A rule reads the samples that are there when a round begins; queries that it
stopped get nothing more, the others share the round evenly, so that a round
of one sample a query follows the published rule sample by sample.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, betaln

from dynscaling_jax.scaling.allocation import (
    free_slots,
    place,
    under_way,
)
from dynscaling_jax.scaling.bounds import at_least, inside
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.scaling.uncertainty import (
    answer_counts,
    behind,
    leaders,
    top_share,
)
from dynscaling_jax.types import Candidates, Policy

Rule = Callable[[jax.Array, jax.Array], jax.Array]  # answers [N], count -> []


@named
def elimination(agreement: float = 0.8, least: int = 4) -> Policy:
    """Drops a query once its leader holds agreement of its samples.

    least: readable samples before a query can be dropped.
    """
    inside("agreement", agreement, 0, 1)
    at_least("least", least, 1)

    def stops(answer_N: jax.Array, count: jax.Array) -> jax.Array:
        counts_N, _ = answer_counts(answer_N, count)
        enough = jnp.sum(counts_N) >= least
        return enough & (1 - top_share(counts_N) >= agreement)

    return _even(stops)


@named
def adaptive_consistency(confidence: float = 0.95, most: int = 40) -> Policy:
    """Stops once P(leader is ahead of the runner-up) passes confidence.

    Aggarwal et al. 2023 (arXiv 2305.11860), the Beta criterion: the integral
    of the Beta(c_1 + 1, c_2 + 1) density above 1/2. A unanimous query stops
    at its fourth sample: 1 - 2^-5 > 0.95. At most `most` samples a query.
    """
    inside("confidence", confidence, 0, 1)
    at_least("most", most, 1)

    def stops(answer_N: jax.Array, count: jax.Array) -> jax.Array:
        first, second = leaders(answer_counts(answer_N, count)[0])
        return (first > 0) & (1 - behind(first, second) > confidence)

    return _even(stops, most=most)


@named
def esc(window: int = 5, most: int = 40) -> Policy:
    """Stops at the first window of samples that all agree.

    Li et al. 2024 (arXiv 2401.10480): windows follow one another, each is
    drawn whole, an unreadable sample breaks it. At most `most` samples.
    """
    at_least("window", window, 1)
    at_least("most", most, window)

    def stops(answer_N: jax.Array, count: jax.Array) -> jax.Array:
        whole = answer_N.shape[0] // window
        answer_WN = answer_N[: whole * window].reshape(whole, window)
        agree_W = jnp.all(answer_WN == answer_WN[:, :1], axis=1)
        drawn_W = (jnp.arange(whole) + 1) * window <= count
        return jnp.any(agree_W & drawn_W & (answer_WN[:, 0] >= 0))

    return _even(stops, most=most, block=window)


@named
def lead_k(lead: int = 3) -> Policy:
    """Stops once the leader is `lead` votes ahead of the runner-up."""
    at_least("lead", lead, 1)

    def stops(answer_N: jax.Array, count: jax.Array) -> jax.Array:
        first, second = leaders(answer_counts(answer_N, count)[0])
        return first - second >= lead

    return _even(stops)


@named
def mmc(delta: float = 0.05) -> Policy:
    """Stops once the leader is certified as the mode at level delta.

    The Martingale Majority Certificate (Cordero-Encinar and Duncan 2025):
    two e-processes, leader against runner-up and leader against all other
    answers, must both reach 1 / delta. Each bets, before a sample is seen,
    on the leader of that moment. With s samples won and f lost, and the
    chance of winning uniform on [1/2, 1], its value is
        2^(s + f + 1) * integral from 1/2 to 1 of x^s (1 - x)^f dx.
    While there is no runner-up, both processes bet on the leader against
    any other answer; so a unanimous stream stops, at its eighth sample:
    2^8 / 8 * (1 - 2^-8) > 20.
    """
    inside("delta", delta, 0, 1)

    def stops(answer_N: jax.Array, count: jax.Array) -> jax.Array:
        slots = answer_N.shape[0]

        def bet(carry, slot):
            counts_N, leader, runner, score_4 = carry
            answer = jnp.where(slot < count, answer_N[slot], -1)
            read = answer >= 0
            won = read & (answer == leader)
            lost = read & (leader >= 0) & ~won
            alone = runner < 0
            to_runner = lost & (alone | (answer == runner))
            to_rest = lost & (alone | (answer != runner))
            bets_4 = jnp.stack([won, to_runner, won, to_rest])

            counts_N = counts_N.at[answer].add(read.astype(jnp.int32))

            def beats(one, other):
                more = counts_N[one] - counts_N[other]
                return (other < 0) | (more > 0) | ((more == 0) & (one < other))

            leads = read & beats(answer, leader)
            follows = read & (answer != leader) & beats(answer, runner)
            runner = jnp.where(
                leads, leader, jnp.where(follows, answer, runner)
            )
            leader = jnp.where(leads, answer, leader)
            score_4 += bets_4.astype(jnp.int32)
            return (counts_N, leader, runner, score_4), None

        nobody = jnp.int32(-1)
        start = (
            jnp.zeros(slots, jnp.int32),
            nobody,
            nobody,
            jnp.zeros(4, jnp.int32),
        )
        (*_, score_4), _ = jax.lax.scan(bet, start, jnp.arange(slots))
        won_2, lost_2 = score_4[0::2], score_4[1::2]
        return jnp.all(log_e_value(won_2, lost_2) >= -jnp.log(delta))

    return _even(stops)


def log_e_value(won: jax.Array, lost: jax.Array) -> jax.Array:
    """Log of 2^(s + f + 1) * integral of x^s (1 - x)^f over [1/2, 1]."""
    a, b = won.astype(jnp.float32) + 1, lost.astype(jnp.float32) + 1
    upper = betainc(b, a, jnp.full(a.shape, 0.5, jnp.float32))
    return (a + b - 1) * jnp.log(2.0) + betaln(a, b) + jnp.log(upper)


def _even(stops: Rule, most: int | None = None, block: int = 1) -> Policy:
    """Whole blocks of samples, the shortest first, until stops holds."""

    def allocate(key, candidates: Candidates, budget):
        stopped_Q = jax.vmap(stops)(candidates.answer_QN, candidates.count_Q)
        free_Q = free_slots(candidates)
        asked_Q = candidates.count_Q + under_way(candidates)
        if most is not None:
            free_Q = jnp.clip(most - asked_Q, 0, free_Q)
        free_Q = jnp.where(stopped_Q, 0, free_Q)

        def score(virtual):
            blocks_Q = (asked_Q + virtual) // block
            return -blocks_Q.astype(jnp.float32)

        slots = candidates.answer_QN.shape[1]
        return place(key, jax.vmap(score), free_Q, budget, slots)

    return Policy(allocate)
