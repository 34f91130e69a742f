"""Weights in int8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.inference import Engine
from dynscaling_jax.models.quantization import quantize

FAMILIES = (
    "llama_grouped",
    "gemma3_grouped",
    "qwen3_moe_some_dense_tied",
    "gpt_oss_grouped",
)


def dequantized(params):
    return jax.tree.map(
        lambda leaf: (
            leaf.qvalue.astype(jnp.float32) * leaf.scale
            if isinstance(leaf, qwix.QArray)
            else leaf
        ),
        params,
        is_leaf=lambda leaf: isinstance(leaf, qwix.QArray),
    )


def test_one_scale_a_row_by_hand():
    weight = jnp.array([[255.0, -127.0, 1.1], [0.5, 0.25, -0.5]])
    small = quantize(weight)
    assert small.qvalue.dtype == jnp.int8
    # the greatest of a row is 127.5 steps, which are cut to 127
    assert small.scale.tolist() == [[2.0], [pytest.approx(0.5 / 127.5)]]
    assert small.qvalue.tolist() == [[127, -64, 1], [127, 64, -127]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoder_computes_what_the_small_weights_say(goldens, name):
    """Against the same decoder with those weights written out, so that the
    only difference is rounding of sums."""
    small = load_model(goldens / name, quantize="int8")
    ids = np.load(goldens / name / "expected.npz")["ids"]
    whole = load_model(goldens / name)
    whole.params = dequantized(small.params)
    expected = whole.logits(ids)
    np.testing.assert_allclose(
        small.logits(ids), expected, rtol=0, atol=1e-4 * abs(expected).max()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_near_the_whole_weights(goldens, name):
    """Real models are nearer than tiny random ones, whose tokens may change
    their experts."""
    golden = np.load(goldens / name / "expected.npz")
    got = load_model(goldens / name, quantize="int8").logits(golden["ids"])
    off = np.sqrt(np.square(got - golden["logits"]).mean())
    assert 0 < off < 0.1 * golden["logits"].std()


def test_norms_biases_and_routers_stay(goldens):
    model = load_model(goldens / "gpt_oss_grouped", quantize="int8")
    layer = model.params["layers"][0]
    kept = {k for k, v in layer.items() if not isinstance(v, qwix.QArray)}
    assert {*"qkvo", "gate", "up", "down"} == layer.keys() - kept
    assert all(layer[k].dtype == jnp.float32 for k in kept)


def test_bfloat16_activations(goldens):
    name = "llama_full_heads_bf16"
    model = load_model(goldens / name, "bfloat16", "int8")
    golden = np.load(goldens / name / "expected.npz")
    logits = model.logits(golden["ids"])
    error = np.square(logits - golden["logits"]).mean()
    assert 0 < error / np.square(golden["logits"]).mean() < 0.05**2


def test_the_engine_draws_with_it(tiny):
    model = tiny(num_hidden_layers=2)
    model.params = jax.tree.map(
        lambda leaf: quantize(leaf) if leaf.ndim > 1 else leaf, model.params
    )
    engine = Engine(model, slots=4, slots_per_group=2, max_new_tokens=8)
    (samples,) = engine.generate(["What is 2 + 2?"], n=4)
    assert [s.new_tokens for s in samples] == [8] * 4
    written = tiny(num_hidden_layers=2)
    written.params = dequantized(model.params)
    engine = Engine(written, slots=4, slots_per_group=2, max_new_tokens=8)
    assert [s.text for s in engine.generate(["What is 2 + 2?"], n=4)[0]] == [
        s.text for s in samples
    ]


def test_an_unknown_kind_is_refused(goldens):
    with pytest.raises(ValueError, match="quantize must be one of"):
        load_model(goldens / "llama_grouped", quantize="int3")
