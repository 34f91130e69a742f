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
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from dynscaling_jax.inference.memory import doubled
from dynscaling_jax.inference.paged.attention import Backend, Layout
from dynscaling_jax.inference.paged.turn import Chunk
from dynscaling_jax.models.attention import (
    LOG2_E,
    MASKED,
    SoftmaxState,
    capped,
    merge,
    power_of_two,
    row_sums,
    softmax_scale,
)
from dynscaling_jax.models.config import Kind, ModelConfig
from dynscaling_jax.models.sharding import (
    AXES,
)

BLOCK = 64  # pages of the pool that are read at a time
SHARED_BLOCK = 8  # shared pages that are read at a time
LANES = 16  # slots that read a shared page at a time
PREFILL_BLOCK = 4  # pages of a prompt that a chunk meets at a time
FEWEST = 64  # shared pages that a view has room for, doubled as needed
INT8 = "int8"
HEADS_AXIS = 1  # of [pages, K, W, D]


class Shared(NamedTuple):
    """Pages that several slots read, in each part. NumPy.

    Slots are numbered within their part, here and below; -1 is none.
    """

    count: Int32[np.ndarray, " D"]  # how many follow
    page: Int32[np.ndarray, "D A"]
    lanes: Int32[np.ndarray, "D A R"]  # slots that read it
    place: Int32[np.ndarray, "D A"]  # of it in their tables


class View(NamedTuple):
    """Which slots read which pages, in each part of the pool. NumPy."""

    table: Int32[np.ndarray, "D S P"]  # pages of each slot
    blocks: Int32[np.ndarray, " D"]  # how many blocks follow
    first: Int32[np.ndarray, "D B"]  # page of each block
    owner: Int32[np.ndarray, "D B n"]  # slot of each page
    index: Int32[np.ndarray, "D B n"]  # place of it in the slot's table
    shared: Shared


class ChunkView(NamedTuple):
    """The chunk of a prompt in each part. NumPy."""

    table: Int32[np.ndarray, "D P"]  # pages of the prompt; -1 is none
    start: Int32[np.ndarray, " D"]  # tokens that have keys already
    end: Int32[np.ndarray, " D"]  # of the chunk; 0 where there is none


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

    int8 ones have a scale for each token and head, float32.
    """
    pages, dim = layout.parts * layout.pages, config.head_dim
    heads, page = config.num_key_value_heads, layout.page
    last = (dim, page) if tokens_last(config) else (page, dim)
    int8 = layout.keys == INT8
    kept = (pages, heads, *last), INT8 if int8 else dtype, AXES
    scale = (pages, heads, page), "float32", AXES
    return (kept, kept, scale, scale) if int8 else (kept, kept)


def tokens_last(config: ModelConfig) -> bool:
    """Whether a page is [K, D, W] and not [K, W, D].

    TPUs pad the last dimension to a multiple of 128: heads of 64 features
    would take twice their memory, and XLA copies the cache to do without.
    """
    return config.head_dim % 128 > 0


def _token_axis(config: ModelConfig, x: jax.Array) -> int:
    """Of positions in keys or values [N, K, W, D], or scales [N, K, W]."""
    return 3 if x.ndim == 4 and tokens_last(config) else 2


def page_size(config: ModelConfig, cache: tuple[jax.Array, ...]) -> int:
    """W of a cache."""
    return cache[0].shape[-1 if tokens_last(config) else -2]


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


def of_parts(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> list[tuple[Sequence[Sequence[int]], Sequence[int]]]:
    """Cuts what is told of all slots into the parts of the mesh."""
    size = layout.slots // layout.parts
    cuts = [slice(at, at + size) for at in range(0, layout.slots, size)]
    return [(tables[cut], shared[cut]) for cut in cuts]


class Owners(NamedTuple):
    """Which slots read which pages of one part. NumPy."""

    table: Int32[np.ndarray, "S P"]
    owner: Int32[np.ndarray, " N"]  # -1 where no slot has a page alone
    index: Int32[np.ndarray, " N"]  # place of a page in its slot's table
    shared: list[tuple[int, int, list[int]]]  # (page, place, slots up to R)


def owners(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> Owners:
    """Finds the slots that read each page of a part.

    A page that may be shared, and that one slot reads, is that slot's own.
    """
    readers: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    for slot, (pages, count) in enumerate(zip(tables, shared, strict=True)):
        for place, page in enumerate(pages[:count]):
            readers.setdefault(page, []).append(slot)
            places[page] = place
    several = {page for page, slots in readers.items() if len(slots) > 1}
    owner = np.full(layout.pages, -1, np.int32)
    index = np.zeros(layout.pages, np.int32)
    counts = [*map(len, tables)]
    every = np.fromiter(itertools.chain.from_iterable(tables), np.int32)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    owner[every] = np.repeat(np.arange(len(tables)), counts)
    index[every] = np.arange(len(every)) - before
    owner[[*several]], index[[*several]] = -1, 0
    lists = [
        (page, places[page], readers[page][at : at + LANES])
        for page in sorted(several)
        for at in range(0, len(readers[page]), LANES)
    ]
    return Owners(padded_tables(layout, tables), owner, index, lists)


def listed(parts: Sequence[list[tuple[int, int, list[int]]]]) -> Shared:
    """Lays out the shared pages of all parts, with room for as many each."""
    room = doubled(FEWEST, max(map(len, parts)))
    page, place = np.zeros((2, len(parts), room), np.int32)
    lanes = np.full((len(parts), room, LANES), -1, np.int32)
    for part, lists in enumerate(parts):
        for at, (number, where, slots) in enumerate(lists):
            page[part, at], place[part, at] = number, where
            lanes[part, at, : len(slots)] = slots
    return Shared(np.array([*map(len, parts)], np.int32), page, lanes, place)


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


def padded_tables(
    layout: Layout, tables: Sequence[Sequence[int]]
) -> Int32[np.ndarray, "S P"]:
    """Tables as rows of Layout.longest pages, -1 behind the last."""
    table = np.full((len(tables), layout.longest), -1, np.int32)
    for row, pages in zip(table, tables, strict=True):
        row[: len(pages)] = pages
    return table


def chunk_view(layout: Layout, chunks: Sequence[Chunk]) -> ChunkView:
    """Lays out the chunk of each part; some parts have none."""
    start, end = np.zeros((2, layout.parts), np.int32)
    tables: list[Sequence[int]] = [()] * layout.parts
    for chunk in chunks:
        tables[chunk.part] = chunk.pages
        start[chunk.part], end[chunk.part] = chunk.start, chunk.end
    return ChunkView(padded_tables(layout, tables), start, end)


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
    place, to = written_to(
        view.table, base, position, active, page, len(cache[0])
    )
    cache = write(config, cache, to, position % page, k, v)
    turned = tokens_last(config)
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


def collected(
    some: Callable[[jax.Array], SoftmaxState],
    q: Float[Array, "S H D"],
    blocks: Int32[Array, ""],
    room: int,
    rows: int,
) -> SoftmaxState:
    """Puts the states of blocks behind one another: [room * rows, H, ...].

    Args:
        some: number of a block -> states, `rows` in all.
        q: of the slots.
        blocks: how many there are; the others are left empty.
        room: how many there may be.
        rows: states of a block.
    """

    def put(number, every):
        at = lambda all_rows, new: jax.lax.dynamic_update_slice_in_dim(
            all_rows, new.reshape(rows, *all_rows.shape[1:]), number * rows, 0
        )
        return jax.tree.map(at, every, some(number))

    none = jnp.zeros((room * rows, *q.shape[1:]), q.dtype)
    return jax.lax.fori_loop(0, blocks, put, empty(none))


def shared_states(
    attend: Callable[..., SoftmaxState],
    q: Float[Array, "S H D"],
    take: Callable[[jax.Array], Sequence[jax.Array]],
    shared: Shared,
) -> tuple[SoftmaxState, Int32[Array, "A R"]]:
    """What slots see in the shared pages of their part, and which slots.

    Args:
        attend: (pages, lanes, places) -> states, as page_states.
        q: of the slots.
        take: numbers of pages -> these pages.
        shared: of the part.
    """
    there = jnp.arange(len(shared.page)) < shared.count
    lanes = jnp.where(there[:, None], shared.lanes, -1)

    def some(number):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(
            x, number * SHARED_BLOCK, SHARED_BLOCK
        )
        return attend(take(cut(shared.page)), cut(lanes), cut(shared.place))

    blocks = jnp.asarray(-(-shared.count // SHARED_BLOCK))
    room = len(shared.page) // SHARED_BLOCK
    rows = SHARED_BLOCK * lanes.shape[1]
    return collected(some, q, blocks, room, rows), lanes


def pages_met(window: int, page: int) -> int:
    """The most pages of W positions that a window can meet.

    W = 4: a window of 5 meets two pages, one of 6 may meet three.

        . . . x  x x x x             . . . x  x x x x  x . . .
    """
    return (window + page - 2) // page + 1


def windowed(
    attend: Callable[..., SoftmaxState],
    q: Float[Array, "S H D"],
    take: Callable[[jax.Array], Sequence[jax.Array]],
    table: Int32[Array, "S P"],
    last: Int32[Array, " S"],
    met: int,
) -> SoftmaxState:
    """Reads the last pages of each slot, one a slot at a time.

    Args:
        attend: (pages, lanes, places) -> states, as page_states.
        q: of the slots.
        take: numbers of pages -> these pages.
        table: pages of the slots.
        last: place of each query's page in its table.
        met: how many pages are read.
    """
    own = jnp.arange(len(last))

    def one(back, total):
        place = last - back
        pages = table[own, jnp.maximum(place, 0)]
        lanes = jnp.where((place >= 0) & (pages >= 0), own, -1)[:, None]
        states = attend(take(jnp.maximum(pages, 0)), lanes, place)
        return merge(total, jax.tree.map(lambda x: x[:, 0], states))

    return finite(jax.lax.fori_loop(0, met, one, empty(q)))


def written_to(
    table: Int32[Array, "S P"],
    base: Int32[Array, ""],
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    page: int,
    nowhere: int,
) -> tuple[Int32[Array, " S"], Int32[Array, " S"]]:
    """Finds the place of each slot's page in its table, and its page.

    Args:
        table: pages of the slots; -1 is none.
        base: the part's first page.
        position: of each slot's token.
        active: slots that write.
        page: W.
        nowhere: stands for the page of those that do not.
    """
    place = jnp.clip(position // page, 0, table.shape[1] - 1)
    own = table[jnp.arange(len(position)), place]
    return place, jnp.where(active & (own >= 0), base + own, nowhere)


def chunk_written_to(
    view: Any,  # a ChunkView of one part, traced
    base: Int32[Array, ""],
    tokens: int,
    page: int,
    nowhere: int,
) -> tuple[Int32[Array, " T"], Int32[Array, " T"]]:
    """Finds the positions of a chunk's tokens, and their pages.

    Those behind the end of the chunk go `nowhere`.
    """
    position = view.start + jnp.arange(tokens)
    own = view.table[jnp.minimum(position // page, len(view.table) - 1)]
    there = (position < view.end) & (own >= 0)
    return position, jnp.where(there, base + own, nowhere)


def write(
    config: ModelConfig,
    cache: tuple[jax.Array, ...],
    page: Int32[Array, " S"],
    place: Int32[Array, " S"],
    k: Float[Array, "S K D"],
    v: Float[Array, "S K D"],
) -> tuple[jax.Array, ...]:
    """Puts a key and a value of each slot into its place of a page.

    Those past the last page go nowhere; no two slots write into one page.
    XLA:TPU writes rows of features in place if there is one index for each
    head. Where positions are the last dimension, and of whole tokens, it would
    lay out the cache anew, in a copy; there pages are replaced.
    """
    head = jnp.arange(k.shape[1])[None]

    def put(x, new):
        new = new.astype(x.dtype)
        axis = _token_axis(config, x)
        if axis < x.ndim - 1:
            at = page[:, None], head, place[:, None]
            return x.at[at].set(new, mode="drop")
        old = x.at[page].get(mode="clip")
        old, x = jax.lax.optimization_barrier((old, x))  # as in put_chunk
        here = jnp.arange(x.shape[-1])[None] == place[:, None]
        here = here.reshape(len(page), *(1,) * (x.ndim - 2), -1)
        return x.at[page].set(jnp.where(here, new[..., None], old), mode="drop")

    return tuple(map(put, cache, stored(cache, k, v)))


def stored(
    cache: tuple[jax.Array, ...],
    k: Float[Array, "... D"],
    v: Float[Array, "... D"],
) -> tuple[jax.Array, ...]:
    """What the cache keeps of keys and values: themselves, or int8 and scales.

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
    return k, v, k_scale, v_scale


def page_states(
    kind: Kind,
    config: ModelConfig,
    position: Int32[Array, " S"],
    q: Float[Array, "S H D"],
    turned: bool,
    kept: Sequence[jax.Array],
    lanes: Int32[Array, "n R"],
    index: Int32[Array, " n"],
) -> SoftmaxState:
    """What the slots `lanes` see in n pages: [n, R, H, ...].

    Args:
        kind: of the layer.
        config: of the model.
        position: of each slot's query.
        q: of each slot.
        turned: as attend's.
        kept: n pages, as attend takes them.
        lanes: which slots meet which page; -1 is none.
        index: places of the pages in their sequences.
    """
    count, width = lanes.shape
    _, heads, dim = q.shape
    kv_heads, page = kept[0].shape[1], kept[0].shape[-1 if turned else -2]
    rep = heads // kv_heads
    at = jnp.maximum(lanes, 0)
    keys = index[:, None] * page + jnp.arange(page)[None]
    ahead = position[at][..., None] - keys[:, None]
    seen = (ahead >= 0) & (lanes >= 0)[..., None]
    if kind.window:
        seen &= ahead < kind.window
    rows = q[at].reshape(count, width, kv_heads, rep, dim).swapaxes(1, 2)
    state = attend(
        config,
        rows.reshape(count, kv_heads, width * rep, dim),
        turned,
        kept,
        jnp.repeat(seen, rep, 1)[:, None],
    )

    def split(x):
        x = x.reshape(count, kv_heads, width, rep, -1).swapaxes(1, 2)
        return x.reshape(count, width, heads, -1)

    return jax.tree.map(split, state)


def attend(
    config: ModelConfig,
    q: Float[Array, "... M D"],
    turned: bool,
    kept: Sequence[jax.Array],
    mask: Bool[Array, "... #M W"],
) -> SoftmaxState:
    """Attends to keys of few positions; sums are float32.

    Args:
        config: of the model; its scale and cap apply.
        q: rotated, not scaled.
        turned: whether keys and values are [..., D, W], not [..., W, D].
        kept: keys and values, and their scales [..., W] where they are int8.
        mask: True where a key is visible; rows that see none have sum 0.
    """
    k, v, *scales = kept
    axes = "dw" if turned else "wd"
    scores = jnp.einsum(
        f"...md,...{axes}->...mw",
        q,
        k.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    if scales:
        scores *= scales[0][..., None, :]
    scale = softmax_scale(config)
    cap = LOG2_E * config.attn_logit_softcapping
    scores = jnp.where(mask, capped(scores * (scale * LOG2_E), cap), MASKED)
    peak = jnp.ceil(scores.max(-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp2(scores - peak), 0)
    # fused with what follows, they would round by the number of queries
    weights, peak = jax.lax.platform_dependent(
        weights,
        peak,
        cpu=lambda *x: jax.lax.optimization_barrier(x),
        default=lambda *x: x,
    )
    total = row_sums(weights)
    if scales:
        weights *= scales[1][..., None, :]
    acc = jnp.einsum(
        f"...mw,...{axes}->...md",
        weights.astype(q.dtype),
        v.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    return SoftmaxState(peak, total, acc)


def empty(q: Float[Array, "S H D"]) -> SoftmaxState:
    """A state of no keys."""
    acc = jnp.zeros(q.shape, jnp.float32)
    none = acc[..., :1]
    return SoftmaxState(none + MASKED, none, acc)


def joined(
    q: Float[Array, "S H D"],
    *parts: tuple[SoftmaxState, Int32[Array, "..."]],
) -> SoftmaxState:
    """Joins the states of pages, each of the slot that met it.

    What a slot gets does not depend on where its pages lie or on how many
    others there are: sums come out the same in any order. Each term is cut in
    two by a power of two that follows from the slot's own terms, so that all
    high parts are whole multiples of one unit, and float32 adds them without
    rounding; so are the low parts. With four binary digits and terms of up to
    three bits, three of them:

        terms        1.01   0.11   1.10     unit of high parts 0.1 (a half)
        high parts   1.0    1.0    1.1      sum 11.1, exact
        low parts    0.01  -0.01   0.0      sum 0.0, exact

    Args:
        q: of the slots, for their shape.
        parts: states [..., H, 1 or D] and the slots [...] that they belong
            to; -1 is none.
    """
    slots = len(q)
    flat = lambda x: x.reshape(-1, *x.shape[-2:])
    states = [jax.tree.map(flat, state) for state, _ in parts]
    lanes = [slot.reshape(-1) for _, slot in parts]
    own = [jnp.maximum(slot, 0) for slot in lanes]
    mine = [slot[None] == jnp.arange(slots)[:, None] for slot in lanes]

    def greatest(each: Sequence[jax.Array], none: float) -> jax.Array:
        """Of [n, H] in all parts, of each slot: [S, H]."""
        found = (
            jnp.where(own_rows[..., None], x[None], none).max(1)
            for own_rows, x in zip(mine, each, strict=True)
        )
        return functools.reduce(jnp.maximum, found)

    peak = greatest([state.max[..., 0] for state in states], MASKED)
    terms = []
    for state, slot, at in zip(states, lanes, own, strict=True):
        scale = power_of_two(state.max - peak[at][..., None])
        scale = jnp.where((slot >= 0)[:, None, None], scale, 0)
        terms.append((state.sum * scale, state.acc * scale))
    count = functools.reduce(jnp.add, [own_rows.sum(1) for own_rows in mine])
    room = exponent(count.astype(jnp.float32))[:, None] + 1
    large = [
        jnp.maximum(total[..., 0], jnp.abs(acc).max(-1)) for total, acc in terms
    ]
    unit = exponent(greatest(large, 0.0)) + room - 22
    sums = [
        _added(term, unit, room, at, own_rows)
        for term, at, own_rows in zip(terms, own, mine, strict=True)
    ]
    halves = (jnp.split(sum(each), 2, -1) for each in zip(*sums, strict=True))
    total, acc = (high + low for high, low in halves)
    return finite(SoftmaxState(peak[..., None], total, acc))


def _added(terms, unit, room, own, mine):
    """Sums of high and of low parts, side by side: ([S, H, 2 or 2 D], ...).

    A product with ones and zeros stays on the chip of a TPU. A GPU adds what
    it reads to the sums at once, in any order.
    """

    def one(term):
        by_row = lambda x: x[own][..., None]
        coarse, fine = unit, unit + room - 23
        high = jnp.round(term * power_of_two(-by_row(coarse)))
        high *= power_of_two(by_row(coarse))
        low = jnp.round((term - high) * power_of_two(-by_row(fine)))
        low *= power_of_two(by_row(fine))
        return jnp.concatenate([high, low], -1)

    def product(x):
        ones = mine.astype(jnp.float32)
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("sn,nhd->shd", ones, x, precision=exact)

    def scattered(x):
        return jax.ops.segment_sum(x, own, len(mine))

    return jax.tree.map(
        lambda x: jax.lax.platform_dependent(
            x, cuda=scattered, default=product
        ),
        tuple(map(one, terms)),
    )


def exponent(x: Float[Array, "..."]) -> Int32[Array, "..."]:
    """Finds whole n, -40 at least, with 2**n <= x < 2**(n + 1), of x >= 0."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.maximum((bits >> 23) - 127, -40)


def finite(state: SoftmaxState) -> SoftmaxState:
    """Rows that see no key give zeros, where 0 / 0 would not."""
    return state._replace(sum=jnp.where(state.sum > 0, state.sum, 1))


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
    cache = tuple(
        put_chunk(x, base, view, new, _token_axis(config, x))
        for x, new in zip(cache, stored(cache, k, v), strict=True)
    )
    take = lambda at: [_sequence(config, x[base + at]) for x in cache]
    turned, page = tokens_last(config), page_size(config, cache)
    return running(kind, config, turned, take, page, view, q), cache


def running(
    kind: Kind,
    config: ModelConfig,
    turned: bool,
    take: Callable[[jax.Array], Sequence[jax.Array]],
    page: int,
    view: ChunkView,
    q: Float[Array, "T H D"],
) -> SoftmaxState:
    """Lets the queries of a chunk meet the pages of its prompt, some at a time.

    They are PREFILL_BLOCK pages, from the first that a window lets the chunk
    see to the chunk's own. So there are scores of [K, rep * T, 512] at most.

    Args:
        kind: of the layer.
        config: of the model.
        turned: as attend's.
        take: numbers of pages -> [K, ...], as attend takes them.
        page: W.
        view: of the part.
        q: rotated, not scaled.
    """
    count, heads, dim = q.shape
    kv_heads = jax.eval_shape(take, jnp.zeros(1, jnp.int32))[0].shape[0]
    rep = heads // kv_heads
    position = view.start + jnp.arange(count)
    rows = q.reshape(count, kv_heads, rep, dim).swapaxes(0, 1)
    rows = rows.reshape(kv_heads, count * rep, dim)
    span = PREFILL_BLOCK * page

    def block(number, total):
        places = number * PREFILL_BLOCK + jnp.arange(PREFILL_BLOCK)
        last = view.table.shape[0] - 1
        at = jnp.maximum(view.table[jnp.minimum(places, last)], 0)
        keys = number * span + jnp.arange(span)
        ahead = position[:, None] - keys[None]
        seen = (ahead >= 0) & (keys < view.end)[None]
        if kind.window:
            seen &= ahead < kind.window
        seen = jnp.repeat(seen, rep, 0)[None]
        return merge(total, attend(config, rows, turned, take(at), seen))

    first = 0
    if kind.window:
        first = jnp.maximum(view.start - kind.window + 1, 0) // span
    total = jax.lax.fori_loop(first, -(-view.end // span), block, empty(rows))

    def split(x):
        x = x.reshape(kv_heads, count, rep, -1).swapaxes(0, 1)
        return x.reshape(count, heads, -1)

    return jax.tree.map(split, finite(total))


def _sequence(config: ModelConfig, pages: jax.Array) -> Float[Array, "K ..."]:
    """Pages [n, K, ...] as one, whose positions go on from page to page."""
    count, heads = pages.shape[:2]
    if pages.ndim == 4 and tokens_last(config):
        return pages.transpose(1, 2, 0, 3).reshape(heads, pages.shape[2], -1)
    rest = pages.shape[3:]
    return pages.swapaxes(0, 1).reshape(heads, count * pages.shape[2], *rest)


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
    return x.at[to].set(jnp.moveaxis(joined, 1, axis), mode="drop")
