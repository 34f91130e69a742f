import re

import pytest

from dynscaling_jax.tasks.benchmarks import BENCHMARKS, Item
from dynscaling_jax.tasks.sources import Row


def read(name, values, fields=None):
    return BENCHMARKS[name].read(Row(values, "file:7"), fields or {})


CHOICES = ["red", "green", "blue"]


@pytest.mark.parametrize(
    ("name", "values", "item"),
    [
        ("gsm8k", {"question": "q", "answer": "s\n#### 1,2"}, ("q", "1,2")),
        ("math500", {"problem": "p", "answer": "\\pi"}, ("p", "\\pi")),
        (
            "svamp",
            {"Body": "Two birds", "Question": "How many?", "Answer": 2.0},
            ("Two birds. How many?", "2.0"),
        ),
        (
            "svamp",
            {"Body": "Two birds. ", "Question": "How many?", "Answer": "2.0"},
            ("Two birds. How many?", "2.0"),
        ),
        ("bbh", {"input": "i", "target": "(A)"}, ("i", "(A)")),
        (
            "bbh",
            {"input": "i?\nOptions:\n(A) one\n(B) ", "target": "(B)"},
            ("i?\nOptions:\n(A) one\n(B)", "(B)"),  # without its last one
        ),
        (
            "bbh",
            {"input": "i?\nOptions:\n(A) one\n(B) 2", "target": "(B)"},
            ("i?\nOptions:", "1", ("one", "2")),
        ),
        (
            "bbh",
            {"input": "i?\nOptions:\n- Yes\n- No", "target": "No"},
            ("i?\nOptions:\n- Yes\n- No", "No"),
        ),
        ("aime", {"problem": "p", "answer": 33}, ("p", "33")),
        ("aime", {"Problem": "p", "Answer": "033"}, ("p", "033")),
    ],
)
def test_formats(name, values, item):
    assert read(name, values) == Item(*item)


@pytest.mark.parametrize(
    ("answer", "choices", "right"),
    [
        (1, CHOICES, "1"),
        ("C", CHOICES, "2"),
        ("(b)", CHOICES, "1"),
        ("green", CHOICES, "1"),
        ("2", CHOICES, "2"),
        # An index must not be taken for the option that reads like it.
        (1, ["1", "2", "3"], "1"),
        ("1", ["1", "2", "3"], "0"),
    ],
)
def test_the_right_option(answer, choices, right):
    row = {"question": "q", "choices": choices, "answer": answer}
    assert read("mmlu", row) == Item("q", right, tuple(choices))


def test_jsonl_with_named_fields():
    fields = {"question": "ask", "answer": "gold", "id": "key"}
    row = {"ask": "q", "gold": 7, "key": 12}
    assert read("jsonl", row, fields) == Item("q", "7", id="12")
    assert read("jsonl", {"question": "q", "answer": "a"}) == Item("q", "a")
    options = {"question": "q", "answer": "B", "opts": ["x", "y"]}
    assert read("jsonl", options, {"choices": "opts"}) == Item(
        "q", "1", ("x", "y")
    )


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("gsm8k", {"q": "x"}, "file:7: no column 'answer'; there are: q"),
        ("gsm8k", {"question": "q", "answer": "18"}, "file:7: no ####"),
        ("aime", {"answer": 3}, "no column 'problem' or 'Problem'"),
        ("bbh", {"input": "i", "target": True}, "expected text .* got bool"),
        ("bbh", {"input": "i", "target": " "}, "target is empty"),
        (
            "mmlu",
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            "file:7: the answer '2' is none of the 2 options",
        ),
        (
            "mmlu",
            {"question": "q", "choices": "a b", "answer": 0},
            "expected 2 to 26 texts in 'choices'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name, values, message):
    with pytest.raises(ValueError, match=message):
        read(name, values)


def test_every_hub_file_is_pinned_to_a_commit():
    files = [f for b in BENCHMARKS.values() for f in b.hub.values()]
    assert len(files) == 8
    for file in files:
        assert re.fullmatch("[0-9a-f]{40}", file.revision)
