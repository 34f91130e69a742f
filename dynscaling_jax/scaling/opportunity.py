"""opportunity_cost: what is lost if the vote of now should be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from dynscaling_jax.scaling.allocation import scored
from dynscaling_jax.scaling.bounds import above
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.scaling.uncertainty import two_leaders
from dynscaling_jax.types import Candidates, Policy

FIRST = 1e9  # the score of a query without samples, above all others
FAR = 8.0  # deviations from which the tail is taken from its series


@named
def opportunity_cost(
    leader: float = 1.0, runner_up: float = 0.5, power: float = 1.5
) -> Policy:
    """Expected opportunity cost of voting now, per sample drawn^power.

    With shares s1 of the leader and s2 of the runner-up in the posterior of
    a query, the difference d = s1 - s2 is taken as normal, with the
    variance that the posterior gives it. E max(0, -d) is what the vote is
    expected to lose in share by staying with the leader (He, Chick and Chen
    2007). Dividing by samples^power, power above 1, turns from queries that
    stay split however often they are asked: a rule of ours, chosen by
    replay; see docs/allocation.md.

    An unreadable sample belongs to neither of the two, and so draws both
    shares down. Virtual pulls leave the shares and shrink the variance.

    Args:
        leader: what the prior adds to the count of the leader.
        runner_up: what it adds to that of the runner-up.
        power: of the number of samples.
    """
    above("leader", leader, 0)
    above("runner_up", runner_up, 0)
    above("power", power, 0)

    def score(candidates: Candidates, virtual: jax.Array) -> jax.Array:
        first_Q, second_Q, count_Q = (
            counts_Q.astype(jnp.float32)
            for counts_Q in (*two_leaders(candidates), candidates.count_Q)
        )

        virtual = virtual.astype(jnp.float32)
        log_cost_Q = log_opportunity_cost(
            first_Q + leader,
            second_Q + runner_up,
            count_Q + leader + runner_up,
            virtual,
        )
        drawn_Q = count_Q + virtual
        return jnp.where(
            drawn_Q > 0, log_cost_Q - power * jnp.log(drawn_Q), FIRST
        )

    return scored(score, alone=True)


def log_opportunity_cost(
    first: jax.Array, second: jax.Array, total: jax.Array, virtual: jax.Array
) -> jax.Array:
    """Returns log E max(0, -d), for d a difference of Dirichlet shares.

    d is taken as normal, with the mean of that difference and, after
    `virtual` more samples, its variance.

    Args:
        first: pseudo-counts of the leader, float32.
        second: of the runner-up.
        total: of all answers.
        virtual: further samples.
    """
    share, other = first / total, second / total
    mean = share - other
    deviation = jnp.sqrt((share + other - mean**2) / (total + virtual + 1))
    z = mean / deviation
    # E = deviation (phi(z) - z Phi(-z)); z may be 30 and phi(z) no float32.
    log_phi = -0.5 * z**2 - np.float32(0.5 * np.log(2 * np.pi))
    near = jnp.minimum(z, FAR)
    near_phi = -0.5 * near**2 - np.float32(0.5 * np.log(2 * np.pi))
    direct = 1 - near * jnp.exp(log_ndtr(-near) - near_phi)
    inverse = 1 / jnp.maximum(z, FAR) ** 2
    series = inverse * (1 - 3 * inverse * (1 - 5 * inverse))
    return (
        jnp.log(deviation)
        + log_phi
        + jnp.log(jnp.where(z > FAR, series, direct))
    )
