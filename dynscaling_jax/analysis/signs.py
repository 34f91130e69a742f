"""The ways in which dynamic allocation and chains fail, told by a figure.

The paper (DynScaling, arXiv 2506.16043) rests on uncertainty that predicts
accuracy, on parallel responses that agree enough to be one chain, and on a
bandit that explores. Each sign here says when one of them does not hold; the
figures and thresholds are ours.
"""

import math
from typing import NamedTuple

import numpy as np

from dynscaling_jax.analysis import statistics
from dynscaling_jax.analysis.judged import (
    Asked,
    Judged,
    leader,
    planted,
    shares,
    votes_right,
)

CALIBRATION_GAP = 0.1  # of the vote share, on average
RANKING = 0.6  # AUROC; 0.5 is chance
DISAGREEMENT = 0.5  # of the answers in a chain
GIVEN_UP = 0.25  # of the wrong questions
CONCENTRATION = 0.75  # of the later samples, in a tenth of the questions
OVERHEAD = 0.1
FEWEST = 5  # right ones and wrong ones, below which nothing is judged
CHAINED = 20  # samples with parents, likewise
DRAWS = 2_000


class Sign(NamedTuple):
    """One figure against its threshold."""

    name: str  # the failure, in the words of the paper
    measure: str
    value: float | None  # None where it cannot be judged
    threshold: float
    above: bool  # it occurs above the threshold, else below
    note: str = ""  # the interval, or why it cannot be judged

    @property
    def occurs(self) -> bool:
        if self.value is None:
            return False
        if self.above:
            return self.value > self.threshold
        return self.value < self.threshold


def signs(judged: Judged) -> list[Sign]:
    """Every figure of a run, whether its sign occurs or not."""
    return [
        calibration_gap(judged),
        ranking(judged),
        disagreement(judged),
        chains_against_others(judged),
        given_up(judged),
        concentration(judged),
        overhead(judged),
    ]


def calibration_gap(judged: Judged) -> Sign:
    """The expected calibration error of the vote share, in ten bins.

    Few questions give an error by chance alone, so the threshold is not below
    what 95% of runs stay under whose votes are right as often as they say.
    """
    share_Q, right_Q = shares(judged)
    error = statistics.reliability(share_Q, right_Q).ece
    chance = _chance_error(share_Q)
    return Sign(
        "miscalibrated uncertainty",
        "mean gap between the share of samples that voted for an answer and "
        "how often such answers are right",
        error,
        max(CALIBRATION_GAP, chance),
        True,
        f"95% of calibrated runs with these shares stay below {chance:.3f}",
    )


def _chance_error(share_Q: np.ndarray) -> float:
    random = np.random.default_rng(0)
    errors = [
        statistics.reliability(
            share_Q, random.random(share_Q.shape) < share_Q
        ).ece
        for _ in range(DRAWS // 10)
    ]
    return float(np.quantile(errors, 0.95))


def ranking(judged: Judged) -> Sign:
    """Whether the uncertainty that the second round saw was larger where the
    majority of the first was wrong."""
    rounds = judged.recorded.rounds
    measure = (
        "chance that a question which is wrong after the first round is more "
        "uncertain then, by the entropy of its answers, than one which is right"
    )
    name = "miscalibrated uncertainty"
    if len(rounds) < 2:
        return Sign(name, measure, None, RANKING, False, "there is one round")
    wrong = [not leader(a, _first(a)).right for a in judged.asked]
    if not FEWEST <= sum(wrong) <= len(wrong) - FEWEST:
        few = f"fewer than {FEWEST} questions are wrong, or right, then"
        return Sign(name, measure, None, RANKING, False, few)
    uncertainty = [rounds[1]["uncertainty"][a.id] for a in judged.asked]
    value = statistics.auroc(np.array(uncertainty), np.array(wrong))
    return Sign(name, measure, value, RANKING, False)


def disagreement(judged: Judged) -> Sign:
    """How much the samples of a chain contradict one another: 0 where all
    give one answer, 1 where each gives another."""
    name = "divergent chains"
    measure = (
        "mean disagreement of the answers that a chain holds (0: all the "
        "same, 1: all different)"
    )
    if planted(judged):
        unknown = "what was planted in chains is not recorded"
        return Sign(name, measure, None, DISAGREEMENT, True, unknown)
    found = []
    for asked in judged.asked:
        for parents in asked.parents:
            seen = [asked.class_N[parent] for parent in parents]
            if len(seen) > 1:
                found.append((len(set(seen)) - 1) / (len(seen) - 1))
    few = len(found) < CHAINED
    return Sign(
        name,
        measure,
        None if few else float(np.mean(found)),
        DISAGREEMENT,
        True,
        f"{len(found)} chains of two samples and more"
        + (f", fewer than {CHAINED}" if few else ""),
    )


def chains_against_others(judged: Judged) -> Sign:
    """The upper end of the 95% interval of how much more often samples with a
    chain are right than the others of the same question."""
    pairs = []
    count = 0
    for asked in judged.asked:
        right: dict[bool, list[bool]] = {True: [], False: []}
        for sample, own in zip(asked.samples, asked.class_N, strict=True):
            right[bool(sample.parents)].append(own in asked.right)
        count += len(right[True])
        if right[True] and right[False]:
            pairs.append((np.mean(right[True]), np.mean(right[False])))
    value, note = None, f"{count} samples with a chain, fewer than {CHAINED}"
    if count >= CHAINED and len(pairs) >= FEWEST:
        chained_Q, others_Q = np.array(pairs).T
        found = statistics.paired_bootstrap(chained_Q, others_Q, draws=DRAWS)
        value = found.high
        note = (
            f"{100 * found.mean:+.1f} points, 95% interval "
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f}, on "
            f"{len(pairs)} questions"
        )
    return Sign(
        "divergent chains",
        "how much more often samples with a chain are right than those "
        "without, question by question: upper end of the 95% interval",
        value,
        0.0,
        False,
        note,
    )


def given_up(judged: Judged) -> Sign:
    """Of the questions answered wrong, those that got nothing after the first
    round."""
    name = "too little exploration"
    measure = (
        "share of the questions answered wrong that got no sample after the "
        "first round"
    )
    later_Q = _later(judged)
    if later_Q.min() == later_Q.max():
        same = "every question got the same after the first round"
        return Sign(name, measure, None, GIVEN_UP, True, same)
    wrong_Q = ~votes_right(judged)
    if wrong_Q.sum() < FEWEST:
        few = f"fewer than {FEWEST} questions are wrong"
        return Sign(name, measure, None, GIVEN_UP, True, few)
    left = int((wrong_Q & (later_Q == 0)).sum())
    return Sign(
        name,
        measure,
        left / int(wrong_Q.sum()),
        GIVEN_UP,
        True,
        f"{left} of {wrong_Q.sum()}",
    )


def concentration(judged: Judged) -> Sign:
    """The share of the samples after the first round that a tenth of the
    questions got."""
    name = "too little exploration"
    measure = (
        "share of the samples after the first round that one tenth of the "
        "questions got"
    )
    later_Q = np.sort(_later(judged))[::-1]
    if later_Q.min() == later_Q.max() or len(later_Q) < 2 * FEWEST:
        note = "every question got the same, or there are fewer than 10"
        return Sign(name, measure, None, CONCENTRATION, True, note)
    tenth = math.ceil(len(later_Q) / 10)
    value = float(later_Q[:tenth].sum() / later_Q.sum())
    note = f"{tenth} of {len(later_Q)} questions"
    return Sign(name, measure, value, CONCENTRATION, True, note)


def overhead(judged: Judged) -> Sign:
    """The share of a run's time that allocation and chains took."""
    share = judged.recorded.summary.get("loop_share")
    return Sign(
        "overhead of the bandit",
        "share of the time that went to policy, strategy and tables, and not "
        "to the model",
        share,
        OVERHEAD,
        True,
        "" if share is not None else "the run did not record it",
    )


def _first(asked: Asked) -> int:
    """Samples of the first round."""
    return sum(sample.round == 0 for sample in asked.samples)


def _later(judged: Judged) -> np.ndarray:
    """Samples after the first round, [Q]."""
    return np.array([len(a.samples) - _first(a) for a in judged.asked])
