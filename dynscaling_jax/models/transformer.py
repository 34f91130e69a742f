"""The decoder: tokens and a cache to hidden states and a cache.

Pure functions over a tree of arrays. Projections keep the [out, in] layout
of the files, which XLA:CPU multiplies twice as fast as its transpose, and so
need no copy on loading. Where keys and values live is the caller's affair:
each layer hands its new ones to an `attend` function and gets back what its
queries saw, so that a plain sequence, a prefill and a grouped decode step
are the same decoder.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.models import attention
from dynscaling_jax.models.config import ModelConfig, rope_frequencies

Params = dict[str, Any]
Cache = Any  # what one layer keeps
Attend = Callable[
    [Cache, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Cache]
]
"""(cache, q [T, H, D], k [T, K, D], v [T, K, D]) -> ([T, H, D], cache);
q is rotated and scaled, k rotated."""


def param_shapes(config: ModelConfig) -> Params:
    """The tree of parameters, as shapes."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = {
        "attn_norm": (config.width,),
        "q": (q, config.width),
        "k": (kv, config.width),
        "v": (kv, config.width),
        "o": (config.width, q),
        "ffn_norm": (config.width,),
        "gate": (config.ffn, config.width),
        "up": (config.ffn, config.width),
        "down": (config.width, config.ffn),
    }
    shapes: Params = {
        "embed": (config.vocab_size, config.width),
        "layers": [dict(layer) for _ in range(config.layers)],
        "norm": (config.width,),
    }
    if not config.tied:
        shapes["head"] = (config.vocab_size, config.width)
    return shapes


def init_params(
    key: jax.Array, config: ModelConfig, dtype: Any = jnp.float32
) -> Params:
    """Random parameters: normal with deviation 0.02, norms at one."""
    shapes = param_shapes(config)
    leaves, tree = jax.tree.flatten(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            jnp.ones(s, dtype)
            if len(s) == 1
            else 0.02 * jax.random.normal(k, s, dtype)
            for k, s in zip(keys, leaves, strict=True)
        ],
    )


def linear(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[..., in] x [out, in] -> [..., out]."""
    return jax.lax.dot_general(
        x, weight, (((x.ndim - 1,), (1,)), ((), ())), None, x.dtype
    )


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm of [T, width] in float32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight[None]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary embedding of [T, heads, D] by angles [T, D/2]; halves pair."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(
        x.dtype
    )


def hidden_states(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend,
    caches: list[Cache],
) -> tuple[jax.Array, list[Cache]]:
    """Runs the layers over tokens int32 [T] at positions int32 [T].

    Returns the normalised hidden states [T, width] and one cache a layer.
    T may be the tokens of one sequence or one token each of many rows: only
    `attend` knows the difference.
    """
    x = params["embed"][tokens]
    kept = []
    for layer, cache in zip(params["layers"], caches, strict=True):
        x, cache = block(layer, config, x, positions, attend, cache)
        kept.append(cache)
    return rms_norm(x, params["norm"], config.norm_eps), kept


def head(params: Params, hidden: jax.Array) -> jax.Array:
    """Logits, float32 [..., V]."""
    weight = params.get("head", params["embed"])
    return linear(hidden, weight).astype(jnp.float32)


def block(
    layer: Params,
    config: ModelConfig,
    x: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """One layer over the residual stream x [T, width]."""
    count, dim = x.shape[0], config.head_dim
    freqs = jnp.asarray(rope_frequencies(config))
    angles = jnp.outer(positions.astype(jnp.float32), freqs)
    h = rms_norm(x, layer["attn_norm"], config.norm_eps)
    q = linear(h, layer["q"]).reshape(count, config.heads, dim)
    k = linear(h, layer["k"]).reshape(count, config.kv_heads, dim)
    v = linear(h, layer["v"]).reshape(count, config.kv_heads, dim)
    q = rotate(q, angles) * np.float32(dim**-0.5).astype(x.dtype)
    seen, cache = attend(cache, q, rotate(k, angles), v)
    x = x + linear(seen.reshape(count, -1).astype(x.dtype), layer["o"])
    h = rms_norm(x, layer["ffn_norm"], config.norm_eps)
    gated = jax.nn.silu(linear(h, layer["gate"])) * linear(h, layer["up"])
    return x + linear(gated, layer["down"]), cache


def causal(config: ModelConfig, positions: jax.Array) -> Attend:
    """Attention within one sequence; keeps its keys and values [K, T, D]."""

    def attend(_, q, k, v):
        q = group_heads(q, config.kv_heads)
        k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)
        rep = config.heads // config.kv_heads
        mask = attention.visible(
            jnp.repeat(positions, rep), positions, config.window
        )
        out = attention.merge(attention.attend(q, k, v, mask))
        return ungroup_heads(out, rep), (k, v)

    return attend


def group_heads(q: jax.Array, kv_heads: int) -> jax.Array:
    """[T, H, D] -> [K, T * rep, D]: queries beside the keys they share."""
    count, heads, dim = q.shape
    q = q.reshape(count, kv_heads, heads // kv_heads, dim)
    return q.swapaxes(0, 1).reshape(kv_heads, -1, dim)


def ungroup_heads(out: jax.Array, rep: int) -> jax.Array:
    """[K, T * rep, D] -> [T, H, D]."""
    kv_heads, _, dim = out.shape
    out = out.reshape(kv_heads, -1, rep, dim).swapaxes(0, 1)
    return out.reshape(out.shape[0], -1, dim)


def forward(
    params: Params, config: ModelConfig, tokens: jax.Array
) -> jax.Array:
    """Logits float32 [L, V] of one sequence of tokens [L], without a cache."""
    positions = jnp.arange(tokens.shape[0])
    hidden, _ = hidden_states(
        params,
        config,
        tokens,
        positions,
        causal(config, positions),
        [None] * config.layers,
    )
    return head(params, hidden)
