"""Lessons in problems of shares."""

import random
import re

import pytest

from dynscaling_jax.tasks import extract, shares_problem
from dynscaling_jax.tasks.shares import RIGHT, possible, trial
from projects.reasoner import trials


@pytest.fixture(params=range(40))
def problem(request):
    index = request.param
    return shares_problem(0, index, 1 + index % 4, "train", 250)


def test_a_plain_lesson_ends_right(problem):
    lesson = trials.plain(problem, random.Random(1))
    assert [turn.content for turn in lesson.prompt] == [problem.question]
    assert extract(lesson.completion, "number") == str(problem.answer)


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


def test_a_lesson_shows_attempts_and_tries_an_answer_of_theirs():
    """Where one that is shown found its guess to be right, that one; else
    the right answer most often, and now and then a wrong one."""
    rng, tried_wrong, tried_right = random.Random(4), 0, 0
    for index in range(400):
        problem = shares_problem(1, index, 1 + index % 4, "train", 250)
        lesson = trials.chained(problem, 1 + index % 8, rng)
        asked, shown = lesson.prompt
        assert (asked.role, shown.role) == ("user", "assistant")
        attempts = re.findall(r"Attempt \d:\n(.*)", shown.content)
        assert 1 <= len(attempts) <= 4
        answers = {extract(text, "number") for text in attempts}
        guess = int(re.match(r"Suppose \w+ has (\d+)\.", lesson.completion)[1])
        assert lesson.completion == trial(problem, guess)[0]
        if guess == problem.answer:
            tried_right += 1
        else:
            tried_wrong += 1
            assert str(guess) in answers
            assert not any(RIGHT in text for text in attempts)
    assert tried_wrong > 20 and tried_right > 200
