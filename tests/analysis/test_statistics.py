"""Each statistic against enumeration or an independent implementation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dynscaling_jax.analysis import statistics as s


def test_a_bootstrap_interval_covers_as_often_as_it_says():
    """400 experiments of 60 questions: a 90% interval misses about 40 times;
    the bounds hold with probability above 0.9999."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = s.bootstrap_interval(
            rng.random(60) < 0.6, level=0.9, draws=500
        )
        missed += not low <= 0.6 <= high
    assert 18 < missed < 72


def test_a_bootstrap_interval_agrees_with_scipy():
    value = np.random.default_rng(1).random(80)
    theirs = stats.bootstrap(
        (value,), np.mean, method="percentile", n_resamples=9_999, rng=2
    ).confidence_interval
    np.testing.assert_allclose(s.bootstrap_interval(value), theirs, atol=0.004)


def test_wilson_by_hand():
    """0 of 10 at 95%: z^2 / (n + z^2) = 3.8415 / 13.8415."""
    low, high = s.wilson_interval(np.zeros(10, bool))
    assert low == 0 and high == pytest.approx(0.27754, abs=1e-5)
    low, high = s.wilson_interval(np.ones(10, bool))
    assert high == 1 and low == pytest.approx(1 - 0.27754, abs=1e-5)
    with pytest.raises(ValueError, match="boolean"):
        s.wilson_interval(np.array([], bool))


def test_no_questions_have_no_interval():
    with pytest.raises(ValueError, match="one value a question"):
        s.bootstrap_interval(np.array([]))


def test_paired_bootstrap_sees_what_is_there():
    rng = np.random.default_rng(3)
    a = rng.random(200)
    same = s.paired_bootstrap(a, a)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)
    better = s.paired_bootstrap(a + 0.1 + 0.05 * rng.random(200), a)
    assert better.low > 0.1 and better.p < 0.001
    assert better.low < better.mean < better.high
    assert s.paired_bootstrap(a, a + 0.1).mean == pytest.approx(-0.1)


def test_paired_bootstrap_is_rarely_wrong_where_nothing_is():
    """At level 0.05, 300 experiments without a difference find about 15; the
    bounds hold with probability above 0.9999."""
    rng, found = np.random.default_rng(4), 0
    for _ in range(300):
        a, b = rng.random((2, 50)) < 0.5
        found += s.paired_bootstrap(a, b, draws=400).p < 0.05
    assert found < 35


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b, both):
    a = np.array([True] * only_a + [False] * only_b + [True] * both, bool)
    b = np.array([False] * only_a + [True] * only_b + [True] * both, bool)
    n, k = only_a + only_b, min(only_a, only_b)
    tail = stats.binom.cdf(k, n, 0.5) if n else 1.0
    assert s.mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_takes_booleans_of_the_same_questions():
    with pytest.raises(ValueError, match="booleans"):
        s.mcnemar(np.array([1, 0]), np.array([True, False]))
    with pytest.raises(ValueError, match="same"):
        s.mcnemar(np.array([True]), np.array([True, False]))


def test_holm_by_hand():
    """p = 0.01, 0.03, 0.04 of four: 4 x 0.01, 3 x 0.03, 2 x 0.04 raised to
    the one before, 1 x 0.5."""
    np.testing.assert_allclose(
        s.holm([0.04, 0.01, 0.5, 0.03]), [0.09, 0.04, 0.5, 0.09]
    )


def test_stability_by_hand():
    accuracy_RM = np.array([[0.4, 0.6, 0.5], [0.6, 0.8, 0.7]])
    got = s.stability(accuracy_RM)
    np.testing.assert_allclose(got.over_draws_M, [np.sqrt(0.02)] * 3)
    assert got.over_budgets == pytest.approx(np.std([0.5, 0.7, 0.6]))
    assert got.worst_drop == pytest.approx(0.1)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12
    )
)
def test_auroc_counts_pairs(rows):
    score, label = map(np.array, zip(*rows, strict=True))
    pairs = [
        (x > y) + 0.5 * (x == y) for x in score[label] for y in score[~label]
    ]
    expected = np.mean(pairs) if pairs else np.nan
    np.testing.assert_allclose(s.auroc(score, label), expected)


def test_reliability_by_hand():
    """Two bins: 0.2 and 0.4, none right; 0.9 twice, one right."""
    got = s.reliability([0.2, 0.4, 0.9, 0.9], [0, 0, 1, 0], bins=2)
    np.testing.assert_allclose(got.confidence_B, [0.3, 0.9])
    np.testing.assert_allclose(got.right_B, [0.0, 0.5])
    assert got.count_B.tolist() == [2, 2]
    assert got.ece == pytest.approx((2 * 0.3 + 2 * 0.4) / 4)


def test_reliability_of_an_empty_bin_is_unknown():
    got = s.reliability([1.0], [1])
    assert np.isnan(got.confidence_B[:-1]).all() and got.ece == 0


def test_confidences_lie_between_0_and_1():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        s.reliability([1.2], [1])
