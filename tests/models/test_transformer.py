"""The decoder against transformers, on tiny models that it saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.inference.grouped import prefill
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import FULL, SLIDING, ModelConfig
from dynscaling_jax.models.parameters import parameters, tree
from tests.decoding import read_token, state_of

CASES = (
    "llama_grouped",
    "llama_multi_query",
    "llama_full_heads_bf16",
    "llama_rope_llama3",
    "llama_rope_linear",
    "llama_biases",
    "llama_mlp_bias",
    "mistral_window",
    "mistral_no_window",
    "mistral_multi_query_sharded",
    "smollm3_without_rope",
    "qwen2_grouped",
    "qwen2_window_tied",
    "qwen3_grouped",
    "qwen3_multi_query_tied",
    "qwen2_yarn",
    "qwen3_yarn_not_whole",
    "qwen3_moe",
    "qwen3_moe_some_dense_tied",
    "gemma2_grouped",
    "gemma2_multi_query",
    "gemma3_grouped",
    "gemma3_scaled",
    "phi3_grouped",
    "phi3_partial_window_tied",
    "phi3_longrope",
    "phi3_longrope_long",
    "olmo2_grouped",
    "olmo2_multi_query_tied",
    "gpt_oss_grouped",
    "gpt_oss_multi_query_mxfp4",
)


LENGTH = 24  # tokens of the sequences in the goldens


def relative_error(got, expected) -> float:
    """Greatest difference, relative to the largest expected logit."""
    got, expected = np.asarray(got), np.asarray(expected)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def golden(goldens):
    return lambda name: np.load(goldens / name / "expected.npz")


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(goldens, golden, name):
    model = load_model(goldens / name, context=LENGTH)
    logits = model.logits(golden(name)["ids"])
    assert logits.dtype == jnp.float32
    assert relative_error(logits, golden(name)["logits"]) < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_steps_through_the_grouped_cache_equal_transformers(
    goldens, golden, name
):
    """Two groups of two slots."""
    model = load_model(goldens / name, context=LENGTH)
    params, config = model.params, model.config
    ids, expected = golden(name)["ids"], golden(name)["logits"]
    prompt, per = 5, 2
    prefixes = []
    for group, tokens in enumerate(ids):
        padded = np.zeros(128, np.int32)
        padded[:prompt] = tokens[:prompt]
        prefix = prefill.prefill(params, config, padded, np.int32(prompt))
        assert relative_error(prefix.logits, expected[group, prompt - 1]) < 1e-4
        prefixes.append(prefix)
    state = state_of(config, prefixes, per, ids.shape[1])
    read = jax.jit(read_token, static_argnums=1)
    for where in range(prompt, ids.shape[1]):
        logits, state = read(
            params, config, state, np.repeat(ids[:, where], per)
        )
        wanted = np.repeat(expected[:, where], per, 0)
        assert relative_error(logits, wanted) < 1e-4, where


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral_window", {"sliding_window": 0}),
        ("mistral_window", {"sliding_window": 4}),
        ("mistral_window", {"sliding_window": 6}),
        ("mistral_no_window", {"sliding_window": 5}),
        ("llama_rope_llama3", {"rope_scaling": None}),
        ("llama_rope_linear", {"rope_scaling": None}),
        ("llama_grouped", {"rope_theta": 9_000.0}),
        ("llama_grouped", {"rms_norm_eps": 1e-2}),
        ("smollm3_without_rope", {"no_rope_layers": ()}),
        ("qwen2_window_tied", {"layer_types": ()}),
        ("qwen2_window_tied", {"sliding_window": 0}),
        ("qwen2_yarn", {"rope_scaling": None}),
        ("qwen3_yarn_not_whole", {"rope_scaling": None}),
        ("qwen3_moe", {"num_experts_per_tok": 1}),
        ("qwen3_moe", {"norm_topk_prob": True}),
        ("gemma2_multi_query", {"attn_logit_softcapping": 0.0}),
        ("gemma2_multi_query", {"final_logit_softcapping": 0.0}),
        ("gemma2_multi_query", {"query_pre_attn_scalar": 0.0}),
        ("gemma2_multi_query", {"layer_types": (FULL, SLIDING)}),
        ("gemma3_grouped", {"norm_offset": 0.0}),
        ("gemma3_grouped", {"hidden_act": "silu"}),
        ("gemma3_grouped", {"embed_scale": 1.0}),
        ("gemma3_scaled", {"rope_local_base_freq": 0.0}),
        ("gemma3_scaled", {"rope_scaling": None}),
        ("phi3_partial_window_tied", {"partial_rotary_factor": 1.0}),
        ("phi3_longrope", {"rope_scaling": None}),
        ("gpt_oss_grouped", {"swiglu_limit": 7.0}),
        ("gpt_oss_grouped", {"swiglu_alpha": 1.0}),
        ("gpt_oss_grouped", {"sliding_window": 0}),
        ("gpt_oss_grouped", {"norm_topk_prob": False}),
        ("gpt_oss_multi_query_mxfp4", {"rope_scaling": None}),
    ],
)
def test_goldens_notice_a_wrong_config(goldens, golden, name, change):
    """A golden file that any decoder meets would prove nothing."""
    model = load_model(goldens / name, context=LENGTH)
    wrong = dataclasses.replace(model.config, **change)
    logits = jax.vmap(transformer.Decoder(wrong, model.params))(
        golden(name)["ids"]
    )
    assert relative_error(logits, golden(name)["logits"]) > 1e-3


def test_bfloat16_is_near_float32(goldens, golden):
    name = "llama_full_heads_bf16"
    model = load_model(goldens / name, dtype="bfloat16")
    assert model.params["embed"].dtype == jnp.bfloat16
    logits = model.logits(golden(name)["ids"])
    assert logits.dtype == jnp.float32
    expected = golden(name)["logits"]
    error = np.square(logits - expected).mean() / np.square(expected).mean()
    assert 0 < error**0.5 < 0.05


def test_later_tokens_do_not_change_earlier_logits(tiny):
    model = tiny()
    ids = np.arange(20, dtype=np.int32)
    changed = np.where(ids < 12, ids, 7)
    a, b = model.logits(np.stack([ids, changed]))
    np.testing.assert_array_equal(a[:12], b[:12])
    assert np.abs(a[12:] - b[12:]).max() > 1e-3


def test_a_window_forgets_what_lies_before_it(tiny):
    """Each layer sees 3 tokens, so two layers see 5."""
    model = tiny(family="mistral", sliding_window=3)
    ids = np.arange(20, dtype=np.int32)
    changed = np.where(ids == 4, 99, ids)
    a, b = model.logits(np.stack([ids, changed]))
    difference = np.abs(a - b).max(-1)
    assert (difference[:4] == 0).all() and (difference[9:] == 0).all()
    assert (difference[4:9] > 0).all()


def test_rows_of_a_batch_are_independent(tiny):
    model = tiny()
    ids = np.asarray(jax.random.randint(jax.random.key(0), (3, 16), 0, 261))
    whole = model.logits(ids)
    for row in range(3):
        alone = model.logits(ids[row : row + 1])[0]
        np.testing.assert_allclose(whole[row], alone, rtol=1e-5, atol=1e-5)


def test_random_parameters_have_the_shapes_of_the_config():
    config = ModelConfig("llama", 50, 16, 2, 4, 2, 4, 24, 64)
    params = transformer.init_params(jax.random.key(1), config)
    shapes = jax.tree.map(lambda w: w.shape, params)
    assert shapes == tree(config, lambda parameter: parameter.shape)
    assert float(params["head"].std()) == pytest.approx(0.02, rel=0.1)
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    assert ("head",) not in parameters(tied)
