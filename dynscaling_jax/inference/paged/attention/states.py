"""What queries see in pages: softmax states, and their sums in any order.

A page gives a SoftmaxState to each slot that reads it; `joined` brings those of
a slot together. A chunk of a prompt meets its pages one after another, with a
running softmax. No array has scores of whole sequences.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from dynscaling_jax.inference.paged.attention.views import ChunkView, Shared
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

SHARED_BLOCK = 8  # shared pages that are read at a time
PREFILL_BLOCK = 4  # pages of a prompt that a chunk meets at a time


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
        kept: keys and values, and their scales [..., 2, W] where they are
            int8.
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
        scores *= scales[0][..., :1, :]
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
        weights *= scales[0][..., 1:, :]
    acc = jnp.einsum(
        f"...mw,...{axes}->...md",
        weights.astype(q.dtype),
        v.astype(q.dtype),
        preferred_element_type=jnp.float32,
    )
    return SoftmaxState(peak, total, acc)


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
    # The empty states are tied to q. They are the same in every step, so
    # XLA:GPU would make them before the loop over steps and hold them all,
    # those of each layer: layers are a list there, not a loop.
    begin, _ = jax.lax.optimization_barrier((empty(none), q))
    return jax.lax.fori_loop(0, blocks, put, begin)


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
