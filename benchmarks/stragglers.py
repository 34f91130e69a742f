"""What hosts lose by meeting at the ends of rounds: simulated, unmeasured.

    python -m benchmarks.stragglers
    python -m benchmarks.stragglers --hosts=1,8,64 --slots=256 --between=0.9

Each line is a size of rounds, in samples for each slot of a host, in a run of
64 samples a slot. See benchmarks/straggler_model.py for what is played
and docs/allocation.md for what came of it.
"""

import sys

import numpy as np
from absl import flags

from dynscaling_jax.analysis.tables import markdown
from launch.arguments import Command, start

COMMAND = Command(
    "benchmarks.stragglers",
    (),
    "python -m benchmarks.stragglers --hosts=1,8,64",
)
HOSTS = flags.DEFINE_list("hosts", "1,4,16,64,256", "Numbers of hosts.")
SLOTS = flags.DEFINE_integer("slots", 64, "Slots of a host.", lower_bound=1)
WITHIN = flags.DEFINE_float(
    "within",
    0.35,
    "Coefficient of variation of the lengths of a question's samples.",
    lower_bound=0,
)
BETWEEN = flags.DEFINE_float(
    "between",
    0.55,
    "The same of the mean lengths of questions.",
    lower_bound=0,
)
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs averaged.", lower_bound=1)
RUN = 64  # samples a slot, and questions a slot where hosts keep theirs
ROUNDS = (1, 4, 16)  # samples a slot
LEGEND = """
Simulated, not measured. Time in which a host waits for others, all its slots
idle; in brackets the time of idle slots, waiting hosts included. Mean of
{seeds} runs of 64 samples a slot with {slots} slots a host; lengths vary by
{within:g} within a question and by {between:g} between questions."""


def main(_) -> None:
    try:
        hosts = [int(text) for text in HOSTS.value]
        if not hosts or min(hosts) < 1:
            raise ValueError
    except ValueError:
        sys.exit(
            "benchmarks.stragglers: --hosts must be whole numbers from 1 "
            f"on, got {','.join(HOSTS.value)!r}"
        )
    try:
        print(report(hosts))
    except KeyboardInterrupt:
        sys.exit("benchmarks.stragglers: stopped")


def report(hosts: list[int]) -> str:
    """Both tables, and what they mean."""
    from benchmarks import straggler_model as stragglers
    from dynscaling_jax.experiments.shared import partition

    spread = stragglers.Lengths(WITHIN.value, BETWEEN.value)

    def cell(deal: stragglers.Deal, size: int, count: int, stale: int) -> str:
        shape = RUN // size, count, size * SLOTS.value
        lost = [
            stragglers.simulate(
                stragglers.lengths(
                    *shape, spread, seed, SLOTS.value, deal, stale
                ),
                SLOTS.value,
                stale,
            )
            for seed in range(SEEDS.value)
        ]
        waiting, idle = np.mean(lost, 0)
        return f"{waiting:.1%} ({idle:.0%})"

    parts = []
    for title, deal in (
        ("Each round is partitioned again, as launch.run does:", partition),
        ("Each host keeps its questions:", stragglers.kept),
    ):
        options = [(size, stale) for stale in (0, 1) for size in ROUNDS]
        lines = [
            (
                str(size),
                "one round old" if stale else "all",
                *(cell(deal, size, count, stale) for count in hosts),
            )
            for size, stale in (*options, (RUN, 0))
        ]
        head = (
            "samples a slot",
            "counts",
            *(f"{n} host{'s' * (n > 1)}" for n in hosts),
        )
        parts += [title, "", markdown(head, lines), ""]
    legend = LEGEND.lstrip("\n").format(
        seeds=SEEDS.value,
        slots=SLOTS.value,
        within=WITHIN.value,
        between=BETWEEN.value,
    )
    return "\n".join((*parts, legend))


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
