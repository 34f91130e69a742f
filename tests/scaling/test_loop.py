import math
import random
import tracemalloc
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.scaling import votes
from dynscaling_jax.scaling.loop import run_rounds
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import (
    STRATEGIES,
    integrated,
    parallel,
)
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import (
    Budget,
    Message,
    Method,
    Policy,
    Query,
    Request,
    Sample,
    Schedule,
    Strategy,
    Vote,
)

KEY = jax.random.key(0)
UNIFORM = POLICIES["uniform"]()
MAJORITY = majority()  # one function, compiled once


def queries(n):
    return [Query(f"q{i}", (Message("user", f"{i}?"),)) for i in range(n)]


def draws(request, seed=0):
    """Random draws that a request alone decides."""
    return random.Random(f"{seed}/{request.query.id}/{request.index}")


def reply(request, answer="1", new=10, prompt=5, **rest):
    base = Sample(
        query_id=request.query.id,
        index=request.index,
        round=request.round,
        parents=request.parents,
        text=f"It is {answer}.",
        answer=answer,
        finish_reason="stop",
        prompt_tokens=prompt,
        cached_tokens=prompt if request.shared else 0,
        new_tokens=new,
        flops=100.0 * new,
    )
    return base._replace(**rest)


def noisy(requests):
    """A model whose samples differ in answer and cost."""
    for request in requests:
        drawn = draws(request)
        answer = drawn.choice(["1", "1", "2", "3", None])
        yield reply(request, answer, drawn.randint(0, 40), drawn.randint(1, 9))


def run(
    sample_fn=noisy,
    n=3,
    strategy=parallel(),  # noqa: B008, immutable
    policy=UNIFORM,
    vote=MAJORITY,
    budget=None,
    max_cost=Budget(),  # noqa: B008
    capacity=32,
    round_size=None,
    first_round=None,
    stale=0,
    **rest,
):
    """Sizes of rounds in samples, where a schedule has them per query."""
    later = Fraction(round_size or n or 1, n or 1)
    first = Fraction(first_round, n) if first_round else later
    return run_rounds(
        queries(n),
        FunctionSampler(sample_fn, max_cost=max_cost),
        Method(strategy, policy, vote, Schedule(first, later, stale, capacity)),
        budget or Budget(samples=4 * n),
        **{"key": KEY, **rest},
    )


def test_self_consistency_by_hand():
    script = {"q0": ["7", "8", "8"], "q1": [None, "5", "4"], "q2": [None] * 3}

    def model(requests):
        for r in requests:
            yield reply(r, script[r.query.id][r.index])

    result = run(model, budget=Budget(samples=9))
    assert result.answers == ("8", "5", None)
    assert result.stopped == "samples"
    assert [r.grants_Q.tolist() for r in result.rounds] == [[1, 1, 1]] * 3
    # before the first round nothing is known; after two, q0 says 7 and 8
    assert result.rounds[0].uncertainty_Q.tolist() == [1, 1, 1]
    assert result.rounds[2].uncertainty_Q[0] == pytest.approx(1)
    assert result.ledger[:4] == (9, 45, 30, 90)  # a prompt is paid for once
    assert result.ledger.flops == 9000
    assert [s.index for s in result.samples[0]] == [0, 1, 2]
    assert result.vote_ledger.samples == 0


AXES = {
    "samples": lambda s: 1,
    "new_tokens": lambda s: s.new_tokens,
    "total_tokens": lambda s: s.prompt_tokens - s.cached_tokens + s.new_tokens,
    "flops": lambda s: s.flops,
}
DEAREST = Budget(samples=1, new_tokens=40, total_tokens=49, flops=4000.0)


@settings(max_examples=40, deadline=None)
@given(
    axis=st.sampled_from(sorted(AXES)),
    cap=st.integers(3, 500),
    known=st.booleans(),
    round_size=st.integers(1, 20),
    seed=st.integers(0, 99),
    stale=st.integers(0, 2),
)
def test_no_cap_is_passed_by_more_than_one_sample(
    axis, cap, known, round_size, seed, stale
):
    """With the cost of the dearest sample told or not, in rounds of any size,
    whatever order samples come in: without the last one that came, spending
    is below the cap; and nothing is left that is worth another sample."""
    order = []
    cap = cap * 100.0 if axis == "flops" else cap

    def model(requests):
        samples = list(noisy(requests))
        random.Random(seed).shuffle(samples)
        for sample in samples:
            order.append(sample)
            yield sample

    result = run(
        model,
        budget=Budget(**{axis: cap}),
        max_cost=DEAREST if known else Budget(),
        round_size=round_size,
        stale=stale,
        capacity=200,
    )
    cost = [AXES[axis](s) for s in order]
    assert result.stopped == axis
    assert sum(cost[:-1]) < cap or cost[-1] == 0
    assert sum(cost) >= cap
    if axis == "samples":
        assert sum(cost) == cap
    counted = sum(map(len, result.samples))
    assert counted == len(order) == result.ledger.samples


@pytest.mark.parametrize("cap", [30, 40])
def test_a_cap_that_is_reached_ends_the_rounds_that_are_under_way(cap):
    """The last sample of a round passed the cap, and the next round, granted
    before, was drawn to its end; a cap reached in full let one more pass."""
    costs = {0: 10, 1: 30, 2: 20, 3: 20}

    def model(requests):
        for request in requests:
            yield reply(request, new=costs[request.index])

    result = run(model, 1, budget=Budget(new_tokens=cap), round_size=1, stale=1)
    assert result.stopped == "new_tokens"
    assert result.ledger.new_tokens == 40


@pytest.mark.parametrize("stale", [0, 1])
def test_the_order_of_arrival_changes_nothing(stale):
    def shuffled(seed):
        def model(requests):
            samples = list(noisy(requests))
            random.Random(seed).shuffle(samples)
            yield from samples

        return model

    def outcome(sample_fn):
        result = run(
            sample_fn,
            n=5,
            strategy=integrated(explore=2),
            policy=POLICIES["ucb"](),
            budget=Budget(new_tokens=900),
            max_cost=DEAREST,
            stale=stale,
        )
        grants = [r.grants_Q.tolist() for r in result.rounds]
        return result.answers, result.samples, grants, result.stopped

    assert outcome(shuffled(1)) == outcome(shuffled(2)) == outcome(noisy)


def test_the_cap_on_seconds_ends_a_round_and_closes_the_model():
    now, closed = [0.0], []

    def model(requests):
        try:
            for request in requests:
                now[0] += 1
                yield reply(request)
        finally:
            closed.append(True)

    result = run(model, n=4, budget=Budget(seconds=9.5), clock=lambda: now[0])
    assert (result.stopped, result.ledger.samples) == ("seconds", 10)
    assert result.ledger.seconds == 10
    assert len(closed) == 3


@pytest.mark.parametrize("stale", [0, 1])
def test_what_is_left_is_closed_before_the_vote(stale):
    """The vote asks the same model, which must not go on with the rest of a
    round that passed a cap, nor with the next one."""
    events = []

    class Drawing:
        def __init__(self, requests):
            self._samples = noisy(requests)
            events.append("asked")

        def __iter__(self):
            return self

        def __next__(self):
            return next(self._samples)

        def close(self):
            events.append("closed")

    def ask_model(queries, samples, sample_fn):
        events.append("vote")
        return [[1.0] * len(own) for own in samples]

    run(
        Drawing,
        n=4,
        vote=MAJORITY._replace(weigh=ask_model),
        budget=Budget(new_tokens=250),
        stale=stale,
    )
    at = events.index("vote")
    assert events[:at].count("asked") == events[:at].count("closed") > 2


def test_a_failed_sample_is_a_row_and_the_run_goes_on():
    def model(requests):
        for r in requests:
            if r.index == 1:
                yield reply(r, None, finish_reason="error: HTTP 500: oops")
            else:
                yield reply(r, "7")

    result = run(model)
    assert result.answers == ("7",) * 3
    assert result.ledger.samples == 12
    assert result.samples[0][1].finish_reason.startswith("error")


def test_a_model_that_ends_early_ends_the_run():
    def model(requests):
        yield from list(noisy(requests))[:2]

    result = run(model)
    assert result.stopped == "the model ended early"
    assert result.ledger.samples == 2


def test_no_readable_answer_at_all():
    def model(requests):
        for r in requests:
            yield reply(r, None)

    for policy in ("uniform", "posterior_gain"):
        result = run(
            model, policy=POLICIES[policy](), strategy=integrated(explore=1)
        )
        assert result.answers == (None,) * 3
        assert result.ledger.samples == 12


def test_full_queries_and_strategies_that_stop():
    assert run(capacity=2).stopped == "every query is full"
    result = run(strategy=Strategy(lambda *_: []))
    assert result.stopped == "the strategy stopped"
    stops = UNIFORM._replace(
        allocate=lambda key, seen, budget: jnp.zeros_like(seen.count_Q)
    )
    assert run(policy=stops).stopped == "the policy stopped"


def test_a_stopping_rule_leaves_budget_unspent():
    """A public implementation of such a rule never stopped where every sample
    agreed, since it compared the leader with a runner-up that was not there.
    """

    def model(requests):
        for r in requests:
            yield reply(r, "7")

    for name in ("adaptive_consistency", "mmc"):
        result = run(model, policy=POLICIES[name](), budget=Budget(samples=60))
        assert result.stopped == "the policy stopped", name
        assert result.ledger.samples < 60
        assert result.answers == ("7",) * 3


def test_requests_with_the_same_messages_share_them():
    seen = []

    def model(requests):
        seen.extend(requests)
        yield from noisy(requests)

    run(model, n=2, round_size=6)
    shared = [(r.query.id, r.index, r.shared) for r in seen]
    assert shared[:6] == [
        ("q0", 0, False), ("q0", 1, True), ("q0", 2, True),
        ("q1", 0, False), ("q1", 1, True), ("q1", 2, True),
    ]  # fmt: skip
    assert all(r.shared for r in seen[6:])  # of later rounds


def test_rounds_are_observed_as_they_end():
    seen = []
    result = run(
        first_round=6, round_size=3, on_round=lambda r: seen.append(r.number)
    )
    assert seen == [0, 1, 2]
    assert [r.grants_Q.sum() for r in result.rounds] == [6, 3, 3]


@pytest.mark.parametrize("stale", [0, 1, 2])
def test_a_stale_grant_has_seen_all_but_the_last_rounds(stale):
    """And a round is asked for before the one that it has not seen is whole;
    the first one is whole before all others."""
    seen, events = [], []

    def allocate(key, candidates, budget):
        jax.debug.callback(
            lambda count: seen.append(int(count.sum())), candidates.count_Q
        )
        return UNIFORM.allocate(key, candidates, budget)

    def model(requests):
        number = requests[0].round
        events.append(("asked", number))

        def samples():
            yield from noisy(requests)
            events.append(("whole", number))

        return samples()

    policy = UNIFORM._replace(allocate=allocate)
    result = run(model, policy=policy, budget=Budget(samples=18), stale=stale)
    jax.effects_barrier()
    assert result.ledger.samples == 18 and len(result.rounds) == 6
    assert seen == [3 * max(min(m, 1), m - stale) for m in range(6)]
    for number in range(1, 6):
        whole = max(0, number - 1 - stale)
        asked = events.index(("asked", number))
        assert asked > events.index(("whole", whole))
        if number > 1 + stale:
            assert asked < events.index(("whole", whole + 1)) or not stale


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_reads_what_is_being_drawn(name):
    """What is asked for stands behind it; its parents are drawn."""
    drawn, read = set(), []

    def model(requests):
        for r in requests:
            read.extend(parents := [(r.query.id, i) for i in r.parents])
            assert drawn.issuperset(parents)

        def samples():
            for sample in noisy(requests):
                drawn.add((sample.query_id, sample.index))
                yield sample

        return samples()

    result = run(
        model,
        n=2,
        strategy=STRATEGIES[name](),
        budget=Budget(samples=60),
        capacity=40,
        round_size=6,
        stale=1,
    )
    assert result.ledger.samples == len(drawn) == 60
    for samples in result.samples:
        assert [s.index for s in samples] == list(range(len(samples)))
    assert read or name in ("parallel", "deepconf")


def test_a_query_that_fills_up_while_a_round_is_drawn():
    result = run(n=2, budget=Budget(samples=99), capacity=5, stale=1)
    assert [len(samples) for samples in result.samples] == [5, 5]
    assert result.stopped == "every query is full"


def test_strategies_see_classes_and_not_spellings():
    """Two spellings of one answer were two `distinct` parents."""
    shown = []

    def model(requests):
        for r in requests:
            shown.append(r.messages[-1].content)
            yield reply(r, ["1/2", "0.5", "3"][r.index % 3], text="so")

    strategy = integrated(explore=3, k=2, content="answer_only")
    run(
        model, n=1, strategy=strategy, budget=Budget(samples=9),
        same=lambda _: lambda a, b: eval(a) == eval(b),
    )  # fmt: skip
    for content in shown[3:]:
        assert "is 1/2." in content and "is 3." in content


@pytest.mark.parametrize("stale", [0, 1])
def test_a_strategy_that_learns_sees_the_rounds_of_all_queries(stale):
    """Each plan is made of what has ended, and serves every query."""
    learnt = []

    def learn(samples):
        learnt.append([[s.index for s in row] for row in samples])
        return parallel().plan

    def never(*_):
        raise AssertionError("a plan that has learnt nothing")

    strategy = Strategy(never, learn=learn)
    run(strategy=strategy, budget=Budget(samples=12), stale=stale)
    seen = [0, 1, 1, 2] if stale else [0, 1, 2, 3]
    assert learnt == [[[*range(n)]] * 3 for n in seen]


def test_texts_are_kept_only_where_they_are_read():
    def texts(**arguments):
        return {s.text for row in run(**arguments).samples for s in row}

    assert texts() == {""}
    assert texts(strategy=integrated(content="answer_only")) == {""}
    assert "It is 1." in texts(strategy=integrated())
    assert "It is 1." in texts(vote=votes.medoid())


def test_a_vote_may_ask_the_model_and_pays_for_it():
    def model(requests):
        for r in requests:
            if r.query.id.endswith("#universal"):
                yield reply(r, None, text="Response 2", new=3)
            else:
                yield reply(r, str(r.index))

    result = run(model, vote=votes.universal())
    assert result.answers == ("1",) * 3
    assert result.ledger.samples == 12
    assert (result.vote_ledger.samples, result.vote_ledger.new_tokens) == (3, 9)


def test_policy_and_vote_each_read_their_own_measure():
    seen = []

    def allocate(key, candidates, budget):
        jax.debug.callback(seen.append, candidates.weight_QN[0, 0])
        return UNIFORM.allocate(key, candidates, budget)

    def decide(candidates):
        jax.debug.callback(seen.append, candidates.weight_QN[0, 0])
        return jnp.zeros(1, jnp.int32)

    def model(requests):
        for r in requests:
            yield reply(r, logprob=-2.0, signals={"tail": 4.0})

    run(
        model,
        n=1,
        policy=UNIFORM._replace(allocate=allocate, reads="logprob"),
        vote=Vote(decide, "tail"),
        budget=Budget(samples=2),
    )
    jax.effects_barrier()
    assert [float(x) for x in seen] == [0, -2, 4]


def test_the_policy_compiles_once_a_run_and_for_every_budget():
    traced = []

    def allocate(key, candidates, budget):
        traced.append(1)
        return UNIFORM.allocate(key, candidates, budget)

    policy = UNIFORM._replace(allocate=allocate)
    for samples in (6, 12, 18):
        run(policy=policy, budget=Budget(samples=samples))
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0, "budget": Budget(samples=1)}, "no queries"),
        ({"budget": Budget()}, "no cap"),
        ({"budget": Budget(samples=0)}, "samples=0 is not above 0"),
        ({"budget": Budget(new_tokens=-5)}, "new_tokens=-5 is not above 0"),
        ({"budget": Budget(samples=2)}, "less than one for each of 3 queries"),
        ({"budget": Budget(seconds=0.0)}, "seconds=0.0 is not above 0"),
        ({"budget": Budget(flops=math.inf)}, "flops=inf is not above 0 and"),
        ({"budget": Budget(seconds=math.nan)}, "seconds=nan is not above 0"),
        (
            {"budget": Budget(samples=10**400)},
            "samples=1000.* below 2147483648",
        ),
        ({"capacity": 0}, "schedule.capacity=0: expected samples of a query"),
        ({"capacity": 10**9}, "3 queries of 1000000000 slots each are more"),
        ({"capacity": 10**12}, "capacity=1000000000000: .* below 2.31"),
        ({"round_size": -1}, "first_round=-1/3: expected samples per query"),
        ({"stale": -1}, "schedule.stale=-1: expected .* from 0 on"),
        ({"policy": POLICIES["uab"]()}, "no 'logprob'"),
        ({"vote": votes.weighted()}, "no 'logprob'"),
        ({"vote": votes.borda()}, "no 'certainty'"),
        ({"vote": votes.deepconf()}, "no 'confidence'"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(**arguments)


def test_two_queries_of_one_id():
    with pytest.raises(ValueError, match="two queries have the id 'q0'"):
        run_rounds(
            queries(2) + queries(1),
            FunctionSampler(noisy),
            Method(parallel(), UNIFORM, majority()),
            Budget(samples=9),
            KEY,
        )


def test_no_flops_from_the_model_and_a_cap_on_them():
    def model(requests):
        for r in requests:
            yield reply(r, flops=0.0)

    with pytest.raises(ValueError, match="no FLOPs"):
        run(model, budget=Budget(flops=1e3))


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        (lambda c, b: c.count_Q - 1, "grants -1 samples to query 0"),
        (lambda c, b: c.count_Q + 33, "33 samples to query 0, which has 32"),
        (lambda c, b: c.count_Q + 2, "grants 6 samples of 3"),
        (lambda c, b: c.count_Q.astype(float), "float32"),
        (lambda c, b: c.count_Q[:2], r"int32\(2,\); expected int32\(3,\)"),
    ],
)
def test_a_policy_that_breaks_its_contract(grants, message):
    policy = UNIFORM._replace(allocate=lambda key, c, b: grants(c, b))
    with pytest.raises(ValueError, match=message):
        run(policy=policy)


def test_a_strategy_that_breaks_its_contract():
    def again(query, samples, n, key, reader):
        return parallel().plan(query, [], n, key, reader)

    def more(query, samples, n, key, reader):
        return parallel().plan(query, samples, n + 1, key, reader)

    for strategy in (Strategy(again), Strategy(more)):
        with pytest.raises(ValueError, match="strategy asks for samples"):
            run(strategy=strategy)


@pytest.mark.parametrize(
    "other",
    [
        {"query": queries(2)[1]},
        {"messages": "q0?"},
        {"messages": ["q0?"]},
        {"parents": (7,)},
    ],
)
def test_a_request_that_cannot_be_is_refused(other):
    """One of another query was sampled as if it were of this one."""

    def plan(query, samples, n, key, reader):
        yield Request(query, query.messages, len(samples))._replace(**other)

    with pytest.raises(ValueError, match="expected a Request of that query"):
        run(strategy=Strategy(plan))


def test_a_model_that_gives_a_sample_twice():
    def model(requests):
        for sample in noisy(requests):
            yield sample
            yield sample

    with pytest.raises(ValueError, match="not asked for, or twice"):
        run(model)


def test_a_policy_of_ones_own_in_ten_lines():
    def allocate(key, seen, budget):
        open_Q = seen.count_Q < seen.answer_QN.shape[1]
        first = jnp.argmax(open_Q)
        return jnp.where(jnp.arange(len(open_Q)) == first, budget, 0)

    result = run(
        policy=Policy(allocate), budget=Budget(samples=6), round_size=3
    )
    assert [len(row) for row in result.samples] == [6, 0, 0]
    assert result.answers[1:] == (None, None)


def test_many_queries_stay_in_memory():
    """2,000 queries of 2 samples with 50,000 characters each are 200 MB of
    text, which nothing needs."""

    def model(requests):
        for r in requests:
            yield reply(r, "7", text="x" * 50_000 + str(r.index))

    n = 2000
    tracemalloc.start()
    result = run(model, n=n, budget=Budget(samples=2 * n), capacity=4)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    assert result.answers == ("7",) * n


def accuracy(gain, strategy):
    """Of 400 queries with 8 samples each, from a model that is right with
    probability 0.4 + gain * (share of its parents that are right); else it
    gives one of two wrong answers."""
    truth = {}

    def model(requests):
        for r in requests:
            drawn = draws(r)
            seen = [truth[r.query.id, i] for i in r.parents]
            p = 0.4 + gain * sum(seen) / max(1, len(seen))
            right = truth[r.query.id, r.index] = drawn.random() < p
            yield reply(
                r, "right" if right else f"wrong {drawn.random() < 0.5}"
            )

    result = run(
        model,
        n=400,
        strategy=strategy,
        budget=Budget(samples=3200),
        first_round=1600,
        round_size=800,
    )
    assert result.ledger.samples == 3200
    assert result.ledger.new_tokens == 32_000  # at equal cost
    return sum(a == "right" for a in result.answers) / 400


def test_integrated_beats_parallel_where_parents_help():
    """By more than three standard errors of a difference of two proportions
    over 400 queries (at most 0.035)."""
    chain = integrated(explore=4, k=4)
    assert accuracy(0.6, chain) > accuracy(0.6, parallel()) + 0.106


def test_integrated_is_no_better_where_parents_do_not_help():
    """With no gain from parents both methods draw the same answers, and
    agree to the last query; where parents mislead, integrated loses."""
    chain = integrated(explore=4, k=4)
    apart = accuracy(0.0, parallel())
    assert accuracy(0.0, chain) == apart
    assert accuracy(-0.6, chain) < apart - 0.106
