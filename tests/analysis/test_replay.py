"""Replay: the live loop's rounds, on recorded samples."""

from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.replay import (
    as_first_seen,
    permutations,
    play_replicate,
    replay_policies,
    rounds_to,
    shuffle,
)
from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.scaling.bandits import uab, ucb, uniform
from dynscaling_jax.scaling.loop import run_rounds
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import parallel
from dynscaling_jax.scaling.votes import majority, universal, weighted
from dynscaling_jax.types import (
    Budget,
    Method,
    Policy,
    Query,
    Schedule,
)
from tests.recorded import recorded_model

QUERIES, SLOTS = 5, 12


def bank_of(seed=0, logprobs=False):
    """Answers of questions from easy to hopeless; a fifth is unreadable."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.95, 0.2, QUERIES)[:, None]
    drawn = rng.random((QUERIES, SLOTS))
    wrong = rng.integers(1, 4, (QUERIES, SLOTS))
    answer_QN = np.where(drawn < share, 0, wrong)
    answer_QN[rng.random((QUERIES, SLOTS)) < 0.2] = -1
    return Bank(
        "made-up",
        tuple(f"q{q}" for q in range(QUERIES)),
        answer_QN.astype(np.int32),
        rng.integers(5, 50, (QUERIES, SLOTS)).astype(np.int32),
        -rng.random((QUERIES, SLOTS), np.float32) if logprobs else None,
        np.array([0, 0, 0, 0, -2], np.int32),
    )


@pytest.mark.parametrize("slots", [1, 2, 7, 64, 80])
def test_shuffled_rows_are_permutations(slots):
    order_QN = np.asarray(permutations(jax.random.key(1), 9, slots))
    assert (np.sort(order_QN, axis=1) == np.arange(slots)).all()


def test_every_permutation_is_as_likely():
    """Chi-square over 24,000 shuffles of four, 23 degrees of freedom, below
    58.6 at level 1e-4."""
    order_QN = np.asarray(permutations(jax.random.key(2), 24_000, 4))
    number = order_QN @ np.array([64, 16, 4, 1])
    _, seen = np.unique(number, return_counts=True)
    assert len(seen) == 24
    assert ((seen - 1000) ** 2 / 1000).sum() < 58.6


@pytest.mark.parametrize(
    ("budgets", "size", "first", "sizes", "marks"),
    [
        ([8, 20], 4, None, [4, 4, 4, 4, 4], [0, 1, 0, 0, 1]),
        ([10], 4, None, [4, 4, 2], [0, 0, 1]),
        ([6, 14], 4, 6, [6, 4, 4], [1, 0, 1]),
        ([3], 4, None, [3], [1]),
    ],
)
def test_rounds(budgets, size, first, sizes, marks):
    rounds = rounds_to(budgets, size, first)
    assert rounds.size_T.tolist() == sizes
    assert rounds.mark_T.tolist() == marks


def test_a_budget_within_a_round_needs_a_run_of_its_own():
    with pytest.raises(ValueError, match=r"\[5\] end within a round of 4"):
        rounds_to([5, 20], 4)


def test_answers_are_numbered_as_first_seen():
    answer_N, reference = as_first_seen(
        jnp.array([5, -1, 2, 5, 0, 2], jnp.int32), jnp.int32(2)
    )
    assert answer_N.tolist() == [0, -1, 1, 0, 2, 1]
    assert reference == 1
    assert as_first_seen(answer_N, jnp.int32(-2))[1] == -2


def test_a_draw_is_a_permutation_of_each_question():
    """Answers, tokens and weights move together; nothing comes twice."""
    bank = bank_of(logprobs=True)
    one = shuffle(bank, jax.random.key(0))
    assert bank.logprob_QN is not None
    for q in range(QUERIES):
        readable_N = bank.answer_QN[q] >= 0
        recorded = zip(
            bank.answer_QN[q] == bank.reference_Q[q],
            bank.tokens_QN[q],
            np.where(readable_N, bank.logprob_QN[q], 0),
            strict=True,
        )
        played = zip(
            np.asarray(one.answer_QN[q] == one.reference_Q[q]),
            np.asarray(one.tokens_QN[q]),
            np.asarray(one.weight_QN[q]),
            strict=True,
        )
        assert sorted(recorded) == sorted(played)
    other = shuffle(bank, jax.random.key(1))
    assert not jnp.array_equal(one.tokens_QN, other.tokens_QN)


@pytest.mark.parametrize("name", POLICIES)
def test_replay_and_the_live_loop_in_lock_step(name):
    """The very policy and vote objects, the same samples and key: the same
    grants in every round, the same answers, the same cost."""
    policy, vote = POLICIES[name](), majority()
    key = jax.random.key(3)
    replicate = shuffle(bank_of(logprobs=True), jax.random.key(4))
    budget, size, first = 37, 6, 9
    ends = [9, 15, 21, 27, 33, 37]
    rounds = rounds_to(ends, size, first)
    right_MQ, count_MQ, tokens_M = play_replicate(
        policy, vote, rounds, replicate, key
    )

    live = []
    schedule = Schedule(
        Fraction(first, QUERIES), Fraction(size, QUERIES), capacity=SLOTS
    )
    result = run_rounds(
        [Query(str(q), ()) for q in range(QUERIES)],
        FunctionSampler(recorded_model(replicate)),
        Method(parallel(), policy, vote, schedule),
        Budget(samples=budget),
        key,
        on_round=live.append,
    )
    grants_TQ = np.diff(np.asarray(count_MQ), axis=0, prepend=0)
    played = [row.tolist() for row in grants_TQ if row.any()]
    assert [done.grants_Q.tolist() for done in live] == played
    assert live[-1].ledger.new_tokens == tokens_M[-1]
    right = [
        answer is not None and int(answer) == reference
        for answer, reference in zip(
            result.answers, replicate.reference_Q.tolist(), strict=True
        )
    ]
    assert right == right_MQ[-1].tolist()


def maj_at_k(answer_QN, reference_Q, k, draws, seed):
    """Share of random draws of k samples, without replacement, whose majority
    is right, of each question; ties go to the answer drawn first."""
    rng = np.random.default_rng(seed)
    right_Q = np.zeros(len(answer_QN))
    for _ in range(draws):
        order = rng.random(answer_QN.shape).argsort(1)[:, :k]
        drawn_QK = np.take_along_axis(answer_QN, order, 1)
        same = drawn_QK[:, :, None] == drawn_QK[:, None]
        votes_QK = np.where(drawn_QK >= 0, same.sum(2), 0)
        first = votes_QK.argmax(1)  # the first of equals
        winner_Q = drawn_QK[np.arange(len(answer_QN)), first]
        right_Q += (winner_Q == reference_Q) & (winner_Q >= 0)
    return right_Q / draws


def test_uniform_replay_is_maj_at_k():
    """Against a majority written in NumPy, each over its own 2,000 draws:
    every question within 5 standard errors."""
    bank = bank_of()
    budgets = [1, 3, 7]
    rounds = rounds_to([k * QUERIES for k in budgets], QUERIES)
    played = replay_policies(
        bank, {"u": uniform()}, majority(), rounds, replicates=2000, chunk=500
    )["u"]
    assert played.samples_RM.tolist() == [[1, 3, 7]] * 2000
    for at, k in enumerate(budgets):
        expected_Q = maj_at_k(
            bank.answer_QN, bank.reference_Q, k, draws=2000, seed=1
        )
        error_Q = np.sqrt(2 * np.maximum(expected_Q, 0.01) / 2000)
        assert (abs(played.right_QM[:, at] - expected_Q) < 5 * error_Q).all()


def test_chunks_change_nothing():
    bank, rounds = bank_of(), rounds_to([10, 20], 5)
    whole, parts = (
        replay_policies(
            bank, {"ucb": ucb()}, majority(), rounds, replicates=7, chunk=chunk
        )["ucb"]
        for chunk in (7, 3)
    )
    assert whole.steps_RM is parts.steps_RM is None
    for one, other in zip(whole[:4], parts[:4], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert whole.accuracy_RM.shape == (7, 2)
    np.testing.assert_allclose(
        whole.right_QM.mean(axis=0), whole.accuracy_RM.mean(axis=0), rtol=1e-6
    )


def test_seeds_draw_anew_and_again():
    bank, rounds = bank_of(), rounds_to([10], 5)
    run = partial(
        replay_policies,
        bank,
        {"u": uniform()},
        majority(),
        rounds,
        replicates=20,
    )
    one, again, other = run(seed=1)["u"], run(seed=1)["u"], run(seed=2)["u"]
    assert (one.tokens_RM == again.tokens_RM).all()
    assert (one.tokens_RM != other.tokens_RM).any()


def test_a_policy_that_stops_leaves_budget():
    played = replay_policies(
        bank_of(),
        {"lead": POLICIES["lead_k"](lead=1)},
        majority(),
        rounds_to([60], 5),
        replicates=5,
    )["lead"]
    assert (played.samples_RM < 12).all()


def test_a_bank_with_one_answer_for_all():
    bank = bank_of()._replace(
        answer_QN=np.zeros((QUERIES, SLOTS), np.int32),
        reference_Q=np.zeros(QUERIES, np.int32),
    )
    players = {name: POLICIES[name]() for name in ("ucb", "pets", "mmc")}
    played = replay_policies(
        bank, players, majority(), rounds_to([10, 30], 5), replicates=3
    )
    for of_one in played.values():
        assert (of_one.accuracy_RM == 1).all()


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        ([3, 3, 0, 0, 0], "p grants 12 samples of 10"),
        ([7, 0, 0, -7, 0], "p grants 28 samples to a question, of which"),
        ([3, 3, 0, -1, 0], "p grants a negative number of samples"),
    ],
)
def test_grants_that_the_live_loop_refuses_are_refused(grants, message):
    """They were played, with samples that the bank does not hold."""
    policy = Policy(lambda key, candidates, budget: jnp.array(grants))
    with pytest.raises(ValueError, match=message):
        replay_policies(
            bank_of(),
            {"p": policy},
            majority(),
            rounds_to([10, 20], 5),
            replicates=2,
        )


@dataclass
class Case:
    players: dict
    vote: object
    budget: int
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Case({"u": uniform()}, majority(), 61, "over the 60 that the bank"),
        Case({"uab": uab()}, majority(), 5, "uab needs log-probabilities"),
        Case({"u": uniform()}, weighted(), 5, "the vote needs log-prob"),
        Case({"u": uniform()}, universal(), 5, "reads texts or asks a model"),
        Case(
            {"u": uniform()._replace(reads="tail")},
            majority(),
            5,
            "u reads 'tail'",
        ),
    ],
    ids=lambda case: case.message,
)
def test_what_a_bank_cannot_serve_is_refused(case):
    with pytest.raises(ValueError, match=case.message):
        replay_policies(
            bank_of(),
            case.players,
            case.vote,
            rounds_to([case.budget], 5),
            replicates=1,
        )


def test_log_probabilities_reach_policy_and_vote():
    """uab alone differs from uniform when weights differ."""
    bank = bank_of(logprobs=True)
    played = replay_policies(
        bank,
        {"uab": uab(), "u": uniform()},
        weighted(tau=0.1),
        rounds_to([10, 20], 5),
        replicates=10,
    )
    assert (played["uab"].tokens_RM != played["u"].tokens_RM).any()
