"""The loop without rounds: the order of events, cancelling, what is watched."""

import collections

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.scaling import cancelling
from dynscaling_jax.scaling.arrivals import run_arrivals
from dynscaling_jax.scaling.bandits import uab, ucb, uniform
from dynscaling_jax.scaling.loop import run_rounds
from dynscaling_jax.scaling.opportunity import opportunity_cost
from dynscaling_jax.scaling.strategies import integrated, parallel, rsa
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import (
    Budget,
    Cancel,
    Method,
    Policy,
    Schedule,
    Strategy,
)
from tests.arriving import Model, noisy, queries, reply

KEY = jax.random.key(0)


def run(
    sampler,
    n=3,
    strategy=None,
    policy=None,
    cancel=None,
    concurrent=4,
    first=1,
    budget=None,
    poll_steps=1,
    **rest,
):
    schedule = Schedule(
        first, capacity=32, concurrent=concurrent, poll_steps=poll_steps
    )
    return run_arrivals(
        queries(n),
        sampler,
        Method(
            strategy or parallel(),
            policy or uniform(),
            majority(),
            schedule,
            cancel=cancel,
        ),
        budget or Budget(samples=6 * n),
        KEY,
        clock=lambda: 0.0,
        **rest,
    )


def lines(result):
    return [
        f"{e.step} {e.kind} {e.request.query.id}/{e.request.index}"
        for e in result.events
    ]


def keyed(events):
    """As a run that goes on is told of them."""
    return [(e.kind, (e.request.query.id, e.request.index)) for e in events]


def by_hand(script):
    """A sampler whose lengths are written down."""

    def sample(requests):
        for r in requests:
            new = script[r.query.id][r.index]
            yield reply(r, new=new)

    return FunctionSampler(sample)


def test_the_order_of_events_by_hand():
    """Two places. q1/0 and q0/1 both end at step 50: q1/0 was granted first.
    The second and third prompt of a query were paid for."""
    script = {"q0": [30, 20, 7], "q1": [50, 10, 5]}
    result = run(
        by_hand(script), 2, concurrent=2, first=3, budget=Budget(samples=5)
    )
    assert lines(result) == [
        "0 grant q0/0",
        "0 grant q1/0",
        "30 end q0/0",
        "30 grant q0/1",
        "50 end q1/0",
        "50 end q0/1",
        "50 grant q1/1",
        "50 grant q0/2",
        "57 end q0/2",
        "60 end q1/1",
    ]
    assert result.stopped == "samples"
    assert result.ledger[:4] == (5, 20, 12, 117)


@pytest.mark.parametrize("policy", [opportunity_cost(), uab(), uniform()])
@pytest.mark.parametrize("strategy", [parallel(), integrated(explore=2)])
@pytest.mark.parametrize("cancel", [None, cancelling.lead()])
def test_scores_of_what_changed_choose_as_the_whole_policy(
    policy, strategy, cancel
):
    """A grant once asked the policy about all queries, 5 ms for 100 of them.
    Chains that have to wait take their query out of the choice."""

    def surer(request):
        sample = noisy(request)
        return sample._replace(logprob=-float(sample.new_tokens))

    some, all_ = (
        run(Model(7, 1, surer).sampler, 5, strategy, each, cancel, 7)
        for each in (policy, policy._replace(score=None))
    )
    assert policy.score
    assert lines(some) == lines(all_)


def test_a_look_every_sixteen_steps_by_hand():
    """As the module says: 30, 41 and 25 tokens are two and three polls."""
    script = {"q0": [30, 5], "q1": [41, 25]}
    result = run(
        by_hand(script),
        2,
        concurrent=2,
        first=3,
        poll_steps=16,
        policy=uniform(),
        budget=Budget(samples=4),
    )
    assert lines(result) == [
        "0 grant q0/0",
        "0 grant q1/0",
        "32 end q0/0",
        "32 grant q0/1",
        "48 end q1/0",
        "48 end q0/1",
        "48 grant q1/1",
        "80 end q1/1",
    ]


def always(*numbers):
    """Cancels all that runs for these queries."""
    return Cancel(
        lambda seen: jnp.isin(
            jnp.arange(len(seen.count_Q)), jnp.array([*numbers])
        )
    )


def test_a_cancelled_sample_by_hand():
    """q0 is decided as soon as one of its samples ends: q0/1, granted at 0,
    has 30 tokens by then, which are paid for."""
    script = {"q0": [30, 99, 40], "q1": [50, 10, 5]}
    result = run(
        by_hand(script),
        2,
        concurrent=4,
        first=2,
        cancel=always(0),
        budget=Budget(samples=4),
    )
    assert lines(result) == [
        "0 grant q0/0",
        "0 grant q1/0",
        "0 grant q0/1",
        "0 grant q1/1",
        "10 end q1/1",
        "30 end q0/0",
        "30 cancel q0/1",
        "50 end q1/0",
    ]
    gone = result.samples[0][1]
    assert gone.finish_reason == "cancelled"
    assert (gone.answer, gone.text, gone.new_tokens) == (None, "", 30)
    assert result.ledger.new_tokens == 30 + 30 + 50 + 10
    assert result.ledger.samples == 4


METHODS = {
    "uniform": {},
    "chains": {"strategy": integrated(explore=2), "policy": ucb()},
    "waits": {"strategy": rsa(population=2, k=2)},
    "lead": {"cancel": cancelling.lead(), "policy": opportunity_cost()},
    "tail": {
        "cancel": cancelling.tail(part=0.25),
        "policy": opportunity_cost(),
        "first": 2,
    },
}


@pytest.mark.parametrize("name", METHODS)
@given(st.integers(1, 9), st.integers(0, 2**20), st.sampled_from([1, 4, 16]))
@settings(max_examples=12, deadline=None)
def test_events_do_not_depend_on_slots_or_speed(name, slots, seed, poll_steps):
    """Fewer slots than samples under way, as many, and more; a sample that
    has to begin again. A model that is done at once is the reference."""

    def at_once(requests):
        return map(noisy, requests)

    expected = run(
        FunctionSampler(at_once), poll_steps=poll_steps, **METHODS[name]
    )
    model = Model(slots, seed)
    found = run(model.sampler, poll_steps=poll_steps, **METHODS[name])
    assert lines(found) == lines(expected)
    assert found.answers == expected.answers
    assert [
        [(s.index, s.parents, s.new_tokens, s.finish_reason) for s in of_query]
        for of_query in found.samples
    ] == [
        [(s.index, s.parents, s.new_tokens, s.finish_reason) for s in of_query]
        for of_query in expected.samples
    ]
    assert max(model.generated.values()) == 1
    assert not model._queue


def test_places_stay_taken():
    """Until the last grant, at each step as many are granted as have ended."""
    result = run(Model(2, 0).sampler, concurrent=5, budget=Budget(samples=30))
    kinds = [event.kind for event in result.events]
    assert kinds[:5] == ["grant"] * 5
    last = max(i for i, kind in enumerate(kinds) if kind == "grant")
    counts = collections.Counter(
        (event.step, event.kind) for event in result.events[5 : last + 1]
    )
    assert sum(n for (_, kind), n in counts.items() if kind == "grant") == 25
    for (step, _), n in counts.items():
        assert counts[step, "end"] >= counts[step, "grant"] >= 1, (step, n)
        if step < result.events[last].step:
            assert counts[step, "end"] == counts[step, "grant"]
    assert kinds[last + 1 :] == ["end"] * (len(kinds) - last - 1)
    assert kinds.count("end") == 30


@pytest.mark.parametrize("cap", [31, 200, 640])
def test_a_token_cap_is_passed_by_one_sample_at_most(cap):
    sampler = Model(3, 1).sampler
    known = FunctionSampler(
        sampler.sample, max_cost=Budget(new_tokens=30), watch=sampler.watch
    )
    result = run(known, budget=Budget(new_tokens=cap))
    assert cap <= result.ledger.new_tokens < cap + 30
    assert result.stopped == "new_tokens"


def test_a_full_run_says_so():
    result = run(Model(3, 1).sampler, 2, budget=Budget(new_tokens=10**6))
    assert result.stopped == "every query is full"
    assert [len(of_query) for of_query in result.samples] == [32, 32]


def test_a_sampler_that_ends_early_ends_the_run():
    def nothing(requests):
        return iter(())

    result = run(FunctionSampler(nothing))
    assert result.stopped == "the model ended early"
    assert result.ledger.samples == 0


def test_without_steps_the_order_of_arrival_is_the_truth():
    """As of an endpoint; a run that goes on takes the order it had."""

    def watched(slots, seed):
        sampler = Model(slots, seed).sampler
        return FunctionSampler(
            sampler.sample, watch=sampler.watch._replace(in_steps=False)
        )

    first = run(watched(2, 1), policy=ucb())
    other = run(watched(4, 7), policy=ucb())
    assert lines(other) != lines(first)
    again = run(watched(4, 7), policy=ucb(), earlier=keyed(first.events))
    assert lines(again) == lines(first)
    at = [i for i, e in enumerate(first.events) if e.kind == "end"][4]
    some = keyed(first.events[: at + 1])
    part = run(watched(4, 7), policy=ucb(), earlier=some)
    assert lines(part)[: at + 1] == lines(first)[: at + 1]


@pytest.mark.parametrize("stops", ["strategy", "policy"])
def test_a_run_says_what_stopped_it(stops):
    """One that has a sample of each query and wants no more."""

    def one_each(query, samples, n, key, reader):
        return () if samples else parallel().plan(query, (), 1, key, reader)

    def nothing(key, candidates, budget):
        return jnp.zeros_like(candidates.count_Q)

    result = run(
        Model(4, 1).sampler,
        strategy=Strategy(one_each) if stops == "strategy" else None,
        policy=Policy(nothing) if stops == "policy" else None,
    )
    assert result.stopped == f"the {stops} stopped"
    assert result.ledger.samples == 3


def test_each_loop_refuses_the_schedule_of_the_other():
    """One without rounds was played in rounds, and one with rounds granted
    nothing and said that the policy had stopped."""
    sampler, budget = Model(4, 1).sampler, Budget(samples=6)
    method = Method(parallel(), uniform(), majority())
    with pytest.raises(ValueError, match="run_arrivals has no rounds"):
        run_arrivals(queries(3), sampler, method, budget, KEY)
    method = method._replace(schedule=Schedule(concurrent=4))
    with pytest.raises(ValueError, match="run_rounds plays rounds"):
        run_rounds(queries(3), sampler, method, budget, KEY)


def test_a_rule_for_the_end_needs_a_cap_on_samples():
    """It was never asked, and said nothing."""
    with pytest.raises(ValueError, match="cap on samples.*samples_per_query"):
        run(
            Model(4, 1).sampler,
            cancel=cancelling.tail(),
            budget=Budget(new_tokens=900),
        )


def test_a_strategy_learns_as_often_as_there_are_queries():
    """What it learns from, at every third grant, is what had ended then."""
    learnt = []

    def learn(samples):
        learnt.append([[s.finish_reason for s in row] for row in samples])
        return parallel().plan

    strategy = parallel()._replace(learn=learn)
    script = {f"q{q}": [10 + q] * 9 for q in range(3)}
    run(
        by_hand(script),
        3,
        strategy,
        concurrent=3,
        first=3,
        budget=Budget(samples=9),
    )
    assert learnt == [
        [[], [], []],
        [["stop"], ["under way"], ["under way"]],
        [["stop", "stop"], ["stop", "under way"], ["stop", "under way"]],
    ]


def test_what_was_finished_when_it_was_cancelled_goes_on_as_it_was():
    """q0/0 and q0/1 end in one look; the first cancels the second, which has
    25 tokens. A log once took it for one of 32."""
    script = {"q0": [30, 25], "q1": [90, 90]}
    settings = {
        "n": 2,
        "concurrent": 4,
        "first": 2,
        "poll_steps": 16,
        "cancel": always(0),
        "budget": Budget(samples=4),
    }
    first = run(by_hand(script), **settings)
    gone = first.samples[0][1]
    assert (gone.finish_reason, gone.new_tokens) == ("cancelled", 25)
    logged = {(s.query_id, s.index): s for row in first.samples for s in row}

    def log(requests):
        return iter([logged[r.query.id, r.index] for r in requests])

    again = run(FunctionSampler(log), **settings)
    assert lines(again) == lines(first)
    assert again.samples == first.samples


def test_a_run_whose_time_was_up_repeats_what_it_had():
    """Three samples had ended, and q1/0 was under way, when time was up. No
    more is sampled then; the first start after it once lost all."""
    script = {"q0": [10, 10, 10], "q1": [99, 10, 10]}
    spent = []

    def timed(stop_after):
        def sample(requests):
            for r in requests:
                if len(spent) < stop_after:
                    new = script[r.query.id][r.index]
                    yield reply(r, new=new)

        return FunctionSampler(sample)

    def clock():
        return float(len(spent))

    def play(sampler, log, **rest):
        def watched(requests):
            for r in requests:
                key = r.query.id, r.index
                if key in log:
                    yield log[key]
                else:
                    yield from sampler.sample([r])

        def note(event):
            if event.kind == "end":
                spent.append(event)

        schedule = Schedule(3, capacity=32, concurrent=2, poll_steps=1)
        return run_arrivals(
            queries(2),
            FunctionSampler(watched),
            Method(parallel(), uniform(), majority(), schedule),
            Budget(samples=6, seconds=2.0),
            KEY,
            on_event=note,
            clock=clock,
            **rest,
        )

    first = play(timed(9), {})
    assert first.stopped == "seconds"
    log = {
        (e.request.query.id, e.request.index): reply(
            e.request, new=script[e.request.query.id][e.request.index]
        )
        for e in first.events
        if e.kind == "end"
    }
    again = play(timed(0), log, earlier=keyed(first.events))
    assert lines(again) == lines(first)
    assert again.answers == first.answers
    assert again.ledger.samples == first.ledger.samples == 3
