"""Attention over pages in plain XLA, for every family and platform.

Decoding follows the pool, not the sequences: pages are read once each, in the
order in which they lie, and every page meets the queries of the slot that owns
it. What a page gives is a SoftmaxState; those of a slot are merged. Pool of
six pages, W = 4, in blocks of two; slot 0 has pages 2, 5 and slot 1 has 3:

    page       0 1 | 2 3 | 4 5
    owner      . . | 0 1 | . 0      blocks 1 and 2 are read
    index          | 0 0 |   1      the page's place in its sequence

Pages that several slots share are read from a list instead, each with the
slots that read it; so are the last pages of each slot in a layer with a
window, where that is less than the whole pool.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from dynscaling_jax.inference.paged.attention import Backend, Layout
from dynscaling_jax.inference.paged.attention.states import (
    collected,
    joined,
    page_states,
    pages_met,
    running,
    shared_states,
    windowed,
)
from dynscaling_jax.inference.paged.attention.views import (
    ChunkView,
    Shared,
    chunk_view,
    listed,
    of_parts,
    owners,
    written_to,
)
from dynscaling_jax.models.attention import SoftmaxState
from dynscaling_jax.models.config import Kind, ModelConfig
from dynscaling_jax.models.sharding import AXES

BLOCK = 64  # pages of the pool that are read at a time
INT8 = "int8"
HEADS_AXIS = 1  # of [pages, K, W, D]


class View(NamedTuple):
    """Which slots read which pages, in each part of the pool. NumPy."""

    table: Int32[np.ndarray, "D S P"]  # pages of each slot
    blocks: Int32[np.ndarray, " D"]  # how many blocks follow
    first: Int32[np.ndarray, "D B"]  # page of each block
    owner: Int32[np.ndarray, "D B n"]  # slot of each page
    index: Int32[np.ndarray, "D B n"]  # place of it in the slot's table
    shared: Shared


def backend() -> Backend:
    """The XLA form."""
    return Backend(
        "xla",
        HEADS_AXIS,
        refuses,
        init,
        view,
        chunk_view,
        decode,
        prefill,
    )


def refuses(config: ModelConfig, layout: Layout, model: int) -> str:
    """It serves every model: returns ''."""
    del config, layout, model
    return ""


def init(config: ModelConfig, layout: Layout, dtype: Any) -> tuple:
    """Returns (shape, dtype, axes of the mesh) of keys and of values.

    int8 ones have scales of each token and head, float32, [pages, K, 2, W]:
    of its key and of its value. Two arrays [pages, 1, W] would be copied for a
    kernel, since XLA:TPU lays them out as if they were [pages, W].
    """
    pages, dim = layout.parts * layout.pages, config.head_dim
    heads, page = config.num_key_value_heads, layout.page
    int8 = layout.keys == INT8
    dtype = jnp.dtype(INT8 if int8 else dtype)
    last = (dim, page) if tokens_last(config, dtype) else (page, dim)
    kept = (pages, heads, *last), dtype, AXES
    scales = (pages, heads, 2, page), "float32", AXES
    return (kept, kept, scales) if int8 else (kept, kept)


def tokens_last(config: ModelConfig, dtype: Any) -> bool:
    """Whether a page of keys is [K, D, W] and not [K, W, D].

    TPUs pad the last dimension to a multiple of 128: heads of 64 features
    would take twice their memory, and XLA copies the cache to do without. They
    tile int8 in one way for writes and in another for kernels, which are the
    same bytes where the last dimension is 128.
    """
    dim = config.head_dim
    return dim % 128 > 0 or (dtype == jnp.int8 and dim > 128)


def _token_axes(
    config: ModelConfig, cache: tuple[jax.Array, ...]
) -> tuple[int, ...]:
    """Of positions in each array: keys, values, and the scales of int8 ones."""
    axis = 3 if tokens_last(config, cache[0].dtype) else 2
    return (axis, axis, 3)[: len(cache)]


def page_size(config: ModelConfig, cache: tuple[jax.Array, ...]) -> int:
    """W of a cache."""
    keys = cache[0]
    return keys.shape[-1 if tokens_last(config, keys.dtype) else -2]


def view(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> View:
    """Lays out, for each part, which slots read which pages.

    Args:
        layout: of the cache.
        tables: pages of each slot, () where inactive.
        shared: pages at the head of each table that others may have too.
    """
    parts = [owners(layout, *own) for own in of_parts(layout, tables, shared)]
    blocks = [_blocks(part.owner, part.index) for part in parts]
    count, first, owner, index = map(np.stack, zip(*blocks, strict=True))
    return View(
        np.stack([part.table for part in parts]),
        count,
        first,
        owner,
        index,
        listed([part.shared for part in parts]),
    )


def _blocks(owner: np.ndarray, index: np.ndarray) -> tuple:
    """Cuts a pool into blocks; those that slots read come first.

    The last one begins where it fits. Its first pages belong to the block
    before too, and have no owner there. Seven pages in blocks of three:

        first    0      3      4
        pages    0 1 2  3 4 5  . . 6
    """
    pages = len(owner)
    size = min(BLOCK, pages)
    first = np.arange(0, pages, size, dtype=np.int32)
    starts = np.minimum(first, pages - size)
    at = starts[:, None] + np.arange(size)
    owner = np.where(at >= first[:, None], owner[at], -1).astype(np.int32)
    used = (owner >= 0).any(1)
    order = np.argsort(~used, kind="stable")
    return np.int32(used.sum()), starts[order], owner[order], index[at][order]


def decode(
    kind: Kind,
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    base: Int32[Array, ""],
    pages: int,
    view: Any,  # a View of one part, traced
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    q: Float[Array, "S H D"],
    k: Float[Array, "S K D"],
    v: Float[Array, "S K D"],
) -> tuple[SoftmaxState, tuple[jax.Array, ...]]:
    """Writes one token a slot and attends up to it; see Backend.decode."""
    slots, page = len(position), page_size(config, cache)
    place, cache = write(
        config, cache, view.table, base, position, active, k, v
    )
    turned = tokens_last(config, cache[0].dtype)
    attend = functools.partial(page_states, kind, config, position, q, turned)
    take = lambda at: [x[base + at] for x in cache]
    met = pages_met(kind.window, page)
    if kind.window and 3 * met * slots < pages:
        return windowed(attend, q, take, view.table, place, met), cache
    size = view.owner.shape[1]

    def block(number):
        first = base + view.first[number]
        kept = [jax.lax.dynamic_slice_in_dim(x, first, size) for x in cache]
        return attend(kept, view.owner[number][:, None], view.index[number])

    own = collected(block, q, view.blocks, len(view.first), size)
    there = jnp.arange(len(view.first)) < view.blocks
    owner = jnp.where(there[:, None], view.owner, -1)
    return joined(
        q, (own, owner), shared_states(attend, q, take, view.shared)
    ), cache


def write(
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    table: Int32[Array, "S P"],
    base: Int32[Array, ""],
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    k: Float[Array, "S K D"],
    v: Float[Array, "S K D"],
) -> tuple[Int32[Array, " S"], tuple[jax.Array, ...]]:
    """Puts a key and a value of each slot into its page.

    Those of slots that do not write go nowhere; no two write into one page.
    XLA:TPU writes in place if there is one index for each head. Where positions
    are the last dimension, it would still lay out the cache anew for columns,
    in a copy; there pages are replaced. Arguments are those of
    views.written_to; also returns the place of each slot's page in its table.
    """
    width = page_size(config, cache)
    own, page = written_to(table, base, position, active, width, len(cache[0]))
    place = position % width
    head = jnp.arange(k.shape[1])[None]

    def put(x, new, axis):
        new = new.astype(x.dtype)
        if axis < x.ndim - 1:
            at = page[:, None], head, place[:, None]
            return x.at[at].set(new, mode="drop")
        at = page[:, None], head
        old = x.at[at].get(mode="clip")
        old, x = jax.lax.optimization_barrier((old, x))  # as in put_chunk
        here = jnp.arange(x.shape[-1])[None] == place[:, None]
        here = here.reshape(len(page), *(1,) * (x.ndim - 2), -1)
        return x.at[at].set(jnp.where(here, new[..., None], old), mode="drop")

    new, axes = stored(cache, k, v), _token_axes(config, cache)
    return own, tuple(put(*each) for each in zip(cache, new, axes, strict=True))


def stored(
    cache: tuple[jax.Array, ...],
    k: Float[Array, "... D"],
    v: Float[Array, "... D"],
) -> tuple[jax.Array, ...]:
    """What a cache keeps of keys and values: themselves, or int8 and scales.

    A vector is divided by a 127th of its greatest entry and rounded.
    """
    if len(cache) == 2:
        return k, v
    kept = []
    for x in (k, v):
        x = x.astype(jnp.float32)
        scale = jnp.abs(x).max(-1) / 127
        units = jnp.round(x / jnp.maximum(scale, 1e-30)[..., None])
        kept.append((units.astype(jnp.int8), scale))
    (k, k_scale), (v, v_scale) = kept
    return k, v, jnp.stack([k_scale, v_scale], -1)


def prefill(
    kind: Kind,
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    base: Int32[Array, ""],
    view: Any,  # a ChunkView of one part, traced
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
) -> tuple[SoftmaxState, tuple[jax.Array, ...]]:
    """Writes a chunk and attends with a running softmax; see Backend."""
    axes = _token_axes(config, cache)
    cache = tuple(
        put_chunk(x, base, view, new, axis)
        for x, new, axis in zip(cache, stored(cache, k, v), axes, strict=True)
    )
    take = lambda at: [
        _sequence(x[base + at], axis)
        for x, axis in zip(cache, axes, strict=True)
    ]
    turned, page = axes[0] == 3, page_size(config, cache)
    return running(kind, config, turned, take, page, view, q), cache


def _sequence(pages: jax.Array, axis: int) -> Float[Array, "K ..."]:
    """Pages [n, K, ...] as one, whose positions go on from page to page."""
    together = jnp.moveaxis(pages, 0, axis - 1)
    shape = [*pages.shape[1:]]
    shape[axis - 1] *= len(pages)
    return together.reshape(shape)


def put_chunk(
    x: jax.Array,
    base: Int32[Array, ""],
    view: ChunkView,
    new: Float[Array, "T ..."],
    axis: int,
) -> jax.Array:
    """Puts what a chunk keeps into its pages, whole pages at once.

    W = 4, start = 6, tokens a b c and one of padding:

        pages of the table      1        2
        as they are          p p . .  . . . .
        with the chunk       p p a b  c x . .
        position             4 5 6 7  8

    What lies behind the end is never seen, and pages past it are not written.

    Args:
        x: an array of the cache, pages first.
        base: the part's first page.
        view: of the part.
        new: of the tokens.
        axis: of positions in x.
    """
    page, count = x.shape[axis], len(new)
    touched = -(-count // page) + 1
    places = view.start // page + jnp.arange(touched)
    own = view.table[jnp.minimum(places, len(view.table) - 1)]
    there = (places * page < view.end) & (own >= 0)
    to = jnp.where(there, base + own, len(x))
    # Read before it is written: fused with the write, XLA:GPU copies x.
    old, x = jax.lax.optimization_barrier((x[base + jnp.maximum(own[0], 0)], x))
    first = jnp.moveaxis(old, axis - 1, 0)
    room = [(0, (touched - 1) * page)] + [(0, 0)] * (new.ndim - 1)
    at = (view.start % page, *(0,) * (new.ndim - 1))
    joined = jax.lax.dynamic_update_slice(
        jnp.pad(first, room), new.astype(x.dtype), at
    )
    joined = joined.reshape(touched, page, *new.shape[1:])
    # a fusion that read a page of x too would not write x in place
    joined = jax.lax.optimization_barrier(joined)
    every = (to,)
    if axis == 3:  # an index for each head, as in write
        every = to[:, None], jnp.arange(x.shape[1])[None]
    return x.at[every].set(jnp.moveaxis(joined, 1, axis), mode="drop")
