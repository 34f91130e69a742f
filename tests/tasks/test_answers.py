import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.tasks import KINDS, extract


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
    extract(text, kind)


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
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear(name, kind):
    """A text of 100,000 characters takes well under a second. Quadratic
    patterns took minutes: a `\\s*` that was tried again at every space."""
    start = time.process_time()
    extract(HOSTILE[name], kind)
    assert time.process_time() - start < 2


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
