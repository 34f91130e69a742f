"""The KV cache: a prefix for each group, a suffix for each sequence slot.

A group is one prompt and the R sequence slots that continue it. The keys and
values of the prompt are its prefix, held once for the group. Those of
completion tokens are a suffix, held for each slot. Completion token t lies at
position t of its suffix, whatever other slots do. Two groups of two slots,
P = 8 and S = 4:

    prefix [G, P]          suffix [GR, S]    count  active
    0  p p p p p p . .     0  a a a .        4      yes
                           1  b . . .        2      yes
    1  q q q q . . . .     2  . . . .        1      yes
                           3  c c . .        5      no, and never read again

count is the number of completion tokens. The newest of them, which the next
step reads, has no key yet: the step writes it to position count - 1 of the
suffix, and its position in the sequence is length + count - 1. Slot 0 reads
token 3 at position 6 + 3.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from dynscaling_jax.models import attention
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.sharding import AXES, DATA, fitting

KV = tuple[jax.Array, jax.Array]
Layers = tuple[KV, ...]
"""(keys, values) of each layer. Of a Prefix: [K, D, P] and [K, P, D]. Of a
State, in B blocks of W positions: [..., K, B, D, W] and [..., K, B, W, D].
W is attention.AT_ONCE, or P or S where that is less."""


class Prefix(NamedTuple):
    """A prompt after prefill: what the slots that continue it need."""

    layers: Layers
    length: Int32[Array, ""]  # tokens that are not padding
    logits: Float32[Array, " V"]  # of the token after the last


class Slots(NamedTuple):
    """The sample of each sequence slot; inactive ones compute for nothing."""

    token: Int32[Array, " GR"]  # the newest, not yet read
    count: Int32[Array, " GR"]  # completion tokens
    active: Bool[Array, " GR"]
    limit: Int32[Array, " GR"]  # of count
    key: UInt32[Array, "GR 2"]  # key data of the sample


class State(NamedTuple):
    """All that a decode step changes; donated from chunk to chunk."""

    prefix: Layers  # [G, ...]
    length: Int32[Array, " G"]
    logits: Float32[Array, "G V"]
    suffix: Layers  # [GR, ...]
    slots: Slots


def empty(
    config: ModelConfig,
    groups: int,
    per_group: int,
    prefix: int,
    suffix: int,
    dtype: Any,
    mesh: Mesh | None = None,
) -> State:
    """Makes a state of G groups of R inactive slots, with P and S positions.

    It is zeros, since 0 x NaN would leak through a mask. On a mesh groups and
    slots lie along `data`, key heads along `model`; all devices know Slots.
    """
    batch = groups * per_group

    def zeros(shape: tuple[int, ...], dtype: Any, *axes: str) -> jax.Array:
        where = mesh and NamedSharding(mesh, fitting(mesh.shape, shape, axes))
        return jnp.zeros(shape, dtype, device=where)

    def layers(number: int, positions: int) -> Layers:
        blocks, width = block_shape(positions)
        heads, dim = config.num_key_value_heads, config.head_dim
        keys = (number, heads, blocks, dim, width)
        values = (number, heads, blocks, width, dim)
        return tuple(
            (zeros(keys, dtype, *AXES), zeros(values, dtype, *AXES))
            for _ in range(config.num_hidden_layers)
        )

    return State(
        layers(groups, prefix),
        zeros((groups,), jnp.int32) + 1,
        zeros((groups, config.vocab_size), jnp.float32, DATA),
        layers(batch, suffix),
        idle(batch, zeros),
    )


def idle(batch: int, zeros: Callable[..., jax.Array] = jnp.zeros) -> Slots:
    """Makes inactive slots; `zeros` takes a shape and a dtype."""
    return Slots(
        zeros((batch,), jnp.int32),
        zeros((batch,), jnp.int32) + 1,
        zeros((batch,), bool),
        zeros((batch,), jnp.int32),
        zeros((batch, 2), jnp.uint32),
    )


def insert(state: State, prefix: Prefix, group: Int32[Array, ""]) -> State:
    """Puts a prompt into a group, whose slots must be inactive.

    Slot i continues group i // R: with R = 2, slots 2 and 3 continue group 1.
    """

    def put(all_groups: jax.Array, one: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(all_groups, one, group, 0)

    layers = tuple(map(to_blocks, prefix.layers))
    return state._replace(
        prefix=jax.tree.map(put, state.prefix, layers),
        length=put(state.length, prefix.length),
        logits=put(state.logits, prefix.logits),
    )


def write(
    suffix: KV,
    key: Float[Array, "GR K D"],
    value: Float[Array, "GR K D"],
    position: Int32[Array, " GR"],
) -> KV:
    """Puts a layer's key and value of each slot at its position.

    With W = 256, position 300 is place 44 of block 1. Inactive slots may have
    positions past the last block; these are dropped.
    """
    slot = jnp.arange(len(position))
    keys, values = suffix
    block, place = jnp.divmod(position, keys.shape[-1])
    return (
        keys.at[slot, :, block, :, place].set(key, mode="drop"),
        values.at[slot, :, block, place].set(value, mode="drop"),
    )


def block_shape(positions: int) -> tuple[int, int]:
    """Returns (B, W); positions beyond AT_ONCE are a multiple of it."""
    width = min(positions, attention.AT_ONCE)
    return positions // width, width


def to_blocks(kv: KV) -> KV:
    """Cuts [..., D, P] and [..., P, D] into blocks.

    Keys of one dimension, P = 4 and W = 2: [[a b c d]] -> [[[a b]], [[c d]]].
    """
    keys, values = kv
    *lead, positions, dim = values.shape
    blocks, width = block_shape(positions)
    return (
        keys.reshape(*lead, dim, blocks, width).swapaxes(-3, -2),
        values.reshape(*lead, blocks, width, dim),
    )


def capacity(layers: Layers) -> int:
    """Counts the positions of a state's prefix or suffix."""
    blocks, width, _ = layers[0][1].shape[-3:]
    return blocks * width


def resize(kv: KV, positions: int) -> KV:
    """Gives a layer other positions: the first ones stay, new ones are 0."""
    blocks, width = block_shape(positions)

    def fit(x: jax.Array, block_axis: int, place_axis: int) -> jax.Array:
        shape = [*x.shape]
        shape[block_axis], shape[place_axis] = blocks, width
        x = x[tuple(map(slice, shape))]
        missing = zip(shape, x.shape, strict=True)
        return jnp.pad(x, [(0, want - there) for want, there in missing])

    return fit(kv[0], -3, -1), fit(kv[1], -3, -2)
