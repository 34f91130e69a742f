"""Where dynamic allocation and chains can fail, each told by a figure.

The paper (DynScaling, arXiv 2506.16043) rests on uncertainty that predicts
accuracy, on parallel responses that agree enough to be one chain, and on a
bandit that explores. Each figure says when one of them does not hold. Good
runs cross some of the thresholds too, so a report shows a figure that crosses
one where the run lost something that it may explain. The figures and the
thresholds are ours.
"""

import math
from collections import Counter
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
    gap, chance = _calibration_gap(run)
    share = run.recorded.summary.get("loop_share")
    first = _first(run)
    return [
        Diagnostic(
            "miscalibrated uncertainty",
            "mean gap between the share of samples that voted for an answer "
            "and how often such answers are right",
            # few questions give an error by chance alone
            max(CALIBRATION_GAP, chance),
            True,
            gap,
            f"95% of calibrated runs with these shares stay below {chance:.3f}",
        ),
        Diagnostic(
            "miscalibrated uncertainty",
            "chance that a question which is wrong after the first round is "
            "more uncertain then, by the entropy of its answers, than one "
            "which is right",
            RANKING,
            False,
            *_ranking(run),
        ),
        Diagnostic(
            "divergent chains",
            "mean disagreement of the answers that a chain holds (0: all the "
            "same, 1: all different)",
            DISAGREEMENT,
            True,
            *_disagreement(run),
        ),
        Diagnostic(
            "divergent chains",
            "how much more often samples with a chain are right than those "
            "without, question by question: upper end of the 95% interval",
            0.0,
            False,
            *_chains_against_others(run),
            loss=True,
        ),
        Diagnostic(
            "too little exploration",
            "share of the questions answered wrong that got no sample after "
            f"{first}",
            GIVEN_UP,
            True,
            *_given_up(run),
        ),
        Diagnostic(
            "too little exploration",
            f"share of the samples after {first} that one tenth of the "
            "questions got",
            CONCENTRATION,
            True,
            *_concentration(run),
        ),
        Diagnostic(
            "overhead of the bandit",
            "share of the time that went to policy, strategy and tables, and "
            "not to the model",
            OVERHEAD,
            True,
            share,
            "" if share is not None else "the run did not record it",
            loss=True,
        ),
    ]


Figure = tuple[float | None, str]  # its value and a note


def _calibration_gap(run: GradedRun) -> tuple[float, float]:
    """The calibration error, and what 95% of calibrated runs stay below.

    The error is the expected one of the vote share, in ten bins; a calibrated
    run is one whose votes are right as often as they say.
    """
    share_Q, right_Q = majorities(run)
    random = np.random.default_rng(0)
    by_chance = [
        statistics.reliability(
            share_Q, random.random(share_Q.shape) < share_Q
        ).ece
        for _ in range(DRAWS // 10)
    ]
    gap = statistics.reliability(share_Q, right_Q).ece
    return gap, float(np.quantile(by_chance, 0.95))


def _ranking(run: GradedRun) -> Figure:
    """Of the uncertainty that the second round saw."""
    if run.recorded.events:
        return None, "it needs rounds, which this run has not"
    rounds = run.recorded.rounds
    if len(rounds) < 2:
        return None, "there is one round"
    counts = zip(run.questions, _first_samples(run), strict=True)
    wrong_Q = np.array([not majority(q, first).right for q, first in counts])
    if not FEWEST <= wrong_Q.sum() <= len(wrong_Q) - FEWEST:
        return None, f"fewer than {FEWEST} questions are wrong, or right, then"
    unsure_Q = [rounds[1]["uncertainty"][q.id] for q in run.questions]
    return statistics.auroc(np.array(unsure_Q), wrong_Q), ""


def _disagreement(run: GradedRun) -> Figure:
    shown = [
        [question.answer_N[parent] for parent in parents]
        for question in run.questions
        for parents in question.parents
        if len(parents) > 1
    ]
    note = f"{len(shown)} chains of two samples and more"
    if run.corrupted:
        return None, "which attempts of chains were corrupted is not recorded"
    if len(shown) < CHAINED:
        return None, f"{note}, fewer than {CHAINED}"
    apart = [(len({*c}) - 1) / (len(c) - 1) for c in shown]
    return float(np.mean(apart)), note


def _chains_against_others(run: GradedRun) -> Figure:
    pairs, count = [], 0
    for question in run.questions:
        right_N = np.array(question.right_N, float)
        chained_N = np.array([bool(s.parents) for s in question.samples], bool)
        count += int(chained_N.sum())
        if chained_N.any() and not chained_N.all():
            chained, others = right_N[chained_N], right_N[~chained_N]
            pairs.append((chained.mean(), others.mean()))
    if count < CHAINED or len(pairs) < FEWEST:
        return None, f"{count} samples with a chain, fewer than {CHAINED}"
    chained_Q, others_Q = np.array(pairs).T
    found = statistics.paired_bootstrap(chained_Q, others_Q, draws=DRAWS)
    return found.high, (
        f"{100 * found.mean:+.1f} points, 95% interval {100 * found.low:+.1f} "
        f"to {100 * found.high:+.1f}, on {len(pairs)} questions"
    )


def _given_up(run: GradedRun) -> Figure:
    later_Q = _later_samples(run)
    if later_Q.min() == later_Q.max():
        return None, f"every question got the same after {_first(run)}"
    wrong_Q = ~run.vote_right_Q
    left, wrong = int((wrong_Q & (later_Q == 0)).sum()), int(wrong_Q.sum())
    if wrong < FEWEST:
        return None, f"fewer than {FEWEST} questions are wrong"
    return left / wrong, f"{left} of {wrong}"


def _concentration(run: GradedRun) -> Figure:
    later_Q = np.sort(_later_samples(run))[::-1]
    tenth = math.ceil(len(later_Q) / 10)
    if later_Q.min() == later_Q.max() or len(later_Q) < 2 * FEWEST:
        return None, "every question got the same, or there are fewer than 10"
    share = later_Q[:tenth].sum() / later_Q.sum()
    return float(share), f"{tenth} of {len(later_Q)} questions"


def _first(run: GradedRun) -> str:
    """What came before the policy had a choice, in words."""
    if run.recorded.events:
        return "the samples that were granted in turn"
    return "the first round"


def _first_samples(run: GradedRun) -> list[int]:
    """Samples of each question in the first round, [Q]."""
    return [sum(s.round == 0 for s in q.samples) for q in run.questions]


def _later_samples(run: GradedRun) -> np.ndarray:
    """Samples of each question after the first round, [Q].

    Without rounds, after those that were granted in turn. Those that were
    cancelled count, as they were granted.
    """
    later = Counter(s.query_id for s in run.recorded.samples if s.round)
    return np.array([later[question.id] for question in run.questions])
