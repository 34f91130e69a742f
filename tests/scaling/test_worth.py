"""What chains are worth: by hand, by brute force, and in whole runs."""

import math
import random
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.scaling import policies, strategies, votes, worth
from dynscaling_jax.scaling.loop import run_rounds
from dynscaling_jax.scaling.strategies import adaptive, unseen
from dynscaling_jax.types import (
    Budget,
    Message,
    Method,
    Query,
    Reader,
    Request,
    Sample,
    Schedule,
)

KEY = jax.random.key(0)


def sample(index, answer, parents=(), tokens=10, query="q", reason="stop"):
    return Sample(
        query, index, 0, parents, "", answer, reason, 3, 3, tokens, 1.0
    )


def written(text):
    """Samples of a query: "aB a" is a, a chain that gives b, unread, a."""
    return tuple(
        sample(
            i,
            None if c == " " else c.lower(),
            (0,) if c.isupper() else (),
            30 if c.isupper() else 10,
        )
        for i, c in enumerate(text)
    )


def above_one(posterior_W):
    """The chance that a chain is worth more than an independent sample."""
    return posterior_W[np.array(worth.WEIGHTS) > 1].sum()


def test_steps_by_hand():
    """Four independent samples; the third follows chains that said b and a,
    the last one more that said b."""
    assert worth.steps(written("abBA bBc")) == (
        worth.Step(0, 0, 0, 0.0, 0),
        worth.Step(0, 1, 0, 0.0, 1),
        worth.Step(1, 2, 2, 1 / 2, 2),
        worth.Step(0, 3, 3, 0.0, 2),
    )


@pytest.mark.parametrize(("power", "chains"), [(0, 2), (0.5, 4), (1, 8)])
def test_the_chance_of_a_step_by_hand(power, chains):
    """Of two possible answers and concentration 1, after votes a, b and four
    chains that all said b: those have weight 2 in all, or 4, or 8."""
    (step,) = worth.steps(written("abBBBBb"))[2:]
    at = worth.VOICES.index((2.0, power)), worth.SHAPES.index((2, 1.0))
    found = math.exp(worth._log_chance(step)[at])
    assert found == pytest.approx((1 + chains + 0.5) / (2 + chains + 1))


def posterior_by_loops(run):
    """The same posterior, number by number."""
    shapes = [1 / len(worth.SHAPES)] * len(worth.SHAPES)
    powers = len(worth.VOICES) / len(worth.WEIGHTS)
    prior = [
        (1 - worth.NOTHING) / (len(worth.WEIGHTS) - 1) / powers
        if weight
        else worth.NOTHING / powers
        for weight, _ in worth.VOICES
    ]

    def likelihood(samples, voice, possible, total):
        chance, independent, chained = 1.0, [], []
        for s in sorted(samples, key=lambda s: s.index):
            if s.answer is None:
                continue
            if not s.parents:
                weight, power = voice
                n = len(chained)
                together = weight * n**power if n else 0.0
                votes = independent.count(s.answer)
                votes += together * chained.count(s.answer) / max(1, n)
                if s.answer in independent + chained:
                    up = votes + total / possible
                else:
                    known = len({*independent, *chained})
                    up = total / possible * max(possible - known, 1e-3)
                chance *= up / (len(independent) + together + total)
            (chained if s.parents else independent).append(s.answer)
        return chance

    table = [
        [[likelihood(q, v, *shape) for shape in worth.SHAPES] for q in run]
        for v in worth.VOICES
    ]
    posterior = prior
    for _ in range(worth.PASSES):
        mixed = [
            [sum(map(math.prod, zip(shapes, row, strict=True))) for row in of_v]
            for of_v in table
        ]
        posterior = [
            p * math.prod(of_v) for p, of_v in zip(prior, mixed, strict=True)
        ]
        posterior = [p / sum(posterior) for p in posterior]
        shapes = [
            1 / len(shapes)
            + sum(
                posterior[v] * shapes[g] * table[v][q][g] / mixed[v][q]
                for v in range(len(table))
                for q in range(len(run))
            )
            for g in range(len(shapes))
        ]
        shapes = [share / sum(shapes) for share in shapes]
    return [
        sum(
            p
            for p, (w, _) in zip(posterior, worth.VOICES, strict=True)
            if w == weight
        )
        for weight in worth.WEIGHTS
    ]


def test_the_posterior_by_brute_force():
    run = [*map(written, ("abBAb", "aaAa", "ab Ac", "cdeDd", "aab", "aaAa"))]
    np.testing.assert_allclose(
        worth.weigh(run), posterior_by_loops(run), rtol=1e-9
    )


def test_without_a_chain_there_is_no_evidence():
    prior_W = worth.weigh([])
    assert prior_W.sum() == pytest.approx(1)
    assert prior_W[0] == pytest.approx(worth.NOTHING)
    for run in (["abab", "aaaa"], ["abB", "A"], ["  "]):
        found = worth.weigh([*map(written, run)])
        np.testing.assert_allclose(found, prior_W, atol=1e-12)


def test_long_histories_stay_finite():
    """Chains that contradict a thousand draws leave no weight to divide by."""
    run = [written("ab" + "B" * 9 + "a" * 1000), written("abBb")]
    assert worth.weigh(run).sum() == pytest.approx(1)


def test_agreement_counts_only_with_what_a_chain_has_not_read():
    """Chains that say what comes next are worth much, those that say what
    does not come nothing, and to repeat what was there shows nothing."""
    upheld = worth.weigh([written("abBb")] * 8 + [written("abAa")] * 8)
    denied = worth.weigh([written("abBa")] * 8 + [written("abAb")] * 8)
    ended = worth.weigh([written("abB")] * 8 + [written("abA")] * 8)
    assert above_one(upheld) > above_one(ended) > above_one(denied)
    assert upheld[0] < ended[0] < denied[0]


LETTERS = st.text("abcABC ", max_size=7)
RUNS = st.lists(LETTERS, max_size=6)


@given(RUNS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_arrival_does_not_matter(run, order):
    run = [*map(written, run)]
    mixed = [order.sample(samples, len(samples)) for samples in run]
    order.shuffle(mixed)
    assert worth.weigh(run).tolist() == worth.weigh(mixed).tolist()
    assert worth.price(run) == worth.price(mixed)


@given(RUNS)
@settings(max_examples=40, deadline=None)
def test_the_posterior_is_one_and_answers_have_no_names(run):
    found = worth.weigh([*map(written, run)])
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    names = str.maketrans("abcABC", "cabCAB")
    renamed = [written(text.translate(names)) for text in run]
    assert found.tolist() == worth.weigh(renamed).tolist()


@given(RUNS)
@settings(max_examples=40, deadline=None)
def test_what_is_pending_or_cancelled_is_no_evidence(run):
    """A plan is the same with them and without them."""
    run = [*map(written, run)]
    query = Query("q", (Message("user", "?"),))
    pending = unseen(Request(query, query.messages, 7, parents=(0,)))
    gone = sample(8, None, (0,), tokens=900, reason="cancelled")
    plans = [
        adaptive(explore=1).learn(samples)
        for samples in (run, [(*samples, pending, gone) for samples in run])
    ]
    one, other = (
        [*plan(query, written("abab"), 40, KEY, Reader())] for plan in plans
    )
    assert one == other


def test_the_price_of_a_chain():
    """Chains of 30 tokens beside samples of 10 are three times as dear; the
    first sample of a query pays for its prompt and does not count."""
    assert worth.price([]) == 1
    assert worth.price([written("abab")]) == 1
    assert worth.price([written("abB")]) == 3
    dear = (sample(0, "a", tokens=999), *written("abB")[1:])
    assert worth.price([dear, written("aaaa")]) == 3
    # of two chains one is unreadable: 30 tokens buy half as much, but for the
    # one readable sample that is added
    half = (*written("abB"), sample(3, None, (0,), 30))
    assert worth.price([half]) == pytest.approx(3 * (2 / 2) / (2 / 3))
    read = sample(2, "b", (0,))._replace(prompt_tokens=23, cached_tokens=3)
    assert worth.price([(*written("ab"), read)]) == 3


def test_chains_come_first_in_a_grant():
    plan = adaptive(explore=2).plan
    query = Query("q", (Message("user", "?"),))
    assert len([*plan(query, (), 9, KEY, Reader())]) == 2
    requests = [*plan(query, written("ab"), 40, KEY, Reader())]
    chained = [bool(r.parents) for r in requests]
    assert 0 < sum(chained) < 40
    assert chained == sorted(chained, reverse=True)


# Three worlds: what a chain does with 2 to 4 attempts that it reads.
HELPS, HURTS, COPIES = "helps", "hurts", "copies"


def model(world, seed):
    """Independent samples are right, "0", from 20% to 90% of the time."""
    said = {}

    def one(request):
        name = request.query.id
        draw = random.Random(f"{seed}/{name}/{request.index}")
        right = random.Random(f"{seed}/{name}").choice([0.2, 0.4, 0.6, 0.9])
        if request.parents and world == HELPS:
            right = min(0.95, 2 * right)
        if request.parents and world == HURTS:
            right /= 3
        answer = str(draw.randint(1, 9))
        if draw.random() < right:
            answer = "0"
        if request.parents and world == COPIES:
            read = Counter(said[name, p] for p in request.parents)
            answer = max(read, key=lambda a: (read[a], draw.random()))
        said[name, request.index] = answer
        return Sample(
            name,
            request.index,
            request.round,
            request.parents,
            "",
            answer,
            "stop",
            30 if request.parents else 10,
            10,
            20,
            1.0,
        )

    return FunctionSampler(lambda requests: map(one, requests))


def outcome(strategy, world, seed, budget=12):
    """The share of right votes, and of chains in the last rounds."""
    asked = [Query(f"q{i}", (Message("user", f"{i}?"),)) for i in range(60)]
    method = Method(
        strategy,
        policies.opportunity_cost(),
        votes.majority(),
        Schedule(first_round=4),
    )
    result = run_rounds(
        asked,
        model(world, seed),
        method,
        Budget(samples_per_query=budget),
        jax.random.fold_in(KEY, seed),
    )
    last = len(result.rounds) - 4
    late = [
        bool(s.parents)
        for samples in result.samples
        for s in samples
        if s.round >= last
    ]
    right = sum(answer == "0" for answer in result.answers) / len(asked)
    return right, sum(late) / len(late)


@pytest.mark.parametrize("world", [HELPS, HURTS, COPIES])
def test_a_run_ends_near_the_better_strategy(world):
    seeds = range(3)
    right, chained = {}, {}
    for strategy in (
        strategies.parallel(),
        strategies.integrated(),
        strategies.adaptive(),
    ):
        runs = [outcome(strategy, world, seed) for seed in seeds]
        right[strategy.name], chained[strategy.name] = (
            sum(values) / len(seeds) for values in zip(*runs, strict=True)
        )
    worse, better = sorted((right["parallel"], right["integrated"]))
    assert better - right["adaptive"] < (better - worse) / 3
    if world == HELPS:
        assert right["integrated"] > right["parallel"]
        assert chained["adaptive"] > 0.6
    else:
        assert right["parallel"] > right["integrated"]
        assert chained["adaptive"] < 0.2


def test_a_run_is_the_same_again():
    assert outcome(adaptive(), HELPS, 5, 8) == outcome(adaptive(), HELPS, 5, 8)
