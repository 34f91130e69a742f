"""Parameters of a new model."""

from typing import Any

import jax

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.transformer import DEVIATION, init_params

EMBED = 0.1  # deviation of embeddings
WRITES = ("o", "down")  # what adds to the residual stream


def fresh_params(key: jax.Array, config: ModelConfig, dtype: Any) -> Params:
    """Draws normal parameters whose products keep their size.

    Their deviation is fan_in^-1/2, and of what each layer adds to the residual
    stream less by the root of how often that is.

    With init_params' one DEVIATION for all, a small model took twice as many
    steps to the same loss (docs/training.md).
    """
    drawn = init_params(key, config)

    def sized(path: tuple, p: jax.Array) -> jax.Array:
        name = path[-1].key
        if p.ndim == 1:
            return p.astype(dtype)
        size = p.shape[-1] ** -0.5
        if name == "embed":
            size = EMBED
        elif name in WRITES:
            size /= (2 * config.num_hidden_layers) ** 0.5
        return (p * (size / DEVIATION)).astype(dtype)

    return jax.tree_util.tree_map_with_path(sized, drawn)
