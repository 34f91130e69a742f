"""What a process does of a round, and while it waits for others."""

from dynscaling_jax.records.shared import Processes, shared
from dynscaling_jax.types import Message, Query, Request, Sample

QUERIES = [Query(f"q{i}", (Message("user", f"{i}?"),)) for i in range(4)]


def ask(round):
    return [Request(q, q.messages, round, round) for q in QUERIES]


def test_who_waits_goes_on_with_the_next_round():
    """Process 0 of 2, whose peer is slow to end round 0: by the time that it
    has, this one has drawn its share of round 1, which is granted already."""
    drawn, brought = [], []

    def model(requests):
        for r in requests:
            drawn.append((r.query.id, r.round))
            yield Sample(
                r.query.id, r.index, r.round, (), "", "1", "stop", 1, 0, 1, 1.0
            )

    def exchange(own, meanwhile):
        at = len(drawn)
        while meanwhile():
            pass
        brought.append((own.count(b"\n"), drawn[at:]))
        return [own]

    draw = shared(model, Processes(0, 2, exchange), {})
    first, second = draw(ask(0)), draw(ask(1))
    assert drawn == []
    assert [s.query_id for s in first] == ["q0", "q2"]
    assert brought == [(2, [("q0", 1), ("q2", 1)])]
    assert [s.query_id for s in second] == ["q0", "q2"]
    assert brought[1] == (2, [])
