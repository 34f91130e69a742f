"""Problems of shares."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.tasks import extract, shares_problem
from dynscaling_jax.tasks.generated import OPERATIONS
from dynscaling_jax.tasks.shares import possible, slope, trial

BY_HAND = (
    "Ada has some beads. Bela has 3 times as many as Ada. Chidi has 7 fewer "
    "than Bela. Together they have 63 beads. How many beads does Ada have?"
)
SPLITS = st.sampled_from(["train", "test"])


@pytest.fixture
def problem():
    """BY_HAND: 10, 30 and 23."""
    made = shares_problem(0, 0, 2)
    return made._replace(
        question=BY_HAND,
        answer=10,
        names=("Ada", "Bela", "Chidi"),
        relations=(("*", 3), ("-", 7)),
        total=63,
    )


def test_a_trial_by_hand(problem):
    assert slope(problem) == 7
    assert trial(problem, 8) == (
        "Suppose Ada has 8. Bela: 8 * 3 = 24, 8 + 24 = 32. Chidi: 24 - 7 = 17, "
        "32 + 17 = 49. With 8: 63 - 49 = 14 too few. 14 / 7 = 2, 8 + 2 = 10. "
        "The answer is 10.",
        10,
    )
    text, answer = trial(problem, 10, per=5, off=3)
    assert text.endswith(
        "With 10: 63 - 63 = 0, that is right. The answer is 10."
    )
    assert answer == 10


def test_a_trial_that_counts_wrong(problem):
    text, answer = trial(problem, 12, per=2)
    assert "too many. 14 / 2 = 7, 12 - 7 = 5. The answer is 5." in text
    assert answer == 5
    text, answer = trial(problem, 12, off=-1)
    assert "14 / 7 = 1, 12 - 1 = 11. The answer is 11." in text
    assert answer == 11


def test_nobody_may_have_less_than_nothing(problem):
    assert possible(problem, 3) and not possible(problem, 2)
    assert not possible(problem, 0)
    with pytest.raises(ValueError, match="guess=2 leaves somebody with less"):
        trial(problem, 2)


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


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 60))
def test_trials_are_sound(index, steps, guess):
    """Every equation is true, and what is in all comes to what is compared
    with what is told."""
    problem = shares_problem(0, index, steps, largest=250)
    if not possible(problem, guess):
        return
    text, answer = trial(problem, guess)
    for a, sign, b, c in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", text):
        assert OPERATIONS[sign](int(a), int(b)) == int(c)
        assert sign != "/" or int(b) * int(c) == int(a)
    worked_out, _, _ = text.partition(f"With {guess}: ")
    has = [guess, *map(int, re.findall(r"= (\d+), \d+ \+", worked_out))]
    totals = [*map(int, re.findall(r"= (\d+)\.", worked_out))]
    assert totals == [sum(has[:n]) for n in range(2, len(has) + 1)]
    over = totals[-1] - problem.total
    both = sorted((totals[-1], problem.total), reverse=True)
    assert f"With {guess}: {both[0]} - {both[1]} = {abs(over)}" in text
    assert ("too many" in text, "too few" in text) == (over > 0, over < 0)
    assert ("that is right" in text) == (guess == problem.answer)
    assert extract(text, "number") == str(problem.answer) == str(answer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 12), "steps must be at most 11, got 12"),
        ((0, 0, 1, "test", 99), "largest must be at least 100, got 99"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        shares_problem(*arguments)
