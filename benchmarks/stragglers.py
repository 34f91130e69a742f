"""What hosts lose by meeting, with rounds and without: simulated, unmeasured.

    python -m benchmarks.stragglers
    python -m benchmarks.stragglers --hosts=1,8,64 --slots=256 --between=0.9

Each line is a size of rounds, in samples for each slot of a host, in a run of
64 samples a slot; or, without rounds, the steps from one meeting of the hosts
to the next. See benchmarks/straggler_model.py for what is played and
docs/allocation.md for what came of it.
"""

import sys

from absl import flags

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
TOKENS = flags.DEFINE_integer(
    "tokens",
    8192,
    "Tokens of a mean sample, which steps between meetings are counted in.",
    lower_bound=1,
)
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs averaged.", lower_bound=1)
LEGEND = """
Simulated, not measured. Time in which a host waits for others, all its slots
idle; in brackets the time of idle slots, waiting hosts included. Mean of
{seeds} runs of 64 samples a slot with {slots} slots a host; lengths vary by
{within:g} within a question and by {between:g} between questions.
Without rounds the first time in brackets is up to the last grant, the second
that of the run; a mean sample has {tokens:,} tokens. What a step takes varies
by {speeds.hosts:g} over unequal hosts, and from meeting to meeting by
{speeds.meetings:g}, which rounds are played without."""


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
    """All tables, and what they mean."""
    from benchmarks import straggler_tables as tables

    runs = tables.Runs(
        hosts, SLOTS.value, WITHIN.value, BETWEEN.value, SEEDS.value
    )
    legend = LEGEND.lstrip("\n").format(
        seeds=SEEDS.value,
        slots=SLOTS.value,
        within=WITHIN.value,
        between=BETWEEN.value,
        tokens=TOKENS.value,
        speeds=tables.UNEQUAL,
    )
    return "\n\n".join(
        (
            "Each round is partitioned again, as launch.run does:",
            tables.rounds(runs, tables.partition),
            "Without rounds, one more sample for each that ended:",
            tables.without_rounds(runs, TOKENS.value),
            "Each host keeps its questions:",
            tables.rounds(runs, tables.kept),
            legend,
        )
    )


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
