"""The oracle: an allocation that knows the references."""

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.oracle import oracle, regret
from dynscaling_jax.analysis.replay import replay_policies, rounds_to, shuffle
from dynscaling_jax.scaling.bandits import uniform
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import Candidates


def grants(answers, references, budget, slots=6):
    count_Q = [len(row) for row in answers]
    padded = [row + [-1] * (slots - len(row)) for row in answers]
    candidates = Candidates(
        jnp.array(padded, jnp.int32),
        jnp.zeros((len(answers), slots)),
        jnp.zeros((len(answers), slots), jnp.int32),
        jnp.array(count_Q, jnp.int32),
    )
    policy = oracle(jnp.array(references, jnp.int32))
    return jax.jit(policy.allocate)(
        jax.random.key(0), candidates, jnp.int32(budget)
    ).tolist()


def test_a_right_vote_and_a_hopeless_question_get_nothing():
    assert grants([[0, 0], [0, 1], [0]], [0, -2, 0], 9) == [0, 0, 0]


def test_the_nearest_to_right_comes_first():
    """The reference lacks 1, 2 and 3 votes to lead: scores 1, 1/2, 1/3, and
    each pull lowers its own to the next."""
    answers = [[0, 1], [0], [0, 0]]
    # the reference of the first is level with the leader, which was seen
    # first; that of the second and third is not seen yet
    assert grants(answers, [1, 1, 1], 1) == [1, 0, 0]
    assert grants(answers, [1, 1, 1], 3) == [2, 1, 0]
    assert grants(answers, [1, 1, 1], 30) == [4, 5, 4]


def bank_of(seed, queries=8, slots=10):
    rng = np.random.default_rng(seed)
    answer_QN = rng.integers(-1, 3, (queries, slots)).astype(np.int32)
    given_Q = (answer_QN == 0).any(axis=1)
    return Bank(
        "made-up",
        tuple(map(str, range(queries))),
        answer_QN,
        rng.integers(1, 9, (queries, slots)).astype(np.int32),
        None,
        np.where(given_Q, 0, -2).astype(np.int32),
    )


def test_unbounded_it_is_right_wherever_some_prefix_is():
    """Against a walk over every prefix in NumPy: with all samples at hand,
    one at a time, it is right on exactly the questions whose majority is
    right after some number of samples."""
    bank = bank_of(0)
    queries, slots = bank.answer_QN.shape
    played = replay_policies(
        bank,
        {"oracle": lambda replicate: oracle(replicate.reference_Q)},
        majority(),
        rounds_to([queries * slots], 1),
        replicates=4,
        chunk=4,
    )["oracle"]
    expected = []
    key = jax.random.key(0)
    for number in range(4):
        first = jax.random.split(jax.random.fold_in(key, number))[0]
        replicate = jax.tree.map(np.asarray, shuffle(bank, first))
        expected.append(
            np.mean(
                [
                    any(
                        majority_of(row[:k].tolist()) == reference
                        for k in range(1, slots + 1)
                    )
                    for row, reference in zip(
                        replicate.answer_QN, replicate.reference_Q, strict=True
                    )
                ]
            )
        )
    np.testing.assert_allclose(played.accuracy_RM[:, -1], expected)


def majority_of(answers):
    readable = [a for a in answers if a >= 0]
    return max(readable, key=readable.count) if readable else -1


def test_regret_of_uniform_is_not_negative_at_the_end():
    bank = bank_of(1)
    played = replay_policies(
        bank,
        {"u": uniform(), "o": lambda replicate: oracle(replicate.reference_Q)},
        majority(),
        rounds_to([16, 80], 8),
        replicates=50,
    )
    lost_M = regret(played["u"].accuracy_RM, played["o"].accuracy_RM)
    assert lost_M.shape == (2,)
    assert lost_M[-1] > 0
    assert (played["o"].accuracy_RM >= played["u"].accuracy_RM)[:, -1].all()


def test_regret_by_hand():
    ours = np.array([[0.5, 0.5], [0.7, 1.0]])
    best = np.array([[0.75, 1.0], [0.75, 1.0]])
    np.testing.assert_allclose(regret(ours, best), [0.15, 0.25])
