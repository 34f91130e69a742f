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

from dynscaling_jax.models import attention, experts
from dynscaling_jax.models.config import Kind, ModelConfig, rope_frequencies
from dynscaling_jax.models.sharding import DATA, MODEL, constrained

DEVIATION = 0.02  # of random parameters
Params = dict[str, Any]
Cache = Any  # what one layer keeps
Attend = Callable[
    [Kind, Cache, jax.Array, jax.Array, jax.Array],
    tuple[attention.Part, Cache],
]
"""(kind of layer, cache, q [T, H, D], k [T, K, D], v [T, K, D]) ->
(part [T, H, D], cache); q is rotated and scaled, by LOG2_E too, k rotated."""


def gate_units(
    config: ModelConfig, gate: jax.Array, up: jax.Array
) -> jax.Array:
    """What a gated feed-forward passes on to `down`."""
    if config.hidden_act == "gelu_pytorch_tanh":
        return jax.nn.gelu(gate, approximate=True) * up
    if not config.swiglu_limit:
        return jax.nn.silu(gate) * up
    # gpt-oss (arXiv 2508.10925)
    gate = jnp.minimum(gate, config.swiglu_limit)
    up = jnp.clip(up, -config.swiglu_limit, config.swiglu_limit)
    return gate * jax.nn.sigmoid(config.swiglu_alpha * gate) * (up + 1)


def param_shapes(config: ModelConfig) -> Params:
    """The tree of parameters, as shapes."""
    q, kv = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    layer: dict[str, tuple[int, ...]] = {
        "q": (q, config.hidden_size),
        "k": (kv, config.hidden_size),
        "v": (kv, config.hidden_size),
        "o": (config.hidden_size, q),
        "gate": (config.intermediate_size, config.hidden_size),
        "up": (config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
    }
    if config.pre_norm:
        layer |= {
            "attn_norm": (config.hidden_size,),
            "ffn_norm": (config.hidden_size,),
        }
    if config.post_norm:
        layer["attn_post_norm"] = layer["ffn_post_norm"] = (config.hidden_size,)
    if config.qkv_bias:
        layer |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if config.o_bias:
        layer["o_bias"] = (config.hidden_size,)
    if config.mlp_bias:
        layer |= {
            "gate_bias": (config.intermediate_size,),
            "up_bias": (config.intermediate_size,),
            "down_bias": (config.hidden_size,),
        }
    if config.qk_norm == "head":
        layer["q_norm"] = layer["k_norm"] = (config.head_dim,)
    elif config.qk_norm:
        layer |= {"q_norm": (q,), "k_norm": (kv,)}
    if config.sinks:
        layer["sinks"] = (config.num_attention_heads,)
    many, inner = config.num_experts, config.moe_intermediate_size
    sparse = layer | {
        "router": (many, config.hidden_size),
        "gate": (many, inner, config.hidden_size),
        "up": (many, inner, config.hidden_size),
        "down": (many, config.hidden_size, inner),
    }
    if config.expert_bias:
        sparse |= {
            "router_bias": (many,),
            "gate_bias": (many, inner),
            "up_bias": (many, inner),
            "down_bias": (many, config.hidden_size),
        }
    shapes: Params = {
        "embed": (config.vocab_size, config.hidden_size),
        "layers": [
            dict(sparse if config.sparse(at) else layer)
            for at in range(config.num_hidden_layers)
        ],
        "norm": (config.hidden_size,),
    }
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, config.hidden_size)
    return shapes


def init_params(
    key: jax.Array, config: ModelConfig, dtype: Any = jnp.float32
) -> Params:
    """Random parameters: normal with DEVIATION, norms at one."""
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
            else DEVIATION * jax.random.normal(k, s, dtype)
            for k, s in zip(keys, leaves, strict=True)
        ],
    )


def linear(
    x: jax.Array, weight: Any, bias: jax.Array | None = None
) -> jax.Array:
    """[..., in] x [out, in] + [out] -> [..., out]."""
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    if isinstance(weight, jax.Array):
        y = jax.lax.dot_general(x, weight, axes, None, x.dtype)
    else:  # int8: models.quantization
        whole = weight.qvalue.astype(x.dtype)
        y = jax.lax.dot_general(x, whole, axes, None, jnp.float32)
        y = (y * _last(weight.scale[:, 0], y)).astype(x.dtype)
    return y if bias is None else y + _last(bias, y)


def rms_norm(
    x: jax.Array, weight: jax.Array | None, config: ModelConfig
) -> jax.Array:
    """Root-mean-square norm of [..., width] in float32 (arXiv 1910.07467);
    x itself where there is no weight."""
    if weight is None:
        return x
    wide = x.astype(jnp.float32)
    mean = attention.row_sums(wide * wide) / wide.shape[-1]
    wide *= jax.lax.rsqrt(mean + config.rms_norm_eps)
    if config.norm_offset:  # Gemma rounds after the product, Llama before
        weight = weight.astype(jnp.float32) + config.norm_offset
        return (wide * _last(weight, wide)).astype(x.dtype)
    return wide.astype(x.dtype) * _last(weight, wide)


def rotate(
    x: jax.Array, positions: jax.Array, config: ModelConfig, kind: Kind
) -> jax.Array:
    """Rotary embedding of [T, heads, D] at positions [T]; halves pair. Of
    each head the first rope_dim features turn."""
    if not kind.rope_theta:
        return x
    freqs = jnp.asarray(rope_frequencies(config, kind))
    angles = jnp.outer(positions.astype(jnp.float32), freqs)
    size = kind.rope_scaling.attention_factor if kind.rope_scaling else 1.0
    cos, sin = (f(angles)[:, None] * size for f in (jnp.cos, jnp.sin))
    turned, rest = x[..., : config.rope_dim], x[..., config.rope_dim :]
    a, b = jnp.split(turned.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


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
    x = embed(params, config, tokens)
    kept = []
    layers = zip(params["layers"], caches, strict=True)
    for at, (layer, cache) in enumerate(layers):
        kind = config.kind(at)
        x, cache = block(layer, config, kind, x, positions, attend, cache)
        kept.append(cache)
    return rms_norm(x, params["norm"], config), kept


def without_layers(params: Params) -> Params:
    """What is before and behind the layers: embed, norm and head."""
    return {name: part for name, part in params.items() if name != "layers"}


def embed(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """[T] -> [T, width]."""
    table = params["embed"]
    if isinstance(table, jax.Array):
        x = table[tokens]
    else:
        x = table.qvalue[tokens].astype(jnp.float32) * table.scale[tokens]
        x = x.astype(params["norm"].dtype)
    if config.embed_scale != 1.0:
        x *= jnp.asarray(config.embed_scale, x.dtype)
    return constrained(x, DATA)


def head(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Logits, float32 [..., V]."""
    weight = params.get("head", params["embed"])
    logits = constrained(linear(hidden, weight), DATA, MODEL)
    logits = logits.astype(jnp.float32)
    return attention.capped(logits, config.final_logit_softcapping)


def block(
    layer: Params,
    config: ModelConfig,
    kind: Kind,
    x: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """One layer over the residual stream x [T, width]; biases and norms that
    the layer has not are left out."""
    count, dim = x.shape[0], config.head_dim
    h = rms_norm(x, layer.get("attn_norm"), config)
    q, k, v = (linear(h, layer[p], layer.get(f"{p}_bias")) for p in "qkv")
    q, k = (
        _normed_heads(y, layer.get(f"{p}_norm"), config)
        for y, p in ((q, "q"), (k, "k"))
    )
    q, k = (rotate(y, positions, config, kind) for y in (q, k))
    scale = (config.query_pre_attn_scalar or dim) ** -0.5
    q *= np.float32(scale * attention.LOG2_E).astype(x.dtype)
    v = v.reshape(count, config.num_key_value_heads, dim)
    seen, cache = attend(kind, cache, q, k, v)
    seen = attention.output(seen, layer.get("sinks"))
    seen = seen.reshape(count, -1).astype(x.dtype)
    out = linear(seen, layer["o"], layer.get("o_bias"))
    x = x + rms_norm(out, layer.get("attn_post_norm"), config)
    h = rms_norm(x, layer.get("ffn_norm"), config)
    out = feed_forward(layer, config, h)
    x = x + rms_norm(out, layer.get("ffn_post_norm"), config)
    return constrained(x, DATA), cache


def feed_forward(layer: Params, config: ModelConfig, h: jax.Array) -> jax.Array:
    """[T, width] -> [T, width], gated; through experts where the layer has
    them."""

    def gated(rows, weights):
        gate, up = (
            linear(rows, weights[p], weights.get(f"{p}_bias"))
            for p in ("gate", "up")
        )
        units = gate_units(config, gate, up)
        return linear(units, weights["down"], weights.get("down_bias"))

    if "router" not in layer:
        return gated(h, layer)
    stacks = {
        name: layer[name]
        for part in ("gate", "up", "down")
        for name in (part, f"{part}_bias")
        if name in layer
    }
    return experts.spread(
        h,
        linear(h, layer["router"], layer.get("router_bias")),
        lambda logits: experts.route(
            logits, config.num_experts_per_tok, config.norm_topk_prob
        ),
        stacks,
        lambda rows, held, one: gated(
            rows, jax.tree.map(lambda w: w[one], held)
        ),
    )


def _normed_heads(
    x: jax.Array, weight: jax.Array | None, config: ModelConfig
) -> jax.Array:
    """[T, heads * D] -> [T, heads, D], normed before or after the split, as
    the weight is as long as all heads or one."""
    heads = x.reshape(x.shape[0], -1, config.head_dim)
    if weight is not None and weight.shape[0] == x.shape[1]:
        return rms_norm(x, weight, config).reshape(heads.shape)
    return rms_norm(heads, weight, config)


def _last(weight: jax.Array, x: jax.Array) -> jax.Array:
    """[D] with leading axes of one, as many as x has axes."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def causal(config: ModelConfig, positions: jax.Array) -> Attend:
    """Attention within one sequence; keeps its keys [K, D, T] and values
    [K, T, D]."""

    def attend(kind, _, q, k, v):
        q = group_heads(q, config.num_key_value_heads)
        k, v = heads_first(k, v)
        seen = attention.attend_causal(
            q, k, v, positions, kind.window, config.attn_logit_softcapping
        )
        return ungroup_heads(
            seen, config.num_attention_heads // config.num_key_value_heads
        ), (k, v)

    return attend


def heads_first(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[T, K, D] each -> [K, D, T] and [K, T, D], for all of a mesh's rows."""
    k, v = k.transpose(1, 2, 0), v.swapaxes(0, 1)
    return constrained(k, MODEL), constrained(v, MODEL)


def group_heads(q: jax.Array, kv_heads: int) -> jax.Array:
    """[T, H, D] -> [K, T * rep, D]: queries beside the keys they share."""
    count, heads, dim = q.shape
    q = q.reshape(count, kv_heads, heads // kv_heads, dim)
    return q.swapaxes(0, 1).reshape(kv_heads, -1, dim)


def ungroup_heads(part: attention.Part, rep: int) -> attention.Part:
    """[K, T * rep, D] -> [T, H, D]."""

    def ungroup(x):
        kv_heads, _, dim = x.shape
        x = x.reshape(kv_heads, -1, rep, dim).swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, dim)

    return jax.tree.map(ungroup, part)


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
        [None] * config.num_hidden_layers,
    )
    return head(params, config, hidden)
