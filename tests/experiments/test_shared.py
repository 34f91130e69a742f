"""What a process does of a round, and while it waits for others."""

from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.experiments.shared import (
    Processes,
    Usage,
    partition,
    shared,
)
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


QUERY = st.sampled_from("abcdefghij")


@given(
    st.dictionaries(QUERY, st.integers(1, 9)),
    st.dictionaries(QUERY, st.integers(1, 500)),
    st.dictionaries(QUERY, st.integers(0, 3)),
)
def test_a_round_is_divided_evenly(counts, lengths, owners):
    """No process is to draw more than its share and one query."""
    drawn = {q: Usage(3.0 * length, 3) for q, length in lengths.items()}
    found = partition(counts, drawn, owners, 4)
    assert found.keys() == counts.keys()
    mean = sum(lengths.values()) / len(lengths) if lengths else 1
    work = {q: n * lengths.get(q, mean) for q, n in counts.items()}
    load = [sum(work[q] for q in work if found[q] == p) for p in range(4)]
    most = sum(load) / 4 + max(work.values(), default=0)
    assert max(load) <= most * (1 + 1e-9)


@given(st.integers(1, 5), st.integers(1, 4))
def test_who_read_a_prompt_keeps_the_query(queries, processes):
    """In a second round like the first, nothing moves."""
    counts = dict.fromkeys(range(queries * processes), 2)
    first = partition(counts, {}, {}, processes)
    drawn = {query: Usage(80.0, 2) for query in counts}
    assert partition(counts, drawn, first, processes) == first


def test_the_uncertain_questions_of_one_process_go_to_others():
    """Two processes had questions each; the bandit grants all of the next
    rounds to those of the first, which draws half of them."""
    owners = {"a": 0, "b": 0, "c": 0, "d": 0, "x": 1, "y": 1}
    granted = {"a": 2, "b": 2, "c": 2, "d": 2}
    assert partition(granted, {}, owners, 2) == {"a": 0, "b": 0, "c": 1, "d": 1}


def test_a_question_with_long_answers_counts_for_several():
    """Those of d are as long as three of the others."""
    drawn = {q: Usage(100.0, 1) for q in "abc"} | {"d": Usage(600.0, 2)}
    counts = dict.fromkeys("abcd", 1)
    assert partition(counts, drawn, {}, 2) == {"d": 0, "a": 1, "b": 1, "c": 1}
