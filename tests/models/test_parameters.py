"""The one table of parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.families import FAMILIES
from dynscaling_jax.models.parameters import parameters, tree
from dynscaling_jax.models.sharding import mesh_axes
from dynscaling_jax.models.transformer import Decoder, init_params

CONFIG = ModelConfig("llama", 50, 16, 2, 4, 2, 4, 24, 64)
ALL = dataclasses.replace(
    CONFIG,
    qkv_bias=True,
    o_bias=True,
    qk_norm="head",
    post_norm=True,
    sinks=True,
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=8,
    expert_bias=True,
    mlp_only_layers=(0,),
)


def test_rows_by_hand():
    found = parameters(ALL)
    assert found["layers", 1, "gate"][1:] == (
        (3, 8, 16),
        ("experts", "expert_mlp", "hidden"),
        "model.layers.1.mlp.gate_proj.weight",
        "blk.1.ffn_gate_exps.weight",
        True,
    )
    bias = found["layers", 1, "gate_bias"]
    assert bias.shape == (3, 8) and not bias.quantised
    assert bias.hf == "model.layers.1.mlp.gate_proj.bias"
    assert found["layers", 0, "gate"].shape == (24, 16)
    assert ("layers", 0, "router") not in found
    assert not found["layers", 1, "router"].quantised
    assert found["layers", 0, "sinks"].hf == "model.layers.0.self_attn.sinks"
    assert found["layers", 0, "sinks"].gguf == "blk.0.attn_sinks.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_in_files_are_unique(family):
    # Gemma alone has norms before and behind each part
    post = "ffn_norm" in FAMILIES[family].names
    config = dataclasses.replace(ALL, family=family, post_norm=post)
    found = parameters(config).values()
    for names in ({p.hf for p in found}, {p.gguf for p in found}):
        assert len(names) == len(found)


def test_a_tree_has_every_parameter_at_its_path():
    paths = tree(ALL, lambda parameter: parameter.path)
    assert paths["layers"][1]["router"] == ("layers", 1, "router")
    leaves = jax.tree.leaves(paths, is_leaf=lambda x: isinstance(x, tuple))
    assert {*leaves} == parameters(ALL).keys()


def test_heads_are_split_where_none_is_cut():
    whole = mesh_axes(CONFIG, 4)
    assert whole["q"] == whole["mlp"] == "model"
    assert whole["kv"] is whole["hidden"] is None  # two key heads for four


def test_the_module_has_the_axes_of_the_table():
    decoder = Decoder(ALL, init_params(jax.random.key(0), ALL))
    state = nnx.to_flat_state(nnx.state(decoder))
    found = {path: variable.out_sharding for path, variable in state}
    assert found == {path: p.axes for path, p in parameters(ALL).items()}
    with nnx.logical_axis_rules([*mesh_axes(ALL, 2).items()]):
        specs = nnx.get_partition_spec(nnx.state(decoder))
    assert specs["layers"][0]["o"].get_value() == jax.P(None, "model")


@jax.numpy_dtype_promotion("standard")  # as optax's Adam needs
def test_a_training_loop_of_ones_own():
    """The module, nnx and optax alone; the engine's tree comes back."""
    params = init_params(jax.random.key(0), ALL)
    decoder = Decoder(ALL, params)
    optimizer = nnx.Optimizer(decoder, optax.adam(1e-2), wrt=nnx.Param)
    tokens = jnp.array([3, 1, 4, 1, 5, 9, 2, 6])

    def loss(decoder):
        logits = decoder(tokens)[:-1]
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, tokens[1:]
        ).mean()

    @nnx.jit
    def step(decoder, optimizer):
        value, grads = nnx.value_and_grad(loss)(decoder)
        optimizer.update(decoder, grads)
        return value

    losses = [float(step(decoder, optimizer)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5
    trained = decoder.params()
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    np.testing.assert_array_equal(
        Decoder(ALL, trained)(tokens), decoder(tokens)
    )
