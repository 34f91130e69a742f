r"""Trains a model, or tunes one, on chat JSON Lines.

    python -m launch.train --config=projects/reasoner/config.py \
        --workdir=runs/reasoner/training

Started again with the same command, training that was stopped goes on with
the losses that it would have had. The directory gets

    metrics.jsonl   loss, norm of gradients, tokens/s; losses held out
    state/          checkpoints
    model/          Hugging Face layout; --config.model=DIR/model reads it
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.arguments import Command, quiet, resumable, start

COMMAND = Command(
    "launch.train",
    ("config", "workdir"),
    "python -m launch.train --config=projects/reasoner/config.py "
    "--workdir=runs/reasoner/training",
    "configs/training.py",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config; --config.FIELD=VALUE replaces a field."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the training.")
TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Curves in WORKDIR/tensorboard, for TensorBoard."
)


def main(_) -> None:
    quiet("jax", "orbax", "absl")
    resumable(COMMAND, work)


def work() -> str:
    from dynscaling_jax.experiments import training

    workdir = Path(str(WORKDIR.value))
    return str(training.train(CONFIG.value, workdir, bool(TENSORBOARD.value)))


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
