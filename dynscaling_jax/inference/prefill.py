"""Prefill: the keys and values of a prompt, and the logits after its end.

One compiled layer serves all layers of a kind. A prompt is so long that
dispatching the layers one by one costs nothing, and a new length of prompt
compiles in a fraction of a second where the whole decoder takes several.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Int32

from dynscaling_jax.inference.cache import Layers, Prefix
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.sharding import constrained
from dynscaling_jax.models.transformer import Block, Vocabulary


def prefill(
    params: Params,
    config: ModelConfig,
    tokens: Int32[ArrayLike, " P"],
    length: Int32[ArrayLike, ""],
) -> Prefix:
    """Computes a prompt's keys and values; `length` of the tokens count.

    Padding follows the tokens that count, so a causal mask hides it from them.
    """
    layer = lambda at, *arguments: _prefill_layer(*arguments)
    layers, logits = _run(params, config, tokens, length, layer)
    return Prefix(layers, jnp.asarray(length), logits)


def extend(
    params: Params,
    config: ModelConfig,
    base: Layers,
    kept: Int32[ArrayLike, ""],
    tokens: Int32[ArrayLike, " T"],
    length: Int32[ArrayLike, ""],
    bucket: int,
) -> Prefix:
    """Computes a prompt's keys and values from a cached prefix.

    The first `kept` positions of base, layers of a Prefix, stand at the
    beginning of this prompt too. tokens are the others, right-padded, of which
    `length` count. The result has `bucket` positions, which must be at
    least kept + length.
    """
    layer = lambda at, *arguments: _extend_layer(
        *arguments, base[at], kept, bucket
    )
    layers, logits = _run(params, config, tokens, length, layer)
    return Prefix(layers, jnp.add(kept, length), logits)


@functools.partial(jax.jit, static_argnums=1)
def embed(top, config, tokens):
    """Tokens [T] -> [T, hidden_size]."""
    return Vocabulary(config, top).embedded(tokens)


def _run(params, config, tokens, length, layer) -> tuple[Layers, jax.Array]:
    """The keys and values of all layers, and the logits after the end."""
    top = transformer.without_layers(params)
    x, layers = embed(top, config, tokens), []
    for at, weights in enumerate(params["layers"]):
        x, kv = layer(at, weights, config, config.kind(at), x)
        layers.append(kv)
    return tuple(layers), _logits(top, config, x, length)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _prefill_layer(layer, config, kind, x):
    positions = jnp.arange(x.shape[0])
    attend = transformer.causal(config, positions)
    return Block(config, kind, layer)(x, positions, attend, None)


@functools.partial(jax.jit, static_argnums=(1, 2, 6))
def _extend_layer(layer, config, kind, x, old, kept, bucket):
    """Lets tokens attend to what is kept and to one another, then joins keys.

    A base of P = 4 positions, of which 2 are kept, and two new tokens. Their
    positions are kept + [0, 1] = [2, 3]:

        keys           base 0 1 2 3    new 2 3
        query at 2          x x . .        x .
        query at 3          x x . .        x x

    Positions 2 and 3 of the base belong to another continuation.
    """
    positions = kept + jnp.arange(x.shape[0])
    rep = config.num_attention_heads // config.num_key_value_heads
    query_pos = jnp.repeat(positions, rep)
    backend = attention.backend(config)

    def attend(kind, old, q, k, v):
        q = attention.scaled(q, config)
        q = transformer.group_heads(q, config.num_key_value_heads)
        k, v = transformer.heads_first(k, v)
        key_pos = jnp.arange(old[1].shape[1])
        mask = attention.visible(query_pos, key_pos, kind.window)
        mask &= (key_pos < kept)[None]
        softmax = attention.merge(
            backend(q, old[0], old[1], mask),
            attention.attend_causal(backend, q, k, v, positions, kind.window),
        )
        keys = _join(old[0], k, kept, bucket, 2)
        values = _join(old[1], v, kept, bucket, 1)
        return transformer.ungroup_heads(softmax, rep), (keys, values)

    return Block(config, kind, layer)(x, positions, attend, old)


@functools.partial(jax.jit, static_argnums=1)
def _logits(top, config, x, length):
    last = x[length - 1][None]
    return constrained(Vocabulary(config, top).logits(last)[0])


def _join(old, new, kept, bucket, axis):
    """Puts `new` behind `kept` positions of `old`; `bucket` positions in all.

    kept = 2, bucket = 5, and a new token d with two of padding:

        old                          a b x x
        new                          d . .
        old, padded to bucket + 3    a b x x 0 0 0 0
        new written at kept          a b d . . 0 0 0
        cut to bucket                a b d . .

    Without room for all of `new`, dynamic_update_slice would move it to the
    left until it fits, over what is kept.
    """
    cut = lambda x: jax.lax.slice_in_dim(
        x, 0, min(bucket, x.shape[axis]), axis=axis
    )
    old = cut(old)
    padding = [(0, 0)] * old.ndim
    padding[axis] = (0, bucket - old.shape[axis] + new.shape[axis])
    joined = jnp.pad(old, padding)
    return cut(jax.lax.dynamic_update_slice_in_dim(joined, new, kept, axis))
