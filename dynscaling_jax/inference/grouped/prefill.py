"""Prefill: the keys and values of a prompt, and the logits after its end.

One compiled layer serves all layers of a kind. A prompt is so long that
dispatching the layers one by one costs nothing, and a new length of prompt
compiles in a fraction of a second where the whole decoder takes several.
"""

import collections
import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32

from dynscaling_jax.inference.grouped import layout
from dynscaling_jax.inference.grouped.cache import Layers
from dynscaling_jax.inference.slot import Prompt
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.transformer import Block, Vocabulary


class Prefix(NamedTuple):
    """A prompt after prefill: what the slots that continue it need."""

    layers: Layers
    length: Int32[Array, ""]  # tokens that are not padding
    logits: Float32[Array, " V"]  # of the token after the last


class Prefixes:
    """Prefixes of prompts; those that were used last are kept.

    Several threads may ask.
    """

    def __init__(self, params: Params, config: ModelConfig, tokens: int):
        """Starts empty, with room for so many positions."""
        self._params, self._config, self._tokens = params, config, tokens
        self._kept: collections.OrderedDict[tuple[int, ...], Prefix] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, prompt: Prompt) -> Prefix:
        """Computes a prefix; that of its query is cached on its own.

        A chain begins like the prompt of its query, which its other samples
        continue too. Of 40 tokens in common and a chain of 50:

            base     [0 .. 39] and what ends the query's own prompt; cached
            extend   [40 .. 49] from the first 40 positions of base

        The split depends on the two prompts alone, never on what the cache
        holds, and so neither does any bit of the result.
        """
        if prompt.ids == prompt.base or not prompt.common:
            return self._cached(prompt.ids)
        base = self._cached(prompt.base)
        rest = prompt.ids[prompt.common :]
        return extend(
            self._params,
            self._config,
            base.layers,
            np.int32(prompt.common),
            _padded(rest, -(-len(rest) // layout.SHORTEST) * layout.SHORTEST),
            np.int32(len(rest)),
            layout.bucket(len(prompt.ids)),
        )

    def _cached(self, ids: tuple[int, ...]) -> Prefix:
        """The prefix of a prompt, kept or computed.

        Room for 400 positions, and buckets of 128 (a), 128 (b) and 256 (c):
        a, b, a, c leave [b a c] of 512, so b goes, and [a c] stay.
        """
        with self._lock:
            if ids in self._kept:
                self._kept.move_to_end(ids)
                return self._kept[ids]
        prefix = prefill(
            self._params,
            self._config,
            _padded(ids, layout.bucket(len(ids))),
            np.int32(len(ids)),
        )
        with self._lock:
            self._kept[ids] = prefix
            held = sum(layout.bucket(len(i)) for i in self._kept)
            while held > self._tokens and len(self._kept) > 1:
                oldest, _ = self._kept.popitem(last=False)
                held -= layout.bucket(len(oldest))
        return prefix


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    return np.pad(np.array(ids, np.int32), (0, size - len(ids)))


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
    return Vocabulary(config, top).logits(last)[0]


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
