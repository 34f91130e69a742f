"""The time of a run without rounds, worked by hand; rows that are no events."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.analysis import report as reports
from dynscaling_jax.analysis import timeline
from dynscaling_jax.analysis.diagnostics import diagnostics
from dynscaling_jax.analysis.graded import RecordedRun, grade_run
from dynscaling_jax.analysis.page import page
from dynscaling_jax.analysis.report import curve
from dynscaling_jax.types import Sample


def compare(a, b, kind):
    return "equal" if a == b else "different"


def sample(query, index, answer, new, round=0, parents=(), finish="stop"):
    return Sample(
        query, index, round, parents, "so", answer, finish, 10, 4, new, 2.0
    )


SAMPLES = (
    sample("b", 1, "5", 20),
    sample("a", 0, "1", 30),
    sample("b", 0, "4", 50),
    sample("a", 1, "2", 40, 1),
    sample("b", 2, None, 30, 1, (1,), "cancelled"),
)


def grant(step, number, query, index, parents=()):
    return {
        "event": "grant",
        "step": step,
        "grant": number,
        "query": query,
        "index": index,
        "parents": [*parents],
    }


def over(event, step, number, query, index, new):
    return {
        "event": event,
        "step": step,
        "grant": number,
        "query": query,
        "index": index,
        "new_tokens": new,
    }


#    step   0         20        30        50        60
#    a/0    =======================
#    a/1              ==============================
#    a/2                                            left
#    b/0    ================================
#    b/1    ==========
#    b/2                        ==================== cancelled, a chain of b/1
EVENTS = (
    grant(0, 0, "a", 0),
    grant(0, 1, "b", 0),
    grant(0, 2, "b", 1),
    over("end", 20, 2, "b", 1, 20),
    grant(20, 3, "a", 1),
    over("end", 30, 0, "a", 0, 30),
    grant(30, 4, "b", 2, [1]),
    over("end", 50, 1, "b", 0, 50),
    over("end", 60, 3, "a", 1, 40),
    over("cancel", 60, 4, "b", 2, 30),
    grant(60, 5, "a", 2),
)


@pytest.fixture
def run():
    return RecordedRun(
        "run",
        {"kind": "number", "task": "made up"},
        {"a": "1", "b": "5"},
        {},
        {
            "a": {"answer": "1", "right": True},
            "b": {"answer": "5", "right": True},
        },
        SAMPLES,
        (),
        EVENTS,
    )


def report(run):
    return reports.report([grade_run(run, compare)])


def test_flights_come_as_they_were_over(run):
    found = timeline.flights(run)
    assert [(f.q, f.index) for f in found] == [
        (1, 1), (0, 0), (1, 0), (0, 1), (1, 2), (0, 2),
    ]  # fmt: skip
    assert [f.kind for f in found] == ["end"] * 4 + ["cancel", "left"]
    assert [f.end for f in found] == [20, 30, 50, 60, 60, None]
    assert [f.chain for f in found] == [False] * 4 + [True, False]


def test_a_majority_is_that_of_the_order_of_ends(run):
    """b/1 says 5 and ends before b/0, which says 4: the run broke the tie for
    5, and by index it would be 4."""
    judged = grade_run(run, compare)
    flights = timeline.flights(run)
    ordered = timeline.in_order_of_ends(judged, flights)
    assert judged.questions[1].answers == ("4", "5")
    assert ordered.questions[1].answers == ("5", "4")
    assert ordered.questions[1].right == {0}
    assert timeline.in_order_of_ends(ordered, flights) == ordered
    found = curve(ordered, flights)  # from one sample a question on
    assert found["samples"] == [1, 1.5, 2, 2.5]
    assert found["tokens"] == [31, 59, 82, 100]  # that of the cancelled too
    assert found["accuracy"] == [1, 1, 1, 1]


def test_time_is_counted_in_bins(run):
    found = report(run)["runs"][0]["time"]
    assert (found["unit"], found["steps"]) == ("decode steps", 60)
    assert (found["most"], found["last_grant"]) == (3, 60)
    assert found["mean"] == pytest.approx(170 / 60)
    assert (found["left"], found["cancelled"]) == (1, 1)
    assert found["part"] == 1
    assert found["under_way"] == [3] * 50 + [2] * 10
    assert found["width"] == 2  # 31 bins: the last one holds step 60
    columns = ("grants", "chains", "ends", "cancels", "uncertainty", "bins")
    assert {len(found[name]) for name in columns} == {31}
    grants = {b: row for b, row in enumerate(found["grants"]) if any(row)}
    assert grants == {0: [1, 2], 10: [1, 0], 15: [0, 1], 30: [1, 0]}
    ends = {b: row for b, row in enumerate(found["ends"]) if any(row)}
    assert ends == {10: [0, 1], 15: [1, 0], 25: [0, 1], 30: [1, 0]}
    assert found["chains"][15] == [0, 1]
    assert found["cancels"][30] == [0, 1]
    # of a: one answer from 30 on; of b: one from 20 on, two from 50 on
    unsure_a, unsure_b = zip(*found["uncertainty"], strict=True)
    assert unsure_a == (1,) * 16 + (0,) * 15
    assert unsure_b == (1,) * 11 + (0,) * 15 + (1,) * 5
    assert found["bins"][15] == {
        "questions": 1,
        "uncertainty": 0,
        "uncertainty_of_others": 1,
    }


def test_bars_of_a_question_do_not_overlap(run):
    found = report(run)["runs"][0]["time"]
    assert found["lanes"] == [2, 2]
    bars = [[*bar.values()] for bar in found["bars"]]
    assert bars == [
        [0, 0, 0, 30, "end", False, 0],
        [1, 0, 0, 50, "end", False, 0],
        [1, 1, 0, 20, "end", False, 1],
        [0, 1, 20, 60, "end", False, 1],
        [1, 2, 30, 60, "cancel", True, 1],
        [0, 2, 60, 60, "left", False, 0],
    ]


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(0, 300), st.integers(1, 300)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_what_holds_of_any_history(spans):
    """Of (question, step of the grant, tokens)."""
    index = {"a": itertools.count(), "b": itertools.count()}
    spans = [(q, next(index[q]), at, new) for q, at, new in spans]
    rows = [grant(at, n, q, i) for n, (q, i, at, _) in enumerate(spans)]
    rows += [
        over("end", at + new, n, q, i, new)
        for n, (q, i, at, new) in enumerate(spans)
    ]
    rows.sort(key=lambda row: (row["step"], row["event"]))
    made = RecordedRun(
        "run", {"kind": "number"}, {"a": "1", "b": "1"}, {},
        dict.fromkeys("ab", {"answer": "1", "right": True}),
        [sample(q, i, "1", new) for q, i, _, new in spans],
        (), rows,
    )  # fmt: skip
    found = report(made)["runs"][0]["time"]
    under_way = [
        sum(at <= step < at + new for _, _, at, new in spans)
        for step in range(found["steps"])
    ]
    assert found["most"] == max(under_way)
    assert found["mean"] == pytest.approx(sum(under_way) / found["steps"])
    part = found["part"]
    for p, mean in enumerate(found["under_way"]):
        own = under_way[p * part : (p + 1) * part]
        assert mean == pytest.approx(sum(own) / len(own), abs=0.01)
    for name in ("grants", "ends"):
        assert sum(map(sum, found[name])) == len(spans)
    assert len(found["bins"]) <= timeline.BINS
    for one, other in itertools.combinations(found["bars"], 2):
        if all(one[name] == other[name] for name in ("question", "lane")):
            apart = one["end"] <= other["start"] or other["end"] <= one["start"]
            assert apart
    assert found["curve"]["accuracy"][-1] == len({q for q, *_ in spans}) / 2


def test_accuracy_against_steps(run):
    found = report(run)["runs"][0]["time"]["curve"]
    assert found["steps"][0] == 20 and found["steps"][-1] == 60
    for step, right in zip(found["steps"], found["accuracy"], strict=True):
        assert right == (0.5 if step < 30 else 1)


def test_a_sample_says_when_it_was_granted_and_ended(run):
    found = report(run)
    b = found["details"][0][1]
    assert b["index"] == [0, 1, 2]
    assert b["granted"] == [0, 0, 30]
    assert b["ended"] == [50, 20, 60]
    assert b["finish"] == ["stop", "stop", "cancelled"]
    assert b["ids"] == [0, 1, -1] and b["right"] == [1]
    assert b["parents"] == [[], [], [1]]
    (told,) = found["questions"][1]["runs"]
    assert (told["samples"], told["cancelled"]) == (2, 1)
    assert told["share"] == 0.5  # of two: a cancelled one has no vote


def test_runs_in_rounds_have_no_time(run):
    found = report(run._replace(samples=SAMPLES[:4], events=()))
    assert "time" not in found["runs"][0]
    assert "granted" not in found["details"][0][0]
    assert "cancelled" not in found["questions"][0]["runs"][0]


def test_steps_of_an_endpoint_are_samples_that_ended(run):
    samples = [s._replace(new_tokens=100) for s in SAMPLES]
    found = report(run._replace(samples=samples))["runs"][0]["time"]
    assert found["unit"] == "samples that ended"


def test_a_run_that_ended_before_its_first_sample(run):
    """Its cap on seconds was reached."""
    found = report(run._replace(samples=(), events=EVENTS[:3]))
    page(found)
    found = found["runs"][0]["time"]
    assert found["under_way"] == [] and found["left"] == 3
    assert found["curve"]["steps"] == []


def test_many_samples_are_bins_alone(run):
    """121 that overlap have no place to lie side by side."""
    many = timeline.LANES + 1
    samples = [sample("a", n, "1", 5) for n in range(many)]
    events = [
        *(grant(0, n, "a", n) for n in range(many)),
        *(over("end", 5, n, "a", n, 5) for n in range(many)),
    ]
    made = run._replace(samples=samples, events=events)
    found = report(made)["runs"][0]["time"]
    assert found["bars"] is None and found["lanes"] is None
    assert found["most"] == many and found["grants"][0] == [many, 0]


def test_a_long_run_has_few_bins_and_parts(run):
    last = over("end", 10**9, 3, "a", 1, 40)
    made = run._replace(
        samples=SAMPLES[:4],
        events=[*EVENTS[:6], EVENTS[7], last],
    )
    found = report(made)["runs"][0]["time"]
    assert len(found["bins"]) <= timeline.BINS
    assert len(found["under_way"]) <= timeline.PARTS
    assert len(found["curve"]["steps"]) == timeline.BINS


def changed(place, **change):
    return [
        {**row, **change} if n == place else row for n, row in enumerate(EVENTS)
    ]


@pytest.mark.parametrize(
    ("events", "row", "says"),
    [
        ([*EVENTS[:3], [], *EVENTS[3:]], 3, "TypeError"),
        (changed(0, query="c"), 0, "'c'"),
        (changed(0, query=["a"]), 0, "TypeError"),
        (changed(0, index=1.5), 0, "no whole number"),
        (
            [{k: v for k, v in EVENTS[0].items() if k != "parents"}],
            0,
            "parents",
        ),
        (changed(1, event="gift"), 1, "gift"),
        (changed(2, index=0), 2, "granted twice"),
        (changed(3, step=-1), 3, "no step from 0 on"),
        (changed(3, step="20"), 3, "no step from 0 on"),
        (changed(3, step=10**300), 3, "no step"),
        (changed(7, step=29), 7, "no step from 30 on"),
        (changed(5, query="b", index=1), 5, "not under way"),
        (changed(5, event="cancel"), 5, "samples.jsonl says end"),
        (changed(9, event="end"), 9, "samples.jsonl says cancel"),
        ([*EVENTS, over("end", 60, 5, "a", 2, 0)], 11, "has no such sample"),
        ([{**EVENTS[0]} | {"step": None}], 0, "no step"),
    ],
)
def test_rows_that_are_no_events(run, events, row, says):
    match = f"^run: row {row} of events.jsonl is no event .*{says}"
    with pytest.raises(ValueError, match=match):
        report(run._replace(events=events))


def test_a_sample_that_no_event_ends(run):
    with pytest.raises(ValueError, match="no end of sample 2 of question 'b'"):
        report(run._replace(events=EVENTS[:9]))


def test_what_needs_rounds_says_so(run):
    ranking = diagnostics(grade_run(run, compare))[1]
    assert ranking.value is None
    assert ranking.note == "it needs rounds, which this run has not"


def test_samples_after_those_that_were_granted_in_turn():
    """Of twenty questions, all wrong, one got nine more, and one a sample that
    was cancelled: given up are the other eighteen."""
    ids = [f"q{n}" for n in range(20)]
    samples = [sample(id, 0, "2", 5) for id in ids]
    samples += [sample("q0", n, "2", 5, 1) for n in range(1, 10)]
    samples += [sample("q1", 1, None, 5, 1, (), "cancelled")]
    keys = [(s.query_id, s.index) for s in samples]
    events = [grant(0, n, *key) for n, key in enumerate(keys)]
    events += [
        over("end" if s.answer else "cancel", 5, n, *keys[n], 5)
        for n, s in enumerate(samples)
    ]
    run = RecordedRun(
        "run", {"kind": "number"}, dict.fromkeys(ids, "1"), {},
        dict.fromkeys(ids, {"answer": "2", "right": False}),
        samples, (), events,
    )  # fmt: skip
    given_up, concentration = diagnostics(grade_run(run, compare))[4:6]
    assert given_up.note == "18 of 20" and "in turn" in given_up.measure
    assert concentration.value == 1 and "in turn" in concentration.measure
