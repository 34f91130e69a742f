r"""Makes examples in using chains, from the samples of a run.

    python -m launch.run --config=configs/reasoner.py \
        --config.task.split=train --workdir=runs/attempts
    python -m launch.chain_examples --run=runs/attempts \
        --out=runs/chain_examples.jsonl

The run must be on questions that no test will ask. Chains are those of its
config. What is to be written is a right sample of the same question, or its
completion in --solutions, a file of examples with ids. launch.train reads the
result.
"""

import sys
from pathlib import Path

from absl import flags

from launch.arguments import Command, start

COMMAND = Command(
    "launch.chain_examples",
    ("run", "out"),
    "python -m launch.chain_examples --run=runs/attempts --out=chained.jsonl",
)
RUN = flags.DEFINE_string("run", None, "Directory of a run.")
OUT = flags.DEFINE_string("out", None, "The file, JSON Lines.")
SOLUTIONS = flags.DEFINE_string("solutions", "", "Examples with ids.")
COUNT = flags.DEFINE_integer("count", 40_000, "How many at most.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of attempts.")


def main(_) -> None:
    out = Path(str(OUT.value))
    try:
        from dynscaling_jax.experiments import chain_examples

        count, seed = COUNT.value or 0, SEED.value or 0
        run, solutions = Path(str(RUN.value)), str(SOLUTIONS.value)
        print(chain_examples.write(run, out, solutions, count, seed))
    except (ValueError, OSError) as error:
        sys.exit(f"launch.chain_examples: {error}")
    print(out)


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
