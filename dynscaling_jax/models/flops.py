"""Floating-point operations of a decoder, by formula.

A multiplication and an addition count as two. Norms, rotations and softmax
are left out: below one per cent for every model in use.
"""

from dynscaling_jax.models.config import ModelConfig


def linear_flops(config: ModelConfig) -> float:
    """Of all projections of all layers, for one token."""
    q, kv = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    attention = config.hidden_size * (q + kv + kv) + q * config.hidden_size
    dense = 3 * config.hidden_size * config.intermediate_size
    chosen = config.num_experts_per_tok * config.moe_intermediate_size
    sparse = config.hidden_size * (config.num_experts + 3 * chosen)
    return 2.0 * sum(
        attention + (sparse if config.sparse(layer) else dense)
        for layer in range(config.num_hidden_layers)
    )


def head_flops(config: ModelConfig) -> float:
    """Of the projection to the vocabulary, for one token."""
    return 2.0 * config.hidden_size * config.vocab_size


def attention_flops(config: ModelConfig, first: int, last: int) -> float:
    """Counts scores and weighted values of queries at positions [first, last).

    Each sees itself and what its window shows before.
    """
    keys = sum(
        _visible(config.kind(layer).window or last, first, last)
        for layer in range(config.num_hidden_layers)
    )
    return 4.0 * config.num_attention_heads * config.head_dim * keys


def _visible(window: int, first: int, last: int) -> float:
    """Keys that the queries from first up to last see, in one layer."""
    full = min(max(window, first), last)  # from here on the window is full
    return (full - first) * (first + 1 + full) / 2 + (last - full) * window


def sample_flops(
    config: ModelConfig, prompt: int, cached: int, new: int
) -> float:
    """Of one sample: reads prompt - cached tokens, draws new ones.

    The last drawn token is never read; the head runs once a drawn token. A
    prompt that was cached whole leaves its logits behind too.
    """
    read = prompt - cached + max(new - 1, 0)
    heads = new - (1 if cached == prompt and new else 0)
    return (
        read * linear_flops(config)
        + heads * head_flops(config)
        + attention_flops(config, cached, prompt + max(new - 1, 0))
    )
