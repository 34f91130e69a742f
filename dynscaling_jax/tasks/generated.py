"""What generated problems share: their words, their numbers, their splits.

A problem is a function of a seed and its own number. A quarter of all possible
questions, by their hash, belong to `test`, and the rest to `train`, so that
what is trained on is never asked.
"""

import random
from collections.abc import Callable
from hashlib import sha256
from itertools import count
from operator import add, floordiv, mul, sub
from typing import Protocol, TypeVar

SPLITS = ("train", "test")
LARGEST = 999
OPERATIONS = {"+": add, "-": sub, "*": mul, "/": floordiv}
NAMES = (
    "Ada",
    "Bela",
    "Chidi",
    "Dina",
    "Emil",
    "Farah",
    "Goran",
    "Hana",
    "Ivo",
    "Jun",
    "Kofi",
    "Lena",
)
THINGS = (
    "marbles",
    "stamps",
    "shells",
    "buttons",
    "beads",
    "coins",
    "stickers",
    "cards",
    "acorns",
    "pencils",
    "tokens",
    "pebbles",
)


class _Asked(Protocol):
    @property
    def question(self) -> str: ...


Made = TypeVar("Made", bound=_Asked)


def drawn_for(
    draw: Callable[[random.Random, int, int], Made],
    kind: str,
    seed: int,
    index: int,
    steps: int,
    split: str,
    largest: int,
    least: int,
) -> Made:
    """The first draw(rng, steps, largest) that falls into the split: a
    function of the arguments.

    Raises:
      ValueError: fewer than one step, a negative index, an unknown split, a
        largest number below `least`.
    """
    if steps < 1 or index < 0 or split not in SPLITS:
        raise ValueError(
            "expected steps >= 1, index >= 0 and split train or test, got "
            f"steps={steps}, index={index}, split={split!r}"
        )
    if largest < least:
        raise ValueError(f"largest must be at least {least}, got {largest}")
    for attempt in count():
        rng = random.Random(f"{kind}{seed}/{split}/{index}/{steps}/{attempt}")
        problem = draw(rng, steps, largest)
        is_test = sha256(problem.question.encode()).digest()[0] < 64
        if is_test == (split == "test"):
            return problem
    raise AssertionError("unreachable")
