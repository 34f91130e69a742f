"""Drills: bare calculations, many to an example.

Most of a word problem's tokens are words; a drill is made of carries and
borrows alone, and teaches them in a fraction of the time. Its calculations
are of the kinds that word problems have, and written as their steps are; some
compare a sum with what it should be.
"""

import random

from dynscaling_jax.tasks.generated import OPERATIONS, draw_step
from dynscaling_jax.training.sft_examples import Example
from dynscaling_jax.types import Message
from projects.reasoner.trials import compared

_COMPARED = 0.4  # of the calculations
_NEAR = 9  # a sum that is wrong, but near


def drill(seed: int, index: int, calculations: int, largest: int) -> Example:
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
        if rng.random() < _COMPARED:
            due = _due(rng, value, largest)
            asked.append(f"{value} for {due}")
            shown.append(f"{number}) {compared(value, due)}")
        else:
            sign, n = draw_step(rng, value, largest)
            result = OPERATIONS[sign](value, n)
            asked.append(f"{value} {sign} {n}")
            shown.append(f"{number}) {value} {sign} {n} = {result}.")
    question = f"Work out: {', '.join(asked)}."
    return Example((Message("user", question),), " ".join(shown))


def _due(rng: random.Random, value: int, largest: int) -> int:
    """The same, a near one, or any, as often."""
    near = rng.randint(max(1, value - _NEAR), min(largest, value + _NEAR))
    return rng.choice((value, near, rng.randint(1, largest)))
