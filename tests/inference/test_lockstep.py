"""What a follower does, in one process; several are in
tests/experiments/test_run_lockstep.py."""

import collections
import functools
import types
from typing import Any

import jax
import pytest

from dynscaling_jax.inference import Engine, grouped, lockstep
from dynscaling_jax.inference.grouped import cache, prefill, scheduler
from dynscaling_jax.inference.paged import runner
from dynscaling_jax.types import Message, Query, Request

SHAPE: dict[str, Any] = {
    "slots": 8,
    "slots_per_group": 4,
    "max_new_tokens": 24,
}
QUERIES = [
    Query(name, (Message("user", text),))
    for name, text in {"a": "2 + 2?", "b": "\ud800 é", "c": "x" * 60}.items()
]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(num_hidden_layers=1, eos_token_id=(258, 11, 50))


@pytest.fixture
def called(monkeypatch):
    """The compiled functions that are called, with the shapes that they are
    given and the numbers that are no arrays."""
    calls = []
    for module, name in (
        (grouped.runner, "start"),
        (grouped.runner, "decode"),
        (grouped.runner, "take"),
        (cache, "insert"),
        (cache, "apply"),
        (prefill, "prefill"),
        (prefill, "extend"),
        (runner, "prefill_chunk"),
        (runner, "start"),
        (runner, "decode_chunk"),
    ):
        function = getattr(module, name)

        def noted(*given, function=function, name=name):
            shape = lambda x: getattr(x, "shape", x)
            calls.append((name, str(jax.tree.map(shape, given))))
            return function(*given)

        monkeypatch.setattr(module, name, functools.wraps(function)(noted))
    return calls


def ask(queries, indices) -> list[Request]:
    return [
        Request(q, q.messages, i, round=3) for q in queries for i in indices
    ]


@pytest.mark.parametrize(
    ("attention", "functions"),
    [
        ("reference", {"prefill", "extend", "decode"}),
        ("xla", {"prefill_chunk", "start", "decode_chunk"}),
    ],
)
def test_a_follower_calls_what_its_leader_calls(
    model, called, attention, functions
):
    """Through calls that overlap, chains, one call that is left as it is
    generated, one that is left before, and one that is refused."""
    shape = {**SHAPE, "attention": attention}
    leader, messages = Engine(model, **shape), []
    lockstep.lead(leader, messages.append)
    left = leader.sample(ask(QUERIES[:1], range(40)))
    next(left)
    long = Query("long", (Message("user", "x" * 600),))
    with pytest.raises(ValueError, match="the context of the model holds 512"):
        leader.sample(ask([long], range(2)))
    turn = Message("assistant", "First, I add.")
    chains = [
        Request(q, (*q.messages, turn), 70, 1, (0, 2), True) for q in QUERIES
    ]
    other = leader.sample([*chains, *ask(QUERIES[1:], range(5))])
    samples = [next(other)]
    del left
    leader.sample(ask(QUERIES, range(100, 120)))  # and nobody takes any
    samples += [*other, *leader.sample(ask(QUERIES[2:], range(7)))]
    assert len(samples) == 3 + 10 + 7
    assert {name for name, _ in called} >= functions

    expected = [*called]
    called.clear()
    follower = Engine(model, **shape)
    received = iter([*messages, b""])
    lockstep.follow(follower, lambda: next(received))
    assert called == expected
    assert follower.slot_steps == leader.slot_steps
    assert follower.active_steps == leader.active_steps
    assert not follower._batches and next(received, None) is None


def test_a_call_may_be_collected_while_another_is_left(model, monkeypatch):
    """In the middle of dropping requests: those of the other call were sent to
    the follower as dropped, and waited on in the leader."""
    leader, messages = Engine(model, **SHAPE), []
    lockstep.lead(leader, messages.append)
    kept = leader.sample(ask(QUERIES[:1], range(60, 90)))
    one = leader.sample(ask(QUERIES[:1], range(4)))
    others = [leader.sample(ask(QUERIES[1:2], range(40)))]
    next(kept)

    def collecting(*items):
        made = collections.deque(*items)
        if others:
            others.pop().close()
        return made

    within = types.SimpleNamespace(deque=collecting)
    monkeypatch.setattr(scheduler, "collections", within)
    one.close()
    monkeypatch.undo()
    assert not others
    assert len([*kept, *leader.sample(ask(QUERIES[2:], range(2)))]) == 29 + 2
    follower = Engine(model, **SHAPE)
    received = iter([*messages, b""])
    lockstep.follow(follower, lambda: next(received))
    assert follower.slot_steps == leader.slot_steps
    assert follower.active_steps == leader.active_steps


def test_requests_come_as_they_were_sent(model):
    sent = [Request(QUERIES[1], QUERIES[0].messages, 7, 2, (1, 4), True)]
    sent[0] = sent[0]._replace(least_confidence=1 / 3)
    leader, messages = Engine(model, **SHAPE), []
    lockstep.lead(leader, messages.append)
    assert len([*leader.sample(sent)]) == 1
    (change,) = lockstep.changes_of(messages[0])
    assert change.added == sent and not change.dropped


def test_a_leader_that_cannot_send_samples_nothing(model):
    """Whoever follows has ended: what was under way fails, and the engine
    does not go on alone."""

    def gone(message):
        raise OSError("the follower has ended")

    leader = Engine(model, **SHAPE)
    lockstep.lead(leader, gone)
    call = leader.sample(ask(QUERIES[:1], range(2)))
    with pytest.raises(OSError, match="has ended"):
        next(call)
    with pytest.raises(RuntimeError, match="failed in another call"):
        next(call)
    assert not leader.slot_steps
