"""Sample, allocate, vote, grade.

    python -m launch.run --config=configs/smollm2_gsm8k.py --workdir=runs/a

Started again with the same command, a run that was stopped goes on. Several
processes draw one run together, each on a host or an accelerator of its own:

    python -m launch.run ... --coordinator=HOST:PORT --processes=4 --process=0

HOST is that of process 0, which writes the files of the run; the others keep
what they drew in WORKDIR until it has its turn in the files. A run may go on
with another number of them where all see the same WORKDIR, which may be in a
bucket (gs://BUCKET/RUN, dynscaling_jax/experiments/remote.py).

With --lockstep they share one model in place of the questions: config.mesh is
of the devices of all, for models that one host does not hold.
"""

import contextlib
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
    "workdir",
    None,
    "Directory of the run: its log and its results; or gs://BUCKET/RUN.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where several draw the run."
)
PROCESSES = flags.DEFINE_integer("processes", 1, "How many they are.", 1)
LOCKSTEP = flags.DEFINE_bool(
    "lockstep", False, "They share one model, on the devices of all."
)
TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Curves in WORKDIR/tensorboard, for TensorBoard."
)
PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is.", 0)
WAIT = flags.DEFINE_integer(
    "wait",
    3600,
    "Seconds after which a process gives up that waits for another: to come, "
    "or to end its share of a round.",
    1,
    1_000_000,
)


def main(_) -> None:
    quiet("jax", "httpx2", "orbax", "absl")
    resumable(COMMAND, work)


def work() -> str:
    check_several()
    # JAX is imported after the flags are read, so that --help and a mistyped
    # field answer at once.
    from dynscaling_jax.experiments import configured, lockstep
    from dynscaling_jax.experiments.environment import versions
    from dynscaling_jax.experiments.processes import meet
    from dynscaling_jax.experiments.remote import local, page
    from dynscaling_jax.experiments.run import table

    config, curves = CONFIG.value, bool(TENSORBOARD.value)
    where, count = str(COORDINATOR.value), PROCESSES.value or 1
    number = PROCESS.value or 0
    one_model = bool(LOCKSTEP.value) and count > 1
    with contextlib.ExitStack() as stack:
        workdir = Path()  # those that follow another keep nothing
        if not (one_model and number):
            workdir = stack.enter_context(local(str(WORKDIR.value)))
        row = configured.config_row(config)
        alike = {"config": row, "versions": versions()}
        processes = stack.enter_context(
            meet(where, count, number, alike, WAIT.value or 0)
        )
        if one_model:
            summary = lockstep.run(config, workdir, processes, where, curves)
        else:
            curves = curves and number == 0
            summary = configured.run_config(
                config, workdir, processes=processes, tensorboard=curves
            )
    if number:
        return f"process {number}: done"
    said = table(summary)
    return f"{said}\n{'report':<11} {page(str(WORKDIR.value))}"


def check_several() -> None:
    """Raises ValueError: a flag of several processes, without their number."""
    if flags.FLAGS["processes"].present:
        return
    for name in ("coordinator", "process", "lockstep", "wait"):
        if flags.FLAGS[name].present and flags.FLAGS[name].value:
            raise ValueError(
                f"--{name} is for several processes; give --processes too, "
                "how many there are"
            )


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
