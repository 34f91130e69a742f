"""Attempts with slips."""

import re

import numpy as np
import pytest

from dynscaling_jax.tasks import arithmetic_problem
from dynscaling_jax.training.slips import attempt, chained

SOLUTION = "Ada begins with 9 beads. 9 + 5 = 14. 14 / 2 = 7. The answer is 7."


def rng():
    return np.random.default_rng(0)


def test_without_slips_it_is_the_solution():
    for index in range(50):
        made = arithmetic_problem(0, index, 1 + index % 6, "train", 99)
        text, answer = attempt(made.solution, 0.0, rng())
        assert (text, answer) == (made.solution, str(made.answer))


def test_every_step_may_slip_and_the_next_goes_on_from_there():
    text, answer = attempt(SOLUTION, 1.0, rng())
    (a, b), (c, d) = re.findall(r"(\d+) [+/] \d+ = (\d+)\.", text)
    assert (a, c, answer) == ("9", b, d)
    assert int(b) != 14 and int(d) != int(c) // 2
    assert text.startswith("Ada begins with 9 beads. 9 + 5 = ")
    assert text.endswith(f"The answer is {answer}.")


def test_steps_slip_as_often_as_asked():
    draws, slipped = rng(), 0
    for _ in range(2000):
        text, _ = attempt(SOLUTION, 0.3, draws)
        slipped += "9 + 5 = 14." not in text
    assert 0.25 < slipped / 2000 < 0.35  # 4.9 deviations


def test_a_slip_is_another_number_and_never_negative():
    draws = rng()
    for _ in range(500):
        _, answer = attempt("1 - 1 = 0. The answer is 0.", 1.0, draws)
        assert int(answer) > 0


def test_a_lesson_shows_attempts_and_asks_for_the_solution():
    lesson = chained("How many?", SOLUTION, 3, 0.4, rng())
    assert [turn.role for turn in lesson.prompt] == ["user", "assistant"]
    assert lesson.prompt[1].content.count("Ada begins with 9 beads.") == 3
    assert lesson.completion == SOLUTION


@pytest.mark.parametrize("text", ["", "3 + 4 = 7.", "The answer is 7."])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="expected equations"):
        attempt(text, 0.5, rng())
