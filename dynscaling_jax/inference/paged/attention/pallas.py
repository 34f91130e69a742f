"""Decoding from pages by a Pallas kernel for TPUs, where JAX's own refuses.

It takes heads of any multiple of 64 features, sinks, and int8 keys, where JAX's
kernel takes 128 features alone. The cache is that of the XLA form, whose
prefill serves here too.

The kernel goes through a list of blocks, each some pages of one slot. Its grid
is that list: while it is computed, the pages of the next one are
copied to the chip. W = 4, blocks of two pages; slot 0 is at position 13 and
slot 1 at position 5:

    block         0    1    2
    slot          0    0    1
    pages         0 1  2 3  0 1     places in the table of the slot
    positions     0-7  8-13 0-5

Consecutive blocks of one slot add to one softmax, which stays on the chip.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int32

from dynscaling_jax.inference.paged.attention import Backend, Layout, xla
from dynscaling_jax.inference.paged.attention.states import (
    finite,
    pages_met,
)
from dynscaling_jax.inference.paged.attention.tpu import view
from dynscaling_jax.inference.paged.attention.views import (
    chunk_view,
    written_to,
)
from dynscaling_jax.models.attention import (
    LOG2_E,
    MASKED,
    SoftmaxState,
    capped,
    softmax_scale,
)
from dynscaling_jax.models.config import Kind, ModelConfig

MOST_PAGES = 16  # of a block
# Bytes of a block's keys. Values take as much, and the chip holds two blocks at
# a time: 4 MB. A page that has more is a block alone, up to twice as much;
# `refuses` names what is larger.
BLOCK_BYTES = 1 << 20
SCALARS = 3 << 16  # of a call, int32: 768 KB of the 1 MB of scalar memory
ROWS = 8  # queries of a key head are padded to a multiple of these


class Blocks(NamedTuple):
    """What the kernel reads block by block, slot after slot."""

    count: Int32[Array, ""]  # blocks that there are; the others mean nothing
    slot: Int32[Array, " T"]
    start: Int32[Array, " T"]  # position of the first key
    page: Int32[Array, " T*B"]  # B of each block, numbered within the part
    length: Int32[Array, " S"]  # keys of each slot; 0 where it is inactive


class Seen(NamedTuple):
    """What all layers share in a step; of one part, as sharded.step runs it."""

    table: Int32[Array, "S P"]  # pages of each slot; -1 is none
    blocks: dict[int, tuple[Blocks, ...]]
    """By window of a layer: the Blocks of each call of the kernel, in the order
    of the slots. A call takes as many slots as scalar memory has room for."""


def backend(interpret: bool = False) -> Backend:
    """The kernel as a backend; `interpret` runs it on any device, slowly."""
    return Backend(
        "pallas",
        xla.HEADS_AXIS,
        refuses,
        xla.init,
        view,
        chunk_view,
        functools.partial(decode, interpret),
        xla.prefill,
        step,
    )


def refuses(config: ModelConfig, layout: Layout, model: int) -> str:
    """Says what the kernel cannot do, of a model on a mesh."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if config.head_dim % 64:
        return f"head_dim {config.head_dim} is no multiple of 64"
    if kv_heads % model or heads % model:
        return f"{kv_heads} key heads cannot be split in {model}"
    features = kv_heads // model * config.head_dim
    page = features * layout.page * jnp.dtype(layout.keys).itemsize
    if page > 2 * BLOCK_BYTES:
        return f"a page of keys takes {page} bytes, over {2 * BLOCK_BYTES}"
    return ""


def step(
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    view: Any,  # a View of one part, traced
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
) -> Seen:
    """Lists the blocks of a step, which layers of a kind share."""
    page, table = xla.page_size(config, cache), view.table
    _, to = written_to(table, jnp.int32(0), position, active, page, -1)
    length = jnp.where(to >= 0, position + 1, 0)
    most, blocks = pages_at_once(cache[0]), {}
    layers = range(config.num_hidden_layers)
    for window in sorted({config.kind(layer).window for layer in layers}):
        seen = most_seen(window, page, table.shape[1])
        at_once = min(most, seen)
        scalars = -(-seen // at_once) * (at_once + 2) + 1  # of a slot's Blocks
        slots = max(SCALARS // scalars, 1)
        blocks[window] = tuple(
            listed(
                table[at : at + slots],
                length[at : at + slots],
                window,
                page,
                at_once,
            )
            for at in range(0, len(table), slots)
        )
    return Seen(table, blocks)


def decode(
    interpret: bool,
    kind: Kind,
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    base: Int32[Array, ""],
    number: int,
    view: Seen,
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    q: Float[Array, "S H D"],
    k: Float[Array, "S K D"],
    v: Float[Array, "S K D"],
) -> tuple[SoftmaxState, tuple[jax.Array, ...]]:
    """Writes one token a slot and attends up to it; see Backend.decode."""
    del number
    _, cache = xla.write(
        config, cache, view.table, base, position, active, k, v
    )
    rows, states, first = by_key_head(q, k.shape[1]), [], 0
    for blocks in view.blocks[kind.window]:
        some = rows[first : first + len(blocks.length)]
        blocks = blocks._replace(page=base + blocks.page)
        states.append(attended(kind, config, interpret, some, cache, blocks))
        first += len(some)
    state = jax.tree.map(lambda *x: jnp.concatenate(x), *states)
    heads = q.shape[1] // k.shape[1]
    state = jax.tree.map(
        lambda x: x[:, :, :heads].reshape(*q.shape[:2], -1), state
    )
    return finite(state), cache


def most_seen(window: int, page: int, width: int) -> int:
    """The most pages that a query sees, of a table that is `width` wide."""
    return min(pages_met(window, page), width) if window else width


def by_key_head(
    q: Float[Array, "S H D"], kv_heads: int
) -> Float[Array, "S K R D"]:
    """Queries of each key head, padded to a multiple of ROWS."""
    slots, heads, dim = q.shape
    rows = q.reshape(slots, kv_heads, heads // kv_heads, dim)
    padding = -rows.shape[2] % ROWS
    return jnp.pad(rows, ((0, 0), (0, 0), (0, padding), (0, 0)))


def pages_at_once(pages: jax.Array) -> int:
    """Pages of a block: as BLOCK_BYTES has room for, 1 to MOST_PAGES.

    Args:
        pages: of all layers, [L, N, ...].
    """
    each = pages.dtype.itemsize * int(np.prod(pages.shape[2:]))
    return min(max(BLOCK_BYTES // each, 1), MOST_PAGES)


def listed(
    table: Int32[Array, "S P"],
    length: Int32[Array, " S"],
    window: int,
    page: int,
    at_once: int,
) -> Blocks:
    """Lists the blocks of each slot, from the first page that it sees.

    A slot without keys has one block, so that what it gets is set. Behind the
    last page of a slot a block names the page that the block before has there:
    what is on the chip already is not copied again. (In the first block it is
    what the table has there, or page 0.) Slot 0 has pages 7, 3 and 5, slot 1
    page 2, and slot 2 pages 8 and 9; in blocks of two:

        slot     0    0    1    2
        page     7 3  5 3  2 3  8 9

    Args:
        table: pages of the slots; -1 is none.
        length: keys of each slot.
        window: of the layer; 0 is none.
        page: W.
        at_once: pages of a block, B.
    """
    slots = len(table)
    last = jnp.maximum(length - 1, 0) // page
    first = jnp.zeros_like(last)
    if window:
        first = jnp.maximum(length - window, 0) // page
    width = most_seen(window, page, table.shape[1])
    count = (last - first) // at_once + 1
    ends = jnp.cumsum(count)
    block = jnp.arange(slots * -(-width // at_once))
    slot = jnp.searchsorted(ends, block, side="right", method="compare_all")
    slot = jnp.minimum(slot, slots - 1)
    start = first[slot] + (block - (ends - count)[slot]) * at_once
    places = start[:, None] + jnp.arange(at_once)[None]
    there = places <= last[slot][:, None]
    named = jax.lax.cummax(jnp.where(there, block[:, None], 0))
    places = jnp.clip(places, 0, table.shape[1] - 1)
    own = jnp.maximum(table[slot[:, None], places], 0)
    pages = jnp.take_along_axis(own, named, 0)
    every = slot, start * page, pages.ravel(), length
    return Blocks(ends[-1], *(x.astype(jnp.int32) for x in every))


def attended(
    kind: Kind,
    config: ModelConfig,
    interpret: bool,
    q: Float[Array, "S K R D"],
    cache: Sequence[jax.Array],
    blocks: Blocks,
) -> SoftmaxState:
    """Runs the kernel: what each slot sees, [S, K, R, 1 or D]."""
    slots, kv_heads, rows, dim = q.shape
    at_once = len(blocks.page) // len(blocks.slot)

    def of_slot(width: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (1, kv_heads, rows, width),
            lambda block, slot, *_: (slot[block], 0, 0, 0),
        )

    def of_page(x: jax.Array, place: int) -> pl.BlockSpec:
        def index(block, slot, start, page, length):
            del slot, start, length
            return (page[block * at_once + place], *(0,) * (x.ndim - 1))

        return pl.BlockSpec((1, *x.shape[1:]), index)

    like = lambda width: jax.ShapeDtypeStruct(
        (slots, kv_heads, rows, width), jnp.float32
    )
    run = pl.pallas_call(
        functools.partial(_block, kind, config, len(cache)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(blocks.count,),
            in_specs=[
                of_slot(dim),
                *(of_page(x, at) for at in range(at_once) for x in cache),
            ],
            out_specs=[of_slot(1), of_slot(1), of_slot(dim)],
        ),
        out_shape=[like(1), like(1), like(dim)],
        interpret=interpret,
        name="paged_decode",
    )
    scalars = blocks.slot, blocks.start, blocks.page, blocks.length
    return SoftmaxState(*run(*scalars, q, *(at_once * [*cache])))


def _block(kind, config, arrays, slot, start, page, length, q, *refs):
    """One block: adds what a slot sees in some pages to its softmax.

    Args:
        kind: of the layer.
        config: of the model.
        arrays: how many a cache has.
        slot: of each block.
        start: position of each block's first key.
        page: of the grid alone.
        length: keys of each slot.
        q: [1, K, R, D], of the slot.
        refs: arrays of one page after another, [1, ...]; then the state.
    """
    del page
    *kept, peak, total, acc = refs
    pages = [kept[at : at + arrays] for at in range(0, len(kept), arrays)]
    number = pl.program_id(0)
    own = slot[number]

    @pl.when((number == 0) | (slot[jnp.maximum(number - 1, 0)] != own))
    def _():
        peak[...] = jnp.full_like(peak, MASKED)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    turned = xla.tokens_last(config, pages[0][0].dtype)
    width = pages[0][0].shape[-1 if turned else -2]
    shape = q.shape[2], len(pages) * width
    at = start[number] + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = at < length[own]
    if kind.window:
        seen &= at >= length[own] - kind.window
    scale = softmax_scale(config) * LOG2_E
    cap = LOG2_E * config.attn_logit_softcapping
    for head in range(q.shape[1]):
        rows = q[0, head]
        beside = lambda parts: jnp.concatenate(parts, -1)
        scores = beside(
            [product(rows, k[0, head], 0 if turned else 1) for k, *_ in pages]
        )
        if arrays > 2:
            scores *= beside([each[2][0, head, :1] for each in pages])
        scores = jnp.where(seen, capped(scores * scale, cap), MASKED)
        before = peak[0, head]
        top = jnp.maximum(before, jnp.ceil(scores.max(-1, keepdims=True)))
        weights = jnp.where(seen, jnp.exp2(scores - top), 0)
        old = jnp.exp2(before - top)
        peak[0, head] = top
        total[0, head] = total[0, head] * old + weights.sum(-1, keepdims=True)
        if arrays > 2:
            weights *= beside([each[2][0, head, 1:] for each in pages])
        weights = weights.astype(rows.dtype)
        new = sum(
            product(
                weights[:, place * width : (place + 1) * width],
                v[0, head],
                1 if turned else 0,
            )
            for place, (_, v, *_) in enumerate(pages)
        )
        acc[0, head] = acc[0, head] * old + new


def product(
    a: Float[Array, "R n"], b: jax.Array, axis: int
) -> Float[Array, "R m"]:
    """Of a with b along its axis, in the dtype of a; sums are float32."""
    if b.dtype == jnp.int8:
        b = b.astype(jnp.float32)  # the chips convert it to no other
    return jax.lax.dot_general(
        a,
        b.astype(a.dtype),
        (((1,), (axis,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
