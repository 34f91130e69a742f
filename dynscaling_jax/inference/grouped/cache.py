"""Keys in pages: the arrays of pools, and attention over them in their order.

Each layer has two pools of pages, narrow and wide, for prompts and two for
completions (pages.py says who owns a page). A step multiplies the pages of a
pool as they lie: no key is gathered, only queries are, each page having few
readers. A page gives a softmax state for each of them; a slot merges those of
its pages in the order of its sequence.

A group is one prompt and the slots that continue it: the prompt's keys are
held once. Completion token t of a slot lies at position t of its completion,
whatever other slots do. Two groups of two slots:

    prompts            completions        count  active
    0  p p p p p p     0  a a a           4      yes
                       1  b               2      yes
    1  q q q q         2                  1      yes
                       3  c c             3      no, and never read again

count is the number of completion tokens. The newest of them, which the next
step reads, has no key yet: the step writes it to position count - 1 of the
completion, and its position in the sequence is that behind the prompt. Slot 0
reads token 3 at position 6 + 3.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from dynscaling_jax.inference.grouped import pages
from dynscaling_jax.inference.grouped.pages import WIDE, Index, Move, Resize
from dynscaling_jax.inference.slots import Slots
from dynscaling_jax.models import attention
from dynscaling_jax.models.attention import Backend, SoftmaxState
from dynscaling_jax.models.config import ModelConfig

KV = tuple[jax.Array, jax.Array]
Layers = tuple[KV, ...]
"""Keys [K, D, P] and values [K, P, D] of a prompt, of each layer."""
Pools = tuple[KV, KV]
"""Keys [N, K, D, W] and values [N, K, W, D] of narrow pages and of wide."""


class View(NamedTuple):
    """What a chunk of steps is told about slots and pages."""

    ahead: Int32[Array | np.ndarray, " GR"]  # tokens of the prompt
    prefix: Index
    suffix: Index


class State(NamedTuple):
    """All that a decode step changes, and what it reads beside weights."""

    prefix: tuple[Pools, ...]  # of each layer
    suffix: tuple[Pools, ...]
    view: View
    slots: Slots


def empty(config: ModelConfig, dtype: Any) -> tuple[Pools, ...]:
    """Makes pools without pages for each layer."""

    def pool(width: int) -> KV:
        heads, dim = config.num_key_value_heads, config.head_dim
        return (
            jnp.zeros((0, heads, dim, width), dtype),
            jnp.zeros((0, heads, width, dim), dtype),
        )

    return tuple(
        (pool(pages.NARROW), pool(WIDE))
        for _ in range(config.num_hidden_layers)
    )


def apply(layers: list[Pools], operations: Iterable[Resize | Move]) -> None:
    """Resizes or moves pages, layer by layer, in place.

    So at most one layer is there twice. The old arrays are not used again.
    """
    for operation in operations:
        _apply(layers, operation)


def _apply(layers: list[Pools], operation: Resize | Move) -> None:
    for number, pools in enumerate(layers):
        if isinstance(operation, Move):
            layers[number] = _moved(*pools, *_padded(operation))
        else:
            wide, index, width = operation
            kv = _resized(pools[wide], index, width)
            layers[number] = (pools[0], kv) if wide else (kv, pools[1])
        del pools


def _padded(move: Move) -> Move:
    """To a multiple of STEP pages, for few shapes; others go nowhere."""
    missing = (0, -len(move.source) % pages.STEP)
    return Move(
        np.pad(move.source, missing),
        np.pad(move.target, missing, constant_values=pages.NOWHERE),
    )


@functools.partial(jax.jit, static_argnums=2)
def _resized(kv: KV, index: jax.Array, width: int) -> KV:
    keys, values = kv
    heads, dim, old = keys.shape[1:]
    if not len(keys):
        shape = len(index), heads
        return (
            jnp.zeros((*shape, dim, width), keys.dtype),
            jnp.zeros((*shape, width, dim), values.dtype),
        )
    more = (0, max(0, width - old))
    same = (0, 0)
    return (
        jnp.pad(keys[index, ..., :width], (same, same, same, more)),
        jnp.pad(values[index, :, :width], (same, same, more, same)),
    )


@functools.partial(jax.jit, donate_argnums=1)
def _moved(narrow: KV, wide: KV, source, target) -> Pools:
    (keys, values), width = narrow, narrow[0].shape[-1]
    return narrow, (
        wide[0].at[target, ..., :width].set(keys[source], mode="drop"),
        wide[1].at[target, :, :width].set(values[source], mode="drop"),
    )


@functools.partial(jax.jit, donate_argnums=0)
def put(kv: KV, prompt: KV, page: jax.Array, start: jax.Array) -> KV:
    """Copies a part of a prompt, from a position on, into a page.

    A page that is wider than the whole prompt keeps what it had behind it.

    Args:
        kv: a pool; it is donated.
        prompt: keys [K, D, P] and values [K, P, D].
        page: its number.
        start: position.
    """
    width = min(kv[0].shape[-1], prompt[0].shape[-1])
    cut = jax.lax.dynamic_slice_in_dim
    parts = cut(prompt[0], start, width, 2), cut(prompt[1], start, width, 1)
    return jax.tree.map(
        lambda pool, part: jax.lax.dynamic_update_slice(
            pool, part[None], (page, 0, 0, 0)
        ),
        kv,
        parts,
    )


def insert(
    layers: list[Pools], prompt: Layers, wide: bool, page: int, start: int
) -> None:
    """Puts a part of a prompt into a page of every layer, in place."""
    at = np.int32(page), np.int32(start)
    for number, (pools, kv) in enumerate(zip(layers, prompt, strict=True)):
        kv = put(pools[wide], kv, *at)
        layers[number] = (pools[0], kv) if wide else (kv, pools[1])


def write(
    pools: Pools,
    key: Float[Array, "GR K D"],
    value: Float[Array, "GR K D"],
    position: Int32[Array, " GR"],
    table: Int32[Array, "GR T"],
) -> Pools:
    """Puts a layer's key and value of each slot at its position.

    Position 300 is place 44 of block 1, whose page is row table[slot, 1].
    What has no page is dropped: idle slots go on.
    """
    block, place = jnp.divmod(position, WIDE)
    row = jnp.take_along_axis(
        table, block[:, None], 1, mode="fill", fill_value=pages.NOWHERE
    )[:, 0]
    written, offset = [], 0
    for keys, values in pools:
        count = len(keys)
        page = jnp.where(row < offset, pages.NOWHERE, row - offset)
        written.append(
            (
                keys.at[page, :, :, place].set(key, mode="drop"),
                values.at[page, :, place].set(value, mode="drop"),
            )
        )
        offset += count
    return written[0], written[1]


def attend(
    backend: Backend,
    q: Float[Array, "GR K rep D"],
    pools: Pools,
    index: Index,
    filled: Int32[Array, " GR"],
    position: Int32[Array, " GR"],
    window: int,
    twice: bool = False,
) -> SoftmaxState:
    """Attends to the pages of each slot.

    All readers of a page meet it in one product: L lanes of `rep` query heads
    each, [L * rep, D] against [D, W] for each key head.

    Args:
        backend: of models.attention.
        q: as the backend's.
        pools: of a layer.
        index: who reads which page.
        filled: positions of each slot's sequence that hold keys.
        position: of the query, counted as these.
        window: as of models.attention.visible.
        twice: whether a page's lone query is multiplied twice: as a vector
            it would round otherwise than as one of a matrix.
    """
    if index.lanes[0] is None:
        one = pools[0], None, index.first[0]
        return _pages(backend, q, *one, filled, position, window, twice)
    parts = [
        _pages(backend, q, kv, lanes, first, filled, position, window, twice)
        for kv, lanes, first in zip(
            pools, index.lanes, index.first, strict=True
        )
        if lanes is not None and len(lanes)
    ]
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), parts[0])
    nothing = SoftmaxState(
        nothing.max + attention.MASKED, nothing.sum + 1, nothing.acc
    )
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *parts, nothing)
    own = jax.tree.map(lambda x: x[index.table], rows)
    count = index.table.shape[1]
    each = [jax.tree.map(lambda x, n=n: x[:, n], own) for n in range(count)]
    return attention.merge(*each) if count > 1 else each[0]


def _pages(
    backend, q, kv, lanes, first, filled, position, window, twice
) -> SoftmaxState:
    """States [N * L, K, rep, ...] of the lanes of each page.

    Lanes a and b of a page with rep = 2 and K = 2 lie as

        q[lanes] [N, L, K, rep, D]      a00 a01 a10 a11 | b00 b01 b10 b11
        rows     [N, K, L * rep, D]     a00 a01 b00 b01 | a10 a11 b10 b11
    """
    (keys, values), (_, kv_heads, rep, dim) = kv, q.shape
    if lanes is None:
        q, filled, position = q[:, None], filled[:, None], position[:, None]
    else:
        q, filled, position = q[lanes], filled[lanes], position[lanes]
    number, each = filled.shape
    count = each * rep
    own = q.swapaxes(1, 2).reshape(number, kv_heads, count, dim)
    place = first[:, None, None] + jnp.arange(keys.shape[-1])[None, None]
    mask = place < filled[..., None]
    if window:
        mask &= position[..., None] - place < window
    if each > 1:
        mask = jnp.repeat(mask, rep, 1, total_repeat_length=count)
    mask = mask[:, None]
    lone = twice and count == 1
    if lone:
        own, mask = jax.lax.optimization_barrier(
            (jnp.repeat(own, 2, 2), jnp.repeat(mask, 2, 2))
        )
    states = backend(own, keys, values, mask)
    if lone:
        states = jax.tree.map(lambda x: x[:, :, :1], states)
    return jax.tree.map(
        lambda x: (
            x.reshape(number, kv_heads, each, rep, -1)
            .swapaxes(1, 2)
            .reshape(number * each, kv_heads, rep, -1)
        ),
        states,
    )
