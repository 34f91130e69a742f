"""What it costs that hosts meet at the ends of rounds: a simulation.

Hosts draw their shares of a round's samples, each in rows side by side, and
exchange counts of answers before the next round is granted. The host whose
samples are longest ends last, and the others wait. Time is counted in steps,
one token of each row; the exchange itself takes none. Letters: M rounds, H
hosts, S samples of a host in a round, R rows of a host.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dynscaling_jax.experiments.shared import Usage

LONGEST = 4.0  # means: engine.max_new_tokens cuts longer samples
Deal = Callable[..., Mapping[int, int]]
"""Which host samples each question of a round, as shared.partition says."""


class Lost(NamedTuple):
    """Shares of all time until the last host ends."""

    waiting: float  # of hosts in which no row draws
    idle: float  # of rows that do not draw, those of waiting hosts included


class Lengths(NamedTuple):
    """How the numbers of tokens vary: coefficients of variation."""

    within: float  # of the samples of one question
    between: float  # of the means of questions


def simulate(length_MHS: np.ndarray, rows: int, stale: int = 0) -> Lost:
    """Plays the rounds of a run.

    A row that falls idle takes the next sample that was granted to its host,
    of the round that is drawn or, where it is granted already, the next one.
    Round m is granted when all hosts have ended round m - 1 - stale: at 0
    they meet at every end; at 1 a grant has counts that are one round old,
    and hosts begin the next round while others end theirs.

    Args:
        length_MHS: tokens of each sample; 0 where there is none.
        rows: R.
        stale: rounds whose counts a grant does without.

    Raises:
        ValueError: no tokens at all or a negative number of them, no rows, or
            a negative staleness.
    """
    if length_MHS.ndim != 3 or not (length_MHS >= 0).all():
        raise ValueError("lengths must be [M, H, S] and not negative")
    if not length_MHS.any() or rows < 1 or stale < 0:
        raise ValueError(
            "a run needs at least one sample, one row and no negative "
            f"staleness; got rows={rows}, stale={stale}"
        )
    rounds, hosts, _ = length_MHS.shape
    host_H = np.arange(hosts)
    free_HR = np.zeros((hosts, rows))  # when each row has nothing to draw
    waited_H = np.zeros(hosts)
    ends = []  # of rounds, when the last host has ended them
    for m in range(rounds):
        granted = ends[m - 1 - stale] if m > stale else 0.0
        waited_H += np.maximum(granted - free_HR.max(1), 0)
        free_HR = np.maximum(free_HR, granted)
        for length_H in length_MHS[m].T:
            free_HR[host_H, free_HR.argmin(1)] += length_H
        ends.append(free_HR.max())
    waited_H += ends[-1] - free_HR.max(1)
    every = hosts * ends[-1]
    return Lost(
        float(waited_H.sum() / every),
        float(1 - length_MHS.sum() / (rows * every)),
    )


def lengths(
    rounds: int,
    hosts: int,
    samples: int,
    spread: Lengths,
    seed: int,
    questions: int,
    deal: Deal,
    stale: int = 0,
) -> np.ndarray:
    """Lengths [M, H, S] of rounds of hosts x samples samples, which fall on
    hosts x questions questions at random. A mean sample has length 1; 0 is
    none. A round is dealt by the lengths of those before it, less `stale`."""
    rng = np.random.default_rng(seed)
    mean_Q = _around_one(rng, spread.between, (hosts * questions,))
    owners: dict[int, int] = {}
    drawn: dict[int, Usage] = {}
    dealt, unseen = [], []
    for _ in range(rounds):
        if len(unseen) > stale:
            for question, total, count in unseen.pop(0):
                own = drawn.get(question, Usage())
                drawn[question] = own.add(total, count)
        which_N = np.sort(rng.integers(0, len(mean_Q), hosts * samples))
        asked, inverse_N, counts = np.unique(
            which_N, return_inverse=True, return_counts=True
        )
        counts = dict(zip(asked.tolist(), counts.tolist(), strict=True))
        owners.update(deal(counts, drawn, owners, hosts))
        length_N = mean_Q[which_N] * _around_one(
            rng, spread.within, which_N.shape
        )
        length_N = np.minimum(length_N, LONGEST)
        host_N = np.array([owners[q] for q in counts])[inverse_N]
        dealt.append((host_N, length_N))
        tokens = np.bincount(inverse_N, length_N).tolist()
        unseen.append([*zip(counts, tokens, counts.values(), strict=True)])
    most = max(np.bincount(host_N).max() for host_N, _ in dealt)
    length_MHS = np.zeros((rounds, hosts, most))
    for length_HS, (host_N, length_N) in zip(length_MHS, dealt, strict=True):
        order_N = rng.permutation(len(host_N))
        order_N = order_N[np.argsort(host_N[order_N], kind="stable")]
        ends = np.cumsum(np.bincount(host_N, minlength=hosts))
        for host, own in enumerate(np.split(length_N[order_N], ends[:-1])):
            length_HS[host, : len(own)] = own
    return length_MHS


def kept(
    counts: Mapping[int, int],
    drawn: Mapping[int, Usage],
    owners: Mapping[int, int],
    hosts: int,
) -> dict[int, int]:
    """A Deal with which each host keeps its own questions."""
    del drawn, owners
    return {question: question % hosts for question in counts}


def _around_one(
    rng: np.random.Generator, variation: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Log-normal with mean 1."""
    deviation = np.sqrt(np.log1p(variation**2))
    return rng.lognormal(-(deviation**2) / 2, deviation, shape)
