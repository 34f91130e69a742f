"""GGUF metadata to ModelConfig."""

import dataclasses

import numpy as np
import pytest

from dynscaling_jax.checkpoints import gguf_config
from dynscaling_jax.models import ModelConfig
from dynscaling_jax.models.config import RopeScaling, rope_frequencies

SHARED = {
    "vocab_size": 48,
    "embedding_length": 16,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "feed_forward_length": 24,
    "context_length": 64,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def metadata(arch: str, **changes) -> dict:
    """changes may have __ in place of dots; a None leaves a key out."""
    fields = {**SHARED, **{k.replace("__", "."): v for k, v in changes.items()}}
    own = {f"{arch}.{k}": v for k, v in fields.items() if v is not None}
    return {"general.architecture": arch, **own}


def test_what_all_architectures_share():
    raw = metadata("llama", rope__freq_base=5e5, attention__key_length=6)
    ids = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
    }
    assert gguf_config.read({**raw, **ids}) == ModelConfig(
        "llama",
        48,
        16,
        2,
        4,
        2,
        6,
        24,
        64,
        rope_theta=5e5,
        bos_token_id=1,
        eos_token_id=(2, 5),
    )


def test_the_vocabulary_may_be_that_of_the_tokens():
    raw = metadata("qwen2", vocab_size=None)
    tokens = {"tokenizer.ggml.tokens": ["a", "b", "c"]}
    assert gguf_config.read({**raw, **tokens}).vocab_size == 3


def test_llama_with_a_window_is_mistral():
    config = gguf_config.read(metadata("llama", attention__sliding_window=9))
    assert (config.family, config.sliding_window) == ("mistral", 9)


def test_part_of_a_head_may_be_rotated():
    """30 / 44 in floats, times 44, is less than 30."""
    raw = metadata("phi3", attention__key_length=44, rope__dimension_count=30)
    assert gguf_config.read(raw).rope_dim == 30


# What llama.cpp knows without being told


def test_every_fourth_layer_of_smollm3_does_not_rotate():
    config = gguf_config.read(metadata("smollm3", block_count=9))
    still = [at for at in range(9) if not config.kind(at).rope_theta]
    assert still == [3, 7]


def test_windows_of_gemma():
    """By default every second or sixth layer sees everything; a number or a
    list of the file says otherwise."""

    def full(arch, **changes):
        raw = metadata(
            arch, block_count=7, attention__sliding_window=5, **changes
        )
        config = gguf_config.read(raw)
        return [at for at in range(7) if not config.kind(at).window]

    assert full("gemma2") == [1, 3, 5]
    assert full("gemma3") == [5]
    pattern = {"attention__sliding_window_pattern": 3}
    assert full("gemma3", **pattern) == [2, 5]
    pattern = {"attention__sliding_window_pattern": [True] * 6 + [False]}
    assert full("gemma2", **pattern) == [6]
    pattern = {"attention__sliding_window_pattern": 0}
    assert full("gemma2", **pattern) == []


def test_gemma2_has_a_window_and_caps_by_default():
    config = gguf_config.read(metadata("gemma2"))
    assert (
        config.sliding_window,
        config.attn_logit_softcapping,
        config.final_logit_softcapping,
    ) == (
        4096,
        50.0,
        30.0,
    )
    raw = metadata(
        "gemma2",
        attention__sliding_window=7,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    )
    config = gguf_config.read(raw)
    assert (
        config.sliding_window,
        config.attn_logit_softcapping,
        config.final_logit_softcapping,
    ) == (7, 3, 5)


def test_gemma3_without_a_window_is_global():
    kind = gguf_config.read(metadata("gemma3", rope__freq_base=1e6)).kind(0)
    assert (kind.window, kind.rope_theta) == (0, 1e6)


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_queries_of_the_largest_gemma_are_scaled_otherwise(arch, layers):
    """By the width over the number of heads, not the width of a head."""
    wide = {"attention__key_length": 8}
    config = gguf_config.read(metadata(arch, block_count=layers, **wide))
    assert config.query_pre_attn_scalar == 4
    assert not gguf_config.read(metadata(arch, **wide)).query_pre_attn_scalar


def test_the_window_of_phi3_with_a_context_of_4096():
    """Files from before August 2024 are silent."""

    def window(**changes):
        return gguf_config.read(metadata("phi3", **changes)).sliding_window

    assert window(context_length=4096) == 2047
    assert window(context_length=4096, attention__sliding_window=0) == 0
    assert window(context_length=8192) == 0


def test_experts_of_qwen3():
    raw = metadata("qwen3moe", expert_count=6, expert_used_count=2)
    config = gguf_config.read(raw)
    assert (config.num_experts, config.num_experts_per_tok) == (6, 2)
    assert (config.moe_intermediate_size, config.norm_topk_prob) == (12, True)


# How frequencies are stretched


def scaling(arch="llama", factors=None, **changes) -> RopeScaling | None:
    raw = metadata(arch, **{f"rope__{k}": v for k, v in changes.items()})
    return gguf_config.read(raw, factors or {}).rope_scaling


def test_rope_scalings():
    assert scaling() is None
    assert scaling(scaling__type="none", scaling__factor=4.0) is None
    linear = RopeScaling("linear", 4.0)
    assert scaling(scaling__type="linear", scaling__factor=4.0) == linear
    assert scaling(scaling__factor=4.0) == linear
    assert scaling(scale_linear=4.0) == linear
    some = {"all": (1.0, 2.0)}
    assert scaling(factors=some).factors == (1.0, 2.0)
    assert scaling(factors=some, scaling__factor=2.0).factors == (2.0, 4.0)


def test_yarn_by_default_and_as_the_file_says():
    yarn = {"scaling__type": "yarn", "scaling__factor": 4.0}
    assert scaling(**yarn) == RopeScaling(
        "yarn",
        4.0,
        1.0,
        32.0,
        64,
        attention_factor=1 + 0.1 * np.log(4),
    )
    assert scaling(
        **yarn,
        scaling__original_context_length=16,
        scaling__yarn_beta_fast=5.0,
        scaling__yarn_beta_slow=2.0,
        scaling__yarn_attn_factor=1.3,
    ) == RopeScaling("yarn", 4.0, 2.0, 5.0, 16, attention_factor=1.3)


def test_yarn_of_gpt_oss_blends_within_features():
    """As its config.json says; no key of GGUF says it."""
    experts = {"expert_count": 4, "expert_used_count": 2}
    config = gguf_config.read(
        metadata(
            "gpt-oss",
            rope__scaling__type="yarn",
            rope__scaling__factor=32.0,
            attention__sliding_window=5,
            expert_feed_forward_length=24,
            **experts,
        )
    )
    assert config.rope_scaling and not config.rope_scaling.truncate
    assert (config.kind(0).window, config.kind(1).window) == (5, 0)
    assert (config.swiglu_limit, config.swiglu_alpha) == (7.0, 1.702)


def test_longrope_has_two_contexts():
    raw = metadata(
        "phi3",
        rope__scaling__type="longrope",
        rope__scaling__attn_factor=1.2,
        rope__scaling__original_context_length=16,
    )
    factors = {"short": (1.0, 1.5), "long": (2.0, 3.0)}
    config = gguf_config.read(raw, factors)
    assert config.max_position_embeddings == 16
    assert config.rope_scaling == RopeScaling(
        "factors",
        factors=(1.0, 1.5),
        attention_factor=1.2,
        long_factors=(2.0, 3.0),
        long_context=64,
    )
    np.testing.assert_allclose(
        rope_frequencies(dataclasses.replace(config, rope_theta=100.0)),
        [1.0, 0.1 / 1.5],
        rtol=1e-6,
    )


# What is refused


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("gemma", {}, "architecture 'gemma' is not supported; known: gemma2"),
        ("llama", {"block_count": None}, "llama.block_count is missing"),
        ("llama", {"vocab_size": None}, "vocab_size must be a positive"),
        ("llama", {"embedding_length": "16"}, "a metadata value is wrong"),
        ("llama", {"attention.head_count": 0}, "a metadata value is wrong"),
        ("llama", {"attention.head_count": [4, 4]}, "value is wrong"),
        ("llama", {"rope.scaling.type": "dynamic"}, "'dynamic' with factors"),
        ("phi3", {"rope.scaling.type": "longrope"}, "rope_factors_short"),
        ("qwen3moe", {}, "qwen3moe.expert_used_count is missing"),
        ("olmo2", {"attention.sliding_window": 4096}, "is OLMo 3"),
    ],
)
def test_metadata_that_cannot_be_obeyed(arch, changes, message):
    with pytest.raises(ValueError, match=message):
        gguf_config.read(metadata(arch, **changes))
