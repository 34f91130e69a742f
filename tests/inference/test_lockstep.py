"""What a follower does, in one process; several are in
tests/experiments/test_run_lockstep.py."""

import collections
import functools
import types

import jax
import pytest

from dynscaling_jax.inference import Engine, decode, lockstep, prefill, stream
from dynscaling_jax.types import Message, Query, Request

SHAPE = {"rows": 8, "rows_per_group": 4, "max_new_tokens": 24}
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
        (decode, "start"),
        (decode, "place"),
        (decode, "decode"),
        (decode, "grow"),
        (decode, "select"),
        (prefill, "prefill"),
        (prefill, "extend"),
    ):
        whole = getattr(module, name)

        def noted(*given, of=whole, name=name):
            shape = lambda x: getattr(x, "shape", x)
            calls.append((name, str(jax.tree.map(shape, given))))
            return of(*given)

        monkeypatch.setattr(module, name, functools.wraps(whole)(noted))
    return calls


def ask(queries, indices) -> list[Request]:
    return [
        Request(q, q.messages, i, round=3) for q in queries for i in indices
    ]


def test_a_follower_calls_what_its_leader_calls(model, called):
    """Through calls that overlap, chains, one call that is left as it is
    drawn, and one that is left before."""
    leader, messages = Engine(model, **SHAPE), []
    lockstep.lead(leader, messages.append)
    left = leader(ask(QUERIES[:1], range(40)))
    next(left)
    said = Message("assistant", "First, I add.")
    chains = [
        Request(q, (*q.messages, said), 70, 1, (0, 2), True) for q in QUERIES
    ]
    other = leader.sample([*chains, *ask(QUERIES[1:], range(5))])
    drawn = [next(other)]
    del left
    leader(ask(QUERIES, range(100, 120)))  # and nobody takes any
    drawn += [*other, *leader(ask(QUERIES[2:], range(7)))]
    assert len(drawn) == 3 + 10 + 7
    assert {name for name, _ in called} >= {"prefill", "extend", "decode"}

    expected = [*called]
    called.clear()
    follower = Engine(model, **SHAPE)
    heard = iter([*messages, b""])
    lockstep.follow(follower, lambda: next(heard))
    assert called == expected
    assert follower.row_steps == leader.row_steps
    assert follower.live_steps == leader.live_steps
    assert not follower._streams and next(heard, None) is None


def test_a_call_may_be_collected_while_another_is_left(model, monkeypatch):
    """In the middle of dropping requests: those of the other call were told to
    the follower as dropped, and waited on in the leader."""
    leader, messages = Engine(model, **SHAPE), []
    lockstep.lead(leader, messages.append)
    kept = leader(ask(QUERIES[:1], range(60, 90)))
    one = leader(ask(QUERIES[:1], range(4)))
    others = [leader(ask(QUERIES[1:2], range(40)))]
    next(kept)

    def collecting(*items):
        made = collections.deque(*items)
        if others:
            others.pop().close()
        return made

    within = types.SimpleNamespace(deque=collecting)
    monkeypatch.setattr(stream, "collections", within)
    one.close()
    monkeypatch.undo()
    assert not others
    assert len([*kept, *leader(ask(QUERIES[2:], range(2)))]) == 29 + 2
    follower = Engine(model, **SHAPE)
    heard = iter([*messages, b""])
    lockstep.follow(follower, lambda: next(heard))
    assert follower.row_steps == leader.row_steps
    assert follower.live_steps == leader.live_steps


def test_requests_come_as_they_were_sent(model):
    sent = [Request(QUERIES[1], QUERIES[0].messages, 7, 2, (1, 4), True)]
    leader, messages = Engine(model, **SHAPE), []
    lockstep.lead(leader, messages.append)
    assert len([*leader(sent)]) == 1
    (change,) = lockstep._loads(messages[0])
    assert change.asked == sent and not change.dropped


def test_a_leader_that_cannot_tell_draws_nothing(model):
    """Whoever follows has ended: what was under way fails, and the engine
    does not go on alone."""

    def gone(message):
        raise OSError("the follower has ended")

    leader = Engine(model, **SHAPE)
    lockstep.lead(leader, gone)
    call = leader(ask(QUERIES[:1], range(2)))
    with pytest.raises(OSError, match="has ended"):
        next(call)
    with pytest.raises(RuntimeError, match="failed in another call"):
        next(call)
    assert not leader.row_steps
