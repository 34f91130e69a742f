"""Attention in parts: the merge is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.models import attention


def softmax_attention(q, k, v, mask):
    scores = np.where(mask, np.einsum("md,sd->ms", q, k), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.fixture(params=attention.ATTENTION)
def attend(request):
    """Every backend, for queries that are not scaled by LOG2_E."""
    function = attention.ATTENTION[request.param]
    return lambda q, *others: function(q * attention.LOG2_E, *others)


@pytest.fixture
def qkv():
    random = np.random.RandomState(0)
    shapes = (5, 8), (12, 8), (12, 4)
    return [random.standard_normal(s).astype("f") for s in shapes]


@pytest.mark.parametrize("cuts", [(), (7,), (1, 3), (4, 4, 11)])
def test_parts_merge_to_the_whole(qkv, attend, cuts):
    q, k, v = qkv
    mask = np.random.RandomState(1).random_sample((5, 12)) < 0.7
    mask[:, 5] = True
    bounds = [0, *cuts, 12]
    parts = [
        attend(q, k[a:b].T, v[a:b], mask[:, a:b])
        for a, b in zip(bounds, bounds[1:], strict=False)
        if a < b
    ]
    expected = softmax_attention(q, k, v, mask)
    np.testing.assert_allclose(
        attention.output(attention.merge(*parts)),
        expected,
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_part_without_visible_keys_adds_nothing(qkv, attend):
    q, k, v = qkv
    seen = attend(q, k.T, v, np.ones((5, 12), bool))
    hidden = attend(q, 9 * k.T, 9 * v, np.zeros((5, 12), bool))
    alone = attention.output(seen)
    for merged in (
        attention.merge(hidden, seen),
        attention.merge(seen, hidden, hidden),
    ):
        np.testing.assert_array_equal(attention.output(merged), alone)


def test_a_sink_is_a_key_without_a_value(qkv, attend):
    q, k, v = qkv
    sinks = np.array([0.5, -1.0, 2.0, 30.0, -30.0], "f")  # one a query here
    mask = np.ones((5, 12), bool)
    got = attention.output(attend(q, k.T, v, mask), sinks)
    weights = np.exp(np.einsum("md,sd->ms", q, k))
    total = weights.sum(-1, keepdims=True) + np.exp(sinks)[:, None]
    np.testing.assert_allclose(got, weights @ v / total, rtol=2e-5, atol=1e-6)


def test_great_scores_do_not_overflow(qkv, attend):
    q, k, v = qkv
    parts = [
        attend(q * 1e4, k[:6].T, v[:6], True),
        attend(q * 1e4, k[6:].T, v[6:], True),
    ]
    out = attention.output(attention.merge(*parts))
    winner = np.einsum("md,sd->ms", q, k).argmax(-1)
    np.testing.assert_allclose(out, v[winner], rtol=1e-5)


def test_a_window_of_three_by_hand():
    mask = attention.visible(jnp.array([0, 4]), jnp.arange(6), 3)
    assert mask.astype(int).tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]]
    whole = attention.visible(jnp.array([2]), jnp.arange(4), 0)
    assert whole.astype(int).tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("count", [5, 256, 300, 1100])
@pytest.mark.parametrize("window", [0, 3, 290])
def test_what_no_query_sees_can_be_left_out(count, window):
    random = np.random.RandomState(count)
    q, k, v = (
        random.standard_normal((2, m, 8)).astype("f")
        for m in (3 * count, count, count)  # three queries a token
    )
    positions = jnp.arange(7, 7 + count)
    got = attention.attend_causal(
        attention.reference, q, k.mT, v, positions, window
    )
    mask = attention.visible(jnp.repeat(positions, 3), positions, window)
    expected = attention.reference(q, k.mT, v, mask)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_scores_are_capped_as_natural_logarithms(qkv, attend):
    q, k, v = qkv
    scores = 3 * np.tanh(np.einsum("md,sd->ms", q, k) / 3)
    weights = np.exp(scores)
    got = attention.output(attend(q, k.T, v, np.ones((5, 12), bool), 3.0))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_backend_that_is_not_there_is_named(goldens):
    with pytest.raises(ValueError, match="'flash' is not in .*known: referen"):
        load_model(goldens / "llama_grouped", attention="flash")


def test_gradients_are_finite(qkv, attend):
    """Training differentiates through a mask of -1e30, not of -inf."""
    q, k, v = qkv
    mask = np.tri(5, 12, dtype=bool)

    def loss(q):
        return attention.output(attend(q, k.T, v, mask)).sum()

    assert np.isfinite(jax.grad(loss)(q)).all()
