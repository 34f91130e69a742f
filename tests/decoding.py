"""A decode step with a given token in place of a sampled one."""

import jax

from dynscaling_jax.inference import decode
from dynscaling_jax.inference.cache import State
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params


def read_token(
    params: Params, config: ModelConfig, state: State, token: jax.Array
) -> tuple[jax.Array, State]:
    """Logits float32 [GR, V] after a token int32 [GR] of each slot, and the
    state with one more token a slot; the old one is donated."""
    x, suffix = decode._run_layers(params, config, state, token)
    slots = state.slots._replace(count=state.slots.count + 1)
    state = state._replace(suffix=suffix, slots=slots)
    return transformer.Decoder(config, params).logits(x), state
