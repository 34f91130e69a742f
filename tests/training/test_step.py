"""A step of training against one written out by hand in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.models import transformer
from dynscaling_jax.training import step as learning
from dynscaling_jax.training.batches import Batch
from dynscaling_jax.training.step import Hyper

HYPER = Hyper(steps=20, warmup=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(num_hidden_layers=1, scale=0.1)


def batch(rows=4, size=32, seed=0):
    random = np.random.RandomState(seed)
    length = random.randint(10, size, rows).astype(np.int32)
    tokens = random.randint(0, 256, (rows, size)).astype(np.int32)
    return Batch(tokens, np.full(rows, 4, np.int32), length)


def copied(state):
    return jax.tree.map(jnp.copy, state)


def test_only_what_the_assistant_writes_counts(model):
    one = batch()
    total, count = learning.evaluate(model.params, model.config, one)
    expected = 0.0
    for tokens, start, length in zip(*one, strict=True):
        logits = transformer.Decoder(model.config, model.params)(tokens)
        logits = np.asarray(logits, np.float64)
        for at in range(start, length):
            row = logits[at - 1]
            log_sum = np.log(np.exp(row - row.max()).sum()) + row.max()
            expected += log_sum - row[tokens[at]]
    assert count == (one.length - one.start).sum()
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_padding_and_prompt_do_not_matter_as_targets(model):
    """Other tokens behind the end change nothing."""
    one = batch()
    tokens = one.tokens.copy()
    for row, length in zip(tokens, one.length, strict=True):
        row[length:] = 7
    same = learning.evaluate(model.params, model.config, one)
    other = one._replace(tokens=tokens)
    assert learning.evaluate(model.params, model.config, other) == same


def test_parts_of_a_batch_add_up(model):
    states = [
        learning.step(
            copied(learning.init(model.params, HYPER)),
            model.config,
            HYPER,
            parts,
            batch(),
        )
        for parts in (1, 2, 4)
    ]
    for state, loss, norm in states[1:]:
        assert float(loss) == pytest.approx(float(states[0][1]), rel=1e-6)
        assert float(norm) == pytest.approx(float(states[0][2]), rel=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
            state.params,
            states[0][0].params,
        )


def test_gradients_are_clipped():
    """To a norm of 1: ten times as large, they move parameters no further,
    and by the same as a clipped gradient does."""
    params = {"w": jnp.ones((2, 2))}
    hyper = Hyper(10, warmup=0, weight_decay=0.0)
    tx = learning.optimizer(hyper)
    first = lambda size: jax.tree.leaves(
        tx.update({"w": jnp.full((2, 2), size)}, tx.init(params), params)[1]
    )
    for large, clipped in zip(first(5.0), first(0.5), strict=True):
        np.testing.assert_allclose(large, clipped, rtol=1e-6)
    small = jax.tree.leaves(first(0.05))
    assert any(
        not np.allclose(a, b) for a, b in zip(small, first(0.5), strict=True)
    )


def test_learns_a_batch_by_heart(model):
    state = copied(learning.init(model.params, HYPER))
    losses = []
    for _ in range(20):
        state, loss, _ = learning.step(state, model.config, HYPER, 1, batch())
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert int(state.step) == 20


def test_the_rate_warms_up_and_falls():
    params = {"w": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    hyper = Hyper(100, warmup=10, learning_rate=0.5, weight_decay=0.0)
    tx, grads = learning.optimizer(hyper), jax.tree.map(jnp.ones_like, params)
    opt, sizes = tx.init(params), []
    for _ in range(100):
        updates, opt = tx.update(grads, opt, params)
        sizes.append(float(learning.norm(updates)) / 6**0.5)
    assert sizes[0] == 0.0 and np.argmax(sizes) == 10
    assert sizes[10] == pytest.approx(0.5, rel=1e-3)
    assert sizes[-1] == pytest.approx(0.05, rel=0.05)


def test_norms_do_not_decay():
    params = {"w": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    hyper = Hyper(10, warmup=0, learning_rate=0.1, weight_decay=0.5)
    tx = learning.optimizer(hyper)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["norm"], 0.0)
