"""Attention over pages by JAX's ragged paged attention kernel for TPUs.

The kernel reads the pages of each sequence from a table, for any number of
queries a sequence, and gives the weighted mean of the values. Keys and values
lie beside each other, head by head:

    a position of a page    k0 v0 k1 v1 ...    [2 K, D]

Slots may name the same pages, so what they share needs no list.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    ragged_paged_attention,
)
from jaxtyping import Array, Bool, Float, Int32

from dynscaling_jax.inference.paged.attention import (
    Backend,
    Layout,
    states,
    views,
)
from dynscaling_jax.inference.paged.attention.xla import INT8
from dynscaling_jax.models.attention import SoftmaxState, softmax_scale
from dynscaling_jax.models.config import Kind, ModelConfig
from dynscaling_jax.models.sharding import DATA, MODEL

HEAD_DIM = 128  # the only one that the kernel takes (jax 0.10)
TILED = (1, 2, 4, 8)  # key heads of a shard; or a multiple of 8
DECODE_QUERIES = 8  # of a block of the kernel
CHUNK_QUERIES = 64  # likewise, of a prompt: each block reads all of its keys
BLOCK_HEADS = 16  # key heads times pages that a block reads, if they are
FEWEST_PAGES, MOST_PAGES = 4, 8  # between these
TABLE = 1 << 17  # entries at a time: all lie in 1 MB of scalar memory
HEADS_AXIS = 2  # of [pages, W, 2 K, D]


class View(NamedTuple):
    """Pages of each slot, in each part. NumPy; -1 is none."""

    table: Int32[np.ndarray, "D S P"]


def backend(kernel: Callable[..., jax.Array] = ragged_paged_attention):
    """The kernel as a backend.

    Args:
        kernel: has the arguments of ragged_paged_attention.
    """
    return Backend(
        "tpu",
        HEADS_AXIS,
        refuses,
        init,
        view,
        views.chunk_view,
        functools.partial(decode, kernel),
        functools.partial(prefill, kernel),
    )


def refuses(config: ModelConfig, layout: Layout, model: int) -> str:
    """Says what the kernel cannot do, of a model on a mesh."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if config.head_dim != HEAD_DIM:
        return f"head_dim {config.head_dim} is not {HEAD_DIM}"
    if config.sinks:
        return "it knows no sinks"
    if layout.keys == INT8:
        return "int8 keys have scales"
    if kv_heads % model or heads % model:
        return f"{kv_heads} key heads cannot be split in {model}"
    each = kv_heads // model
    if each not in TILED and each % 8:
        return f"{each} key heads on a device"
    return ""


def init(config: ModelConfig, layout: Layout, dtype: Any) -> tuple:
    """Returns (shape, dtype, axes of the mesh) of the combined cache."""
    both = 2 * config.num_key_value_heads
    pages = layout.parts * layout.pages
    shape = pages, layout.page, both, config.head_dim
    return ((shape, dtype, (DATA, None, MODEL)),)


def view(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> View:
    """Lays out the table of each part."""
    del shared
    table = views.padded_tables(layout, tables)
    return View(table.reshape(layout.parts, -1, layout.longest))


def decode(
    kernel: Callable[..., jax.Array],
    kind: Kind,
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    base: Int32[Array, ""],
    number: int,
    view: Any,  # a View of one part, traced
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    q: Float[Array, "S H D"],
    k: Float[Array, "S K D"],
    v: Float[Array, "S K D"],
) -> tuple[SoftmaxState, tuple[jax.Array, ...]]:
    """Writes one token a slot and attends up to it; see Backend.decode.

    In a layer with a window the table begins with the first page that the
    window meets. W = 4, a window of 5, position 13:

        pages          0 1 2 3    seen are positions 9 to 13
        table          2 3        kv_len 6: positions 8 to 13
    """
    del number
    (pages,) = cache
    slots, page = len(position), pages.shape[1]
    _, to = views.written_to(
        view.table, base, position, active, page, len(pages)
    )
    active = to < len(pages)
    pages = write(pages, to, position, k, v)
    table, length = view.table, position + 1
    if kind.window:
        first = jnp.maximum(length - kind.window, 0) // page
        met = states.pages_met(kind.window, page)
        table = jax.vmap(jax.lax.dynamic_slice_in_dim, (0, 0, None))(
            jnp.pad(table, ((0, 0), (0, met))), first, met
        )
        length -= first * page
    table = base + jnp.maximum(table, 0)
    length = jnp.where(active, length, 1)  # none would leave the output unset

    def attend(some: slice):
        rows = q[some]
        return _attend(
            kernel,
            kind,
            config,
            rows,
            pages,
            length[some],
            table[some],
            jnp.arange(len(rows) + 1),
            DECODE_QUERIES,
        )

    most = max(TABLE // table.shape[1], 1)
    seen = jnp.concatenate(
        [attend(slice(at, at + most)) for at in range(0, slots, most)]
    )
    seen = jnp.where(active[:, None, None], seen, 0)
    return normalised(seen), (pages,)


def prefill(
    kernel: Callable[..., jax.Array],
    kind: Kind,
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    base: Int32[Array, ""],
    view: Any,  # a ChunkView of one part, traced
    q: Float[Array, "T H D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
) -> tuple[SoftmaxState, tuple[jax.Array, ...]]:
    """Writes a chunk and attends up to each token; see Backend.prefill.

    It is a sequence of end - start queries.
    """
    (pages,) = cache
    position, to = views.chunk_written_to(
        view, base, len(q), pages.shape[1], len(pages)
    )
    pages = write(pages, to, position, k, v)
    count = jnp.maximum(view.end - view.start, 1)
    seen = _attend(
        kernel,
        kind,
        config,
        q,
        pages,
        jnp.maximum(view.end, 1)[None],
        base + jnp.maximum(view.table, 0)[None],
        jnp.stack([jnp.zeros_like(count), count]),
        CHUNK_QUERIES,
    )
    there = jnp.arange(len(q)) < view.end - view.start
    return normalised(jnp.where(there[:, None, None], seen, 0)), (pages,)


def _attend(kernel, kind, config, q, pages, length, table, cuts, queries):
    """The kernel, with sizes of its blocks."""
    kv_heads = pages.shape[2] // 2
    at_once = min(max(BLOCK_HEADS // kv_heads, FEWEST_PAGES), MOST_PAGES)
    return kernel(
        q,
        pages,
        length.astype(jnp.int32),
        table.astype(jnp.int32),
        cuts.astype(jnp.int32),
        jnp.array([len(length)], jnp.int32),
        sm_scale=softmax_scale(config),
        sliding_window=kind.window or None,
        soft_cap=config.attn_logit_softcapping or None,
        num_kv_pages_per_block=min(at_once, table.shape[1]),
        num_queries_per_block=queries,
    )


def write(
    pages: Float[Array, "N W 2K D"],
    to: Int32[Array, " T"],
    position: Int32[Array, " T"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
) -> Float[Array, "N W 2K D"]:
    """Puts tokens into their pages; those past the last go nowhere.

    They are written one by one: of whole pages XLA:TPU would lay out the
    cache anew, in a copy.
    """
    place = position % pages.shape[1]
    return pages.at[to, place].set(combined(k, v), mode="drop")


def combined(
    k: Float[Array, "T K D"], v: Float[Array, "T K D"]
) -> Float[Array, "T 2K D"]:
    """Puts the value of each head behind its key."""
    return jnp.stack([k, v], 2).reshape(len(k), -1, k.shape[-1])


def normalised(seen: Float[Array, "T H D"]) -> SoftmaxState:
    """A weighted mean as a state."""
    acc = seen.astype(jnp.float32)
    one = jnp.ones_like(acc[..., :1])
    return SoftmaxState(jnp.zeros_like(one), one, acc)
