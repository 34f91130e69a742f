"""Replay without rounds: the live loop's grants, on recorded samples."""

import heapq
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.analysis.async_replay import (
    Terms,
    play_chunk,
    replay_async,
)
from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.replay import shuffle
from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.scaling import cancelling
from dynscaling_jax.scaling.arrivals import run_arrivals
from dynscaling_jax.scaling.bandits import uniform
from dynscaling_jax.scaling.opportunity import opportunity_cost
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import parallel
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import Budget, Method, Query, Schedule
from tests.recorded import recorded_model

QUERIES, SLOTS = 5, 12
CANCELS = {
    "none": None,
    "lead": cancelling.lead(),
    "posterior": cancelling.posterior(0.9),
    "tail": cancelling.tail(part=0.25),
}


def bank_of(seed=0):
    """Answers from easy to hopeless; a fifth is unreadable; few lengths, so
    that many samples end in one step."""
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
        rng.integers(1, 9, (QUERIES, SLOTS)).astype(np.int32),
        -rng.random((QUERIES, SLOTS), np.float32),
        np.array([0, 0, 0, 0, -2], np.int32),
    )


def live(replicate, policy, cancel, schedule, budget, key):
    return run_arrivals(
        [Query(str(q), ()) for q in range(QUERIES)],
        FunctionSampler(recorded_model(replicate)),
        Method(
            parallel(),
            policy,
            majority(),
            schedule,
            cancel=cancel,
        ),
        Budget(samples=budget),
        key,
    )


CASES = [
    *((name, "none", 4, 1) for name in POLICIES),
    *(("opportunity_cost", name, 8, 2) for name in CANCELS),
    ("ucb", "tail", 3, 1),
    ("esc", "lead", 16, 1),
]


@pytest.mark.parametrize(
    ("name", "ending", "concurrent", "first", "poll_steps"),
    [(*case, 1 + 2 * (number % 2)) for number, case in enumerate(CASES)],
)
def test_replay_and_the_live_loop_in_lock_step(
    name, ending, concurrent, first, poll_steps
):
    """The very policy, rule and vote, the same samples and key: at each budget
    the same grants, answers, tokens and steps."""
    policy, cancel = POLICIES[name](), CANCELS[ending]
    replicate, key = shuffle(bank_of(), jax.random.key(4)), jax.random.key(3)
    schedule = Schedule(
        first, capacity=SLOTS, concurrent=concurrent, poll_steps=poll_steps
    )
    budget_M = [7, 23, 41]
    ended = play_chunk(
        policy,
        majority(),
        Terms(concurrent, first, poll_steps, cancel),
        jnp.array(budget_M, jnp.int32),
        jax.tree.map(lambda x: x[None], replicate),
        key[None],
    )
    for m, budget in enumerate(budget_M):
        result = live(replicate, policy, cancel, schedule, budget, key)
        grants = Counter(
            int(e.request.query.id) for e in result.events if e.kind == "grant"
        )
        assert [grants[q] for q in range(QUERIES)] == (
            ended.count_CMQ[0, m].tolist()
        )
        assert result.ledger.new_tokens == ended.tokens_CM[0, m]
        assert result.events[-1].step == ended.steps_CM[0, m]
        right = [
            answer is not None and int(answer) == reference
            for answer, reference in zip(
                result.answers, replicate.reference_Q.tolist(), strict=True
            )
        ]
        assert right == ended.right_CMQ[0, m].tolist()


def simulated(replicate, concurrent, budget):
    """Uniform allocation by a heap of ends: (samples [Q], tokens, end)."""
    tokens_QN = np.asarray(replicate.tokens_QN)
    heap, count_Q, tokens, now = [], np.zeros(QUERIES, int), 0, 0
    for number in range(budget):
        if len(heap) == concurrent:
            now, _ = heapq.heappop(heap)
        q = number % QUERIES
        length = int(tokens_QN[q, count_Q[q]])
        heapq.heappush(heap, (now + length, number))
        count_Q[q] += 1
        tokens += length
    return count_Q, tokens, max(end for end, _ in heap)


@pytest.mark.parametrize("concurrent", [1, 3, 64])
def test_uniform_is_a_list_schedule(concurrent):
    """Against a heap, where each question has its samples in turn."""
    replicate = shuffle(bank_of(1), jax.random.key(0))
    ended = play_chunk(
        uniform(),
        majority(),
        Terms(concurrent, first=SLOTS, poll_steps=1),
        jnp.array([6, 37, 60], jnp.int32),
        jax.tree.map(lambda x: x[None], replicate),
        jax.random.key(1)[None],
    )
    for m, budget in enumerate((6, 37, 60)):
        count_Q, tokens, end = simulated(replicate, concurrent, budget)
        assert ended.count_CMQ[0, m].tolist() == count_Q.tolist()
        assert ended.tokens_CM[0, m] == tokens
        assert ended.steps_CM[0, m] == end


def test_chunks_change_nothing():
    whole, parts = (
        replay_async(
            bank_of(),
            {"u": uniform(), "oc": opportunity_cost()},
            majority(),
            [10, 30],
            {"u": Terms(4), "oc": Terms(4, 2, 1, cancelling.tail(part=0.25))},
            replicates=7,
            chunk=chunk,
        )
        for chunk in (7, 3)
    )
    for name in whole:
        for one, other in zip(whole[name], parts[name], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    assert whole["u"].accuracy_RM.shape == (7, 2)
    assert (whole["u"].samples_RM == np.array([2, 6])).all()


def test_what_a_bank_lacks_is_refused():
    play = partial(
        replay_async,
        bank_of(),
        {"u": uniform()},
        majority(),
        replicates=1,
    )
    with pytest.raises(ValueError, match="over the 60"):
        play([61], {"u": Terms(4)})
    with pytest.raises(ValueError, match="cancels by 'confidence'"):
        play([6], {"u": Terms(4, 1, 1, cancelling.deepconf())})
