"""Where dynamic allocation and chains can fail, each told by a figure.

The paper (DynScaling, arXiv 2506.16043) rests on uncertainty that predicts
accuracy, on parallel responses that agree enough to be one chain, and on a
bandit that explores. Each figure says when one of them does not hold. Good
runs cross some of the thresholds too, so a report shows a figure that crosses
one where the run lost something that it may explain. The figures and the
thresholds are ours.
"""

import math
from typing import NamedTuple

import numpy as np

from dynscaling_jax.analysis import statistics
from dynscaling_jax.analysis.graded import GradedRun, majorities, majority

CALIBRATION_GAP = 0.1  # of the vote share, on average
RANKING = 0.6  # AUROC; 0.5 is chance
DISAGREEMENT = 0.5  # of the answers in a chain
GIVEN_UP = 0.25  # of the wrong questions
CONCENTRATION = 0.75  # of the later samples, in a tenth of the questions
OVERHEAD = 0.1
FEWEST = 5  # right ones and wrong ones, below which nothing is judged
CHAINED = 20  # samples with parents, likewise
DRAWS = 2_000


class Diagnostic(NamedTuple):
    """One figure against its threshold."""

    name: str  # the failure, in the words of the paper
    measure: str
    threshold: float
    above: bool  # it is crossed above the threshold, else below
    value: float | None  # None where it cannot be judged
    note: str = ""  # the interval, or why it cannot be judged
    loss: bool = False  # whether crossing it is a loss, not what explains one

    @property
    def crossed(self) -> bool:
        """Whether the value is on the far side of the threshold."""
        if self.value is None:
            return False
        if self.above:
            return self.value > self.threshold
        return self.value < self.threshold


def diagnostics(run: GradedRun) -> list[Diagnostic]:
    """Computes every figure of a run, crossed or not."""
    return [
        calibration_gap(run),
        ranking(run),
        disagreement(run),
        chains_against_others(run),
        given_up(run),
        concentration(run),
        overhead(run),
    ]


def calibration_gap(run: GradedRun) -> Diagnostic:
    """Measures the expected calibration error of the vote share, in ten bins.

    Few questions give an error by chance alone, so the threshold is not below
    what 95% of runs stay under whose votes are right as often as they say.
    """
    share_Q, right_Q = majorities(run)
    random = np.random.default_rng(0)
    by_chance = [
        statistics.reliability(
            share_Q, random.random(share_Q.shape) < share_Q
        ).ece
        for _ in range(DRAWS // 10)
    ]
    chance = float(np.quantile(by_chance, 0.95))
    return Diagnostic(
        "miscalibrated uncertainty",
        "mean gap between the share of samples that voted for an answer and "
        "how often such answers are right",
        max(CALIBRATION_GAP, chance),
        True,
        statistics.reliability(share_Q, right_Q).ece,
        f"95% of calibrated runs with these shares stay below {chance:.3f}",
    )


def ranking(run: GradedRun) -> Diagnostic:
    """Measures whether uncertainty was larger where the majority was wrong.

    The uncertainty that the second round saw, and the majority of the first.
    """
    rounds, value = run.recorded.rounds, None
    note = "there is one round"
    if len(rounds) > 1:
        first_Q = _first_samples(run)
        wrong_Q = np.array(
            [
                not majority(question, first).right
                for question, first in zip(run.questions, first_Q, strict=True)
            ]
        )
        note = f"fewer than {FEWEST} questions are wrong, or right, then"
        if FEWEST <= wrong_Q.sum() <= len(wrong_Q) - FEWEST:
            unsure = [rounds[1]["uncertainty"][q.id] for q in run.questions]
            value, note = statistics.auroc(np.array(unsure), wrong_Q), ""
    return Diagnostic(
        "miscalibrated uncertainty",
        "chance that a question which is wrong after the first round is more "
        "uncertain then, by the entropy of its answers, than one which is "
        "right",
        RANKING,
        False,
        value,
        note,
    )


def disagreement(run: GradedRun) -> Diagnostic:
    """Measures how much the samples of a chain contradict one another.

    0 where all give one answer, 1 where each gives another.
    """
    shown = [
        [question.answer_N[parent] for parent in parents]
        for question in run.questions
        for parents in question.parents
        if len(parents) > 1
    ]
    value = None
    note = f"{len(shown)} chains of two samples and more"
    if run.corrupted:
        note = "which attempts of chains were corrupted is not recorded"
    elif len(shown) < CHAINED:
        note += f", fewer than {CHAINED}"
    else:
        value = float(np.mean([(len({*c}) - 1) / (len(c) - 1) for c in shown]))
    return Diagnostic(
        "divergent chains",
        "mean disagreement of the answers that a chain holds (0: all the "
        "same, 1: all different)",
        DISAGREEMENT,
        True,
        value,
        note,
    )


def chains_against_others(run: GradedRun) -> Diagnostic:
    """Bounds how much more often samples with a chain are right than others.

    Others are of the same question; the upper end of the 95% interval.
    """
    pairs = []
    count = 0
    for question in run.questions:
        right_N = np.array(question.right_N, float)
        chained_N = np.array([bool(s.parents) for s in question.samples], bool)
        count += int(chained_N.sum())
        if chained_N.any() and not chained_N.all():
            pairs.append(
                (right_N[chained_N].mean(), right_N[~chained_N].mean())
            )
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
    return Diagnostic(
        "divergent chains",
        "how much more often samples with a chain are right than those "
        "without, question by question: upper end of the 95% interval",
        0.0,
        False,
        value,
        note,
        loss=True,
    )


def given_up(run: GradedRun) -> Diagnostic:
    """Measures how many of the wrong questions got nothing after round 0."""
    later_Q = _later_samples(run)
    wrong_Q = ~run.vote_right_Q
    left, wrong, value = (
        int((wrong_Q & (later_Q == 0)).sum()),
        wrong_Q.sum(),
        None,
    )
    if later_Q.min() == later_Q.max():
        note = "every question got the same after the first round"
    elif wrong < FEWEST:
        note = f"fewer than {FEWEST} questions are wrong"
    else:
        value, note = left / wrong, f"{left} of {wrong}"
    return Diagnostic(
        "too little exploration",
        "share of the questions answered wrong that got no sample after the "
        "first round",
        GIVEN_UP,
        True,
        value,
        note,
    )


def concentration(run: GradedRun) -> Diagnostic:
    """Measures how much of the later samples a tenth of the questions got."""
    later_Q = np.sort(_later_samples(run))[::-1]
    tenth = math.ceil(len(later_Q) / 10)
    value = None
    note = "every question got the same, or there are fewer than 10"
    if later_Q.min() != later_Q.max() and len(later_Q) >= 2 * FEWEST:
        value = float(later_Q[:tenth].sum() / later_Q.sum())
        note = f"{tenth} of {len(later_Q)} questions"
    return Diagnostic(
        "too little exploration",
        "share of the samples after the first round that one tenth of the "
        "questions got",
        CONCENTRATION,
        True,
        value,
        note,
    )


def overhead(run: GradedRun) -> Diagnostic:
    """Reads the share of a run's time that allocation and chains took."""
    share = run.recorded.summary.get("loop_share")
    return Diagnostic(
        "overhead of the bandit",
        "share of the time that went to policy, strategy and tables, and not "
        "to the model",
        OVERHEAD,
        True,
        share,
        "" if share is not None else "the run did not record it",
        loss=True,
    )


def _first_samples(run: GradedRun) -> list[int]:
    """Samples of each question in the first round, [Q]."""
    return [sum(s.round == 0 for s in q.samples) for q in run.questions]


def _later_samples(run: GradedRun) -> np.ndarray:
    """Samples of each question after the first round, [Q]."""
    return np.array([len(q.samples) for q in run.questions]) - np.array(
        _first_samples(run)
    )
