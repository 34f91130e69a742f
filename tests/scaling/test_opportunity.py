"""opportunity_cost against its formula in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dynscaling_jax.scaling.opportunity import (
    log_opportunity_cost,
    opportunity_cost,
)
from dynscaling_jax.types import Candidates


def by_integral(first, second, total, virtual):
    share, other = first / total, second / total
    mean = share - other
    var = (share + other - mean**2) / (total + virtual + 1)
    density = stats.norm(mean, np.sqrt(var)).pdf
    return integrate.quad(lambda d: -d * density(d), -8 * var**0.5 - 1, 0)[0]


@pytest.mark.parametrize(
    "counts", [(1, 0, 1), (1, 1, 2), (3, 1, 4), (2, 2, 9), (6, 1, 8)]
)
@pytest.mark.parametrize("virtual", [0, 3])
def test_it_is_the_expected_loss(counts, virtual):
    first, second, total = np.add(counts, (1.0, 0.5, 1.5))
    got = log_opportunity_cost(first, second, total, jnp.float32(virtual))
    expected = by_integral(first, second, total, virtual)
    assert np.exp(got) == pytest.approx(expected, rel=1e-4)


def test_by_hand():
    """One sample: shares 2 / 2.5 and 0.5 / 2.5, so d has mean 0.6, variance
    (1 - 0.36) / 3.5 and z = 1.4031; phi = 0.14907, Phi(-z) = 0.08029, and
    0.42762 (0.14907 - 1.4031 x 0.08029) = 0.01557."""
    got = log_opportunity_cost(
        jnp.float32(2), jnp.float32(0.5), jnp.float32(2.5), jnp.float32(0)
    )
    assert np.exp(got) == pytest.approx(0.01557, abs=2e-5)


def test_settled_queries_keep_their_order():
    """30 and more agreeing samples lie 25 deviations off, where the normal
    density is no float32: with costs of 0 all of them would be tied."""
    n = jnp.arange(5, 400, dtype=jnp.float32)
    cost = log_opportunity_cost(n + 1, jnp.full_like(n, 0.5), n + 1.5, 0 * n)
    assert np.isfinite(cost).all()
    assert (np.diff(cost) < 0).all()


def candidates(rows, slots=16):
    answer_QN = np.full((len(rows), slots), -1, np.int32)
    for row, answers in zip(answer_QN, rows, strict=True):
        row[: len(answers)] = answers
    zeros = jnp.zeros(answer_QN.shape, jnp.float32)
    counts = jnp.array([len(r) for r in rows], jnp.int32)
    return Candidates(
        jnp.array(answer_QN), zeros, zeros.astype(jnp.int32), counts
    )


def grants(rows, budget, **settings):
    policy = opportunity_cost(**settings)
    got = jax.jit(policy.allocate)(
        jax.random.key(0), candidates(rows), jnp.int32(budget)
    )
    return got.tolist()


def test_first_rounds():
    """New queries come first; then the split one before the settled one."""
    assert grants([[], [0, 1], [0] * 4], 1) == [1, 0, 0]
    assert grants([[0, 0], [0, 1], [0] * 4], 1) == [0, 1, 0]


def test_it_turns_from_what_stays_split():
    """Four against four after eight samples waits for two against one."""
    assert grants([[0, 1] * 4, [0, 0, 1]], 1) == [0, 1]


def test_unreadable_samples_are_no_votes():
    assert grants([[0, -1, -1, -1], [0, 0, 0, 0]], 2) == [2, 0]


@pytest.mark.parametrize("field", ["leader", "runner_up", "power"])
def test_settings_are_checked(field):
    with pytest.raises(ValueError, match=field):
        opportunity_cost(**{field: 0.0})
