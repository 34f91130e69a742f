import pytest

from dynscaling_jax.tasks import kind_of, load_task, reference


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
    assert reference(text, kind) == expected


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
