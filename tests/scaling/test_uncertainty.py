"""Measures of uncertainty: hand-worked counts, independent references."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from dynscaling_jax.scaling.uncertainty import (
    MEASURES,
    UNREADABLE,
    answer_counts,
    leaders,
    measure_by_name,
)

SLOTS = 24
measured = {name: jax.jit(f) for name, f in MEASURES.items()}


def padded(*counts: int) -> jax.Array:
    return jnp.array([*counts, *[0] * (SLOTS - len(counts))], jnp.int32)


count_lists = st.lists(st.integers(0, 8), max_size=8).filter(
    lambda counts: sum(counts) <= SLOTS
)


def test_counts_leave_out_padding_and_unreadable_samples():
    answer_N = jnp.array([2, -1, 0, 2, 1, 1], jnp.int32)
    counts_N, blank = answer_counts(answer_N, jnp.int32(4))
    assert counts_N.tolist() == [1, 0, 2, 0, 0, 0]
    assert blank == 1


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((0, 0), (0, 0)), ((3,), (3, 0)), ((1, 4, 4), (4, 4))],
)
def test_leaders(counts, expected):
    assert tuple(map(int, leaders(padded(*counts)))) == expected


# Worked by hand for counts 3, 1: p = (3/4, 1/4), n = 4.
HAND_31 = {
    "entropy": (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(4),
    "gini": 1 - 9 / 16 - 1 / 16,
    "top_share": 1 / 4,
    "margin": 1 / 2,
    # I_1/2(4, 2) = P(Binomial(5, 1/2) >= 4) = 6 / 32
    "beta": 6 / 32,
}


@pytest.mark.parametrize("name", HAND_31)
def test_hand_worked(name):
    assert measured[name](padded(3, 1)) == pytest.approx(
        HAND_31[name], rel=1e-6
    )


@pytest.mark.parametrize("name", MEASURES)
def test_without_a_sample_all_is_uncertain(name):
    assert measured[name](padded()) == 1


@pytest.mark.parametrize("name", ["entropy", "gini", "top_share", "margin"])
def test_a_unanimous_query_is_certain(name):
    assert measured[name](padded(0, 7)) == 0


def test_a_unanimous_posterior_is_a_power_of_two():
    # I_1/2(n + 1, 1) = 2^-(n + 1); and with one unseen answer of prior mass
    # 1 beside the leader, the Dirichlet says the same.
    for n in (1, 5, 20):
        assert measured["beta"](padded(n)) == pytest.approx(
            2.0 ** -(n + 1), rel=1e-5
        )
        assert measured["dirichlet"](padded(n)) == pytest.approx(
            2.0 ** -(n + 1), rel=1e-4
        )


@given(count_lists)
@settings(max_examples=60, deadline=None)
def test_properties(counts):
    """In [0, 1], blind to order, and beta as an exact binomial tail."""
    value = {name: float(f(padded(*counts))) for name, f in measured.items()}
    turned = padded(*reversed(counts))
    for name, f in measured.items():
        assert 0 <= value[name] <= 1
        assert float(f(turned)) == pytest.approx(value[name], abs=1e-6)
    if sum(counts):
        first, second = sorted([*counts, 0], reverse=True)[:2]
        tail = stats.binom.sf(first, first + second + 1, 0.5)
        assert value["beta"] == pytest.approx(tail, rel=2e-5)


@pytest.mark.parametrize(
    "counts", [(1,), (2, 1), (3, 3), (4, 2, 2, 1), (12, 9, 3), (1,) * 24]
)
def test_dirichlet_agrees_with_adaptive_quadrature(counts):
    """The same integral in float64 by scipy, over the leader's Gamma."""
    first, *others = sorted(counts, reverse=True)

    def integrand(x):
        ahead = special.gammainc(1, x)  # the unseen answer
        for c in others:
            ahead *= special.gammainc(c + 1, x)
        return stats.gamma.pdf(x, first + 1) * ahead

    expected = 1 - integrate.quad(integrand, 0, 100, limit=200)[0]
    assert measured["dirichlet"](padded(*counts)) == pytest.approx(
        expected, abs=1e-6
    )


def test_dirichlet_agrees_with_draws():
    """z-test at 5 sigma against 200,000 draws of the posterior."""
    counts = np.array([5, 3, 2])
    draws = np.random.default_rng(0).dirichlet([*counts + 1, 1], 200_000)
    share = np.mean(draws.argmax(axis=1) != 0)
    value = float(measured["dirichlet"](padded(*counts)))
    assert abs(value - share) < 5 * math.sqrt(share * (1 - share) / 200_000)


def test_unreadable_samples_by_each_option():
    """Answers a, a, b and one unreadable: p = (2/3, 1/3) when ignored."""
    answer_N = jnp.array([0, 0, -1, 1, 7, 7], jnp.int32)
    by = {
        how: float(measure_by_name("top_share", how)(answer_N, jnp.int32(4)))
        for how in UNREADABLE
    }
    assert by["ignore"] == pytest.approx(1 / 3)
    assert by["dilute"] == pytest.approx(3 / 4 * 1 / 3 + 1 / 4)
    assert by["distinct"] == pytest.approx(1 - 2 / 4)


@pytest.mark.parametrize("how", UNREADABLE)
@pytest.mark.parametrize("name", MEASURES)
def test_all_unreadable_is_uncertain(name, how):
    answer_N = jnp.full(6, -1, jnp.int32)
    assert measure_by_name(name, how)(answer_N, jnp.int32(6)) == 1


@pytest.mark.parametrize("how", ["dilute", "distinct"])
@pytest.mark.parametrize("name", ["entropy", "gini", "top_share"])
def test_an_unreadable_sample_raises_uncertainty(name, how):
    answer_N = jnp.array([0, 0, 0, -1, -1], jnp.int32)
    measure = measure_by_name(name, how)
    values = [float(measure(answer_N, jnp.int32(n))) for n in (3, 4, 5)]
    assert values[0] < values[1] < values[2]


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="entropy, gini, margin, top_share"):
        measure_by_name("variance")
    with pytest.raises(ValueError, match="dilute, distinct, ignore"):
        measure_by_name("gini", "drop")
