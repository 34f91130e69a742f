"""Each rule stops where its paper says, unanimous streams included."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dynscaling_jax.scaling.stopping import (
    adaptive_consistency,
    elimination,
    esc,
    lead_k,
    log_e_value,
    mmc,
)
from dynscaling_jax.types import Candidates

SLOTS = 64


def stop(policy, stream) -> int | None:
    """Samples after which the rule asks for no more, one sample a round."""
    stream = list(stream)[:SLOTS]
    padded_N = np.array(stream + [-1] * (SLOTS - len(stream)), np.int32)

    def grant(answer_N, count):
        zeros = jnp.zeros((1, SLOTS))
        candidates = Candidates(
            answer_N[None], zeros, zeros.astype(jnp.int32), count[None]
        )
        return policy.allocate(
            jax.random.key(0), candidates, jnp.int32(1)
        ).sum()

    # one program for streams of every length
    counts = np.arange(SLOTS + 1, dtype=np.int32)
    granted = np.asarray(jax.jit(jax.vmap(grant, (None, 0)))(padded_N, counts))
    granted = granted[: len(stream) + 1]
    stops = np.flatnonzero(granted == 0)
    return int(stops[0]) if len(stops) else None


UNANIMOUS = [0] * 50
TWO_WAY = [0, 1] * 25
ALL_UNREADABLE = [-1] * 50


@pytest.mark.parametrize(
    ("policy", "stream", "samples"),
    [
        # 1 - 2^-(n + 1) > 0.95 first at n = 4
        (adaptive_consistency(), UNANIMOUS, 4),
        # one dissent: P(Binomial(n + 1, 1/2) <= n - 1) > 0.95 at n = 7
        (adaptive_consistency(), [0, 1, 0, 0, 0, 0, 0, 0, 0], 7),
        (adaptive_consistency(), TWO_WAY, 40),
        (adaptive_consistency(), ALL_UNREADABLE, 40),
        (adaptive_consistency(confidence=0.9, most=9), UNANIMOUS, 3),
        (esc(), UNANIMOUS, 5),
        # windows are 0-4, 5-9, ...: five in a row across two do not count
        (esc(), [1, 2, 0, 0, 0, 0, 0, 1, 0, 0] + [0] * 9, 15),
        (esc(), TWO_WAY, 40),
        (esc(), [0, 0, -1, 0, 0] + [0] * 5, 10),
        (esc(), ALL_UNREADABLE, 40),
        (esc(window=3, most=7), TWO_WAY, 7),
        (lead_k(), UNANIMOUS, 3),
        (lead_k(), [0, 1, 1, 1, 0, 1, 1], 7),
        (lead_k(), TWO_WAY, None),
        (lead_k(), ALL_UNREADABLE, None),
        (lead_k(lead=1), UNANIMOUS, 1),
        # (2^n - 1) / n >= 20 first at n = 8
        (mmc(), UNANIMOUS, 8),
        (mmc(delta=0.5), UNANIMOUS, 3),
        (mmc(), TWO_WAY, None),
        (mmc(), ALL_UNREADABLE, None),
        (elimination(), UNANIMOUS, 4),
        (elimination(), [0, 0, 0, 1, 0], 5),
        (elimination(), TWO_WAY, None),
        (elimination(), ALL_UNREADABLE, None),
    ],
)
def test_stops_where_the_paper_says(policy, stream, samples):
    assert stop(policy, stream) == samples


def test_adaptive_consistency_is_the_beta_criterion():
    """Against scipy's Beta on a fixed stream, sample by sample."""
    stream = np.random.default_rng(1).choice(3, 50, p=[0.5, 0.3, 0.2])
    passed = []
    for n in range(1, 41):
        first, second, _ = sorted(np.bincount(stream[:n], minlength=3))[::-1]
        passed.append(stats.beta.sf(0.5, first + 1, second + 1) > 0.95)
    assert stop(adaptive_consistency(), stream) == 1 + passed.index(True)


def test_e_values_are_the_mixture_they_claim():
    """2^(s + f) times the mean of x^s (1 - x)^f over [1/2, 1]."""
    for won, lost in ((0, 0), (3, 0), (5, 2), (2, 7), (20, 20)):
        mean, _ = integrate.quad(
            lambda x, s=won, f=lost: (2 * x) ** s * (2 - 2 * x) ** f, 0.5, 1
        )
        value = log_e_value(jnp.int32(won), jnp.int32(lost))
        assert value == pytest.approx(math.log(2 * mean), abs=2e-5)


def test_a_unanimous_stream_stops_mmc():
    """A public implementation updated its e-process only when the runner-up
    got a vote: a unanimous stream, the clearest case there is, was drawn to
    the cap. Every answer id and every delta must stop."""
    for delta in (0.2, 0.05, 0.001):
        n = stop(mmc(delta=delta), [0] * 40)
        assert n is not None and (2**n - 1) / n >= 1 / delta
        assert (2 ** (n - 1) - 1) / (n - 1) < 1 / delta


def test_mmc_seldom_certifies_a_wrong_leader():
    """Two equally likely answers: neither is the mode, so certifying either
    within 60 samples must be rarer than delta = 0.05 (Ville). Binomial test
    at level 1e-4 over 2,000 streams."""
    stream = np.random.default_rng(2).integers(0, 2, (2000, 60))
    stream = np.where(stream[:, :1] == stream, 0, 1)  # numbered as seen
    padded = np.full((2000, SLOTS), -1, np.int32)
    padded[:, :60] = stream
    zeros = jnp.zeros(padded.shape)
    policy = mmc(delta=0.05)

    @jax.jit
    def stopped(count):
        candidates = Candidates(
            jnp.array(padded),
            zeros,
            zeros.astype(jnp.int32),
            jnp.full(2000, count, jnp.int32),
        )
        grants_Q = policy.allocate(
            jax.random.key(0), candidates, jnp.int32(10**6)
        )
        return grants_Q == 0

    ever = np.zeros(2000, bool)
    for count in range(1, 61):
        ever |= np.asarray(stopped(jnp.int32(count)))
    assert ever.sum() <= stats.binom.ppf(1 - 1e-4, 2000, 0.05)
    assert ever.sum() > 0


def test_a_round_goes_evenly_to_the_queries_that_go_on():
    """Three queries, the second agreed: its share goes to the others, whose
    counts are levelled."""
    rows = [[0, 1], [0, 0, 0], [0]]
    answer_QN = np.full((3, SLOTS), -1, np.int32)
    for row, answers in zip(answer_QN, rows, strict=True):
        row[: len(answers)] = answers
    candidates = Candidates(
        jnp.array(answer_QN),
        jnp.zeros((3, SLOTS)),
        jnp.zeros((3, SLOTS), jnp.int32),
        jnp.array([2, 3, 1], jnp.int32),
    )
    grants_Q = jax.jit(lead_k().allocate)(
        jax.random.key(0), candidates, jnp.int32(5)
    )
    assert grants_Q.tolist() == [2, 0, 3]


def test_esc_draws_whole_windows():
    zeros = jnp.zeros((4, SLOTS))
    candidates = Candidates(
        zeros.astype(jnp.int32) - 1,
        zeros,
        zeros.astype(jnp.int32),
        jnp.zeros(4, jnp.int32),
    )
    grants_Q = jax.jit(esc().allocate)(
        jax.random.key(0), candidates, jnp.int32(10)
    )
    assert sorted(grants_Q.tolist()) == [0, 0, 5, 5]
