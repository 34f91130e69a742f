"""Reading a prompt: its keys, its values and the logits after its end.

One compiled layer serves all layers of a kind: a prompt is long enough that
handing the layers over one by one costs nothing, and a new length of prompt
compiles in a fraction of a second where the whole decoder takes several.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from dynscaling_jax.inference.cache import Layers, Prefix
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.sharding import constrained
from dynscaling_jax.models.transformer import Params


def prefill(
    params: Params, config: ModelConfig, tokens: ArrayLike, length: ArrayLike
) -> Prefix:
    """Reads a prompt, right-padded: tokens [P], of which length count.

    Padding comes after all that count and so is never seen by it.
    """
    layers = []
    top = transformer.without_layers(params)
    x = embed(top, config, tokens)
    for at, layer in enumerate(params["layers"]):
        x, kv = _read(layer, config, config.kind(at), x)
        layers.append(kv)
    logits = _logits(top, config, x, length)
    return Prefix(tuple(layers), jnp.asarray(length), logits)


def extend(
    params: Params,
    config: ModelConfig,
    base: Layers,
    kept: ArrayLike,
    tokens: ArrayLike,
    length: ArrayLike,
    size: int,
) -> Prefix:
    """Reads on from a prompt that was read already.

    Args:
        base: keys and values of the earlier prompt, as Prefix has them, of
            which the first `kept` stand at the beginning of this one too.
        tokens: [E], the rest, right-padded, of which length count.
        size: P' that the result is padded to, kept + length at least.
    """
    layers = []
    top = transformer.without_layers(params)
    x = embed(top, config, tokens)
    for at, (layer, old) in enumerate(zip(params["layers"], base, strict=True)):
        x, kv = _read_on(layer, config, config.kind(at), x, old, kept, size)
        layers.append(kv)
    logits = _logits(top, config, x, length)
    return Prefix(tuple(layers), jnp.add(kept, length), logits)


embed = jax.jit(transformer.embed, static_argnums=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _read(layer, config, kind, x):
    positions = jnp.arange(x.shape[0])
    attend = transformer.causal(config, positions)
    return transformer.block(layer, config, kind, x, positions, attend, None)


@functools.partial(jax.jit, static_argnums=(1, 2, 6))
def _read_on(layer, config, kind, x, old, kept, size):
    positions = kept + jnp.arange(x.shape[0])
    rep = config.num_attention_heads // config.num_key_value_heads
    where = jnp.repeat(positions, rep)

    def attend(kind, old, q, k, v):
        q = transformer.group_heads(q, config.num_key_value_heads)
        k, v = transformer.heads_first(k, v)
        at = jnp.arange(old[1].shape[1])
        before = attention.visible(where, at, kind.window)
        before &= (at < kept)[None]
        seen = attention.merge(
            attention.attend(
                q, old[0], old[1], before, config.attn_logit_softcapping
            ),
            attention.attend_causal(
                q, k, v, positions, kind.window, config.attn_logit_softcapping
            ),
        )
        kv = _join(old[0], k, kept, size, 2), _join(old[1], v, kept, size, 1)
        return transformer.ungroup_heads(seen, rep), kv

    return transformer.block(layer, config, kind, x, positions, attend, old)


@functools.partial(jax.jit, static_argnums=1)
def _logits(top, config, x, length):
    last = transformer.rms_norm(x[length - 1][None], top["norm"], config)
    return constrained(transformer.head(top, config, last)[0])


def _join(old, new, kept, size, axis):
    """`kept` slots of old along an axis, then new, `size` in all."""
    cut = lambda x: jax.lax.slice_in_dim(
        x, 0, min(size, x.shape[axis]), axis=axis
    )
    old = cut(old)
    # room for the padding of `new` behind what counts
    wider = [(0, 0)] * old.ndim
    wider[axis] = (0, size - old.shape[axis] + new.shape[axis])
    joined = jnp.pad(old, wider)
    return cut(jax.lax.dynamic_update_slice_in_dim(joined, new, kept, axis))
