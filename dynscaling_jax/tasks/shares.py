"""Problems of shares, made from a seed: what several people have together is
told, and what the first of them has is asked.

Each of the others has more or fewer than the one before, or several times as
many. `steps`, the difficulty, is how many others there are; every number is a
whole one between 1 and `largest`. Who knows no algebra tries a number: works
out what everyone would have, compares the sum, and says what it must have
been. So an attempt tells more than its answer, namely whether the number it
tried is too large or too small and by how much, which one more attempt need
not find out again. That is what sets these problems apart from those of
`arithmetic`, where an attempt holds nothing that the question does not.
"""

import random
from typing import NamedTuple

from dynscaling_jax.tasks.generated import (
    LARGEST,
    NAMES,
    OPERATIONS,
    THINGS,
    drawn_for,
)

RIGHT = "that is right"
LEAST_LARGEST = 100  # room for the first, and 4 for each of the others
MOST_STEPS = len(NAMES) - 1
_FIRST = (3, 50)
_MOST = 30  # more, or fewer, where room allows
_ROOM = 4  # of one who follows: from each number there is a step within it


class SharesProblem(NamedTuple):
    """relations: of each person but the first to the one before, a sign and
    an operand."""

    question: str
    answer: int
    steps: int
    names: tuple[str, ...]
    relations: tuple[tuple[str, int], ...]
    total: int


_WORDINGS = {
    "+": "{name} has {n} more than {before}.",
    "-": "{name} has {n} fewer than {before}.",
    "*": "{name} has {n} times as many as {before}.",
}


def shares_problem(
    seed: int,
    index: int,
    steps: int,
    split: str = "test",
    largest: int = LARGEST,
) -> SharesProblem:
    """Problem number `index` of a split: a function of its arguments alone.

    The splits are those of arithmetic_problem.

    Raises:
      ValueError: fewer than one step or more than there are names, a negative
        index, an unknown split, a largest number that leaves no room.
    """
    if steps > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {steps}")
    return drawn_for(
        _draw, "shares/", seed, index, steps, split, largest, LEAST_LARGEST
    )


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


def _draw(rng: random.Random, steps: int, largest: int) -> SharesProblem:
    names, things = rng.sample(NAMES, steps + 1), rng.choice(THINGS)
    first = value = total = rng.randint(*_FIRST)
    told = [f"{names[0]} has some {things}."]
    relations = []
    for number in range(steps):
        room = largest - total - _ROOM * (steps - 1 - number)
        sign, n = _relation(rng, value, room)
        told.append(
            _WORDINGS[sign].format(
                name=names[number + 1], n=n, before=names[number]
            )
        )
        relations.append((sign, n))
        value = OPERATIONS[sign](value, n)
        total += value
    told.append(
        f"Together they have {total} {things}. How many {things} does "
        f"{names[0]} have?"
    )
    return SharesProblem(
        " ".join(told), first, steps, tuple(names), tuple(relations), total
    )


def _relation(rng: random.Random, value: int, room: int) -> tuple[str, int]:
    """A sign and an operand that lead from a value to one in 1..room."""
    factors = [n for n in (2, 3) if value * n <= room]
    more = min(_MOST, room - value)
    least = max(2, value - room)
    signs = ["+"] * (more >= 2) + ["-"] * (value > 2) + ["*"] * bool(factors)
    sign = rng.choice(signs)
    if sign == "+":
        return sign, rng.randint(2, more)
    if sign == "-":
        return sign, rng.randint(least, max(least, min(_MOST, value - 1)))
    return sign, rng.choice(factors)
