import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.tasks import KINDS, canonical, extract, grade, with_answers
from dynscaling_jax.types import Message, Query, Request, Sample

READINGS = Path(__file__).with_name("readings.jsonl")
WANTED = {"right": "right", "wrong": "wrong", "none": "unreadable"}


def test_readings():
    """What models write about an answer, and what a reader takes for it:
    each line was once read as something else."""
    lines = READINGS.read_text("utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    read = [[kind, extract(text, kind), text] for kind, _, text in rows]
    assert len(rows) > 300
    assert [r for r, row in zip(read, rows, strict=True) if r != row] == []


def test_handed_cases(benchmark_data, compare, capsys):
    """Of the cases of reports, the share that is read as wanted. The
    readings of mathematics are those of its forms as well."""
    path = benchmark_data / "answers" / "cases.json"
    if not path.exists():
        pytest.skip(f"no cases of readings at {path}")
    all_of, wanted = Counter(), Counter()
    for case in json.loads(path.read_text("utf-8"))["reading"]:
        kind = case["kind"]
        answer = extract(case["text"], kind)
        verdict = grade(answer, case["reference"], kind, compare)
        all_of[kind] += 1
        wanted[kind] += verdict == WANTED[case["want"]]
    shares = {kind: wanted[kind] / n for kind, n in all_of.items()}
    with capsys.disabled():
        print("", *(f"{k}: {v:.1%} as wanted" for k, v in shares.items()))
    del shares["math"]
    assert len(shares) == 4 and min(shares.values()) >= 0.97


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So \boxed{18}.", "18"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"\boxed{\text{no idea}} The answer is 7.", "7"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"The answer is 4. \boxed{5}", "5"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("#### 1,000\n", "1000"),
        ("#### Step 2\nShe has 3 left. The answer is 9.", "9"),
        ("The answer is 18.", "18"),
        ("the answer is: $18.50 per day", "18.5"),
        ("**Final answer:** 42", "42"),
        ("Answer: 3 + 4 = 7 apples.", "7"),
        ("The answer is 5. Check: 2 + 4 = 6.", "5"),
        ("The answer to this question is therefore -3", "-3"),
        ("The answer is 3, no, the answer is 4.", "4"),
        ("The answer is 8. I hope this answer is helpful.", "8"),
        ("Final answer:\n\n12", "12"),
        ("First 3, then 4 and last 7 of them", "7"),
        ("She pays 16-3", "3"),
        ("It is -3", "-3"),
        ("nothing to read here", None),
        ("", None),
        ("<think>The answer is 3.</think>The answer is 4.", "4"),
        ("<think>The answer is 3.</think>", None),
    ],
)
def test_numbers(text, expected):
    assert extract(text, "number") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\left(3, \dfrac{\pi}{2}\right)}", r"(3, \frac{\pi}{2})"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"The answer is $\frac{1}{2}$.", "0.5"),
        (r"The answer is \(x = 5\), as claimed.", "5"),
        ("The answer is $x=5$ or $x=6$.", "5, 6"),
        ("The answers are $1$, $2$, and $3$.", "1, 2, 3"),
        ("The answer is $x = 5$, so $y = 7$.", "5"),
        ("The answer is that there are 5 ways.", "5"),
        ("The answer is east.", "east"),
        ("First 3, then 4", None),
    ],
)
def test_mathematics(text, expected):
    assert extract(text, "math") == expected


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("choice", "The answer is (B).", "B"),
        ("choice", "The answer is **C**", "C"),
        ("choice", "Answer: D) none of these", "D"),
        ("choice", r"\boxed{\text{A}}", "A"),
        ("choice", "(A) is wrong, so it must be (C)", "C"),
        ("choice", "I weigh them.\nB.", "B"),
        ("choice", "The correct option is C.", "C"),
        ("choice", "Option A is false. So B is correct.", "B"),
        ("choice", "A bird in the hand", None),
        ("boolean", "not True is False. The answer is False.", "False"),
        ("boolean", "So the plan works: yes", "True"),
        ("boolean", "who knows", None),
        ("text", "Some thought.\nThe answer is Mercury.", "mercury"),
        ("text", "Some thought.\nThe planet Mercury\n", "the planet mercury"),
        ("text", "The answer is 05/01/2021.", "2021-05-01"),
    ],
)
def test_options_truth_and_text(kind, text, expected):
    assert extract(text, kind) == expected


PIECES = [r"\boxed{", "}", "{", "\\", "####", "answer", " is ", ":", "\n", "$"]
PIECES += [
    "</think>",
    "(",
    ")",
    "A",
    "B",
    "1",
    "2.5",
    "/",
    "-",
    "yes",
    " ",
    ",",
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text(),
    st.sampled_from(KINDS),
)
def test_nothing_that_a_model_writes_raises(text, kind):
    answer = extract(text, kind)
    assert answer is None or canonical(answer, kind) == answer


HOSTILE = {
    "unterminated boxes": r"\boxed{" * 2**15,
    "nested boxes": r"\boxed{" * 2**14 + "5" + "}" * 2**14,
    "braces": "{" * 2**17,
    "announcements on one line": "the answer is " * 2**13,
    "hash marks": "#### 5 " * 2**14,
    "digits": "9" * 2**17,
    "groups of digits": "1,000," * 2**14,
    "digits and runs of spaces": ("5" + " " * 2**9) * 2**8,
    "spaces": " " * 2**17,
    "newlines": "\n" * 2**17,
    "indented lines": ("\n" + " " * 2**9) * 2**8,
    "backslashes": "\\" * 2**17,
    "stars": "A" + "*" * 2**17 + "x",
    "fractions": r"\frac{" * 2**14,
    "minus signs": "-" * 2**17,
    "words": "answer yes A " * 2**13,
    "dollars": "the answer is $" * 2**13,
    "options": "Option A is not (B) or C, " * 2**12,
    "rejections": "not (A), " * 2**14,
    "bare boxes": r"\boxed " * 2**14,
    "boxes in a row": r"\boxed{1}, " * 2**14,
    "boxed brackets": r"\boxed{" + "(" * 900 + "1" + ")^{2}" * 900 + "}",
    "powers": r"\boxed{9^9^9^9!!!!}" * 2**13,
    "words for numbers": "the answer is " + "seventy thousand " * 2**13,
    "thoughts": "<think>5</think>" * 2**13,
    "confidence": "(confidence (" * 2**14,
    "headings": "#### 1. Answer\n" * 2**13,
    "points": "1.234.567." * 2**14,
    "grouped by blanks": "123 " * 2**15,
    "labels": "Result: " * 2**14,
    "tags": "<answer>" * 2**14,
    "brackets after a noun": "answer" + " (/_" * 2**15,
    "quotes": "answer: \"'`" * 2**13,
    "asides": "5 cm (x) a (" * 2**14,
    "questions": "\nQ: The answer is 5" * 2**13,
    "scales": "3 million million " * 2**13,
    "displays": r"= \[ $$ " * 2**14,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear(name):
    """A text of 200,000 characters takes well under a second. Quadratic
    patterns took minutes: a `\\s*` that was tried again at every space."""
    text = (HOSTILE[name] * (200_000 // len(HOSTILE[name]) + 1))[:200_000]
    for kind in ("number", "choice", "boolean"):  # others do no more
        start = time.process_time()
        extract(text, kind)
        assert time.process_time() - start < 1


OPTIONS = "ABCD"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["(A)", "(F)", "b)", "C", "E", "answer is", ":", " ", "option"]
            + ["not", "or", "and", "correct", "so", ".", "\n", r"\boxed{", "}"]
        ),
        max_size=30,
    ).map("".join)
)
def test_a_choice_is_one_of_the_options(text):
    assert extract(text, "choice", letters=OPTIONS) in (*OPTIONS, None)


def test_a_choice_is_among_the_options_of_its_own_question():
    """(E) answers a question with five options, and names a strain where
    there are four."""
    text = "The answer is (E)."
    lines = "\n".join(f"({letter}) {letter}" for letter in "ABCDE")

    def read(question):
        query = Query("q", (Message("user", question),))
        sample = Sample("q", 0, 0, (), text, None, "stop", 0, 0, 0, 0.0)
        model = with_answers(lambda requests: iter([sample]), "choice")
        (done,) = model([Request(query, query.messages, 0)])
        return done.answer

    assert read(f"Which?\n{lines}\n\nThink step by step.") == "E"
    assert read(f"Which?\n{lines[: lines.index('(E)')]}") is None
    assert read("Which?") == "E"


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.integers(-99, 99).map(str),
        lambda inner: st.tuples(
            inner, st.sampled_from(["+", "-", "*", r"\cdot "]), inner
        ).map(lambda parts: "({}{}{})".format(*parts)),
        max_leaves=8,
    )
)
def test_arithmetic_in_a_box(text):
    value = eval(text.replace(r"\cdot ", "*"))  # digits and signs alone
    assert extract(rf"\boxed{{{text}}}", "number") == str(value)


def test_gsm8k_solutions_read_as_announced(benchmark_data):
    """On every real solution the two announcements give the same answer."""
    lines = (benchmark_data / "tasks/gsm8k/test.jsonl").read_text().split("\n")
    marks = [line for line in lines if line]
    assert len(marks) == 1319
    for line in marks:
        solution, _, answer = line[:-2].rpartition("#### ")
        expected = answer.replace(",", "")
        solution = re.sub("<<.*?>>", "", solution.replace(r"\n", "\n"))
        for ending in (f"#### {answer}", f"The answer is ${answer}."):
            assert extract(solution + ending, "number") == expected
