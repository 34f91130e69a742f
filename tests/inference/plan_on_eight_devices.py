"""What test_plan.py runs in a process of its own, with eight devices: what a
mesh holds, beside what was planned."""

import json

import jax
import jax.numpy as jnp

from dynscaling_jax.checkpoints import Model, export
from dynscaling_jax.inference import memory, mesh, plan
from dynscaling_jax.models import quantization, sharding
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import parameters
from dynscaling_jax.models.transformer import init_params

CONFIG = ModelConfig(
    "qwen2",
    vocab_size=1024,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    intermediate_size=256,
    max_position_embeddings=512,
    qkv_bias=True,
)
CHIP = plan.Chip(2.5e9, 1e9, 1e9)
NEW, PROMPT = 100, 128


def spread(text: str, int8: bool) -> Model:
    on = mesh.build(text)

    def place(path, leaf):
        parameter = parameters(CONFIG)[export.steps(path)]
        if int8 and parameter.quantised:
            leaf = quantization.quantize(leaf)
        return sharding.put(on, CONFIG, parameter, leaf)

    params = init_params(jax.random.key(0), CONFIG, jnp.bfloat16)
    params = jax.tree_util.tree_map_with_path(place, params)
    return Model(CONFIG, params, lambda: None)


def compared(text: str, int8: bool) -> dict:
    model = spread(text, int8)
    found = plan.plan(
        CONFIG,
        plan.Device(CHIP, 8, 8),
        int(text.partition("x")[2]),
        memory.Lengths(PROMPT, NEW),
        int8,
    )
    return {
        "bytes": (mesh.bytes_held(model.params), found.memory.weights),
    }


if __name__ == "__main__":
    cases = [(text, int8) for text in ("8x1", "2x4") for int8 in (False, True)]
    print(json.dumps([compared(*case) for case in cases]))
