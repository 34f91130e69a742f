"""The numbers of a report, worked by hand; and a page that holds any text."""

import json
import operator
import re

import numpy as np
import pytest

from dynscaling_jax.analysis import report as reports
from dynscaling_jax.analysis.chain_usage import chain_usage
from dynscaling_jax.analysis.diagnostics import diagnostics
from dynscaling_jax.analysis.graded import (
    RecordedRun,
    grade_run,
    majority,
)
from dynscaling_jax.analysis.page import page
from dynscaling_jax.analysis.report import _cut, _fair_limit, curve
from dynscaling_jax.types import Sample


def compare(a, b, kind):
    return "equal" if a == b else "different"


def report(runs):
    return reports.report([grade_run(run, compare) for run in runs])


def sample(query, index, answer, round=0, parents=(), text="so", **more):
    return Sample(
        query_id=query,
        index=index,
        round=round,
        parents=parents,
        text=text,
        answer=answer,
        finish_reason="stop",
        prompt_tokens=10,
        cached_tokens=4,
        new_tokens=5,
        flops=2.0,
        **more,
    )


def recorded(
    samples,
    references,
    rounds=(),
    name="run",
    questions=None,
    kind="number",
):
    """A run whose own vote is the majority."""
    run = RecordedRun(
        name,
        {"kind": kind, "task": "made up"},
        references,
        questions or {},
        {id: {"answer": None, "right": False} for id in references},
        samples,
        rounds,
    )
    answers = {}
    for asked in grade_run(run, compare).questions:
        voted = majority(asked)
        first = asked.answers[voted.answer] if voted.answer >= 0 else None
        answers[asked.id] = {"answer": first, "right": voted.right}
    return run._replace(answers=answers)


REFERENCES = {"a": "1", "b": "5", "c": "9"}
SAMPLES = (
    # as a run writes them: question by question within a round
    sample("a", 0, "1", confidence=0.5),
    sample("a", 1, "2", confidence=0.3),
    sample("b", 0, "4"),
    sample("b", 1, "5"),
    sample("c", 0, None),
    sample("c", 1, "8"),
    sample("a", 2, "1", round=1, parents=(0, 1)),
    sample("b", 2, "5", round=1, parents=(1,)),
    sample("b", 3, "5", round=1),
)
ROUNDS = (
    {
        "round": 0,
        "grants": {"a": 2, "b": 2, "c": 2},
        "uncertainty": {"a": 1.0, "b": 1.0, "c": 1.0},
    },
    {
        "round": 1,
        "grants": {"a": 1, "b": 2, "c": 0},
        "uncertainty": {"a": 0.9, "b": 0.8, "c": 0.1},
    },
)


@pytest.fixture
def run():
    return recorded(SAMPLES, REFERENCES, ROUNDS)


def test_a_curve_counts_prefixes_of_the_samples(run):
    """First one sample of each, then two, where b's tie goes to 4; then a
    third of a and b, whose majority is right now; then a fourth of b."""
    found = curve(grade_run(run, compare))
    assert found["samples"] == pytest.approx([1, 2, 8 / 3, 3], abs=1e-4)
    assert found["tokens"] == pytest.approx([11, 22, 88 / 3, 33], abs=1e-3)
    assert found["flops"] == pytest.approx([2, 4, 16 / 3, 6], abs=1e-4)
    third = pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3], abs=1e-5)
    assert found["accuracy"] == third
    # three questions drawn anew: all three are wrong in 8 of 27, right in 1
    assert found["low"][0] == 0 and found["high"][0] == 1


def test_allocation_and_calibration(run):
    (found,) = report([run])["runs"]
    assert found["allocation"]["grants"] == [[2, 2, 2], [1, 2, 0]]
    assert found["allocation"]["rounds"][1] == {
        "samples": 3,
        "questions": 2,
        "uncertainty": 0.85,
        "uncertainty_of_others": 0.1,
    }
    # shares 2/3 and 3/4 of right votes, 1/2 of a wrong one
    told = found["calibration"]
    assert told["ece"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3, abs=1e-5)
    assert told["auroc"] == 1
    assert told["count"] == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert told["right"][5:8] == [0, 1, 1] and told["confidence"][0] is None
    assert told["of_samples"]["confidence"] == {"auroc": 1, "samples": 2}


def test_questions_and_their_samples(run):
    found = report([run])
    b = found["questions"][1]
    assert (b["id"], b["reference"]) == ("b", "5")
    assert b["runs"] == [
        {
            "answer": "5",
            "right": True,
            "share": 0.75,
            "samples": 4,
            "right_samples": 3,
            "chains": 1,
        }
    ]
    detail = found["details"][0][1]
    assert detail["answers"] == ["4", "5"] and detail["right"] == [1]
    assert detail["ids"] == [0, 1, 1, 1]
    assert detail["parents"] == [[], [], [1], []]
    assert found["details"][0][2]["ids"] == [-1, 0]


def test_a_run_whose_time_was_up_can_lack_a_sample():
    """Samples of a round end in any order, and some of them not at all."""
    samples = [
        sample("a", 0, "1"),
        sample("a", 2, "2"),
        sample("a", 4, "2", round=1, parents=(2, 0)),
    ]
    found = report([recorded(samples, {"a": "2"})])
    assert found["questions"][0]["runs"][0]["right"]
    detail = found["details"][0][0]
    assert detail["index"] == [0, 2, 4]
    assert detail["parents"] == [[], [], [1, 0]]  # places, not indices


def test_runs_are_paired_by_question_and_reference(run):
    """Seeds of a task share their ids, not their questions."""
    other = recorded(
        [sample("a", 0, "3"), sample("b", 0, "5"), sample("c", 0, "6")],
        {"a": "1", "b": "5", "c": "6"},
        name="other",
    )
    found = report([run, other])
    assert len(found["questions"]) == 4
    first, second = (one["difference"] for one in found["runs"])
    assert first is None
    assert (second["shared"], second["only_this"], second["only_first"]) == (
        2,
        0,
        1,
    )
    assert second["difference"] == -0.5
    assert second["p"] == second["p_holm"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"references": {"a": "1", "b": "5"}}, "'c', for which"),
        ({"answers": {}}, "no answer to question 'a'"),
        ({"samples": [*SAMPLES, SAMPLES[0]]}, "'a' has a sample twice"),
        ({"samples": SAMPLES[1:]}, "sample 2 of question 'a' has a parent"),
        (
            {"samples": [sample("a", 0, "1", parents=(0,))]},
            "does not come before",
        ),
        ({"rounds": [{"grants": {}}]}, "round 0 of rounds.jsonl"),
    ],
)
def test_rows_that_do_not_belong_together(run, change, says):
    with pytest.raises(ValueError, match=says):
        report([run._replace(**change)])


def found_diagnostics(samples, references, rounds=()):
    run = recorded(samples, references, rounds)
    names = (
        "gap",
        "ranking",
        "disagreement",
        "chains",
        "given_up",
        "concentration",
        "overhead",
    )
    found = diagnostics(grade_run(run, compare))
    return dict(zip(names, found, strict=True))


def made_rounds(references, uncertainty):
    grants = dict.fromkeys(references, 1)
    unsure = dict(zip(references, uncertainty, strict=True))
    row = {"grants": grants, "uncertainty": unsure}
    return (row, row)


def test_sure_and_wrong_is_miscalibrated():
    """Ten questions whose two samples agree, and only five of them right; and
    those that are wrong were taken for the surer ones."""
    references = {f"q{i}": "1" for i in range(10)}
    samples = [
        sample(q, n, "1" if i < 5 else "2")
        for i, q in enumerate(references)
        for n in range(2)
    ]
    uncertainty = [0.9] * 5 + [0.1] * 5
    rounds = made_rounds(references, uncertainty)
    found = found_diagnostics(samples, references, rounds)
    assert found["gap"].crossed and found["gap"].value == 0.5
    assert found["gap"].threshold == 0.1  # calibrated, all would be right
    assert found["ranking"].crossed and found["ranking"].value == 0
    rounds = made_rounds(references, uncertainty[::-1])
    found = found_diagnostics(samples, references, rounds)
    assert not found["ranking"].crossed and found["ranking"].value == 1


def test_a_gap_that_chance_explains_is_not_flagged():
    """Four questions of which half should be right, and none is: that is
    one case in sixteen."""
    references = {f"q{i}": "1" for i in range(4)}
    samples = [
        sample(q, n, answer)
        for q in references
        for n, answer in enumerate(["2", "2", "3", "4"])
    ]
    gap = found_diagnostics(samples, references)["gap"]
    assert gap.value == 0.5 and not gap.crossed


def chained(parents_differ, chains_right):
    """Twenty questions: two samples, and a chain of both."""
    references = {f"q{i}": "1" for i in range(20)}
    samples = []
    for q in references:
        samples += [
            sample(q, 0, "1"),
            sample(q, 1, "2" if parents_differ else "1"),
            sample(q, 2, "1" if chains_right else "3", 1, (0, 1)),
        ]
    return found_diagnostics(samples, references)


def test_chains_of_answers_that_differ():
    found = chained(parents_differ=True, chains_right=True)
    assert found["disagreement"].value == 1 and found["disagreement"].crossed
    assert found["chains"].value == 0.5 and not found["chains"].crossed
    found = chained(parents_differ=False, chains_right=False)
    assert found["disagreement"].value == 0
    assert not found["disagreement"].crossed
    assert found["chains"].value == -1 and found["chains"].crossed


def test_wrong_questions_that_are_given_up():
    """Of six wrong questions two got another sample; one of twenty got all
    that was left."""
    references = {f"q{i}": "1" for i in range(20)}
    samples = [
        sample(q, 0, "2" if i < 6 else "1") for i, q in enumerate(references)
    ]
    samples += [sample("q0", n, "2", 1) for n in range(1, 9)]
    samples += [sample("q1", 1, "2", 1)]
    found = found_diagnostics(samples, references)
    assert found["given_up"].value == pytest.approx(4 / 6)
    assert found["given_up"].crossed and found["given_up"].note == "4 of 6"
    # a tenth is two questions
    assert found["concentration"].value == 1 and found["concentration"].crossed


def test_a_vote_that_is_not_the_majority(run):
    """The page said that so many samples agree on it, and counted those of
    the majority."""
    other = {**run.answers, "b": {"answer": "4", "right": False}}
    found = report([run._replace(answers=other)])
    shares = {q["id"]: q["runs"][0]["share"] for q in found["questions"]}
    assert shares == {"a": 0.666667, "b": 0.25, "c": 0.5}
    assert found["runs"][0]["calibration"]["count"][7] == 1  # 3 of 4 say 5


def test_what_was_corrupted_is_not_taken_for_an_answer_of_its_own(run):
    """An altered attempt is no parent, so that a sample that believed it
    seemed to contradict its chain."""
    run.summary["strategy"] = "integrated(planted=0)"
    assert any(one.samples for one in chain_usage(grade_run(run, compare)))
    run.summary["strategy"] = "integrated(k=4, planted = 1)"
    judged = grade_run(run, compare)
    assert not any(one.samples for one in chain_usage(judged))
    found = diagnostics(judged)[2]
    assert found.value is None and "corrupted" in found.note


def test_a_loss_is_what_chance_does_not_explain(run):
    """Twenty questions of which each sample is right; then a vote that is
    wrong on all of them, and one that is wrong on a single one."""
    references = {f"q{i}": "1" for i in range(20)}
    good = recorded(
        [sample(q, n, "1") for q in references for n in range(2)], references
    )

    def losing(count):
        lost = {q: {"answer": "2", "right": False} for q in list(references)}
        kept = list(references)[count:]
        return good._replace(
            name="lost",
            answers=lost | {q: good.answers[q] for q in kept},
        )

    all_lost, one_lost = losing(20), losing(1)
    found = report([good, all_lost, one_lost])["runs"]
    assert [one["losses"] for one in found] == [
        [],
        [
            "100.0 points behind the first run on 20 questions",
            "the vote is 100.0 points behind a single sample",
        ],
        [],
    ]


def test_what_cannot_be_judged_is_not_flagged(run):
    found = diagnostics(grade_run(run._replace(rounds=ROUNDS[:1]), compare))
    assert [one.value for one in found[1:]] == [None] * 6
    assert all(one.note for one in found[1:])
    assert not any(one.crossed for one in found[1:])


@pytest.mark.parametrize(("share", "crosses"), [(0.02, False), (0.3, True)])
def test_a_loop_that_takes_its_time(run, share, crosses):
    run.summary["loop_share"] = share
    *_, found = diagnostics(grade_run(run, compare))
    assert (found.name, found.crossed) == ("overhead of the bandit", crosses)
    del run.summary["loop_share"]


def test_a_run_that_drew_nothing():
    """Time may be up before the first sample."""
    found = report([recorded([], REFERENCES)])
    text = page(found)
    assert found["runs"][0]["curve"]["accuracy"] == []
    assert blocks(text)["samples-0-0"]["ids"] == []


HOSTILE = (
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<!-- <script>",
    "\u2028\ud800 {{script}} ]]>",
)


def blocks(text):
    found = re.findall(
        r'<script type="application/json" id="([\w-]+)">(.*?)</script>', text
    )
    return {name: json.loads(block) for name, block in found}


def test_a_page_holds_any_text():
    references = {text: text for text in HOSTILE}
    samples = [sample(text, 0, text, text=text) for text in HOSTILE]
    run = recorded(
        samples,
        references,
        name=HOSTILE[0],
        questions={text: text for text in HOSTILE},
        kind="text",
    )
    made = report([run])
    text = page(made)
    text.encode()  # no lone surrogate is left in it
    assert "<img" not in text and "window.hit = 1</script>" not in text
    found = blocks(text)
    details = made.pop("details")
    assert found.pop("report") == made
    assert [found[f"samples-0-{q}"] for q in range(4)] == details[0]
    # the page's own is the only one that can run
    assert len(re.findall("<script>", text)) == 1


def test_a_page_fetches_nothing(run):
    text = page(report([run]))
    head = text[: text.index("<style>")]
    assert "default-src 'none'" in head and "'unsafe" not in text
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", head)
    own = text.replace("http://www.w3.org/2000/svg", "")
    assert "://" not in own and "@import" not in own and "url(" not in own
    assert "innerHTML" not in own and "eval(" not in own


def test_texts_are_cut_alike_where_all_is_too_much():
    assert _fair_limit([3, 10, 20], 100) == 20
    assert _fair_limit([3, 10, 20], 23) == 10
    assert _fair_limit([], 23) == 0
    assert _cut("abcdef", 6) == "abcdef"
    cut = _cut("abcdef", 4)
    assert cut.startswith("ab\n[2 characters") and cut.endswith("\nef")


def test_what_a_random_run_gives_is_in_order():
    random = np.random.default_rng(0)
    references = {f"q{i}": "1" for i in range(40)}
    samples = [
        sample(q, n, str(random.integers(3)) if random.random() < 0.9 else None)
        for q in references
        for n in range(16)
    ]
    run = recorded(samples, references)
    found = report([run])
    json.dumps(found, allow_nan=False)
    found = found["runs"][0]["curve"]
    for name in ("low", "accuracy", "high"):
        assert all(0 <= value <= 1 for value in found[name])
    for low, high in ((0, 1), (1, 2)):
        pair = [found[("low", "accuracy", "high")[i]] for i in (low, high)]
        assert all(map(operator.le, *pair))


def test_what_samples_make_of_their_chains():
    """One of each: repeats the majority, sides with the minority, gives a new
    answer, gives none."""
    rows = [
        *(sample("a", i, answer) for i, answer in enumerate("2213")),
        sample("a", 4, "2", 1, (0, 1, 2)),  # repeats what is wrong
        sample("a", 5, "1", 1, (0, 1, 2)),  # corrects it
        sample("a", 6, "7", 1, (2, 3)),  # contradicts; of equals the first
        sample("a", 7, None, 1, (2,)),
    ]
    judged = grade_run(recorded(rows, {"a": "1"}), compare)
    assert [one[1:] for one in chain_usage(judged)] == [
        (1, 0, 0),
        (1, 1, 0),
        (1, 0, 1),
        (1, 0, 1),
    ]
