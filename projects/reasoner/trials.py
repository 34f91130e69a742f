"""Examples in problems of shares: trying numbers, and reading what was tried.

Who has nothing to read begins with a round number. Who reads attempts tries
an answer of theirs and says what comes of it: mostly the right one where it is
shown, so that the model learns to tell it by what the attempts found out, and
else a wrong one, so that it learns to compare the sum. Attempts are made up,
right and wrong ones mixed, before there is a model that could draw any. The
method is ours.
"""

import random

import numpy as np

from dynscaling_jax.scaling import chains
from dynscaling_jax.scaling.chains import Chain, Reader
from dynscaling_jax.tasks.generated import OPERATIONS, SharesProblem
from dynscaling_jax.training.sft_examples import Example
from dynscaling_jax.types import Message, Query, Sample

RIGHT = "that is right"
_RETRIES = 0.3  # of made-up attempts, that try what another might answer
_WRONG = 0.1  # of examples that show right and wrong answers: try a wrong one
_OFF = 3.0  # mean of how far what is tried again is off, less 1


def plain(problem: SharesProblem, rng: random.Random) -> Example:
    """An example that shows nothing: a guess, and the right answer."""
    return Example(
        (Message("user", problem.question),),
        trial(problem, first_guess(problem, rng))[0],
    )


def chained(
    problem: SharesProblem, attempts: int, rng: random.Random
) -> Example:
    """An example that shows of so many attempts those that `integrated` would,
    or fewer, in its layout: whole, or their last words."""
    right = rng.uniform(0.1, 0.8)
    pool = [
        _sample(index, attempt(problem, right, rng))
        for index in range(attempts)
    ]
    query = Query("", (Message("user", problem.question),))
    chain = Chain(k=rng.randint(1, Chain().k))
    if rng.random() < 0.5:
        chain = chain._replace(content="tail", tail=rng.randint(18, 35))
    draws = np.random.default_rng(rng.getrandbits(64))
    prompt, shown = chains.build(chain, Reader(), query, pool, draws)
    return Example(prompt, trial(problem, _tried(problem, pool, shown, rng))[0])


def _tried(
    problem: SharesProblem,
    pool: list[Sample],
    shown: tuple[int, ...],
    rng: random.Random,
) -> int:
    """An answer of those shown: the right one where one of them found it to
    be, and mostly so where one of them gives it."""
    answers = [int(str(pool[index].answer)) for index in shown]
    wrong = [a for a in answers if a != problem.answer and possible(problem, a)]
    found = any(RIGHT in pool[index].text for index in shown)
    given = problem.answer in answers and rng.random() >= _WRONG
    if found or given or not wrong:
        return problem.answer
    return rng.choice(wrong)


def attempt(
    problem: SharesProblem, right: float, rng: random.Random
) -> tuple[str, int]:
    """An attempt as a model might make it, which counts on right with that
    probability, and its answer."""
    guess = first_guess(problem, rng)
    if rng.random() < _RETRIES:
        other = problem.answer
        if rng.random() >= right:
            other += rng.choice((-1, 1)) * (1 + int(rng.expovariate(1 / _OFF)))
        guess = other if possible(problem, other) else guess
    if rng.random() < right:
        return trial(problem, guess)
    over = abs(sum(values(problem, guess)) - problem.total)
    true = slope(problem)
    others = [n for n in range(2, 2 * true) if n != true and over % n == 0]
    if others and rng.random() < 0.7:
        return trial(problem, guess, rng.choice(others))
    offs = [off for off in (-2, -1, 1, 2) if over // true + off > 0]
    return trial(problem, guess, off=rng.choice(offs))


def first_guess(problem: SharesProblem, rng: random.Random) -> int:
    """A round number to try first, not far from what it must be."""
    tens = problem.answer // 10
    guesses = [10 * (tens + off) for off in range(-2, 4)]
    able = [guess for guess in guesses if possible(problem, guess)]
    return rng.choice(able)


def _sample(index: int, made: tuple[str, int]) -> Sample:
    text, answer = made
    return Sample("", index, 0, (), text, str(answer), "stop", 0, 0, 0, 0.0)


# An attempt, written out.


def values(problem: SharesProblem, guess: int) -> tuple[int, ...]:
    """What each person has, if the first has `guess`; may be negative."""
    found = [guess]
    for sign, n in problem.relations:
        found.append(OPERATIONS[sign](found[-1], n))
    return tuple(found)


def possible(problem: SharesProblem, guess: int) -> bool:
    """Whether the first would have some, and nobody less than nothing."""
    return guess > 0 and min(values(problem, guess)) >= 0


def slope(problem: SharesProblem) -> int:
    """How many more there are in all for one more that the first has."""
    slopes = [1]
    for sign, n in problem.relations:
        slopes.append(slopes[-1] * (n if sign == "*" else 1))
    return sum(slopes)


def trial(
    problem: SharesProblem, guess: int, per: int | None = None, off: int = 0
) -> tuple[str, int]:
    """An attempt, written out, and its answer: what comes of a guess, and
    what the first must have had.

    Args:
      per: what the attempt takes for the `slope`; None is the right one.
      off: how far the quotient of the difference by it is wrong.

    Raises:
      ValueError: a guess that is not `possible`.
    """
    if not possible(problem, guess):
        raise ValueError(
            f"guess={guess} leaves somebody with less than nothing"
        )
    has = values(problem, guess)
    shown, total = [f"Suppose {problem.names[0]} has {guess}."], guess
    for i, (sign, n) in enumerate(problem.relations):
        before, total = total, total + has[i + 1]
        shown.append(
            f"{problem.names[i + 1]}: {has[i]} {sign} {n} = {has[i + 1]}, "
            f"{before} + {has[i + 1]} = {total}."
        )
    answer = guess
    shown.append(f"With {guess}: {compared(total, problem.total)}")
    if total != problem.total:
        over = abs(total - problem.total)
        per = per or slope(problem)
        by = max(1, over // per + off)
        sign = "-" if total > problem.total else "+"
        answer = max(1, OPERATIONS[sign](guess, by))
        shown.append(f"{over} / {per} = {by}, {guess} {sign} {by} = {answer}.")
    shown.append(f"The answer is {answer}.")
    return " ".join(shown), answer


def compared(total: int, due: int) -> str:
    """What a trial says of a sum and what it should be."""
    more, less = max(total, due), min(total, due)
    verdict = f" too {'many' if total > due else 'few'}"
    if total == due:
        verdict = f", {RIGHT}"
    return f"{more} - {less} = {more - less}{verdict}."
