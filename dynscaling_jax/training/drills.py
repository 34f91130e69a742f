"""Drills: bare calculations, many to a lesson.

Most of a word problem's tokens are words; a drill is made of carries and
borrows alone, and teaches them in a fraction of the time. Its calculations
are of the kinds that word problems have, and written as their steps are.
"""

import random

from dynscaling_jax.tasks.generator import OPERATIONS, draw_step
from dynscaling_jax.training.lessons import Lesson
from dynscaling_jax.types import Message


def drill(seed: int, index: int, calculations: int, largest: int) -> Lesson:
    """Drill number `index`: a function of its arguments alone.

    No number is above `largest`; numbers of one, two, ... digits are equally
    frequent.

    Raises:
        ValueError: fewer than one calculation, or a largest number below 3.
    """
    if calculations < 1 or largest < 3:
        raise ValueError(
            "expected calculations >= 1 and largest >= 3, got "
            f"calculations={calculations}, largest={largest}"
        )
    rng = random.Random(f"drill/{seed}/{index}")
    asked, shown = [], []
    for number in range(1, calculations + 1):
        value = int(largest ** rng.random())
        sign, n = draw_step(rng, value, largest)
        result = OPERATIONS[sign](value, n)
        asked.append(f"{value} {sign} {n}")
        shown.append(f"{number}) {value} {sign} {n} = {result}.")
    question = f"Work out: {', '.join(asked)}."
    return Lesson((Message("user", question),), " ".join(shown))
