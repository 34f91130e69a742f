"""Attempts with slips: wrong solutions to learn reading chains from, before
there is a model that could draw any.

A solution of the tasks' arithmetic is a run of equations, each of which takes
up the result of the one before. An attempt takes the same steps; at some of
them it slips, and goes on with the wrong number. Several attempts slip at
different steps, so that where they differ tells what to check. A model that
cannot add yet learns to compare them, which it would not need once it can:
so these lessons belong at the beginning. The method is ours.
"""

import re

import numpy as np

from dynscaling_jax.scaling import chains
from dynscaling_jax.scaling.chains import Chain, Reader
from dynscaling_jax.tasks.generator import OPERATIONS
from dynscaling_jax.training.lessons import Lesson
from dynscaling_jax.types import Message, Query, Sample

_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")
_ANSWER = re.compile(r"The answer is \d+\.")


def attempt(
    solution: str, rate: float, rng: np.random.Generator
) -> tuple[str, str]:
    """A solution with each step wrong with probability `rate`, and its
    answer.

    Raises:
        ValueError: a solution without equations and an answer behind them.
    """
    steps = list(_EQUATION.finditer(solution))
    if not steps or not _ANSWER.search(solution, steps[-1].end()):
        raise ValueError(
            'expected equations such as "3 + 4 = 7." and "The answer is 7.", '
            f"got {solution!r}"
        )
    value, parts, end = int(steps[0][1]), [], 0
    for step in steps:
        sign, operand = step[2], int(step[3])
        result = _result(value, sign, operand)
        if rng.random() < rate:
            result = _slip(result, rng)
        parts += solution[end : step.start()], f"{value} {sign} {operand} = "
        parts.append(f"{result}.")
        value, end = result, step.end()
    parts.append(f" The answer is {value}.")
    return "".join(parts), str(value)


def chained(
    question: str,
    solution: str,
    attempts: int,
    rate: float,
    rng: np.random.Generator,
) -> Lesson:
    """A lesson that shows of so many attempts those that `integrated` would,
    in its layout, and asks for the solution."""
    query = Query("", (Message("user", question),))
    pool = []
    for index in range(attempts):
        text, answer = attempt(solution, rate, rng)
        pool.append(
            Sample("", index, 0, (), text, answer, "stop", 0, 0, 0, 0.0)
        )
    prompt, _ = chains.build(Chain(), Reader(), query, pool, rng)
    return Lesson(prompt, solution)


def _result(value: int, sign: str, operand: int) -> int:
    """Of a step from a number that may be wrong already; never negative."""
    if sign == "/":
        operand = max(operand, 1)
    return max(OPERATIONS[sign](value, operand), 0)


def _slip(result: int, rng: np.random.Generator) -> int:
    """Another number: a digit off by one, in half of the slips, or anew."""
    digits = str(result)
    place = 10 ** int(rng.integers(len(digits)))
    if rng.random() < 0.5:
        other = result + place * int(rng.choice((-1, 1)))
    else:
        digit = result // place % 10
        other = result + place * int((rng.integers(1, 10) + digit) % 10 - digit)
    return other if other >= 0 else result + place
