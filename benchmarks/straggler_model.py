"""What it costs that hosts meet: a simulation.

Hosts draw their shares of a round's samples, each in rows side by side, and
exchange counts of answers before the next round is granted. The host whose
samples are longest ends last, and the others wait. Time is counted in steps,
one token of each row; the exchange itself takes none.

Without rounds one more sample is granted for each that ends. Hosts meet after
a fixed number of steps to learn which ended, and wait for the slowest of them.

Letters: M rounds, or meetings; H hosts; S samples of a host in a round; N
samples of the run in the order of their grants; R rows of a host; I rows that
are idle.
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


class Speeds(NamedTuple):
    """How the time of a step varies over hosts: coefficients of variation."""

    hosts: float  # of hosts, the same in the whole run
    meetings: float  # of a host, from one meeting to the next


class Meetings(NamedTuple):
    """What hosts drew after each meeting and before the next."""

    busy_MH: np.ndarray  # steps in which any row of the host draws
    drawn_MH: np.ndarray  # tokens of all its rows

    def lost(self, rows: int, step_MH: np.ndarray | float = 1.0) -> Lost:
        """Tells what was lost; the last at a meeting is who others wait for.

        Args:
            rows: R.
            step_MH: what a step of a host takes after each meeting.
        """
        took_MH = self.busy_MH * step_MH
        total = took_MH.max(1, initial=0).sum() * took_MH.shape[1]
        if total == 0:  # everything was granted at the start
            return Lost(0.0, 0.0)
        drawn = (self.drawn_MH * step_MH).sum()
        return Lost(
            float(1 - took_MH.sum() / total),
            float(1 - drawn / (rows * total)),
        )


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


def without_rounds(
    step_N: np.ndarray, hosts: int, rows: int, every: int, later: int
) -> tuple[Meetings, Meetings]:
    """Plays a run in which one more sample is granted for each that ends.

    As many samples are under way as there are rows, those that were granted
    and have not begun included. A granted sample begins at a meeting, on the
    host with the most idle rows. Hosts meet earlier when none has a sample to
    draw on. That grants are made in the order in which samples end, in steps,
    decides which sample a policy grants but not when, and has no part here.

    Args:
        step_N: steps of each sample, whole numbers.
        hosts: H.
        rows: R.
        every: steps from one meeting to the next.
        later: meetings from a grant to the beginning of the sample. At 0 it
            begins where it was granted. The first samples begin at once.

    Returns:
        What was drawn before the meeting of the last grant, and in all.

    Raises:
        ValueError: no samples, a sample without steps, or a number that is
            too small.
    """
    if (
        step_N.ndim != 1
        or not np.issubdtype(step_N.dtype, np.integer)
        or not len(step_N)
        or step_N.min() < 1
    ):
        raise ValueError("a run needs samples, each of a step [N] or more")
    if min(hosts, rows, every) < 1 or later < 0:
        raise ValueError(
            "hosts, rows and steps between meetings must be positive and no "
            f"sample can begin before its grant; got hosts={hosts}, "
            f"rows={rows}, every={every}, later={later}"
        )
    left_HR = np.zeros((hosts, rows), int)  # steps of samples under way
    granted = [min(len(step_N), left_HR.size)]  # samples, at each meeting
    begun = last = 0
    busy_MH, drawn_MH = [], []
    while True:
        begins = granted[max(len(granted) - 1 - later, 0)]
        host_I, row_I = _most_idle_first(left_HR, begins - begun)
        left_HR[host_I, row_I] = step_N[begun:begins]
        begun = begins
        drawn_HR = np.minimum(left_HR, every)
        left_HR -= drawn_HR
        busy_MH.append(drawn_HR.max(1))
        drawn_MH.append(drawn_HR.sum(1))
        ended = int(begun - np.count_nonzero(left_HR))
        if ended == len(step_N):
            break
        granted.append(min(len(step_N), ended + left_HR.size))
        if granted[-1] > granted[-2]:
            last = len(granted) - 1
    run = Meetings(np.stack(busy_MH), np.stack(drawn_MH))
    return Meetings(run.busy_MH[:last], run.drawn_MH[:last]), run


def _most_idle_first(
    left_HR: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Idle rows for `count` samples, each on the host with the most of them.

    Of hosts with 3 and 1 idle rows the first gets two samples. Then each has
    one idle row, and they take turns.
    """
    host_I, row_I = np.nonzero(left_HR == 0)
    idle_H = np.bincount(host_I, minlength=len(left_HR))
    # rows that are idle on the host when its n-th gets a sample: 3 2 1, 1
    other_I = np.cumsum(idle_H)[host_I] - np.arange(len(host_I))
    order_I = np.argsort(-other_I, kind="stable")[:count]
    return host_I[order_I], row_I[order_I]


def step_times(
    meetings: int, hosts: int, speeds: Speeds, seed: int
) -> np.ndarray:
    """What a step of a host takes [M, H] after each meeting, around 1. The
    part that stays the same depends on hosts and seed alone."""
    rng = np.random.default_rng((seed, 1))  # another stream than lengths have
    step_H = _around_one(rng, speeds.hosts, (hosts,))
    return step_H * _around_one(rng, speeds.meetings, (meetings, hosts))


def queue(
    samples: int, spread: Lengths, seed: int, questions: int
) -> np.ndarray:
    """Lengths [N] of samples that fall on questions at random. A mean sample
    has length 1."""
    rng = np.random.default_rng(seed)
    mean_Q = _around_one(rng, spread.between, (questions,))
    which_N = rng.integers(0, questions, samples)
    return _cut(mean_Q[which_N], rng, spread)


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
        length_N = _cut(mean_Q[which_N], rng, spread)
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


def _cut(
    mean_N: np.ndarray, rng: np.random.Generator, spread: Lengths
) -> np.ndarray:
    """Lengths of samples of questions with these means."""
    length_N = mean_N * _around_one(rng, spread.within, mean_N.shape)
    return np.minimum(length_N, LONGEST)


def _around_one(
    rng: np.random.Generator, variation: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Log-normal with mean 1."""
    deviation = np.sqrt(np.log1p(variation**2))
    return rng.lognormal(-(deviation**2) / 2, deviation, shape)
