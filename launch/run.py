"""Sample, allocate, vote, grade.

    python -m launch.run --config=configs/smollm2_gsm8k.py --workdir=runs/a

Started again with the same command, a run that was stopped goes on.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.arguments import Command, quiet, resumable, start

COMMAND = Command(
    "launch.run",
    ("config", "workdir"),
    "python -m launch.run --config=configs/reasoner.py --workdir=runs/a",
    "configs/common.py",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config of the run; --config.FIELD=VALUE replaces a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: its log and its results."
)


def main(_) -> None:
    quiet("jax", "httpx2")
    resumable(COMMAND, work)


def work() -> str:
    # JAX is imported after the flags are read, so that --help and a mistyped
    # field answer at once.
    from launch import experiment

    summary = experiment.run(CONFIG.value, Path(str(WORKDIR.value)))
    return experiment.table(summary)


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
