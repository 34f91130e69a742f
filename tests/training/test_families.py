"""Every family can be tuned: gradients reach each parameter and are finite."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.models.families import FAMILIES
from dynscaling_jax.training.batches import Batch
from dynscaling_jax.training.step import total_loss

GOLDENS = Path(__file__).parents[1] / "goldens"
BY_FAMILY = {
    json.loads((folder / "config.json").read_text())["model_type"]: folder.name
    for folder in sorted(GOLDENS.iterdir(), reverse=True)
    if (folder / "config.json").exists()
}


def test_no_family_is_missed():
    assert BY_FAMILY.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", sorted(BY_FAMILY))
def test_every_parameter_learns(family, goldens):
    model = load_model(goldens / BY_FAMILY[family])
    random = np.random.RandomState(0)
    tokens = random.randint(0, model.config.vocab_size, (8, 32))
    batch = Batch(
        tokens.astype(np.int32),
        np.full(8, 2, np.int32),
        np.full(8, 32, np.int32),
    )
    learn = jax.jit(jax.grad(total_loss), static_argnums=1)
    grads = learn(model.params, model.config, batch)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        size = np.abs(np.asarray(grad, np.float32))
        assert np.isfinite(size).all() and size.max() > 0, path
