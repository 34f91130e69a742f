"""Every family can be tuned: gradients reach each parameter and are finite."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dynscaling_jax.models import load_model
from dynscaling_jax.training import step as learning
from dynscaling_jax.training.batches import Batch
from dynscaling_jax.training.step import Hyper

GOLDENS = Path(__file__).parents[1] / "goldens"
BY_FAMILY = {
    json.loads((folder / "config.json").read_text())["model_type"]: folder.name
    for folder in sorted(GOLDENS.iterdir(), reverse=True)
    if (folder / "config.json").exists()
}
HYPER = Hyper(steps=4, warmup=1, learning_rate=1e-3)
UNUSED = ("k_bias",)  # one number for all keys of a query changes nothing


@pytest.mark.parametrize("family", sorted(BY_FAMILY))
def test_every_parameter_learns(family, goldens):
    model = load_model(goldens / BY_FAMILY[family])
    random = np.random.RandomState(0)
    tokens = random.randint(0, model.config.vocab_size, (4, 32))
    batch = Batch(
        tokens.astype(np.int32),
        np.full(4, 2, np.int32),
        np.full(4, 32, np.int32),
    )
    total = jax.jit(learning.total_loss, static_argnums=1)
    grads = jax.jit(jax.grad(learning.total_loss), static_argnums=1)(
        model.params, model.config, batch
    )
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(np.asarray(grad, np.float32)).all(), name
        if path[-1] not in UNUSED:
            assert np.abs(np.asarray(grad, np.float32)).max() > 0, name
    before = total(model.params, model.config, batch)
    step = lambda p, g: (p - 1e-4 / learning.norm(grads) * g).astype(p.dtype)
    after = total(
        jax.tree.map(step, model.params, grads), model.config, batch
    )
    assert np.isfinite(float(before)) and np.isfinite(float(after))
