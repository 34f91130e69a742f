"""Sample efficiency, on curves whose answers can be read off by hand."""

import numpy as np
import pytest

from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.analysis.replay import Curve
from dynscaling_jax.analysis.sample_efficiency import (
    first_reach,
    pass_at_1,
    sample_efficiency,
)

SAMPLES_M = np.array([1.0, 2, 4, 8, 40])


def played(accuracy_M, replicates=3, noise=0.0, samples_M=SAMPLES_M):
    rng = np.random.default_rng(0)
    shape = replicates, len(samples_M)
    return Curve(
        np.asarray(accuracy_M) + noise * rng.normal(size=shape),
        np.broadcast_to(samples_M, shape),
        np.broadcast_to(10 * samples_M, shape),
        np.zeros((2, len(samples_M))),
    )


@pytest.mark.parametrize(
    ("goal", "cost"),
    [(0.1, 1.0), (0.3, 1.5), (0.4, 2.0), (0.5, 3.0), (0.7, np.nan)],
)
def test_where_a_line_first_reaches_a_goal(goal, cost):
    """The curve falls after its second and third point; the first crossing
    counts."""
    found = first_reach(
        np.array([1.0, 2, 4, 8]), np.array([0.2, 0.4, 0.6, 0.5]), goal
    )
    np.testing.assert_allclose(found, cost)


def test_by_hand():
    """pass@1 0.2, full vote 0.6: the goal at 0.8 is 0.52. Uniform reaches it
    between 4 and 8, at 4 + 4 * 0.12 / 0.2 = 6.4; the policy at
    2 + 2 * 0.12 / 0.2 = 3.2."""
    uniform = played([0.2, 0.3, 0.4, 0.6, 0.6])
    policy = played([0.2, 0.4, 0.6, 0.6, 0.6])
    found = sample_efficiency(uniform, policy, 0.2, 0.8)
    np.testing.assert_allclose(found.uniform_samples, 6.4)
    np.testing.assert_allclose(found.policy_samples, 3.2)
    np.testing.assert_allclose(
        [found.ratio, found.token_ratio, *found.ratio_ci95], 2.0
    )
    np.testing.assert_allclose(found.policy_tokens, 32)


def test_uniform_saves_nothing_against_itself():
    uniform = played([0.2, 0.3, 0.4, 0.6, 0.6], replicates=50, noise=0.02)
    found = sample_efficiency(uniform, uniform, 0.2, 0.9)
    assert found.ratio == 1
    assert found.ratio_ci95 == (1, 1)


def test_noise_widens_the_interval_around_the_ratio():
    uniform = played([0.2, 0.3, 0.4, 0.6, 0.6])
    policy = played([0.2, 0.4, 0.6, 0.6, 0.6], replicates=3, noise=0.05)
    low, high = sample_efficiency(uniform, policy, 0.2, 0.8).ratio_ci95
    assert low < sample_efficiency(uniform, policy, 0.2, 0.8).ratio < high


@pytest.mark.parametrize(
    ("uniform", "policy", "nan"),
    [
        # the policy never gets there
        (played([0.2, 0.3, 0.4, 0.6, 0.6]), played([0.2] * 5), "ratio"),
        # the vote gains nothing; the mean of three 0.2 is above 0.2, and was
        # once taken for a gain to save on
        (played([0.2] * 5), played([0.2] * 5), "uniform_samples"),
        # the curve ends before the 40 samples that set the goal
        (
            played([0.2, 0.4], samples_M=SAMPLES_M[:2]),
            played([0.2, 0.4], samples_M=SAMPLES_M[:2]),
            "uniform_samples",
        ),
    ],
    ids=["never", "no gain", "too short"],
)
def test_what_cannot_be_told_is_nan(uniform, policy, nan):
    found = sample_efficiency(uniform, policy, 0.2, 0.95)
    assert np.isnan(getattr(found, nan))
    assert np.isnan([found.ratio, *found.ratio_ci95]).all()


def test_pass_at_1_counts_the_unreadable_as_wrong():
    bank = Bank(
        "some",
        ("a", "b"),
        np.array([[0, 0, -1, 1], [0, 0, 0, 0]], np.int32),
        np.ones((2, 4), np.int32),
        None,
        np.array([0, -2], np.int32),
    )
    assert pass_at_1(bank) == 0.25
