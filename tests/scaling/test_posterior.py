"""posterior_gain against enumeration, and its rounds by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dynscaling_jax.scaling.posterior import mean_tokens, posterior_gain
from dynscaling_jax.scaling.uncertainty import behind
from dynscaling_jax.types import Candidates

KEY = jax.random.key(0)


def packed(rows, tokens=None, slots=16) -> Candidates:
    answer_QN = np.full((len(rows), slots), -1, np.int32)
    tokens_QN = np.ones((len(rows), slots), np.int32)
    for q, answers in enumerate(rows):
        answer_QN[q, : len(answers)] = answers
        if tokens is not None:
            tokens_QN[q] = tokens[q]
    return Candidates(
        jnp.array(answer_QN),
        jnp.zeros(answer_QN.shape),
        jnp.array(tokens_QN),
        jnp.array([len(answers) for answers in rows], jnp.int32),
    )


def grants(policy, candidates, budget):
    return jax.jit(policy.allocate)(KEY, candidates, jnp.int32(budget)).tolist()


def p_mode(first, second, prior):
    """P(the first answer is the commoner of two), by a sum over a grid of
    200,000 values of its share: likelihood times prior, no special function."""
    share = (np.arange(200_000) + 0.5) / 200_000
    weight = share ** (first + prior[0] - 1) * (1 - share) ** (
        second + prior[1] - 1
    )
    return weight[share > 0.5].sum() / weight.sum()


def enumerated_gain(first, second, prior, more):
    """Rise of P(vote = mode) from `more` samples: every sequence of votes
    for the two answers, by the chain rule of the posterior predictive, each
    followed by the vote that the posterior favours."""
    after = 0.0
    for votes in itertools.product((0, 1), repeat=more):
        a, b, chance = first + prior[0], second + prior[1], 1.0
        for vote in votes:
            chance *= (b if vote else a) / (a + b)
            a, b = a + 1 - vote, b + vote
        leads = stats.beta.sf(0.5, a, b)
        after += chance * max(leads, 1 - leads)
    return after - stats.beta.sf(0.5, first + prior[0], second + prior[1])


@pytest.mark.parametrize("prior", [(1.0, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("counts", [(1, 0), (2, 1), (3, 3), (5, 1), (8, 0)])
def test_the_gain_is_the_posterior_enumerated_on_a_grid(counts, prior):
    first, second = counts
    gain = float(behind(jnp.int32(first), jnp.int32(second), *prior))
    # the midpoint rule is weakest at the pole of a prior below 1
    assert gain == pytest.approx(1 - p_mode(first, second, prior), abs=1e-3)


@pytest.mark.parametrize("counts", [(1, 0), (2, 1), (3, 3), (4, 1)])
def test_no_look_ahead_gains_more_and_long_ones_come_near(counts):
    """All sequences of up to 12 further votes: what they add rises with
    their number, stays below the gain of settling the question, and a single
    one adds nothing unless the vote is tied. That is why the policy counts
    the whole gain, spread over a doubling, and not one sample's."""
    prior = (1.0, 1.0)
    first, second = counts
    settled = float(behind(jnp.int32(first), jnp.int32(second)))
    rises = [enumerated_gain(first, second, prior, n) for n in range(1, 13)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(rises))
    assert rises[-1] < settled
    assert rises[-1] > 0.2 * settled
    if first > second:
        assert rises[0] == pytest.approx(0, abs=1e-12)
    else:
        assert rises[0] > 0.01


def test_a_long_look_ahead_adds_the_whole_gain():
    """The enumeration, summed by numbers of votes in place of sequences (a
    Beta-binomial), for 40,000 further samples."""
    first, second, prior, more = 3, 1, (1.0, 0.5), 40_000
    a, b = first + prior[0], second + prior[1]
    k = np.arange(more + 1)
    chance = stats.betabinom.pmf(k, more, b, a)
    leads = stats.beta.sf(0.5, a + more - k, b + k)
    after = (chance * np.maximum(leads, 1 - leads)).sum()
    rise = after - stats.beta.sf(0.5, a, b)
    settled = float(behind(jnp.int32(first), jnp.int32(second), *prior))
    assert rise == pytest.approx(settled, rel=0.02)
    assert rise < settled


def test_first_rounds_by_hand():
    """Equal priors of 1. Counts 1,1 / 3,0 / 2,1:
    g = 1/2, 1/16, 5/16 and n = 2, 3, 3, so n g / (n + v)^2 for v = 0, 1, ..
    query 0: .250 .111 .0625 .040    query 1: .021 .0117
    query 2: .104 .0586 .0375 .026
    """
    candidates = packed([[0, 1], [0, 0, 0], [0, 0, 1]])
    policy = posterior_gain(leader=1.0, rival=1.0)
    by_hand = {
        1: [1, 0, 0],
        2: [2, 0, 0],
        3: [2, 0, 1],
        4: [3, 0, 1],
        5: [3, 0, 2],
        6: [4, 0, 2],
        7: [4, 0, 3],
    }
    for budget, expected in by_hand.items():
        assert grants(policy, candidates, budget) == expected


def test_a_query_without_samples_comes_first():
    candidates = packed([[0, 1], [], [0, 0, 0]])
    assert grants(posterior_gain(), candidates, 1) == [0, 1, 0]


def test_unanimity_settles_and_disagreement_does_not():
    candidates = packed([[0] * 6, [0, 1, 0, 1, 0, 1]])
    assert grants(posterior_gain(), candidates, 4) == [0, 4]


def test_unreadable_questions_are_given_up_by_and_by():
    """Eight unreadable samples, none readable: g stays that of the prior,
    but an even race of two samples comes first."""
    candidates = packed([[-1] * 8, [0, 1]])
    assert grants(posterior_gain(), candidates, 2) == [0, 2]


def test_cost_in_tokens_prefers_the_cheap_of_equals():
    candidates = packed([[0, 1], [0, 1]], tokens=[100, 9000])
    assert grants(posterior_gain(cost="tokens"), candidates, 1) == [1, 0]
    mean_Q = mean_tokens(candidates)
    assert mean_Q.tolist() == pytest.approx(
        [(200 + 4550) / 3, (18000 + 4550) / 3], rel=1e-6
    )
    with pytest.raises(ValueError, match="is not Literal.'samples', 'tokens'."):
        posterior_gain(cost="money")  # pyright: ignore


def test_it_settles_close_races_before_clear_ones():
    """Four Bernoulli questions with shares 0.95, 0.8, 0.65, 0.55, 200
    samples: the closer the race, the more it is given, and more of the votes
    are right than with an even split (400 replicates; one-sided z-test at
    level 1e-4)."""
    share_Q = jnp.array([0.95, 0.8, 0.65, 0.55])
    slots, rounds = 160, 50
    policy = posterior_gain()

    def run(key):
        draw, play = jax.random.split(key)
        wrong_QN = jax.random.uniform(draw, (4, slots)) > share_Q[:, None]
        answer_QN = wrong_QN.astype(jnp.int32)
        zeros = jnp.zeros((4, slots))

        def pull(count_Q, key):
            candidates = Candidates(
                answer_QN, zeros, zeros.astype(jnp.int32), count_Q
            )
            grant_Q = policy.allocate(key, candidates, jnp.int32(4))
            return count_Q + grant_Q, None

        count_Q, _ = jax.lax.scan(
            pull, jnp.zeros(4, jnp.int32), jax.random.split(play, rounds)
        )

        def right(count_Q):
            drawn_QN = jnp.arange(slots)[None, :] < count_Q[:, None]
            ahead_Q = jnp.sum(jnp.where(drawn_QN, 1 - 2 * answer_QN, 0), 1)
            return (ahead_Q > 0).astype(jnp.float32).mean()

        even = jnp.full(4, rounds, jnp.int32)
        return count_Q, right(count_Q) - right(even)

    count, better = jax.jit(jax.vmap(run))(jax.random.split(KEY, 400))
    mean_Q = np.asarray(count).mean(axis=0)
    assert mean_Q.sum() == pytest.approx(200)
    assert (np.diff(mean_Q) > 0).all()
    z = np.mean(better) / (np.std(better) / math.sqrt(400))
    assert z > stats.norm.ppf(1 - 1e-4)
