"""Models that need no file: random weights, one token a byte."""

from typing import Any

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from dynscaling_jax.checkpoints import Model
from dynscaling_jax.checkpoints.tokenizer import Tokenizer, from_json
from dynscaling_jax.models import ModelConfig, transformer

LETTERS = 256  # of the tokenizer; a vocabulary may be larger


def random_model(fields: dict[str, Any], dtype: str = "float32") -> Model:
    """A model of this shape whose samples never end by themselves."""
    config = ModelConfig(**fields)
    params = transformer.init_params(
        jax.random.key(0), config, jnp.dtype(dtype)
    )
    return Model(config, params, byte_tokenizer)


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return from_json(backend.to_str())
