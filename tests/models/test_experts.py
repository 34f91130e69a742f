"""The mixture of experts against the sum over all of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.models import experts, quantization, transformer
from dynscaling_jax.models.config import ModelConfig


def tables(experts_count, width, seed=0):
    random = np.random.RandomState(seed)
    return jnp.asarray(
        random.standard_normal((experts_count, width, width)), jnp.float32
    )


def mixed(x, weight, chosen, table):
    return experts.mix(
        x, weight, chosen, len(table), lambda rows, one: rows @ table[one]
    )


@pytest.mark.parametrize(
    ("tokens", "count", "per_token"),
    [(1, 1, 1), (1, 5, 2), (7, 3, 3), (40, 4, 1), (33, 64, 8), (64, 2, 2)],
)
def test_it_is_the_weighted_sum_over_the_chosen(tokens, count, per_token):
    random = np.random.RandomState(tokens)
    x = jnp.asarray(random.standard_normal((tokens, 6)), jnp.float32)
    logits = jnp.asarray(random.standard_normal((tokens, count)), jnp.float32)
    weight, chosen = experts.route(logits, per_token, False)
    table = tables(count, 6)
    dense = np.zeros((tokens, count), np.float32)
    np.put_along_axis(dense, np.asarray(chosen), np.asarray(weight), 1)
    expected = np.einsum("te,tw,ewv->tv", dense, x, table)
    np.testing.assert_allclose(
        mixed(x, weight, chosen, table), expected, rtol=1e-5, atol=1e-5
    )


def test_all_tokens_may_choose_one_expert():
    x = jnp.ones((50, 6))
    chosen = jnp.full((50, 1), 2, jnp.int32)
    table = tables(4, 6)
    got = mixed(x, jnp.ones((50, 1)), chosen, table)
    np.testing.assert_allclose(got, x @ table[2], rtol=1e-5, atol=1e-6)


def test_a_token_does_not_depend_on_the_others():
    random = np.random.RandomState(1)
    x = jnp.asarray(random.standard_normal((32, 16)), jnp.float32)
    logits = jnp.asarray(random.standard_normal((32, 8)), jnp.float32)
    weight, chosen = experts.route(logits, 2, True)
    table = tables(8, 16)
    whole = jax.jit(mixed)(x, weight, chosen, table)
    for rows in (slice(0, 8), slice(5, 6), slice(20, 32)):
        part = jax.jit(mixed)(x[rows], weight[rows], chosen[rows], table)
        np.testing.assert_array_equal(part, whole[rows])


def test_weights_by_hand():
    """Logits log(1, 2, 5): shares 1/8, 2/8, 5/8; the two largest, and
    renormalised 5/7 and 2/7."""
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))
    weight, chosen = experts.route(logits, 2, False)
    assert chosen.tolist() == [[2, 1]]
    np.testing.assert_allclose(weight, [[5 / 8, 2 / 8]], rtol=1e-6)
    weight, _ = experts.route(logits, 2, True)
    np.testing.assert_allclose(weight, [[5 / 7, 2 / 7]], rtol=1e-6)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize(
    ("tokens", "count", "per_token"), [(1, 5, 2), (40, 8, 3), (33, 4, 4)]
)
def test_the_forms_of_accelerators_give_the_same(
    tokens, count, per_token, quantised
):
    """gpt-oss's units, which have biases; some experts are elsewhere."""
    config = ModelConfig(
        "gpt_oss",
        **dict.fromkeys(
            ("vocab_size", "num_hidden_layers", "max_position_embeddings"), 64
        ),
        hidden_size=16,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=24,
        swiglu_limit=7.0,
        swiglu_alpha=1.702,
    )
    random = np.random.RandomState(tokens)

    def made(*shape):
        return jnp.asarray(random.standard_normal(shape) / 4, jnp.float32)

    held = {
        "gate": made(count, 24, 16),
        "up": made(count, 24, 16),
        "down": made(count, 16, 24),
    }
    if quantised:
        held = {name: quantization.quantize(w) for name, w in held.items()}
    held |= {
        "gate_bias": made(count, 24),
        "up_bias": made(count, 24),
        "down_bias": made(count, 16),
    }
    x = made(tokens, 16)
    weight, chosen = experts.route(made(tokens, count), per_token, True)
    apply = functools.partial(transformer.gated, config)
    expected = experts._mix_blocks(1, apply, x, weight, chosen, held)
    elsewhere = experts._mix_blocks(2, apply, x, weight, chosen - 1, held)
    for form in (experts.mix_all, experts.mix_sorted):
        jitted = jax.jit(functools.partial(form, apply=apply))
        for ids, wanted in ((chosen, expected), (chosen - 1, elsewhere)):
            found = jitted(x, weight, ids, held)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
