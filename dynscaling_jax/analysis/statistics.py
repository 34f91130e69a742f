"""Statistics of votes: what an accuracy means, and whether two differ.

Letters: Q questions, N samples of each, R random draws of an experiment,
M budgets, B bins.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Difference(NamedTuple):
    """Mean of a - b over the same questions, its interval and p-value."""

    mean: float
    low: float
    high: float
    p: float


class Reliability(NamedTuple):
    """A calibration curve: of each bin, the confidence and what came."""

    confidence_B: np.ndarray  # mean confidence, NaN in an empty bin
    right_B: np.ndarray  # share that was right, likewise
    count_B: np.ndarray
    ece: float  # expected calibration error: mean |confidence - right|


class Stability(NamedTuple):
    """How much an accuracy moves."""

    over_draws_M: np.ndarray  # deviation over the draws, at each budget
    over_budgets: float  # deviation over the budgets of the mean accuracy
    worst_drop: float  # largest fall of the mean from a budget to a larger


def bootstrap_interval(
    value_Q: np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds the mean over questions (percentile bootstrap, Efron 1979).

    Raises:
        ValueError: no questions.
    """
    mean_R = _resampled_means(value_Q, draws, seed)
    low, high = np.quantile(mean_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(
    right_Q: np.ndarray, *, level: float = 0.95
) -> tuple[float, float]:
    """Bounds a share of right answers (Wilson 1927).

    Unlike the bootstrap's it is no point where all are right, or none.

    Raises:
        ValueError: no questions, or no booleans.
    """
    right_Q = np.asarray(right_Q)
    if right_Q.dtype != bool or not right_Q.size:
        raise ValueError("expected one boolean a question, and some")
    test = stats.binomtest(int(right_Q.sum()), right_Q.size)
    interval = test.proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)


def paired_bootstrap(
    a_Q: np.ndarray,
    b_Q: np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compares two methods on the same questions.

    p, two-sided, is twice the smaller share of resampled means on either
    side of zero, those at zero counted on both; at least 2 / (draws + 1).

    Raises:
        ValueError: no questions, or not the same number.
    """
    a_Q, b_Q = np.asarray(a_Q, float), np.asarray(b_Q, float)
    if a_Q.shape != b_Q.shape:
        raise ValueError(
            f"paired values differ in shape: {a_Q.shape} and {b_Q.shape}"
        )
    mean_R = _resampled_means(a_Q - b_Q, draws, seed)
    low, high = np.quantile(mean_R, [(1 - level) / 2, (1 + level) / 2])
    side = min((mean_R <= 0).sum(), (mean_R >= 0).sum())
    p = min(1.0, 2 * (side + 1) / (draws + 1))
    return Difference(float((a_Q - b_Q).mean()), float(low), float(high), p)


def mcnemar(right_a_Q: np.ndarray, right_b_Q: np.ndarray) -> float:
    """Computes the exact p that two methods are right equally often.

    Two-sided: a binomial test of the questions on which they differ (McNemar
    1947).

    Args:
        right_a_Q: bool.
        right_b_Q: bool, on the same questions.

    Raises:
        ValueError: not the same number of questions, or no booleans.
    """
    a_Q, b_Q = np.asarray(right_a_Q), np.asarray(right_b_Q)
    if a_Q.shape != b_Q.shape or a_Q.dtype != bool or b_Q.dtype != bool:
        raise ValueError(
            "McNemar's test takes two arrays of booleans, on the same "
            f"questions; got {a_Q.dtype}{a_Q.shape}, {b_Q.dtype}{b_Q.shape}"
        )
    only_a, only_b = int((a_Q & ~b_Q).sum()), int((~a_Q & b_Q).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrects p-values for how many there are (Holm 1979).

    The chance of any false difference stays below the level.
    """
    p = np.asarray(p_values, float)
    order = p.argsort()
    stepped = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def stability(accuracy_RM: np.ndarray) -> Stability:
    """Measures the spread of an accuracy over draws and rising budgets."""
    mean_M = accuracy_RM.mean(0)
    drops = np.maximum.accumulate(mean_M) - mean_M
    deviation_M = accuracy_RM.std(0, ddof=1 if len(accuracy_RM) > 1 else 0)
    return Stability(deviation_M, float(mean_M.std()), float(drops.max()))


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Computes the probability that a positive scores above a negative.

    Ties count half (Mann and Whitney); NaN where one of the two is missing.
    """
    positive = np.asarray(positive, bool)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return float("nan")
    rank = stats.rankdata(score)
    above = rank[positive].sum() - ones * (ones + 1) / 2
    return float(above / (ones * zeros))


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = 10
) -> Reliability:
    """Measures calibration in bins of equal width (arXiv 1706.04599).

    Raises:
        ValueError: a confidence outside [0, 1].
    """
    confidence = np.asarray(confidence, float)
    right = np.asarray(right, float)
    if (
        confidence.size == 0
        or not ((0 <= confidence) & (confidence <= 1)).all()
    ):
        raise ValueError("confidences must lie in [0, 1], and there be some")
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    count_B = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence_B = np.bincount(at, confidence, bins) / count_B
        right_B = np.bincount(at, right, bins) / count_B
    gap = np.abs(np.bincount(at, confidence - right, bins)).sum()
    return Reliability(confidence_B, right_B, count_B, float(gap / len(right)))


def _resampled_means(value_Q: np.ndarray, draws: int, seed: int) -> np.ndarray:
    value_Q = np.asarray(value_Q, float)
    if value_Q.ndim != 1 or not len(value_Q):
        raise ValueError("the bootstrap needs one value a question, and some")
    count = len(value_Q)
    each = _times_drawn(count, draws, seed)
    return np.concatenate([times @ value_Q / count for times in each])


@functools.lru_cache(1)  # a report asks for the same again and again
def _times_drawn(count: int, draws: int, seed: int) -> tuple[np.ndarray, ...]:
    """How often each question is drawn, a few hundred draws at a time.

    A byte each: 10,000 draws of 1,000 questions are 10 MB.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, draws, 256):
        size = min(256, draws - start)
        times = rng.multinomial(count, np.full(count, 1 / count), size)
        parts.append(times.astype(np.min_scalar_type(times.max())))
    return tuple(parts)
