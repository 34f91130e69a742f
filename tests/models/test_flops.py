"""The written formula against XLA's own count."""

import jax
import numpy as np
import pytest

from dynscaling_jax.inference.grouped import prefill
from dynscaling_jax.models import flops, transformer
from dynscaling_jax.models.config import ModelConfig
from tests.decoding import read_token, state_of

# wide enough that what the formula leaves out (norms, rotations, softmax,
# sampling) weighs as little as in a real model
FIELDS = {
    "vocab_size": 2_000,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 768,
    "max_position_embeddings": 1_024,
}
CONFIGS = {
    "llama": ModelConfig("llama", **FIELDS),
    "mistral": ModelConfig("mistral", **FIELDS, sliding_window=64),
}
ROWS, PER, PROMPT, NEW = 16, 4, 256, 32


def xla_flops(jitted, *args) -> float:
    return jitted.lower(*args).compile().cost_analysis()["flops"]


def masked(config: ModelConfig, queries: int, keys: int) -> float:
    """Of attention as XLA runs it: every key is multiplied, and what the
    mask hides is thrown away."""
    per_pair = flops.attention_flops(config, 0, 1)
    return per_pair * queries * keys


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def params(config):
    return transformer.init_params(jax.random.key(0), config)


def test_prefill(config, params):
    ids = np.zeros(PROMPT, np.int32)
    counted = xla_flops(
        jax.jit(prefill.prefill, static_argnums=1),
        params,
        config,
        ids,
        np.int32(PROMPT),
    )
    formula = (
        PROMPT * flops.linear_flops(config)
        + flops.head_flops(config)
        + masked(config, PROMPT, PROMPT)
    )
    assert counted == pytest.approx(formula, rel=0.05)


def test_decode_step(config, params):
    """Four prompts of a page each: none of those in the pool is empty."""
    ids = np.zeros(PROMPT, np.int32)
    prefix = prefill.prefill(params, config, ids, np.int32(PROMPT))
    state = state_of(config, [prefix] * (ROWS // PER), PER, NEW)
    counted = xla_flops(
        jax.jit(read_token, static_argnums=1),
        params,
        config,
        state,
        np.zeros(ROWS, np.int32),
    )
    keys = PROMPT + NEW
    formula = (
        ROWS * (flops.linear_flops(config) + flops.head_flops(config))
    ) + masked(config, ROWS, keys)
    assert counted == pytest.approx(formula, rel=0.05)


def test_a_sample_is_the_sum_of_its_tokens():
    """By hand: 3 prompt tokens, 2 new; the second new one is never read."""
    config = CONFIGS["llama"]
    linear, head = flops.linear_flops(config), flops.head_flops(config)
    pair = flops.attention_flops(config, 0, 1)
    assert linear == 2 * 2 * 256 * (256 + 64 + 64 + 256 + 3 * 768)
    assert head == 2 * 256 * 2_000
    assert pair == 4 * 2 * 8 * 32
    seen = 1 + 2 + 3 + 4
    assert flops.sample_flops(config, 3, 0, 2) == pytest.approx(
        4 * linear + 2 * head + seen * pair
    )
    # two of three prompt tokens were read before
    assert flops.sample_flops(config, 3, 2, 2) == pytest.approx(
        2 * linear + 2 * head + (3 + 4) * pair
    )
    # the whole prompt was: its logits are there too
    assert flops.sample_flops(config, 3, 3, 2) == pytest.approx(
        linear + head + 4 * pair
    )


@pytest.mark.parametrize("window", [0, 1, 3, 5, 100])
@pytest.mark.parametrize(("first", "last"), [(0, 9), (2, 4), (4, 9), (3, 3)])
def test_visible_keys_are_counted(window, first, last):
    fields = {
        **FIELDS,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 2,
    }
    config = ModelConfig("mistral", **fields, sliding_window=window)
    pairs = sum(min(p + 1, window or p + 1) for p in range(first, last))
    counted = flops.attention_flops(config, first, last)
    assert counted == 4 * 2 * 2 * pairs
