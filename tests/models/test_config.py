"""config.json to ModelConfig."""

import dataclasses
import json

import numpy as np
import pytest

from dynscaling_jax.models import config as configs
from dynscaling_jax.models import families, hf_config
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
        "llama", 48, 16, 2, 4, 4, 4, 24, 64, norm_eps=1e-6
    )


def test_mistral_has_a_window_and_grouped_heads_unless_told_otherwise():
    """transformers fills 4096 and 8 where a Mistral file is silent; to read
    such a file without a window gives other logits past 4096 tokens."""
    wide = {"hidden_size": 32, "num_attention_heads": 16}
    raw = {**HF, **wide, "model_type": "mistral"}
    config = hf_config.read(raw)
    assert (config.window, config.kv_heads) == (4096, 8)
    assert hf_config.read({**raw, "sliding_window": None}).window == 0
    assert hf_config.read({**raw, "sliding_window": 7}).window == 7


def test_llama_has_no_window():
    """transformers ignores the field in a Llama file, and so do we."""
    assert hf_config.read({**HF, "sliding_window": 7}).window == 0


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
    assert hf_config.read(raw).eos_ids == (2,)
    assert hf_config.read(raw, {}).eos_ids == (2,)
    assert hf_config.read(raw, {"eos_token_id": [2, 7]}).eos_ids == (2, 7)
    assert hf_config.read(raw).bos_id == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias=true"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads"),
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
        dataclasses.replace(BASE, family="mistral", window=5),
        dataclasses.replace(BASE, family="mistral", kv_heads=1),
        dataclasses.replace(BASE, tied=True, head_dim=6, eos_ids=()),
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
    assert with_context(plain, 20).context == 20
    scaling = RopeScaling(
        "factors", factors=(1.0,) * 4, long_factors=(2.0,) * 4, long_context=900
    )
    phi = dataclasses.replace(
        BASE, context=100, head_dim=8, rope_scaling=scaling
    )
    assert with_context(phi, 100).rope_scaling == scaling
    longer = with_context(phi, 101)
    assert longer.context == 101
    assert longer.rope_scaling.factors == scaling.long_factors
    for config, tokens, most in ((plain, 0, plain.context), (phi, 901, 900)):
        with pytest.raises(ValueError, match=f"2 and {most} tokens"):
            with_context(config, tokens)
