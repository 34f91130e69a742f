"""On a CPU the number of slots follows the work; no bit may depend on it."""

import os

import jax
import numpy as np
import pytest

from dynscaling_jax.inference import Engine, cache, decode, sampling
from dynscaling_jax.inference.layout import (
    per_group,
    power_bucket,
    quarter_bucket,
)
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.types import Message, Query, Request

WIDTHS = (8, 16, 32, 64)
SHAPES = {
    "narrow": {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    "one key head": {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "odd": {
        "hidden_size": 100,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 20,
    },
    "as smollm2": {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "soft caps": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "num_experts": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
}


@pytest.mark.parametrize(("length", "least"), [(100, 128), (300, 512)])
@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_layer_rounds_by_the_slot(fields, length, least):
    """A sum over features, which XLA:CPU adds in an order that depends on
    the number of slots, made samples depend on what ran beside them. Prompts
    of one block of keys and of two, with room for more."""
    config = ModelConfig(
        "llama",
        vocab_size=999,
        num_hidden_layers=1,
        intermediate_size=136,
        max_position_embeddings=512,
        **fields,
    )
    params = transformer.init_params(jax.random.key(0), config)
    head = jax.jit(
        lambda params, x: transformer.Decoder(config, params).logits(x)
    )
    random = np.random.RandomState(0)

    def normal(*shape):
        return random.standard_normal(shape).astype("f")

    most, kv, dim = WIDTHS[-1], config.num_key_value_heads, config.head_dim
    x = normal(most, config.hidden_size)
    k, v = normal(most, kv, 32, dim), normal(most, kv, 32, dim)
    prompt = normal(2, 1, kv, least, dim)
    count = np.arange(most, dtype=np.int32) % 30 + 1
    outs = {}
    layouts = [(w, p, least) for w in WIDTHS for p in (1, 4, 8)]
    for width, per, size in [*layouts, (8, 1, 768), (16, 1, 1024)]:
        groups = width // per
        longer = np.zeros((2, 1, kv, size - least, dim), "f")
        padded = np.concatenate((prompt, longer), 3)
        key, value = (np.repeat(p, groups, 0) for p in padded)
        hidden, _ = decode._layer(
            params["layers"][0],
            config,
            config.kind(0),
            x[:width],
            np.full(groups, length, np.int32),
            count[:width],
            cache.to_blocks((key.swapaxes(2, 3), value)),
            cache.to_blocks((k[:width].swapaxes(2, 3), v[:width])),
        )
        logits = head(params, hidden)
        outs[width, per, size] = np.asarray(logits)
    for (width, *_), logits in outs.items():
        np.testing.assert_array_equal(logits[:8], outs[8, 1, least])
        np.testing.assert_array_equal(logits, outs[most, 8, least][:width])


@pytest.mark.parametrize("vocabulary", [261, 5_000])
def test_a_token_rounds_by_the_slot(vocabulary):
    logits = 3 * jax.random.normal(jax.random.key(0), (64, vocabulary))
    keys = jax.random.split(jax.random.key(1), 64)
    choose = jax.jit(jax.vmap(sampling.choose, (0, 0, None)))
    settings = sampling.settings(0.7)
    together = choose(keys, logits, settings)
    for width in WIDTHS:
        part = choose(keys[:width], logits[:width], settings)
        jax.tree.map(
            lambda a, b, n=width: np.testing.assert_array_equal(a, b[:n]),
            part,
            together,
        )


def test_slots_become_fewer_and_samples_stay(tiny, monkeypatch):
    """40 samples in 64 slots, then in 32, 16 and 8 as they end; and each
    query alone, in 8 slots, and all with one number of slots throughout."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one worker
    model = tiny(num_hidden_layers=1, eos_token_id=(258, *range(12)))
    queries = [Query(str(i), (Message("user", "x" * i),)) for i in range(8)]
    work = [Request(q, q.messages, i) for q in queries for i in range(5)]
    settings = {"slots": 64, "slots_per_group": 8, "max_new_tokens": 112}
    widths = []
    take = decode.take

    def spy(slots, index, active):
        widths.append(len(index))
        return take(slots, index, active)

    monkeypatch.setattr(decode, "take", spy)
    engine = Engine(model, **settings)
    assert engine.slot_counts == (8, 16, 32, 64)
    found = {(s.query_id, s.index): s for s in engine.sample(work)}
    assert len(found) == 40 and widths and widths[-1] == 8
    for q in queries:
        own = [r for r in work if r.query == q]
        for sample in Engine(model, **settings).sample(own):
            assert sample == found[q.id, sample.index]
    widths.clear()
    fixed = Engine(model, **settings)
    fixed.slot_counts = (64,)
    for sample in fixed.sample(work):
        assert sample == found[sample.query_id, sample.index]
    assert not widths and engine.slot_steps < 0.7 * fixed.slot_steps


def test_short_prompts_fill_the_slots_of_long_ones(tiny, monkeypatch):
    """Prompts of three lengths were generated apart, each to its last sample,
    and slots idled at three ends in place of one."""
    model = tiny(
        num_hidden_layers=1,
        max_position_embeddings=2048,
        eos_token_id=(258, *range(12)),
    )
    lengths = (1100, 300, *(10 + i for i in range(20)))
    queries = [Query(str(n), (Message("user", "x" * n),)) for n in lengths]
    work = [Request(q, q.messages, 0) for q in queries]
    settings = {"slots": 16, "slots_per_group": 8, "max_new_tokens": 60}
    sizes = []  # positions that pages of prompts hold
    run = decode.decode

    def spy(params, config, state, *more):
        pools = state.prefix[0]
        sizes.append(sum(v.shape[0] * v.shape[2] for _, v in pools))
        return run(params, config, state, *more)

    monkeypatch.setattr(decode, "decode", spy)
    engine = Engine(model, **settings)
    found = {s.query_id: s for s in engine.sample(work[::-1])}
    assert found.keys() == {q.id for q in queries}
    # 14 prompts of a narrow page beside the long ones, and at last a few
    assert sizes[0] == 16 * 128 + 8 * 256 and sizes[-1] <= 8 * 128
    monkeypatch.undo()
    for request in work:
        (sample,) = Engine(model, **settings).sample([request])
        assert sample == found[request.query.id]


@pytest.mark.parametrize(
    ("counts", "per"),
    [
        ([4] * 32, 4),
        ([16] * 3, 8),
        ([1, 1, 1], 1),
        ([12, 12], 4),
        ([63, 1], 8),
        ([3], 1),
        ([15], 8),
    ],
)
def test_groups_are_as_large_as_leaves_few_slots_empty(counts, per):
    assert per_group(counts, 8) == per


@pytest.mark.parametrize(
    ("length", "size", "power"),
    [
        (1, 128, 128),
        (129, 256, 256),
        (257, 512, 512),
        (513, 768, 1024),
        (769, 1024, 1024),
        (1025, 1536, 2048),
        (2049, 3072, 4096),
    ],
)
def test_prompts_are_padded_by_quarters_in_whole_blocks(length, size, power):
    assert quarter_bucket(length) == quarter_bucket(size) == size
    assert power_bucket(length) == power
