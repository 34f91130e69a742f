"""Trains a model, or tunes one, on chat JSON Lines.

    python -m launch.train --config=configs/train_reasoner.py \
        --workdir=runs/reasoner/plain

Started again with the same command, training that was stopped goes on with
the losses that it would have had. The directory gets

    metrics.jsonl   loss, norm of gradients, tokens/s; losses held out
    state/          checkpoints
    model/          Hugging Face layout; --config.model=DIR/model reads it
"""

import logging
import signal
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.arguments import Command, quiet, start

COMMAND = Command(
    "launch.train",
    ("config", "workdir"),
    "python -m launch.train --config=configs/train_reasoner.py "
    "--workdir=runs/reasoner/plain",
    "configs/training.py",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config; --config.FIELD=VALUE replaces a field."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the training.")


def main(_) -> None:
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    quiet("jax", "orbax", "absl")
    from launch import training

    try:
        model = training.train(CONFIG.value, Path(str(WORKDIR.value)))
    except (ValueError, OSError, RuntimeError) as error:
        logging.debug("the training failed", exc_info=True)  # --verbosity=1
        sys.exit(f"launch.train: {error}")
    except KeyboardInterrupt:
        sys.exit("launch.train: stopped; the same command goes on from here")
    print(model)


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
