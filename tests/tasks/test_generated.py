"""What holds for every kind of generated problem."""

import pytest

from dynscaling_jax.tasks.datasets import GENERATED


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
