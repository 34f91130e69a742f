"""The state of decoding: keys and values of prefixes, suffixes and rows.

A group is one prompt with R rows that continue it. Its keys and values are
held once, each row's own apart. A drawn token's key lies at the slot of its
number in the sample, whatever the others do:

    prefix [pppppp..]   row that drew 6   suffix [aaaaaa..]
                        row that drew 2   suffix [aa......]
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from dynscaling_jax.models import attention
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.sharding import AXES, DATA, fitting

Layers = tuple[tuple[jax.Array, jax.Array], ...]
"""(keys, values) of each layer. Of a prompt that was read: [K, D, slots] and
[K, slots, D]. Of a State: in N blocks of B slots each, attention.AT_ONCE at
most, [..., K, N, D, B] and [..., K, N, B, D]."""


class Prefix(NamedTuple):
    """A prompt, read: what rows that continue it need."""

    layers: Layers  # P slots
    length: jax.Array  # int32, tokens that are not padding
    logits: jax.Array  # float32 [V], of the token after the last


class Rows(NamedTuple):
    """What each row is doing. Ghost rows are computed and ignored."""

    token: jax.Array  # int32 [GR], drawn last, not yet read
    drawn: jax.Array  # int32 [GR], tokens drawn so far
    live: jax.Array  # bool [GR]
    limit: jax.Array  # int32 [GR], tokens to draw at most
    key: jax.Array  # uint32 [GR, 2], key data of the sample


class State(NamedTuple):
    """All that a decode step changes; donated from chunk to chunk."""

    prefix: Layers  # [G], P slots
    length: jax.Array  # int32 [G]
    logits: jax.Array  # float32 [G, V]
    suffix: Layers  # [GR], S slots
    rows: Rows


def empty(
    config: ModelConfig,
    groups: int,
    rows: int,
    prompt: int,
    new: int,
    dtype: Any,
    mesh: Mesh | None = None,
) -> State:
    """A state of ghosts. Zeros, since 0 x NaN would leak through a mask. On a
    mesh groups and rows lie along `data`, key heads along `model`; what each
    row is doing is known to all."""
    batch = groups * rows

    def zeros(shape: tuple[int, ...], dtype: Any, *axes: str) -> jax.Array:
        where = mesh and NamedSharding(mesh, fitting(mesh.shape, shape, axes))
        return jnp.zeros(shape, dtype, device=where)

    def layers(number: int, slots: int) -> Layers:
        blocks, size = in_blocks(slots)
        keys = (
            number,
            config.num_key_value_heads,
            blocks,
            config.head_dim,
            size,
        )
        values = (
            number,
            config.num_key_value_heads,
            blocks,
            size,
            config.head_dim,
        )
        return tuple(
            (zeros(keys, dtype, *AXES), zeros(values, dtype, *AXES))
            for _ in range(config.num_hidden_layers)
        )

    return State(
        layers(groups, prompt),
        zeros((groups,), jnp.int32) + 1,
        zeros((groups, config.vocab_size), jnp.float32, DATA),
        layers(batch, new),
        Rows(
            zeros((batch,), jnp.int32),
            zeros((batch,), jnp.int32) + 1,
            zeros((batch,), bool),
            zeros((batch,), jnp.int32),
            zeros((batch, 2), jnp.uint32),
        ),
    )


def place(state: State, prefix: Prefix, group: jax.Array) -> State:
    """Puts a prompt into a group's slot; its rows must be ghosts."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(whole, part, group, 0)

    layers = tuple(map(blocked, prefix.layers))
    return state._replace(
        prefix=jax.tree.map(put, state.prefix, layers),
        length=put(state.length, prefix.length),
        logits=put(state.logits, prefix.logits),
    )


def write(
    suffix: tuple[jax.Array, jax.Array],
    key: jax.Array,
    value: jax.Array,
    slot: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Puts a layer's key and value [GR, K, D] of each row at its own slot
    [GR]; those of rows without room, which are ghosts, go nowhere."""
    row = jnp.arange(len(slot))
    keys, values = suffix
    block, at = jnp.divmod(slot, keys.shape[-1])
    return (
        keys.at[row, :, block, :, at].set(key, mode="drop"),
        values.at[row, :, block, at].set(value, mode="drop"),
    )


def in_blocks(slots: int) -> tuple[int, int]:
    """(N, B) of so many slots, a multiple of AT_ONCE where they are more."""
    size = min(slots, attention.AT_ONCE)
    return slots // size, size


def blocked(
    kv: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """[..., D, slots] and [..., slots, D] in blocks."""
    keys, values = kv
    *lead, count, dim = values.shape
    blocks, size = in_blocks(count)
    return (
        keys.reshape(*lead, dim, blocks, size).swapaxes(-3, -2),
        values.reshape(*lead, blocks, size, dim),
    )


def slots(layers: Layers) -> int:
    """Tokens that a state has room for."""
    blocks, size, _ = layers[0][1].shape[-3:]
    return blocks * size


def resized(
    kv: tuple[jax.Array, jax.Array], slots: int
) -> tuple[jax.Array, jax.Array]:
    """A layer's keys and values with room for so many, the first ones kept."""
    blocks, size = in_blocks(slots)

    def fit(x: jax.Array, block: int, at: int) -> jax.Array:
        for axis, want in ((block, blocks), (at, size)):
            axis += x.ndim
            x = jax.lax.slice_in_dim(x, 0, min(want, x.shape[axis]), axis=axis)
            wider = [(0, 0)] * x.ndim
            wider[axis] = (0, want - x.shape[axis])
            x = jnp.pad(x, wider)
        return x

    return fit(kv[0], -3, -1), fit(kv[1], -3, -2)
