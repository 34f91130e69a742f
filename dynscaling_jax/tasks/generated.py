"""Word problems of graded difficulty, made from a seed.

`arithmetic` follows one pile of things through `steps` steps: some are added,
some are taken away, the pile grows several times, or is shared out evenly.
The question holds all that an attempt can find out.

`shares` gives the total that several people have, and asks for what the first
of them has; each of the `steps` others has more or fewer than the one before,
or several times as many. A reader without algebra tries a number, works out
the total and corrects the number. So an attempt shows more than its answer:
by how much its number was too large or too small.

Every number is a whole one between 1 and `largest`. A problem is a function
of its arguments alone. A quarter of all possible questions, by their hash,
belong to the split `test` and the rest to `train`, so that a question of one
is never in the other.
"""

import random
from collections.abc import Callable
from hashlib import sha256
from itertools import count
from operator import add, floordiv, mul, sub
from typing import NamedTuple, TypeVar

from dynscaling_jax.tasks.sources import bundled

SPLITS = ("train", "test")
LARGEST = 999
OPERATIONS = {"+": add, "-": sub, "*": mul, "/": floordiv}
_WORDS = bundled("word_problems.toml")
_LARGEST_PILE = 60  # at the beginning
_MOST_PEOPLE = len(_WORDS["names"])
_FIRST_SHARE = (3, 50)
_LARGEST_DIFFERENCE = 30  # of two shares
_LEAST_ROOM = 4  # a share can always be followed by one within it


class ArithmeticProblem(NamedTuple):
    """A pile of things, with its solution written out step by step."""

    question: str
    solution: str
    answer: int
    steps: int


class SharesProblem(NamedTuple):
    """Several people's shares of a total.

    relations: of each person but the first to the one before, an operator and
    an operand.
    """

    question: str
    answer: int
    steps: int
    names: tuple[str, ...]
    relations: tuple[tuple[str, int], ...]
    total: int


def arithmetic_problem(
    seed: int,
    index: int,
    steps: int,
    split: str = "test",
    largest: int = LARGEST,
) -> ArithmeticProblem:
    """Makes problem number `index` of a split.

    Raises:
      ValueError: fewer than one step, a negative index, an unknown split, a
        `largest` below the largest pile to begin with.
    """
    which = f"{seed}/{split}/{index}/{steps}"
    return _first(
        _arithmetic, which, index, steps, split, largest, _LARGEST_PILE
    )


def shares_problem(
    seed: int,
    index: int,
    steps: int,
    split: str = "test",
    largest: int = LARGEST,
) -> SharesProblem:
    """Makes problem number `index` of a split.

    Raises:
      ValueError: fewer than one step or more than there are names, a negative
        index, an unknown split, a `largest` that leaves no room.
    """
    if steps >= _MOST_PEOPLE:
        raise ValueError(
            f"steps must be at most {_MOST_PEOPLE - 1}, got {steps}"
        )
    which = f"shares/{seed}/{split}/{index}/{steps}"
    return _first(_shares, which, index, steps, split, largest, 100)


GENERATED = {"arithmetic": arithmetic_problem, "shares": shares_problem}

_Made = TypeVar("_Made", ArithmeticProblem, SharesProblem)


def _first(
    make: Callable[[random.Random, int, int], _Made],
    which: str,
    index: int,
    steps: int,
    split: str,
    largest: int,
    least: int,
) -> _Made:
    """The first make(rng, steps, largest) that belongs to the split."""
    if steps < 1 or index < 0 or split not in SPLITS:
        raise ValueError(
            "expected steps >= 1, index >= 0 and split train or test, got "
            f"steps={steps}, index={index}, split={split!r}"
        )
    if largest < least:
        raise ValueError(f"largest must be at least {least}, got {largest}")
    for attempt in count():
        problem = make(random.Random(f"{which}/{attempt}"), steps, largest)
        is_test = sha256(problem.question.encode()).digest()[0] < 64
        if is_test == (split == "test"):
            return problem
    raise AssertionError("unreachable")


def draw_step(rng: random.Random, value: int, largest: int) -> tuple[str, int]:
    """Draws an operator and an operand that keep the value in 1..largest."""
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


def _arithmetic(
    rng: random.Random, steps: int, largest: int
) -> ArithmeticProblem:
    wordings = _WORDS["arithmetic"]
    name, things = rng.choice(_WORDS["names"]), rng.choice(_WORDS["things"])

    def worded(choices: list[str], n: int) -> str:
        return rng.choice(choices).format(name=name, things=things, n=n)

    value = rng.randint(5, _LARGEST_PILE)
    question = [worded(wordings["openings"], value)]
    solution = [f"{name} begins with {value} {things}."]
    for number in range(1, steps + 1):
        sign, n = draw_step(rng, value, largest)
        question.append(worded(wordings["changes"][sign], n))
        result = OPERATIONS[sign](value, n)
        solution.append(f"{number}) {value} {sign} {n} = {result}.")
        value = result
    question.append(worded(wordings["questions"], value))
    solution.append(f"The answer is {value}.")
    return ArithmeticProblem(
        " ".join(question), " ".join(solution), value, steps
    )


def _shares(rng: random.Random, steps: int, largest: int) -> SharesProblem:
    names = rng.sample(_WORDS["names"], steps + 1)
    things = rng.choice(_WORDS["things"])
    first = value = total = rng.randint(*_FIRST_SHARE)
    question = [f"{names[0]} has some {things}."]
    relations = []
    for i in range(steps):
        room = largest - total - _LEAST_ROOM * (steps - 1 - i)
        sign, n = _relation(rng, value, room)
        wording = _WORDS["shares"]["relations"][sign]
        question.append(wording.format(name=names[i + 1], n=n, before=names[i]))
        relations.append((sign, n))
        value = OPERATIONS[sign](value, n)
        total += value
    question.append(
        f"Together they have {total} {things}. How many {things} does "
        f"{names[0]} have?"
    )
    return SharesProblem(
        " ".join(question), first, steps, tuple(names), tuple(relations), total
    )


def _relation(rng: random.Random, value: int, room: int) -> tuple[str, int]:
    """An operator and an operand that lead from a value to one in 1..room."""
    factors = [n for n in (2, 3) if value * n <= room]
    more = min(_LARGEST_DIFFERENCE, room - value)
    least = max(2, value - room)
    signs = ["+"] * (more >= 2) + ["-"] * (value > 2) + ["*"] * bool(factors)
    sign = rng.choice(signs)
    if sign == "+":
        return sign, rng.randint(2, more)
    if sign == "-":
        most = max(least, min(_LARGEST_DIFFERENCE, value - 1))
        return sign, rng.randint(least, most)
    return sign, rng.choice(factors)
