"""Writes examples: generated problems with their solutions, written out.

    python -m projects.reasoner.examples --out=runs/examples.jsonl

They are problems of the `train` split, of which a run's `test` split holds
none: of shares, or with --task=arithmetic of that. With --attempts=8 each
shows what `integrated` would of 1 to 8 made-up attempts, before it asks for
the solution. With --drills=12 each is so many bare calculations in place of
a problem. launch.train reads the file.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from launch.arguments import Command, start

COMMAND = Command(
    "projects.reasoner.examples",
    ("out",),
    "python -m projects.reasoner.examples --out=runs/examples.jsonl",
)
OUT = flags.DEFINE_string("out", None, "The file, JSON Lines.")
PROBLEMS = flags.DEFINE_integer("problems", 100_000, "How many.", 1)
TASK = flags.DEFINE_enum(
    "task", "shares", ["shares", "arithmetic"], "Of the problems."
)
STEPS = flags.DEFINE_integer("steps", 5, "Difficulty, from 1 to this.", 1)
LARGEST = flags.DEFINE_integer("largest", 400, "No number is larger.", 60)
SEED = flags.DEFINE_integer("seed", 0, "Of the problems.")
ATTEMPTS = flags.DEFINE_integer("attempts", 0, "To show some of, at most.", 0)
DRILLS = flags.DEFINE_integer(
    "drills", 0, "Calculations of an example, in place of a problem.", 0
)


def main(_) -> None:
    from dynscaling_jax.training.sft_examples import write_rows

    out = Path(str(OUT.value))
    if ATTEMPTS.value and (DRILLS.value or TASK.value != "shares"):
        sys.exit(
            "projects.reasoner.examples: --attempts are at problems of "
            "shares; leave out --drills and --task"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_rows(out, rows(PROBLEMS.value))
    except (ValueError, OSError) as error:
        sys.exit(f"projects.reasoner.examples: {error}")
    print(out)


def rows(problems: int) -> Iterator[dict[str, Any]]:
    """Example i is the problem TASK/i of the seed, or drill/i."""
    from dynscaling_jax.training.sft_examples import row_of

    name = "drill" if DRILLS.value else TASK.value
    for index in tqdm(range(problems), disable=None, unit="example"):
        yield {"id": f"{name}/{index}", **row_of(example(index))}


def example(index: int) -> Any:
    from dynscaling_jax.tasks import arithmetic_problem, shares_problem
    from dynscaling_jax.training.sft_examples import Example
    from dynscaling_jax.types import Message
    from projects.reasoner import trials
    from projects.reasoner.drills import drill

    seed, largest = SEED.value, LARGEST.value
    if DRILLS.value:
        return drill(seed, index, DRILLS.value, largest)
    which = (seed, index, 1 + index % STEPS.value, "train", largest)
    if TASK.value == "arithmetic":
        made = arithmetic_problem(*which)
        return Example((Message("user", made.question),), made.solution)
    rng = random.Random(f"lessons/{seed}/{index}")
    problem = shares_problem(*which)
    if not ATTEMPTS.value:
        return trials.plain(problem, rng)
    attempts = rng.randint(1, ATTEMPTS.value)
    return trials.chained(problem, attempts, rng)


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
