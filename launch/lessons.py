"""Writes lessons: generated problems with their solutions, written out.

    python -m launch.lessons --out=runs/lessons.jsonl --problems=100000

They are problems of the `train` split, of which a run's `test` split holds
none. launch.train reads the file.
"""

import json
import os
import sys
from pathlib import Path

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


def main(_) -> None:
    out = Path(str(OUT.value))
    draft = out.with_name(out.name + ".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(draft, PROBLEMS.value)
        os.replace(draft, out)
    except OSError as error:
        sys.exit(f"launch.lessons: {error}")
    print(out)


def write(path: Path, problems: int) -> None:
    """Lesson i is the problem arithmetic/i of the seed."""
    from dynscaling_jax.tasks import arithmetic_problem

    with path.open("w", encoding="ascii") as file:
        for index in tqdm(range(problems), disable=None, unit="lesson"):
            made = arithmetic_problem(
                SEED.value,
                index,
                1 + index % STEPS.value,
                "train",
                LARGEST.value,
            )
            row = {
                "id": f"arithmetic/{index}",
                "prompt": [{"role": "user", "content": made.question}],
                "completion": made.solution,
            }
            file.write(json.dumps(row) + "\n")


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
