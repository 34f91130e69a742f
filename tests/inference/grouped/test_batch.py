"""On a CPU the number of slots follows the work; no bit may depend on it."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.inference import Engine, sampling
from dynscaling_jax.inference.grouped import runner
from dynscaling_jax.inference.grouped.layout import bucket, per_group
from dynscaling_jax.inference.grouped.prefill import Prefix
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.types import Message, Query, Request
from tests.decoding import read_token, state_of

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


@pytest.mark.parametrize("length", [100, 200, 300, 600])
@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_layer_rounds_by_the_slot(fields, length):
    """A sum over features, which XLA:CPU adds in an order that depends on
    the number of slots, made samples depend on what ran beside them; with
    full heads and one slot a group, a lone query was multiplied as a vector,
    which rounds otherwise than a matrix. Prompts of a narrow page, of a wide
    one, of both, and of three."""
    config = ModelConfig(
        "llama",
        vocab_size=999,
        num_hidden_layers=1,
        intermediate_size=136,
        max_position_embeddings=1024,
        **fields,
    )
    params = transformer.init_params(jax.random.key(0), config)
    random = np.random.RandomState(0)
    most, heads = WIDTHS[-1], config.num_key_value_heads
    tokens = random.randint(0, 999, (20, most)).astype("i4")
    size = -(-length // 256) * 256
    keys = random.standard_normal((heads, config.head_dim, size)).astype("f")
    values = random.standard_normal((heads, size, config.head_dim)).astype("f")
    prefix = Prefix(
        ((jnp.asarray(keys), jnp.asarray(values)),),
        jnp.int32(length),
        jnp.zeros(999),
    )
    read = jax.jit(read_token, static_argnums=1)
    outs = {}
    for width, per in [(w, p) for w in WIDTHS for p in (1, 4, 8)]:
        state = state_of(config, [prefix] * (width // per), per, 24)
        for given in tokens:
            logits, state = read(params, config, state, given[:width])
        outs[width, per] = np.asarray(logits)
    for (width, _), logits in outs.items():
        np.testing.assert_array_equal(logits, outs[most, 8][:width])


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
    take = runner.take

    def spy(slots, index, active):
        widths.append(len(index))
        return take(slots, index, active)

    monkeypatch.setattr(runner, "take", spy)
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
    run = runner.decode

    def spy(params, config, state, *more):
        pools = state.prefix[0]
        sizes.append(sum(v.shape[0] * v.shape[2] for _, v in pools))
        return run(params, config, state, *more)

    monkeypatch.setattr(runner, "decode", spy)
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
    ("length", "size"),
    [
        (1, 128),
        (129, 256),
        (257, 512),
        (513, 768),
        (769, 1024),
        (1025, 1536),
        (2049, 3072),
    ],
)
def test_prompts_are_padded_by_quarters_in_whole_blocks(length, size):
    assert bucket(length) == bucket(size) == size
