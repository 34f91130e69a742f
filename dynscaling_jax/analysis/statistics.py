"""What results mean: estimates, intervals, tests, calibration.

Host-side NumPy; every draw comes from a seed. Letters: Q questions, N samples
of each, R replicates (draws of samples), M budgets.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Difference(NamedTuple):
    """Mean of a less mean of b, its interval, and the two-sided p-value of
    no difference."""

    difference: float
    low: float
    high: float
    p_value: float


class Stability(NamedTuple):
    """Standard deviations of the accuracy: over draws of samples, at each
    budget, [M]; and over budgets, of the mean over draws."""

    over_draws_M: np.ndarray
    over_budgets: float


class Reliability(NamedTuple):
    """Questions of each bin of confidence: how many, their mean confidence
    and the share that is right; nan where a bin is empty. [B] each."""

    count_B: np.ndarray
    confidence_B: np.ndarray
    accuracy_B: np.ndarray


def pass_at_k(right: ArrayLike, n: ArrayLike, k: int) -> np.ndarray:
    """1 - C(n - right, k) / C(n, k): the chance that k of n samples, drawn
    without replacement, hold a right one (Chen et al. 2021, equation 1).

    Unbiased for the pass@k of the model. right and n broadcast.

    Raises:
      ValueError: k over n, or right not within 0 .. n.
    """
    right_, n_ = np.broadcast_arrays(
        np.asarray(right, np.float64), np.asarray(n, np.float64)
    )
    if k < 1 or np.any(n_ < k):
        raise ValueError(f"k={k}: expected 1 to {n_.min():.0f} samples.")
    if np.any((right_ < 0) | (right_ > n_)):
        raise ValueError("right: expected 0 to n.")
    miss = np.ones(right_.shape)
    for i in range(k):
        miss *= np.maximum(n_ - right_ - i, 0) / (n_ - i)
    return 1 - miss


def maj_at_k(
    answer_QN: np.ndarray,
    reference_Q: np.ndarray,
    k: int,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Chance, for each question, that the majority of k samples is right.

    Each draw takes k of the N samples without replacement, in random order,
    never the first k as recorded; ties go to the answer seen first, answers
    of -1 have no vote.

    Returns:
      float64 [Q], the mean over draws.

    Raises:
      ValueError: k is not within 1 .. N.
    """
    queries, slots = answer_QN.shape
    if not 1 <= k <= slots:
        raise ValueError(f"k={k}: expected 1 to {slots} samples.")
    rng = np.random.default_rng(seed)
    right_Q = np.zeros(queries)
    rows_Q1 = np.arange(queries)[:, None]
    for _ in range(draws):
        order_QN = rng.permuted(
            np.broadcast_to(np.arange(slots), (queries, slots)), axis=1
        )
        taken_QK = answer_QN[rows_Q1, order_QN[:, :k]]
        votes_QK = np.zeros((queries, k), np.int64)
        for j in range(k):
            votes_QK += taken_QK == taken_QK[:, j : j + 1]
        votes_QK[taken_QK < 0] = 0
        first_Q = votes_QK.argmax(axis=1)  # of equals the first in the draw
        winner_Q = taken_QK[np.arange(queries), first_Q]
        right_Q += (winner_Q == reference_Q) & (winner_Q >= 0)
    return right_Q / draws


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean, resampling questions (Efron 1979).

    Args:
      values: [Q], one value a question.

    Raises:
      ValueError: no questions.
    """
    means = resampled_means(values, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_means(
    values: ArrayLike, *, resamples: int, seed: int
) -> np.ndarray:
    """Means of values [Q, ...] over resampled questions, [resamples, ...]."""
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("no questions to resample.")
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(
        len(values), np.full(len(values), 1 / len(values)), size=resamples
    )
    return np.tensordot(weight / len(values), values, axes=1)


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> float:
    """Exact two-sided p-value that two methods are right equally often
    (McNemar 1947): of the questions that just one gets right, each is a fair
    coin.

    Args:
      right_a, right_b: bool [Q], the same questions.
    """
    a, b = _paired(np.asarray(right_a, bool), np.asarray(right_b, bool))
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    flips, fewer = only_a + only_b, min(only_a, only_b)
    tail, term = 0.0, 0.5**flips
    for i in range(fewer + 1):
        tail += term
        term *= (flips - i) / (i + 1)
    return min(1.0, 2 * tail)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Mean difference of two methods on the same questions.

    The p-value is from resampled differences that are shifted to mean zero
    (Efron and Tibshirani 1993, section 16.4), with one added to both counts.
    """
    a_Q, b_Q = _paired(np.asarray(a, float), np.asarray(b, float))
    means = resampled_means(a_Q - b_Q, resamples=resamples, seed=seed)
    observed = float(np.mean(a_Q - b_Q))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    beyond = np.sum(np.abs(means - observed) >= abs(observed) - 1e-12)
    return Difference(
        observed, float(low), float(high), float((beyond + 1) / (resamples + 1))
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for all comparisons made (Holm 1979): rejecting
    those at most alpha keeps the chance of any false rejection at alpha."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def stability(accuracy_RM: np.ndarray) -> Stability:
    """How far the accuracy of one method moves; needs two draws."""
    if len(accuracy_RM) < 2:
        raise ValueError("expected at least two draws.")
    return Stability(
        accuracy_RM.std(axis=0, ddof=1), float(accuracy_RM.mean(axis=0).std())
    )


def auroc(uncertainty: ArrayLike, right: ArrayLike) -> float:
    """Chance that a wrong answer is more uncertain than a right one, ties
    counted half; nan where all are right or all wrong."""
    u = np.asarray(uncertainty, np.float64)
    ok = np.asarray(right, bool)
    wrong, fine = u[~ok], np.sort(u[ok])
    if not len(wrong) or not len(fine):
        return float("nan")
    below = np.searchsorted(fine, wrong, "left")
    upto = np.searchsorted(fine, wrong, "right")
    return float(np.mean(below + upto) / (2 * len(fine)))


def reliability(
    confidence: ArrayLike, right: ArrayLike, bins: int = 10
) -> Reliability:
    """The reliability curve over equal bins of confidence in [0, 1]."""
    c, ok = np.asarray(confidence, float), np.asarray(right, float)
    if np.any((c < 0) | (c > 1)):
        raise ValueError("confidence: expected values from 0 to 1.")
    at = np.minimum((c * bins).astype(int), bins - 1)
    count_B = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count_B,
            np.bincount(at, c, bins) / count_B,
            np.bincount(at, ok, bins) / count_B,
        )


def expected_calibration_error(
    confidence: ArrayLike, right: ArrayLike, bins: int = 10
) -> float:
    """Mean gap of confidence and accuracy over the bins, by their questions
    (Naeini et al. 2015)."""
    curve = reliability(confidence, right, bins)
    filled = curve.count_B > 0
    gap = np.abs(curve.confidence_B - curve.accuracy_B)[filled]
    return float(np.average(gap, weights=curve.count_B[filled]))


def _paired(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"expected two rows over the same questions, got shapes {a.shape} "
            f"and {b.shape}."
        )
    return a, b
