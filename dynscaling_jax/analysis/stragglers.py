"""What it costs that hosts meet at the ends of rounds: a simulation.

Hosts draw their shares of a round's samples, each in rows side by side, and
exchange counts of answers before the next round is granted. The host whose
samples are longest ends last, and the others wait. Time is counted in steps,
one token of each row; the exchange itself takes none. Letters: M rounds, H
hosts, S samples of a host in a round, R rows of a host.
"""

from typing import NamedTuple

import numpy as np

LONGEST = 4.0  # means: engine.max_new_tokens cuts longer samples


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


def dealt_anew(
    rounds: int, hosts: int, samples: int, spread: Lengths, seed: int
) -> np.ndarray:
    """Lengths [M, H, S] when each round's samples are dealt evenly, whichever
    host held their questions before. A mean sample has length 1."""
    rng = np.random.default_rng(seed)
    shape = rounds, hosts, samples
    return np.minimum(
        _around_one(rng, spread.within, shape)
        * _around_one(rng, spread.between, shape),
        LONGEST,
    )


def kept(
    rounds: int,
    hosts: int,
    samples: int,
    spread: Lengths,
    seed: int,
    questions: int,
) -> np.ndarray:
    """Lengths [M, H, S] when each host keeps its own questions, so many, and
    a round's hosts x samples samples fall on questions at random."""
    rng = np.random.default_rng(seed)
    mean_HQ = _around_one(rng, spread.between, (hosts, questions))
    drawn = hosts * samples
    count_MH = rng.multinomial(drawn, np.full(hosts, 1 / hosts), rounds)
    shape = rounds, hosts, int(count_MH.max())
    which_MHS = rng.integers(0, questions, shape)
    length_MHS = np.minimum(
        _around_one(rng, spread.within, shape)
        * mean_HQ[np.arange(hosts)[:, None], which_MHS],
        LONGEST,
    )
    return np.where(np.arange(shape[2]) < count_MH[..., None], length_MHS, 0)


def _around_one(
    rng: np.random.Generator, variation: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Log-normal with mean 1."""
    deviation = np.sqrt(np.log1p(variation**2))
    return rng.lognormal(-(deviation**2) / 2, deviation, shape)
