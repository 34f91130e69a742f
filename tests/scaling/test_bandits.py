"""The bandits' first rounds by hand, and what their theory promises."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dynscaling_jax.scaling.bandits import (
    pets,
    random,
    thompson,
    uab,
    ucb,
    uniform,
)
from dynscaling_jax.types import Candidates

KEY = jax.random.key(0)


def packed(rows, slots, logprobs=None) -> Candidates:
    answer_QN = np.full((len(rows), slots), -1, np.int32)
    weight_QN = np.zeros(answer_QN.shape, np.float32)
    for q, answers in enumerate(rows):
        answer_QN[q, : len(answers)] = answers
        if logprobs is not None:
            weight_QN[q, : len(answers)] = logprobs[q]
    return Candidates(
        jnp.array(answer_QN),
        jnp.array(weight_QN),
        jnp.ones(answer_QN.shape, jnp.int32),
        jnp.array([len(answers) for answers in rows], jnp.int32),
    )


def grants(policy, candidates, budget, key=KEY):
    allocate = jax.jit(policy.allocate)
    return allocate(key, candidates, jnp.int32(budget)).tolist()


def test_uniform_levels_the_counts():
    candidates = packed([[0] * 5, [0], [0, 1], []], 8)
    assert grants(uniform(), candidates, 1) == [0, 0, 0, 1]
    assert grants(uniform(), candidates, 9) == [0, 3, 2, 4]
    assert grants(uniform(), candidates, 12) == [0, 4, 3, 5]
    assert grants(uniform(), candidates, 100) == [3, 7, 6, 8]


def test_random_is_multinomial():
    """Chi-square of 3,000 pulls over three queries, 2 degrees of freedom,
    below 18.4 at level 1e-4; and the spread of a query's count over rounds
    is binomial, not fixed."""
    candidates = packed([[], [0], [0, 1]], 64)
    policy = random()
    pulled = jax.jit(
        jax.vmap(lambda key: policy.allocate(key, candidates, jnp.int32(30)))
    )(jax.random.split(KEY, 100))
    seen_Q = np.asarray(pulled).sum(axis=0)
    assert ((seen_Q - 1000) ** 2 / 1000).sum() < 18.4
    # variance 30 * 1/3 * 2/3; 99 s^2 / sigma^2 is chi-square, level 1e-4
    ratio = 99 * np.asarray(pulled)[:, 0].var(ddof=1) / (30 * 2 / 9)
    assert stats.chi2.ppf(5e-5, 99) < ratio < stats.chi2.ppf(1 - 5e-5, 99)


def test_ucb_first_rounds_by_hand():
    """Counts 2,1 / 3 / 1,1, T = 8, sqrt(2 ln 8) = 2.04, gini, c = 0.5:
    query 0: 4/9 + 1.02 / sqrt(n), n = 3, 4, 5, ..: 1.033 0.954 0.900 0.861
    query 1: 0   + 1.02 / sqrt(n), n = 3, 4, ..:    0.589 0.510
    query 2: 1/2 + 1.02 / sqrt(n), n = 2, 3, ..:    1.221 1.089 1.010 0.956
    """
    candidates = packed([[0, 0, 1], [0, 0, 0], [0, 1]], 16)
    policy = ucb(uncertainty="gini", c=0.5)
    by_hand = {1: [0, 0, 1], 2: [0, 0, 2], 3: [1, 0, 2], 4: [1, 0, 3]}
    by_hand |= {5: [1, 0, 4], 6: [2, 0, 4]}
    for budget, expected in by_hand.items():
        assert grants(policy, candidates, budget) == expected


def test_ucb_tries_every_query_first():
    candidates = packed([[0, 1, 2], [], []], 8)
    assert grants(ucb(), candidates, 2) == [0, 1, 1]


def test_ucb_finds_the_best_arm_with_logarithmic_regret():
    """A sample that is unreadable with chance p makes top_share, diluted,
    the mean of a Bernoulli(p) arm; with c = 1 the score is UCB1's (Auer et
    al. 2002, Theorem 1), whose regret is at most
    sum of 8 ln T / gap + (1 + pi^2 / 3) gap.
    """
    chance = np.array([0.9, 0.6, 0.5, 0.3])
    gap = chance[0] - chance[1:]
    steps, runs = 1200, 8
    policy = ucb(uncertainty="top_share", c=1.0)

    def run(key):
        def pull(candidates, key):
            place, draw = jax.random.split(key)
            grant_Q = policy.allocate(place, candidates, jnp.int32(1))
            arm = jnp.argmax(grant_Q)
            blank = jax.random.bernoulli(draw, jnp.array(chance)[arm])
            answer_QN = candidates.answer_QN.at[
                arm, candidates.count_Q[arm]
            ].set(jnp.where(blank, -1, 0))
            return candidates._replace(
                answer_QN=answer_QN, count_Q=candidates.count_Q + grant_Q
            ), arm

        start = packed([[]] * 4, steps)
        return jax.lax.scan(pull, start, jax.random.split(key, steps))[1]

    arms = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(KEY, runs)))
    regret = np.cumsum(np.r_[0, gap][arms], axis=1).mean(axis=0)
    bound = 8 * np.log(steps) * (1 / gap).sum() + (1 + np.pi**2 / 3) * gap.sum()
    assert regret[-1] < bound
    # ln 1200 / ln 150 = 1.42, where linear regret would grow eightfold
    assert regret[-1] / regret[149] < 3
    assert np.mean(arms[:, -300:] == 0) > 0.8


def test_thompson_prefers_the_close_race():
    """Shares 0.5 : 0.5 against unanimous, 12 samples each. The margin of a
    draw is compared over 400 keys with draws by numpy: z-test, 5 sigma."""
    candidates = packed([[0] * 12, [0, 1] * 6], 16)
    policy = thompson()
    pulled = jax.jit(
        jax.vmap(lambda key: policy.allocate(key, candidates, jnp.int32(1)))
    )(jax.random.split(KEY, 400))
    first = np.mean(np.asarray(pulled)[:, 1])
    rng = np.random.default_rng(0)
    sure = rng.dirichlet([13, 1, 1], 100_000)
    close = rng.dirichlet([7, 7, 1], 100_000)
    wins = np.abs(close[:, 0] - close[:, 1]) < np.abs(sure[:, 0] - sure[:, 1])
    assert abs(first - wins.mean()) < 5 * math.sqrt(0.25 / 400)
    assert first > 0.9


def test_thompson_spreads_a_round():
    """Virtual pulls: equal queries share a round, none takes it all."""
    candidates = packed([[0, 1] * 4] * 6, 64)
    assert max(grants(thompson(), candidates, 48)) < 24


def test_pets_by_hand():
    """Rise of I_1/2 by one vote for the leader, from scipy's beta; counts
    0,0 / 2,1 / 2,2 / 5,0 and their virtual successors, which only fall."""

    def rise(first, second):
        now, then = (
            stats.beta.sf(0.5, first + 1 + more, second + 1) for more in (0, 1)
        )
        return then - now

    rows = [[], [0, 0, 1], [0, 0, 1, 1], [0] * 5]
    tops = [(0, 0), (2, 1), (2, 2), (5, 0)]
    candidates = packed(rows, 16)
    checked = 0
    policy = pets()
    for budget in range(1, 16):
        rises = sorted(
            (
                (rise(first + v, second), q)
                for q, (first, second) in enumerate(tops)
                for v in range(10)
            ),
            reverse=True,
        )
        if rises[budget - 1][0] - rises[budget][0] < 1e-9:
            continue  # a tie, which the key decides
        taken = [q for _, q in rises[:budget]]
        expected = [taken.count(q) for q in range(4)]
        assert grants(policy, candidates, budget) == expected
        checked += 1
    assert checked >= 6


def test_uab_by_hand():
    """p = exp(mean logprob): 0.8 after two samples, 0.3 after two, and 1/2
    before any. p (1 - p)^n: 0.032 0.0064; 0.147 0.103 0.072; 0.5 0.25 0.125.
    """
    candidates = packed(
        [[0, 0], [0, 1], []],
        8,
        [
            [math.log(0.64), 0.0],
            [math.log(0.3)] * 2,
            [],
        ],
    )
    assert uab().reads == "logprob"
    assert grants(uab(), candidates, 2) == [0, 0, 2]
    assert grants(uab(), candidates, 3) == [0, 1, 2]
    assert grants(uab(), candidates, 4) == [0, 1, 3]
    assert grants(uab(), candidates, 5) == [0, 2, 3]
