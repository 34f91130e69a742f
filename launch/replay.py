r"""Replays policies on banks of recorded samples.

    python -m launch.replay --bank=A.jsonl,B.jsonl \
        --policies=uniform,ucb,opportunity_cost --budgets=2,4,8,16,32 \
        --replicates=1000 --seed=0 --out=DIR

Writes DIR/replay.json and figures, and prints a table. A bank is a file of
recorded samples or the directory of a run. --policies=all is every policy that
the banks can serve; `oracle`, which reads the references, may be named too.
dynscaling_jax/experiments/replay.py says what replay.json holds.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from absl import flags

from launch.arguments import Command, quiet, start

COMMAND = Command(
    "launch.replay",
    ("bank", "out"),
    "python -m launch.replay --bank=runs/a --out=runs/replay",
)
BANK = flags.DEFINE_list("bank", None, "Bank files, or directories of runs.")
OUT = flags.DEFINE_string("out", None, "Directory of the results.")
flags.DEFINE_string(
    "policies",
    "uniform,ucb,opportunity_cost",
    "Names, with hyper-parameters: ucb(uncertainty=beta,c=0.2); or all.",
)
flags.DEFINE_string(
    "kind", "", "Of the answers; by default the references tell it."
)
flags.DEFINE_string("vote", "majority", "The vote.")
flags.DEFINE_list(
    "budgets", None, "Samples a question; by default 2, 4, 8, 16 and 32."
)
flags.DEFINE_integer("replicates", 1000, "Orders of samples.", 1)
flags.DEFINE_integer("seed", 0, "Seed of all randomness.", 0, 2**31 - 1)
flags.DEFINE_float(
    "round", None, "Samples a question in a round; by default 0.25.", 0.01, 1e6
)
flags.DEFINE_float(
    "first", None, "Of the first; by default alike, or 2 if async.", 0.01, 1e6
)
flags.DEFINE_enum(
    "schedule", "rounds", ["rounds", "async"], "Or a grant as each sample ends."
)
flags.DEFINE_integer(
    "slots", None, "Samples under way at once, if async; by default 64.", 1
)
flags.DEFINE_integer(
    "poll_steps", None, "Steps between two looks, if async; by default 16.", 1
)
flags.DEFINE_string(
    "cancel", "", "What ends samples early, if async: lead, posterior or tail."
)
flags.DEFINE_integer("depth", None, "Keeps the first so many of each question.")
flags.DEFINE_integer("chunk", 25, "Replicates in memory at once.", 1)
PASSED = (
    "policies kind vote cancel budgets replicates seed depth schedule slots "
    "poll_steps chunk"
)


def main(_) -> None:
    quiet("jax", "matplotlib")
    given: dict[str, Any] = {
        name: flags.FLAGS[name].value for name in PASSED.split()
    }
    try:
        # JAX is imported after the flags are read, so that --help answers at
        # once.
        from dynscaling_jax.experiments.replay import write_studies

        write_studies(
            BANK.value or [],
            Path(OUT.value or ""),
            round_per_query=flags.FLAGS.round,
            first_round_per_query=flags.FLAGS.first,
            **given,
        )
    except (ValueError, OSError, ImportError) as error:
        logging.debug("the replay failed", exc_info=True)  # --verbosity=1
        sys.exit(f"launch.replay: {error}")
    except KeyboardInterrupt:
        sys.exit("launch.replay: stopped")


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
