"""Arithmetic word problems of graded difficulty, made from a seed.

A problem follows one pile of things through a number of steps: some are
added, some are taken away, the pile grows several times, or is shared out
evenly. Every number stays a whole one between 1 and `largest`. `steps` is the
difficulty. The solution is written out step by step, and ends in the form
that the prompts ask for, so that it serves as a training text.
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

LEAST_LARGEST = 60  # a pile begins with up to so many


class ArithmeticProblem(NamedTuple):
    question: str
    solution: str
    answer: int
    steps: int


_OPENINGS = (
    "{name} has {n} {things}.",
    "{name} starts the week with {n} {things}.",
    "In a box, {name} keeps {n} {things}.",
    "{name} counts {n} {things} on the table.",
)
_QUESTIONS = (
    "How many {things} does {name} have now?",
    "How many {things} is {name} left with in the end?",
    "What number of {things} does {name} have after all this?",
)
_WORDINGS = {
    "+": (
        "A friend brings {n} more {things}.",
        "{name} finds another {n} {things} under the bed.",
        "At the market, {name} buys {n} {things} and adds them.",
    ),
    "-": (
        "{name} gives {n} of the {things} to a neighbour.",
        "Then {n} of the {things} get lost.",
        "{name} sells {n} {things}.",
    ),
    "*": (
        "By trading well, {name} ends up with {n} times as many {things}.",
        "A month later the number of {things} is {n} times what it was.",
    ),
    "/": (
        "{name} splits the {things} evenly among {n} bags and keeps one bag.",
        "The {things} are shared equally by {n} people, {name} among them, "
        "and everyone takes their own share home.",
    ),
}


def arithmetic_problem(
    seed: int,
    index: int,
    steps: int,
    split: str = "test",
    largest: int = LARGEST,
) -> ArithmeticProblem:
    """Problem number `index` of a split: a function of its arguments alone.

    The two splits share no question: a quarter of all possible questions, by
    their hash, belong to test, and the rest to train.

    Raises:
      ValueError: fewer than one step, a negative index, an unknown split, a
        largest number that a pile may begin above.
    """
    return drawn_for(
        _draw, "", seed, index, steps, split, largest, LEAST_LARGEST
    )


def draw_step(rng: random.Random, value: int, largest: int) -> tuple[str, int]:
    """A sign and an operand that keep the value whole and in 1..largest."""
    divisors = [n for n in range(2, 10) if value % n == 0]
    factors = [n for n in range(2, 6) if value * n <= largest]
    room = min(largest - value, 60)
    signs = ["+"] * (room > 1) + ["-"] * (value > 2)
    signs += ["*"] * bool(factors) + ["/"] * bool(divisors)
    sign = rng.choice(signs)
    if sign == "+":
        return sign, rng.randint(2, room)
    if sign == "-":
        return sign, rng.randint(2, value - 1)
    return sign, rng.choice(factors if sign == "*" else divisors)


def _draw(rng: random.Random, steps: int, largest: int) -> ArithmeticProblem:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    value = rng.randint(5, LEAST_LARGEST)
    told = [rng.choice(_OPENINGS).format(name=name, n=value, things=things)]
    shown = [f"{name} begins with {value} {things}."]
    for number in range(1, steps + 1):
        sign, n = draw_step(rng, value, largest)
        wording = rng.choice(_WORDINGS[sign])
        told.append(wording.format(name=name, n=n, things=things))
        result = OPERATIONS[sign](value, n)
        shown.append(f"{number}) {value} {sign} {n} = {result}.")
        value = result
    told.append(rng.choice(_QUESTIONS).format(name=name, things=things))
    shown.append(f"The answer is {value}.")
    return ArithmeticProblem(" ".join(told), " ".join(shown), value, steps)
