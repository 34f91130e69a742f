import math

import pytest

from dynscaling_jax.tasks import Score, classify, grade, tally


@pytest.mark.parametrize(
    ("predicted", "verdict"),
    [
        ("1/2", "right"),
        ("2", "wrong"),
        (None, "unreadable"),
        ("", "unreadable"),
    ],
)
def test_verdicts(predicted, verdict, compare):
    assert grade(predicted, "0.5", "number", compare) == verdict


def test_a_timeout_is_its_own_verdict():
    assert grade("x^2", "x", "math", lambda a, b, k: "timeout") == "timeout"


def test_votes_and_grading_use_one_relation(compare):
    """The answers that form one class are the ones graded alike."""
    answers = ["0.5", r"\frac{1}{2}", "1/2", r"\sin(\pi/6)", "0.3", None]
    ids = classify(answers, "math", compare)
    verdicts = [grade(a, r"\dfrac12", "math", compare) for a in answers]
    assert ids == (0, 0, 0, 0, 1, -1)
    assert verdicts == ["right"] * 4 + ["wrong", "unreadable"]


def test_an_unreadable_reference_is_an_error(compare):
    with pytest.raises(ValueError, match="reference 'n/a' is no number"):
        grade("5", "n/a", "number", compare)


def test_tally():
    verdicts = ["right", "wrong", "right", "timeout", "unreadable"]
    score = tally(verdicts)
    assert score == Score(right=2, wrong=1, unreadable=1, timeout=1)
    assert score.accuracy == 0.4
    assert math.isnan(tally([]).accuracy)
