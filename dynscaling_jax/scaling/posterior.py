"""posterior_gain: what a sample is expected to add to a right vote."""

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln

from dynscaling_jax.scaling.allocation import free_slots, place, stateless
from dynscaling_jax.scaling.bandits import above
from dynscaling_jax.scaling.uncertainty import answer_counts, behind, leaders
from dynscaling_jax.types import Candidates, Policy


def posterior_gain(prior: float = 1.0) -> Policy:
    """Expected rise of P(vote = true mode) a sample.

    Leader against runner-up, their split a priori Beta(prior, prior). One
    sample seldom flips a vote, so the gain is that of the shortest run that
    does, all d + 1 samples for the runner-up with d the lead, divided by
    its length. Virtual pulls count as votes for the leader.
    """
    above("prior", prior, 0)

    def allocate(key, state, candidates: Candidates, budget):
        del state

        def score(answer_N, count):
            first, second = leaders(answer_counts(answer_N, count)[0])
            first_N = first + jnp.arange(answer_N.shape[0])
            return run_gain(first_N, jnp.full_like(first_N, second), prior)

        score_QN = jax.vmap(score)(candidates.answer_QN, candidates.count_Q)
        return place(key, score_QN, free_slots(candidates), budget)

    return stateless(allocate)


def run_gain(first: jax.Array, second: jax.Array, prior: float) -> jax.Array:
    """Gain a sample of the shortest run that flips the vote."""
    a, b = first.astype(jnp.float32), second.astype(jnp.float32)
    run = a - b + 1
    log_chance = betaln(a + prior, b + run + prior) - betaln(
        a + prior, b + prior
    )
    rise = 1 - 2 * behind(first + 1, first)
    return jnp.exp(log_chance) * rise / run
