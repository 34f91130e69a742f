"""Examples in problems of shares."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.tasks import extract, shares_problem
from dynscaling_jax.tasks.generated import OPERATIONS
from projects.reasoner import trials
from projects.reasoner.trials import RIGHT, possible, slope, trial


@pytest.fixture(params=range(40))
def problem(request):
    index = request.param
    return shares_problem(0, index, 1 + index % 4, "train", 250)


def test_a_plain_example_ends_right(problem):
    example = trials.plain(problem, random.Random(1))
    assert [turn.content for turn in example.prompt] == [problem.question]
    assert extract(example.completion, "number") == str(problem.answer)


def test_first_guesses_are_possible_and_round(problem):
    rng = random.Random(2)
    for _ in range(50):
        guess = trials.first_guess(problem, rng)
        assert possible(problem, guess) and guess % 10 == 0


def test_attempts_are_wrong_now_and_then():
    """All where none should be right but those whose guess was; none where
    all should."""
    problem = shares_problem(0, 0, 3, "train", 250)
    rng = random.Random(3)
    for right in (0.0, 1.0):
        for _ in range(500):
            text, answer = trials.attempt(problem, right, rng)
            assert answer > 0 and extract(text, "number") == str(answer)
            is_right = answer == problem.answer
            assert is_right == (right == 1.0 or RIGHT in text)


def test_an_example_shows_attempts_and_tries_an_answer_of_theirs():
    """Where one that is shown found its guess to be right, that one; else
    the right answer most often, and now and then a wrong one."""
    rng, tried_wrong, tried_right = random.Random(4), 0, 0
    for index in range(400):
        problem = shares_problem(1, index, 1 + index % 4, "train", 250)
        example = trials.chained(problem, 1 + index % 8, rng)
        asked, shown = example.prompt
        assert (asked.role, shown.role) == ("user", "assistant")
        attempts = re.findall(r"Attempt \d:\n(.*)", shown.content)
        assert 1 <= len(attempts) <= 4
        answers = {extract(text, "number") for text in attempts}
        guess = int(re.match(r"Suppose \w+ has (\d+)\.", example.completion)[1])
        assert example.completion == trial(problem, guess)[0]
        if guess == problem.answer:
            tried_right += 1
        else:
            tried_wrong += 1
            assert str(guess) in answers
            assert not any(RIGHT in text for text in attempts)
    assert tried_wrong > 20 and tried_right > 200


# An attempt, written out.

BY_HAND = (
    "Ada has some beads. Bela has 3 times as many as Ada. Chidi has 7 fewer "
    "than Bela. Together they have 63 beads. How many beads does Ada have?"
)


@pytest.fixture
def by_hand():
    """BY_HAND: 10, 30 and 23."""
    made = shares_problem(0, 0, 2)
    return made._replace(
        question=BY_HAND,
        answer=10,
        names=("Ada", "Bela", "Chidi"),
        relations=(("*", 3), ("-", 7)),
        total=63,
    )


def test_a_trial_by_hand(by_hand):
    assert slope(by_hand) == 7
    assert trial(by_hand, 8) == (
        "Suppose Ada has 8. Bela: 8 * 3 = 24, 8 + 24 = 32. Chidi: 24 - 7 = 17, "
        "32 + 17 = 49. With 8: 63 - 49 = 14 too few. 14 / 7 = 2, 8 + 2 = 10. "
        "The answer is 10.",
        10,
    )
    text, answer = trial(by_hand, 10, per=5, off=3)
    assert text.endswith(
        "With 10: 63 - 63 = 0, that is right. The answer is 10."
    )
    assert answer == 10


def test_a_trial_that_counts_wrong(by_hand):
    text, answer = trial(by_hand, 12, per=2)
    assert "too many. 14 / 2 = 7, 12 - 7 = 5. The answer is 5." in text
    assert answer == 5
    text, answer = trial(by_hand, 12, off=-1)
    assert "14 / 7 = 1, 12 - 1 = 11. The answer is 11." in text
    assert answer == 11


def test_nobody_may_have_less_than_nothing(by_hand):
    assert possible(by_hand, 3) and not possible(by_hand, 2)
    assert not possible(by_hand, 0)
    with pytest.raises(ValueError, match="guess=2 leaves somebody with less"):
        trial(by_hand, 2)


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
