import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.tasks import arithmetic_problem, extract

SPLITS = st.sampled_from(["train", "test"])


@given(
    st.integers(0, 2**31),
    st.integers(0, 10**6),
    st.integers(1, 12),
    SPLITS,
    st.sampled_from([60, 99, 999]),
)
def test_solutions_are_sound(seed, index, steps, split, largest):
    """Each written step is true, they chain, and the last one is read back."""
    problem = arithmetic_problem(seed, index, steps, split, largest)
    lines = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", problem.solution)
    assert len(lines) == problem.steps == steps
    before = int(re.search(r"begins with (\d+)", problem.solution)[1])
    assert str(before) in problem.question
    for left, sign, right, result in lines:
        a, b, c = int(left), int(right), int(result)
        assert a == before and b >= 2 and 1 <= c <= largest
        assert {"+": a + b == c, "-": a - b == c, "*": a * b == c}.get(
            sign, a == b * c
        )
        assert re.search(rf"\b{b}\b", problem.question)
        before = c
    assert before == problem.answer
    assert extract(problem.solution, "number") == str(problem.answer)


def test_wording_varies():
    openings = {
        re.sub(r"\d+", "n", arithmetic_problem(0, i, 3).question)
        for i in range(200)
    }
    assert len(openings) > 190


def test_a_pile_needs_room():
    with pytest.raises(ValueError, match="largest must be at least 60, got 9"):
        arithmetic_problem(0, 0, 1, largest=9)
