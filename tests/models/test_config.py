"""config.json to ModelConfig."""

import dataclasses
import json

import numpy as np
import pytest

from dynscaling_jax.checkpoints import hf_config
from dynscaling_jax.models import config as configs
from dynscaling_jax.models import families
from dynscaling_jax.models.config import (
    ModelConfig,
    RopeScaling,
    with_context,
)

HF = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def test_defaults_are_those_of_transformers():
    config = hf_config.read(HF)
    assert config == ModelConfig(
        "llama", 48, 16, 2, 4, 4, 4, 24, 64, rms_norm_eps=1e-6
    )


def test_a_norm_that_is_none_is_refused():
    """Any other word was taken for whole."""
    config = hf_config.read(HF)
    with pytest.raises(ValueError, match=r"qk_norm must be .* got 'heads'"):
        dataclasses.replace(config, qk_norm="heads")


def test_mistral_has_a_window_and_grouped_heads_unless_told_otherwise():
    """transformers fills 4096 and 8 where a Mistral file is silent; to read
    such a file without a window gives other logits past 4096 tokens."""
    wide = {"hidden_size": 32, "num_attention_heads": 16}
    raw = {**HF, **wide, "model_type": "mistral"}
    config = hf_config.read(raw)
    assert (config.sliding_window, config.num_key_value_heads) == (4096, 8)
    assert hf_config.read({**raw, "sliding_window": None}).sliding_window == 0
    assert hf_config.read({**raw, "sliding_window": 7}).sliding_window == 7


def test_llama_has_no_window():
    """transformers ignores the field in a Llama file, and so do we."""
    assert hf_config.read({**HF, "sliding_window": 7}).sliding_window == 0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
        {
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 5e5,
                "factor": 4.0,
            }
        },
    ],
)
def test_rope_is_read_in_both_layouts(rope):
    """transformers 4 wrote rope_scaling, 5 writes rope_parameters."""
    config = hf_config.read({**HF, **rope})
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("linear", 4.0)


def test_stop_ids_come_from_the_generation_config_where_it_has_them():
    raw = {**HF, "eos_token_id": 2, "bos_token_id": 1}
    assert hf_config.read(raw).eos_token_id == (2,)
    assert hf_config.read(raw, {}).eos_token_id == (2,)
    assert hf_config.read(raw, {"eos_token_id": [2, 7]}).eos_token_id == (2, 7)
    assert hf_config.read(raw).bos_token_id == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": []}, r"model_type \[\] is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"vocab_size": 0}, "vocab_size must be a positive"),
        ({"vocab_size": "48"}, "vocab_size must be a positive"),
        ({"num_hidden_layers": 1.5}, "layers must be a positive"),
        ({"num_attention_heads": 0}, "a field is wrong"),
        ({"hidden_size": None}, "a field is wrong"),
        ({"rms_norm_eps": None}, "a field is wrong"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": ["linear"]}, "a field is wrong"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        hf_config.read({**HF, **change})


NAN = float("nan")  # which json reads


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "llama",
            {"rms_norm_eps": NAN},
            "rms_norm_eps must be finite .*got nan",
        ),
        (
            "llama",
            {"rms_norm_eps": -1},
            "rms_norm_eps must be finite and not neg",
        ),
        ("llama", {"rope_theta": -5.0}, "rope_theta must be positive"),
        ("llama", {"partial_rotary_factor": 2}, "must be even, .* a part"),
        # a token's text, whose first letter was told as if it were an id
        ("llama", {"eos_token_id": "</s>"}, "id of a token, .*got '</s>'"),
        ("llama", {"eos_token_id": [2, "x"]}, "list of ids, got .*'x'"),
        (
            "llama",
            {"vocab_size": 10**99},
            r"vocab_size must be .*below 2\*\*31",
        ),
        ("llama", {"rms_norm_eps": 10**400}, "a field is wrong .*too large"),
        ("llama", {"eos_token_id": -1}, "ends turns must be .*got -1"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 0}},
            "each factor must be positive",
        ),
        ("mistral", {"sliding_window": "5"}, "window must be a whole .*'5'"),
        (
            "gemma2",
            {"query_pre_attn_scalar": NAN},
            "query_pre_attn_scalar must be",
        ),
        ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar must"),
        (
            "gemma2",
            {"final_logit_softcapping": "5"},
            "final_logit_softcapping must be",
        ),
        ("gemma2", {"layer_types": ["full_attention"]}, "2 times one of"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 2}, "'chunked_"),
        ("smollm3", {"no_rope_layers": [1]}, "must have 2 entries, got 1"),
        ("qwen3_moe", {"num_experts": 10**9}, "experts must be at most 1000"),
        ("qwen3_moe", {"num_experts": 2.0}, "experts must be a whole .*2.0"),
        ("gpt_oss", {"swiglu_limit": NAN}, "swiglu_limit must be"),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "linear", "factor": 8},
                }
            },
            "sliding_attention must not be scaled, got 'linear'",
        ),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 32,
                    "short_factor": [NAN, 1],
                    "long_factor": [1, 1],
                }
            },
            "each factor must be positive and finite, got nan",
        ),
    ],
)
def test_wrong_values_of_a_family_are_refused(family, change, message):
    """Each gave NaN, another model without a word, or an error of XLA's; a
    billion experts, a billion names."""
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
    raw = {**HF, **experts, "model_type": family, "num_experts": 4}
    with pytest.raises(ValueError, match=message):
        hf_config.read({**raw, **change})


def test_windows_are_those_of_transformers():
    """Its Qwen3-MoE has windows in all layers or none; its SmolLM3 heeds
    layer_types whatever use_sliding_window says."""
    moe = {"num_experts": 4, "num_experts_per_tok": 2}
    window = {"use_sliding_window": True, "sliding_window": 3}
    raw = {**HF, **moe, "moe_intermediate_size": 8, **window}
    config = hf_config.read({**raw, "model_type": "qwen3_moe"})
    assert [config.kind(i).window for i in range(2)] == [3, 3]
    kinds = ["sliding_attention", "full_attention"]
    raw = {**HF, **window, "use_sliding_window": False, "layer_types": kinds}
    config = hf_config.read({**raw, "model_type": "smollm3"})
    assert [config.kind(i).window for i in range(2)] == [3, 0]


@pytest.mark.parametrize("field", [k for k in HF if k != "model_type"])
def test_a_missing_field_is_named(field):
    raw = {k: v for k, v in HF.items() if k != field}
    with pytest.raises(ValueError, match=f"field '{field}' is missing"):
        hf_config.read(raw)


BASE = hf_config.read({**HF, "eos_token_id": [2, 3], "bos_token_id": 1})


def test_every_golden_config_is_written_back(goldens):
    """But for longrope, whose factors config.json holds another way."""
    seen = set()
    for file in sorted(goldens.glob("*/config.json")):
        raw = json.loads(file.read_text())
        config = hf_config.read(raw)
        if config.rope_scaling and config.rope_scaling.factors:
            continue
        assert hf_config.read(hf_config.write(config)) == config, file
        seen.add(config.family)
    assert seen == set(families.FAMILIES)


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        dataclasses.replace(BASE, family="mistral", sliding_window=5),
        dataclasses.replace(BASE, family="mistral", num_key_value_heads=1),
        dataclasses.replace(
            BASE, tie_word_embeddings=True, head_dim=6, eos_token_id=()
        ),
        dataclasses.replace(BASE, rope_scaling=RopeScaling("linear", 2.0)),
        dataclasses.replace(
            BASE, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
        ),
    ],
)
def test_to_hf_is_read_back(config):
    assert hf_config.read(hf_config.write(config)) == config


def test_rope_factors_cannot_be_written_to_config_json():
    scaling = RopeScaling("factors", factors=(1.0, 2.0))
    config = dataclasses.replace(BASE, rope_scaling=scaling)
    with pytest.raises(ValueError, match="cannot hold the rope factors"):
        hf_config.write(config)
    with pytest.raises(ValueError, match="2 rope factors expected, got 1"):
        dataclasses.replace(
            BASE, rope_scaling=RopeScaling("factors", factors=(1.0,))
        )


def test_frequencies_by_hand():
    """head_dim 4, theta 100: angles of 1 and 1/10 radian a position."""
    config = dataclasses.replace(BASE, rope_theta=100.0)
    frequencies = configs.rope_frequencies
    np.testing.assert_allclose(frequencies(config), [1.0, 0.1], rtol=1e-6)

    def scaled(scaling):
        return frequencies(dataclasses.replace(config, rope_scaling=scaling))

    np.testing.assert_allclose(
        scaled(RopeScaling("linear", 4.0)), [0.25, 0.025], rtol=1e-6
    )
    np.testing.assert_allclose(
        scaled(RopeScaling("factors", factors=(1.0, 8.0))),
        [1.0, 0.0125],
        rtol=1e-6,
    )
    # In a context of 100 they turn 15.9 and 1.59 times. With bounds 1 and 4
    # the first stays; of the second (1.59 - 1) / 3 stays, the rest is / 8.
    keep = (100 * 0.1 / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(
        scaled(RopeScaling("llama3", 8.0, 1.0, 4.0, 100)),
        [1.0, 0.1 * (keep + (1 - keep) / 8)],
        rtol=1e-5,
    )


def test_a_context_of_ones_own():
    plain = BASE
    assert with_context(plain, 20).max_position_embeddings == 20
    scaling = RopeScaling(
        "factors", factors=(1.0,) * 4, long_factors=(2.0,) * 4, long_context=900
    )
    phi = dataclasses.replace(
        BASE, max_position_embeddings=100, head_dim=8, rope_scaling=scaling
    )
    assert with_context(phi, 100).rope_scaling == scaling
    longer = with_context(phi, 101)
    assert longer.max_position_embeddings == 101
    assert longer.rope_scaling.factors == scaling.long_factors
    for config, tokens, most in (
        (plain, 0, plain.max_position_embeddings),
        (plain, "8", plain.max_position_embeddings),
        (phi, 901, 900),
    ):
        with pytest.raises(ValueError, match=f"2 and {most} tokens"):
            with_context(config, tokens)
