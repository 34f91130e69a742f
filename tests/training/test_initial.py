"""Parameters of a new model."""

import jax
import numpy as np
import pytest

from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.training.initial import fresh_params


@pytest.fixture(scope="module")
def config():
    return ModelConfig(
        "llama", 64, 128, 4, 4, 2, 32, 256, 64, tie_word_embeddings=True
    )


def test_products_keep_their_size(config):
    params = fresh_params(jax.random.key(0), config, "float32")
    layer = params["layers"][1]
    size = lambda name: float(layer[name].std()) * layer[name].shape[1] ** 0.5
    for name in ("q", "k", "v", "gate", "up"):
        assert size(name) == pytest.approx(1, rel=0.05)
    for name in ("o", "down"):
        assert size(name) == pytest.approx(8**-0.5, rel=0.05)
    assert (layer["attn_norm"] == 1).all()
    assert float(params["embed"].std()) == pytest.approx(0.1, rel=0.05)


def test_the_first_guess_is_nearly_even(config):
    params = fresh_params(jax.random.key(1), config, "float32")
    tokens = np.arange(32, dtype=np.int32)
    logits = transformer.Decoder(config, params)(tokens)
    log_p = jax.nn.log_softmax(logits)
    assert -float(log_p[:, 0].mean()) < np.log(64) + 2


def test_parameters_have_the_type_asked_for(config):
    params = fresh_params(jax.random.key(0), config, "bfloat16")
    assert {str(p.dtype) for p in jax.tree.leaves(params)} == {"bfloat16"}
