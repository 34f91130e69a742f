"""The tables of benchmarks.stragglers.

Runs have 64 samples for each slot of a host. A cell has the share of time in
which a host waits and, in brackets, that of idle slots.
"""

from typing import NamedTuple

import numpy as np

from benchmarks import straggler_model as stragglers
from benchmarks.straggler_model import Lost, kept
from dynscaling_jax.analysis.tables import markdown
from dynscaling_jax.experiments.shared import partition

__all__ = ["Runs", "kept", "partition", "rounds", "without_rounds"]

RUN = 64  # samples a slot, and questions a slot where hosts keep theirs
ROUNDS = (1, 4, 16)  # samples a slot
MEETINGS = (32, 128, 512)  # steps from one to the next
BEGINS = ("at the meeting", "at the next")  # a sample that is granted
ADVISED = 4  # samples a slot of rounds one round old that unequal hosts play
UNEQUAL = stragglers.Speeds(hosts=0.1, meetings=0.05)


class Runs(NamedTuple):
    """What is played for each line of a table."""

    hosts: list[int]
    slots: int
    within: float
    between: float
    seeds: int

    @property
    def spread(self) -> stragglers.Lengths:
        return stragglers.Lengths(self.within, self.between)

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(f"{n} host{'s' * (n > 1)}" for n in self.hosts)


def rounds(runs: Runs, deal: stragglers.Deal) -> str:
    """Sizes of rounds, with all counts and with those one round old."""
    options = [(size, stale) for stale in (0, 1) for size in ROUNDS]
    lines = [
        (
            str(size),
            "one round old" if stale else "all",
            *(
                "{:.1%} ({:.0%})".format(*_rounds(runs, n, deal, size, stale))
                for n in runs.hosts
            ),
        )
        for size, stale in (*options, (RUN, 0))
    ]
    return markdown(("samples a slot", "counts", *runs.titles), lines)


def without_rounds(runs: Runs, tokens: int) -> str:
    """Steps between meetings, for equal hosts and for unequal ones.

    Args:
        runs: what is played.
        tokens: steps of a mean sample.
    """
    equal, unequal = [], []
    for later, begins in enumerate(BEGINS):
        for every in MEETINGS:
            cells = [
                _without_rounds(runs, n, tokens, every, later)
                for n in runs.hosts
            ]
            meetings = f"every {every} steps"
            equal.append((meetings, begins, "equal", *(c[0] for c in cells)))
            unequal.append(
                (meetings, begins, "unequal", *(c[1] for c in cells))
            )
    by_rounds = (
        f"rounds of {ADVISED} a slot",
        "a round later",
        "unequal",
        *(
            "{:.1%} ({:.1%})".format(
                *_rounds(runs, n, partition, ADVISED, 1, UNEQUAL.hosts)
            )
            for n in runs.hosts
        ),
    )
    head = "meetings", "a sample begins", "hosts", *runs.titles
    return markdown(head, [*equal, *unequal, by_rounds])


def _rounds(
    runs: Runs,
    hosts: int,
    deal: stragglers.Deal,
    size: int,
    stale: int,
    unequal: float = 0.0,
) -> Lost:
    """Means over seeds. How a host's speed varies from meeting to meeting is
    left out: it is lost in the mean of a round."""
    lost = []
    for seed in range(runs.seeds):
        length_MHS = stragglers.lengths(
            RUN // size,
            hosts,
            size * runs.slots,
            runs.spread,
            seed,
            runs.slots,
            deal,
            stale,
        )
        speeds = stragglers.Speeds(unequal, 0.0)
        step_1H = stragglers.step_times(1, hosts, speeds, seed)
        lost.append(
            stragglers.simulate(
                length_MHS * step_1H[:, :, None], runs.slots, stale
            )
        )
    return Lost(*np.mean(lost, 0))


def _without_rounds(
    runs: Runs, hosts: int, tokens: int, every: int, later: int
) -> tuple[str, str]:
    """Cells of equal and of unequal hosts."""
    lost = []
    for seed in range(runs.seeds):
        length_N = stragglers.queue(
            RUN * hosts * runs.slots, runs.spread, seed, hosts * runs.slots
        )
        parts = stragglers.without_rounds(
            np.ceil(length_N * tokens).astype(int),
            hosts,
            runs.slots,
            every,
            later,
        )
        step_MH = stragglers.step_times(
            len(parts[1].busy_MH), hosts, UNEQUAL, seed
        )
        lost.append(
            [
                [
                    part.lost(runs.slots, times[: len(part.busy_MH)])
                    for part in parts
                ]
                for times in (np.ones_like(step_MH), step_MH)
            ]
        )
    equal, unequal = (
        f"{total[0]:.1%} ({early[1]:.1%}, {total[1]:.1%})"
        for early, total in np.mean(lost, 0)
    )
    return equal, unequal
