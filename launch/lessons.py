"""Writes lessons: generated problems with their solutions, written out.

    python -m launch.lessons --out=runs/lessons.jsonl --problems=100000

They are problems of the `train` split, of which a run's `test` split holds
none. With --attempts=8 each shows what `integrated` would of 1 to 8 attempts
with slips, before it asks for the solution. With --drills=12 each is so many
bare calculations in place of a problem. launch.train reads the file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from launch.arguments import Command, start

COMMAND = Command(
    "launch.lessons",
    ("out",),
    "python -m launch.lessons --out=runs/lessons.jsonl",
)
OUT = flags.DEFINE_string("out", None, "The file, JSON Lines.")
PROBLEMS = flags.DEFINE_integer("problems", 100_000, "How many.", 1)
STEPS = flags.DEFINE_integer("steps", 6, "Difficulty, from 1 to this.", 1)
LARGEST = flags.DEFINE_integer("largest", 99, "No number is larger.", 60)
SEED = flags.DEFINE_integer("seed", 0, "Of the problems.")
ATTEMPTS = flags.DEFINE_integer("attempts", 0, "To show some of, at most.", 0)
SLIPS = flags.DEFINE_float(
    "slips", 0.4, "Share of an attempt's steps that are wrong, at most.", 0, 1
)
DRILLS = flags.DEFINE_integer(
    "drills", 0, "Calculations of a lesson, in place of a problem.", 0
)


def main(_) -> None:
    from dynscaling_jax.training.lessons import write_rows

    out = Path(str(OUT.value))
    if DRILLS.value and ATTEMPTS.value:
        sys.exit(
            "launch.lessons: --drills are not problems, which --attempts "
            "would be of; give one of them"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_rows(out, rows(PROBLEMS.value))
    except OSError as error:
        sys.exit(f"launch.lessons: {error}")
    print(out)


def rows(problems: int) -> Iterator[dict[str, Any]]:
    """Lesson i is the problem arithmetic/i of the seed, or drill/i."""
    from dynscaling_jax.training.drills import drill
    from dynscaling_jax.training.lessons import row_of

    for index in tqdm(range(problems), disable=None, unit="lesson"):
        if DRILLS.value:
            lesson = drill(SEED.value, index, DRILLS.value, LARGEST.value)
            yield {"id": f"drill/{index}", **row_of(lesson)}
        else:
            yield {"id": f"arithmetic/{index}", **row_of(problem(index))}


def problem(index: int) -> Any:
    """The lesson of a problem, with attempts to read where they are asked
    for."""
    import numpy as np

    from dynscaling_jax.tasks import arithmetic_problem
    from dynscaling_jax.training.lessons import Lesson
    from dynscaling_jax.training.slips import chained
    from dynscaling_jax.types import Message

    steps = 1 + index % STEPS.value
    made = arithmetic_problem(SEED.value, index, steps, "train", LARGEST.value)
    if not ATTEMPTS.value:
        return Lesson((Message("user", made.question),), made.solution)
    rng = np.random.default_rng((SEED.value, index))
    return chained(
        made.question,
        made.solution,
        int(rng.integers(1, ATTEMPTS.value, endpoint=True)),
        rng.uniform(0, SLIPS.value),
        rng,
    )


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
