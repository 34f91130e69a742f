"""Generated problems: what holds for every kind, and for each alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.tasks import (
    arithmetic_problem,
    extract,
    shares_problem,
)
from dynscaling_jax.tasks.generated import GENERATED

SPLITS = st.sampled_from(["train", "test"])


@pytest.fixture(params=GENERATED)
def make(request):
    return GENERATED[request.param]


def test_a_problem_depends_on_its_arguments_alone(make):
    first = [make(3, i, 2) for i in range(20)]
    assert first == [make(3, i, 2) for i in range(20)]
    assert not set(first) & {make(4, i, 2) for i in range(20)}


def test_the_splits_share_no_question(make):
    train = {make(0, i, 1, "train").question for i in range(2000)}
    test = {make(0, i, 1, "test").question for i in range(2000)}
    assert not train & test
    least = {"arithmetic_problem": 1800, "shares_problem": 1900}
    assert min(len(train), len(test)) > least[make.__name__]  # varied


@pytest.mark.parametrize("arguments", [(0, 0, 0), (0, -1, 1), (0, 0, 1, "dev")])
def test_bad_arguments(make, arguments):
    with pytest.raises(ValueError, match="expected steps >= 1.*train or test"):
        make(*arguments)


# Arithmetic


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


# Shares


@given(
    st.integers(0, 2**31),
    st.integers(0, 10**6),
    st.integers(1, 11),
    SPLITS,
    st.sampled_from([100, 250, 999]),
)
def test_problems_are_sound(seed, index, steps, split, largest):
    """Read anew from the words of the question, with the answer put in, the
    shares are whole, positive and add up to what is told."""
    problem = shares_problem(seed, index, steps, split, largest)
    first, *others, last = re.findall(r"[^.?]+[.?]", problem.question)[:-1]
    has = {first.split()[0]: problem.answer}
    for sentence in others:
        name, n, relation, before = re.fullmatch(
            r" (\w+) has (\d+) (more|fewer|times as many)(?: than| as) (\w+)\.",
            sentence,
        ).groups()
        number = int(n)
        has[name] = {
            "more": has[before] + number,
            "fewer": has[before] - number,
            "times as many": has[before] * number,
        }[relation]
    assert len(has) == steps + 1 and min(has.values()) >= 1
    total = int(re.search(r"Together they have (\d+)", last)[1])
    assert total == sum(has.values()) == problem.total <= largest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 12), "steps must be at most 11, got 12"),
        ((0, 0, 1, "test", 99), "largest must be at least 100, got 99"),
    ],
)
def test_shares_need_room(arguments, message):
    with pytest.raises(ValueError, match=message):
        shares_problem(*arguments)
