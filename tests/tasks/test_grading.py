import pytest

from dynscaling_jax.tasks import (
    classify,
    grade,
    kind_of,
    load_task,
    read_reference,
)


@pytest.mark.parametrize(
    ("predicted", "verdict"),
    [
        ("1/2", "right"),
        ("2", "wrong"),
        (None, "unreadable"),
        ("", "unreadable"),
    ],
)
def test_verdicts(predicted, verdict, compare):
    assert grade(predicted, "0.5", "number", compare) == verdict


def test_a_timeout_is_its_own_verdict():
    assert grade("x^2", "x", "math", lambda a, b, k: "timeout") == "timeout"


def test_votes_and_grading_use_one_relation(compare):
    """The answers that form one class are the ones graded alike."""
    answers = ["0.5", r"\frac{1}{2}", "1/2", r"\sin(\pi/6)", "0.3", None]
    ids = classify(answers, "math", compare)
    verdicts = [grade(a, r"\dfrac12", "math", compare) for a in answers]
    assert ids == (0, 0, 0, 0, 1, -1)
    assert verdicts == ["right"] * 4 + ["wrong", "unreadable"]


def test_an_unreadable_reference_is_an_error(compare):
    with pytest.raises(ValueError, match="reference 'n/a' is no number"):
        grade("5", "n/a", "number", compare)


# References


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1,2", "number", None),  # it became 1, and every 1 was right
        ("(1,2)", "number", None),
        ("3 or 4", "number", None),
        ("3 + 4 = 7", "number", None),
        ("5 million", "number", None),
        ("many", "number", None),
        ("1,234", "number", "1234"),
        ("$18.90", "number", "18.9"),
        (r"\frac{3}{4}", "number", "0.75"),
        ("12 apples", "number", "12"),
        ("50%", "number", "50"),
        ("033", "number", "33"),
        ("(b)", "choice", "B"),
        ("B. 12 m/s", "choice", "B"),
        ("A train", "choice", None),
        ("the answer A", "choice", None),
        ("yes.", "boolean", "True"),
        ("not true", "boolean", None),
        ("1,2", "math", "1, 2"),
        ("", "text", None),
    ],
)
def test_a_reference_is_read_whole_or_not_at_all(text, kind, expected):
    assert read_reference(text, kind) == expected


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["A", "C", "D"], "choice"),
        (["(A)", "(R)"], "choice"),
        ([r"\text{(A)}", "B."], "choice"),
        (["True", "false"], "boolean"),
        (["yes", "No"], "boolean"),
        (["24", "-1,000", "1/2"], "number"),
        ([r"\frac12", "3"], "number"),
        (["$18.90", "50%"], "number"),
        (["3", r"\sqrt{2}"], "math"),
        (["1,2", "7"], "math"),
        (["(3, 4)", "x=2"], "math"),
        ([r"\text{Evelyn}", "2^5"], "math"),
        (["12", "x+1"], "math"),
        (["Paris", "Rome"], "text"),
        (["12/25/1937", "May 1, 2021"], "text"),
        (["the set of 3 + 4 apples", "x+1"], "text"),
        (["A", "Paris"], "text"),
        (["A", "1"], "text"),
    ],
)
def test_the_kind_is_told_by_all_references(texts, kind):
    assert kind_of(texts) == kind
    assert kind_of(texts[::-1]) == kind


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("gsm8k/test.jsonl", "number"),
        ("math500/test.jsonl", "math"),
        ("svamp/test.jsonl", "number"),
        ("bbh/boolean_expressions.json", "boolean"),
        ("bbh/date_understanding.json", "choice"),
        ("bbh/object_counting.json", "number"),
    ],
)
def test_real_references_tell_their_kind(benchmark_data, file, kind):
    name = file.partition("/")[0]
    path = str(benchmark_data / "tasks" / file)
    task = load_task(name, path=path)
    assert kind_of([problem.reference for problem in task.problems]) == kind
