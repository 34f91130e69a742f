"""Attempts to examples in using chains."""

import pytest

from dynscaling_jax.scaling.chains import Chain
from dynscaling_jax.training.chain_examples import (
    Attempts,
    Kind,
    counted,
    examples,
)
from dynscaling_jax.types import Message, Query, Sample


def sample(index, answer):
    text = f"Attempt text {index} says {answer}."
    return Sample("q", index, 0, (), text, answer, "stop", 9, 0, 5, 1.0)


def question(name, right, wrong, solution="The right way."):
    samples = tuple(
        sample(i, "right" if i < right else f"{i}")
        for i in range(right + wrong)
    )
    query = Query(name, (Message("user", f"{name}?"),))
    flags = tuple(i < right for i in range(right + wrong))
    return Attempts(query, samples, flags, solution)


MIXED = [question(f"q{i}", 4, 4) for i in range(50)]


def test_numbers_of_right_attempts_are_balanced():
    made = list(examples(MIXED, Chain(k=4), 200, seed=0))
    number = counted(made)
    for k in range(1, 5):
        each = {number[Kind(k, r)] for r in range(k + 1)}
        assert each == {200 // 4 // (k + 1)}


def test_an_example_shows_what_its_kind_says():
    for kind, example in examples(MIXED, Chain(k=3), 100, seed=1):
        shown = example.prompt[-1].content
        assert example.prompt[-1].role == "assistant"
        assert shown.count("Attempt text") == kind.attempts
        assert shown.count("says right.") == kind.right
        assert example.completion == "The right way."


def test_without_a_solution_a_right_sample_not_shown_is_written():
    drawn = [question(f"q{i}", 2, 3, None) for i in range(9)]
    made = list(examples(drawn, Chain(k=3), 120, seed=0))
    assert max(kind.right for kind, _ in made) == 1
    for _, example in made:
        assert "says right." in example.completion
        assert example.completion not in example.prompt[-1].content


def test_a_solution_is_whole_and_read_no_chain():
    """A right sample that was cut off, or that speaks of attempts which the
    example does not show, was written as readily."""
    one = question("q", 3, 1, None)
    cut, read, whole, wrong = one.samples
    cut = cut._replace(finish_reason="length")
    read = read._replace(parents=(0,))
    drawn = one._replace(samples=(cut, read, whole, wrong))
    made = list(examples([drawn], Chain(k=2), 60, seed=0))
    assert {kind for kind, _ in made} >= {Kind(1, 1), Kind(2, 2)}
    assert {example.completion for _, example in made} == {whole.text}
    drawn = one._replace(samples=(cut, read, cut, wrong))
    assert not list(examples([drawn], Chain(k=2), 60, seed=0))


def test_so_few_examples_that_kinds_are_lost_are_refused():
    with pytest.raises(ValueError, match="at least 20 are needed"):
        next(examples(MIXED, Chain(k=4), 19, seed=0))
    assert len(list(examples(MIXED, Chain(k=4), 20, seed=0))) >= 14


def test_questions_without_the_mixture_give_no_example():
    easy, hopeless = question("a", 5, 0), question("b", 0, 5)
    kinds = {kind for kind, _ in examples([easy], Chain(k=4), 100, seed=0)}
    assert kinds == {Kind(k, k) for k in range(1, 5)}
    kinds = {kind for kind, _ in examples([hopeless], Chain(k=4), 100, seed=0)}
    assert kinds == {Kind(k, 0) for k in range(1, 5)}
    nothing = [question("b", 0, 5, None)]
    assert not list(examples(nothing, Chain(k=4), 100, seed=0))


def test_examples_follow_from_the_seed():
    draw = lambda seed: list(examples(MIXED, Chain(k=2), 60, seed))
    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("layout, role", [("transcript", 1), ("context", 0)])
def test_layouts_are_those_of_chains(layout, role):
    chain = Chain(k=2, layout=layout)
    _, example = next(examples(MIXED, chain, 60, seed=0))
    assert len(example.prompt) == 1 + role
