"""The bandits: each query an arm, each pull one more sample.

Each function gives a Policy that spends all it is asked to while a slot is
free. A score says what each query is worth after `virtual` pulls of this
round, and allocation.place turns it into grants. A pull granted in this round
has no outcome yet: it is virtual, and each policy says what it lowers.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln

from dynscaling_jax.scaling.allocation import (
    free_slots,
    place,
    scored,
    under_way,
)
from dynscaling_jax.scaling.bounds import above, at_least
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.scaling.uncertainty import (
    answer_counts,
    leaders,
    measure_by_name,
    two_leaders,
)
from dynscaling_jax.types import Candidates, Policy


@named
def uniform() -> Policy:
    """The control: the query with the fewest samples comes first."""

    def score(candidates: Candidates, virtual: jax.Array) -> jax.Array:
        return -(candidates.count_Q + virtual).astype(jnp.float32)

    return scored(score, alone=True)


@named
def random() -> Policy:
    """The control: each pull goes to a query drawn at random.

    The pulls of each query arrive by a Poisson process of rate 1, so that
    the next arrival of all is equally likely to be any query's.
    """

    def allocate(key, candidates: Candidates, budget):
        draw, ties = jax.random.split(key)
        queries, slots = candidates.answer_QN.shape

        def table(virtual_V):
            def wait(virtual):
                column = jax.random.fold_in(draw, virtual)
                return jax.random.exponential(column, (queries,))

            return -jnp.cumsum(jax.vmap(wait)(virtual_V), axis=0)

        return place(ties, table, free_slots(candidates), budget, slots)

    return Policy(allocate)


@named
def ucb(
    uncertainty: str = "entropy", c: float = 0.5, unreadable: str = "dilute"
) -> Policy:
    """u_q + c sqrt(2 ln T / n_q), the score of DynScaling as we read it.

    The idea is the paper's (arXiv 2506.16043), measure and c are ours; the
    bonus is UCB1's (Auer et al. 2002). T counts the samples of all queries
    when the round begins; a virtual pull adds one to n_q. A query without a
    sample comes before all others.
    """
    at_least("c", c, 0)
    measure = measure_by_name(uncertainty, unreadable)

    def score(candidates: Candidates, virtual: jax.Array) -> jax.Array:
        total = jnp.maximum(jnp.sum(candidates.count_Q), 1)
        width = c * jnp.sqrt(2 * jnp.log(total.astype(jnp.float32)))
        uncertain_Q = jax.vmap(measure)(
            candidates.answer_QN, candidates.count_Q
        )
        n_Q = (candidates.count_Q + virtual).astype(jnp.float32)
        return uncertain_Q + jnp.where(n_Q == 0, jnp.inf, width / jnp.sqrt(n_Q))

    return scored(score)  # T is of all queries


@named
def thompson(prior: float = 1.0) -> Policy:
    """Margin uncertainty of one draw from the posterior of the shares.

    The shares of the leader, the runner-up and all other answers are drawn
    from Dirichlet(c_1 + prior, c_2 + prior, rest + prior) (Thompson 1933);
    the score is 1 - |p_1 - p_2| of the draw. A virtual pull is taken as a
    vote that widens the gap: with m the mass of the posterior, v of them
    leave m / (m + v) of the uncertainty.
    """
    above("prior", prior, 0)

    def allocate(key, candidates: Candidates, budget):
        draw, ties = jax.random.split(key)

        def look(key, answer_N, count):
            counts_N, _ = answer_counts(answer_N, count)
            first, second = leaders(counts_N)
            rest = jnp.sum(counts_N) - first - second
            mass_3 = jnp.stack([first, second, rest]).astype(jnp.float32)
            share_3 = jax.random.dirichlet(key, mass_3 + prior)
            return 1 - jnp.abs(share_3[0] - share_3[1]), jnp.sum(mass_3)

        uncertain_Q, mass_Q = jax.vmap(look)(
            jax.random.split(draw, candidates.count_Q.shape[0]),
            candidates.answer_QN,
            candidates.count_Q,
        )
        mass_Q += 3 * prior

        pending_Q = under_way(candidates)

        def score(virtual):
            virtual_Q = (virtual + pending_Q).astype(jnp.float32)
            return uncertain_Q * mass_Q / (mass_Q + virtual_Q)

        slots = candidates.answer_QN.shape[1]
        return place(
            ties, jax.vmap(score), free_slots(candidates), budget, slots
        )

    return Policy(allocate)


@named
def pets() -> Policy:
    """Optimistic knowledge gradient on leader against runner-up.

    With h = P(the leader is the likelier of the two | Beta posterior), the
    score is the largest rise of h that one more sample can bring (Chen, Lin
    and Zhou 2013, ICML; applied to self-consistency by PETS), which is a
    vote for the leader and has the closed form
    2^-(a + b) / (a B(a, b)), a = c_1 + 1, b = c_2 + 1.
    A virtual pull counts as that vote. Unreadable samples leave h as it is.
    """

    def score(candidates: Candidates, virtual: jax.Array) -> jax.Array:
        first_Q, second_Q = two_leaders(candidates)
        a_Q = (first_Q + 1 + virtual).astype(jnp.float32)
        b_Q = second_Q.astype(jnp.float32) + 1
        return jnp.exp(
            -(a_Q + b_Q) * jnp.log(2.0) - betaln(a_Q, b_Q) - jnp.log(a_Q)
        )

    return scored(score, alone=True)


@named
def uab() -> Policy:
    """Scores by p (1 - p)^n: the next sample is the first success.

    p is the geometric mean probability of a token, exp of the mean
    log-probability of the readable samples so far (1/2 before there are
    any), taken as the chance that a sample succeeds; n counts all samples,
    virtual pulls too. Reads the field logprob of Sample.
    """

    def success(answer_N, weight_N, count):
        slot_N = jnp.arange(answer_N.shape[0])
        read_N = (slot_N < count) & (answer_N >= 0)
        read = jnp.sum(read_N)
        total = jnp.sum(jnp.where(read_N, weight_N, 0.0))
        mean = total / jnp.maximum(read, 1).astype(jnp.float32)
        return jnp.where(read == 0, 0.5, jnp.exp(jnp.minimum(mean, 0.0)))

    def score(candidates: Candidates, virtual: jax.Array) -> jax.Array:
        p_Q = jax.vmap(success)(
            candidates.answer_QN, candidates.weight_QN, candidates.count_Q
        )
        n_Q = (candidates.count_Q + virtual).astype(jnp.float32)
        return p_Q * (1 - p_Q) ** n_Q

    return scored(score, reads="logprob", alone=True)
