"""posterior_gain: our own design, close to opportunity_cost in what it saves.

How the two compare, and what lost against them, is in docs/allocation.md.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from dynscaling_jax.scaling.allocation import scored
from dynscaling_jax.scaling.bounds import above
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.scaling.uncertainty import behind, two_leaders
from dynscaling_jax.types import Candidates, Policy


@named
def posterior_gain(
    leader: float = 1.0,
    rival: float = 0.5,
    cost: Literal["samples", "tokens"] = "samples",
) -> Policy:
    """Expected rise of P(vote = true mode), a sample.

    Of the votes for the leader and the runner-up, the leader's share is
    Beta(c_1 + leader, c_2 + rival) a posteriori. It is below 1/2 with
    probability g; then the vote is not the mode of the two, so g is what
    settling the question would add. A single further sample can add nothing
    unless the vote is tied, so the gain of one is taken as its share of the
    n that would double the evidence:
        g / n, and n g / (n + v)^2 after v virtual pulls, since they both
    shrink what is left to gain and lengthen what a doubling takes. n counts
    unreadable samples too, so that a question that yields none is given up
    by and by.

    Args:
      leader: the prior of the leader, in votes.
      rival: that of the runner-up. The smaller it is, the more certain is a
        question whose samples all agree.
      cost: tokens divides the score by the mean new tokens of the question's
        samples (with one more sample as long as the mean of all).
    """
    above("leader", leader, 0)
    above("rival", rival, 0)

    def score(candidates: Candidates, virtual: jax.Array) -> jax.Array:
        count_Q = candidates.count_Q
        n_Q = jnp.maximum(count_Q, 1).astype(jnp.float32)
        gain_Q = n_Q * behind(*two_leaders(candidates), leader, rival)
        if cost == "tokens":
            gain_Q /= mean_tokens(candidates)
        return gain_Q / (count_Q + virtual).astype(jnp.float32) ** 2

    return scored(score, alone=cost == "samples")


def mean_tokens(candidates: Candidates) -> jax.Array:
    """Returns the mean new tokens of a sample of each query, float32 [Q].

    It is at least 1, and counts one more sample that is as long as the mean
    of all.
    """
    slot_1N = jnp.arange(candidates.tokens_QN.shape[1])[None, :]
    drawn_QN = slot_1N < candidates.count_Q[:, None]
    total_Q = jnp.sum(
        jnp.where(drawn_QN, candidates.tokens_QN, 0).astype(jnp.float32), axis=1
    )
    count_Q = candidates.count_Q.astype(jnp.float32)
    overall = jnp.sum(total_Q) / jnp.maximum(jnp.sum(count_Q), 1)
    return jnp.maximum((total_Q + overall) / (count_Q + 1), 1)
