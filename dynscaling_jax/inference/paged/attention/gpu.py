"""Attention over pages by cuDNN, on NVIDIA GPUs.

A page is one sequence of a batch to cuDNN: [W, K, D], with as many keys as it
has and the query of the slot that owns it. So keys are read where they lie,
once each, and pages that nobody owns have no keys. What cuDNN gives, a mean and
the logarithm of its sum of exponentials, is a SoftmaxState; those of a slot
are merged as in the XLA form. To that form are left shared pages, the page in
which a window begins, narrow windows, and windows of a prompt.

XLA:GPU hands a layer of stacked ones to cuDNN as a copy: give each layer a
cache of its own, with L = 1.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from dynscaling_jax.inference.memory import doubled
from dynscaling_jax.inference.paged.attention import (
    Backend,
    Layout,
    states,
    views,
)
from dynscaling_jax.inference.paged.attention.views import ChunkView, Shared
from dynscaling_jax.inference.paged.turn import Chunk
from dynscaling_jax.models.attention import (
    LOG2_E,
    MASKED,
    SoftmaxState,
    merge,
    softmax_scale,
)
from dynscaling_jax.models.config import Kind, ModelConfig
from dynscaling_jax.models.sharding import DATA, MODEL

DTYPES = ("bfloat16", "float16")
WIDEST, WIDEST_ON_HOPPER = 128, 256  # features of a head
FEW_PAGES = 2  # of a window, that are gathered
FEWEST_PAGES = 16  # of a prompt, doubled as needed
HEADS_AXIS = 2  # of [pages, W, K, D]

Fused = Callable[..., tuple[jax.Array, jax.Array]]
"""(q [B, T, H, D], k [B, S, K, D], v, keys of each [B] or None, scale, causal)
-> (mean of the values [B, T, H, D], log of the sum of exponentials
[B, T, H], float32)."""


class View(NamedTuple):
    """Which slots read which pages, in each part of the pool. NumPy."""

    table: Int32[np.ndarray, "D S P"]  # pages of each slot; -1 is none
    owner: Int32[np.ndarray, "D N"]  # slot of each page; -1 is none
    index: Int32[np.ndarray, "D N"]  # place of it in the slot's table
    shared: Shared


def cudnn(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    count: Int32[Array, " B"] | None,
    scale: float,
    causal: bool,
) -> tuple[Float[Array, "B T H D"], Float32[Array, "B T H"]]:
    """Fused attention by cuDNN; `count` of the keys are there, at least one.

    jax.nn.dot_product_attention rounds the logarithm to the dtype of the
    queries, which for bfloat16 would put the weights of a merge off by some
    percent. What it calls does not.
    """
    fused = _fused()
    kinds, queries = fused.MaskType, None
    mask = kinds.CAUSAL if causal else kinds.NO_MASK
    if count is not None:
        mask = kinds.PADDING_CAUSAL if causal else kinds.PADDING
        queries = jnp.full(count.shape, q.shape[1], jnp.int32)
    both: Any = fused.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=queries,
        kv_seqlen=count,
        scale=scale,
        mask_type=mask,
        return_residual=True,
    )
    mean, log = both
    return mean, log.swapaxes(1, 2)


def _fused() -> Any:
    """JAX's calls of cuDNN, which are no part of its public interface."""
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def backend(fused: Fused = cudnn) -> Backend:
    """The fused attention as a backend."""
    return Backend(
        "gpu",
        HEADS_AXIS,
        refuses,
        init,
        view,
        chunk_view,
        functools.partial(decode, fused),
        functools.partial(prefill, fused),
    )


def refuses(config: ModelConfig, layout: Layout, model: int) -> str:
    """Says what cuDNN cannot do, of a model on a mesh."""
    if config.attn_logit_softcapping:
        return "it cannot cap scores"
    widest = WIDEST
    if config.head_dim > widest and _fused().check_compute_capability("9.0"):
        widest = WIDEST_ON_HOPPER
    if config.head_dim > widest or config.head_dim % 8:
        return f"head_dim {config.head_dim} is no multiple of 8 up to {widest}"
    if layout.keys not in DTYPES:
        return f"keys are {layout.keys}"
    if config.num_key_value_heads % model or config.num_attention_heads % model:
        return f"{config.num_key_value_heads} key heads split in {model}"
    return ""


def init(config: ModelConfig, layout: Layout, dtype: Any) -> tuple:
    """Returns (shape, dtype, axes of the mesh) of keys and of values."""
    pages = layout.parts * layout.pages
    shape = pages, layout.page, config.num_key_value_heads, config.head_dim
    return ((shape, dtype, (DATA, None, MODEL)),) * 2


def view(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> View:
    """Lays out, for each part, which slots read which pages."""
    parts = [
        views.owners(layout, *own)
        for own in views.of_parts(layout, tables, shared)
    ]
    return View(
        np.stack([part.table for part in parts]),
        np.stack([part.owner for part in parts]),
        np.stack([part.index for part in parts]),
        views.listed([part.shared for part in parts]),
    )


def chunk_view(layout: Layout, chunks: Sequence[Chunk]) -> ChunkView:
    """Lays out the chunk of each part, in tables as wide as they need to be."""
    view = views.chunk_view(layout, chunks)
    longest = max((len(chunk.pages) for chunk in chunks), default=0)
    width = doubled(FEWEST_PAGES, longest)
    return view._replace(table=view.table[:, :width])


def decode(
    fused: Fused,
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
    """Writes one token a slot and attends up to it; see Backend.decode.

    W = 4; slot 0 is at position 5, and page 1 is nobody's:

        page     0  1  2
        owner    0  .  0
        index    1  0  0
        keys     2  0  4
    """
    page = cache[0].shape[1]
    place, to = views.written_to(
        view.table, base, position, active, page, len(cache[0])
    )
    cache = _written(cache, to, position, k, v)
    take = lambda at: [x[base + at].swapaxes(1, 2) for x in cache]
    attend = functools.partial(
        states.page_states, kind, config, position, q, False
    )
    met = states.pages_met(kind.window, page)
    if kind.window and met <= FEW_PAGES:
        return states.windowed(attend, q, take, view.table, place, met), cache
    own = [jax.lax.dynamic_slice_in_dim(x, base, pages) for x in cache]
    at, begins = jnp.maximum(view.owner, 0), view.index * page
    count = jnp.clip(position[at] + 1 - begins, 0, page)
    cut = []
    whole = view.owner >= 0
    if kind.window:
        low = position - kind.window + 1  # the first position that is seen
        whole &= begins >= low[at]
        cut = [_cut_page(attend, take, view, low, page)]
    count = jnp.where(whole, count, 0)
    mean, log = fused(q[at][:, None], *own, count, softmax_scale(config), False)
    whole_pages = state_of(mean, log, (count > 0)[:, None, None]), view.owner
    shared = states.shared_states(attend, q, take, view.shared)
    return states.joined(q, whole_pages, shared, *cut), cache


def _cut_page(attend, take, view, low, page):
    """What slots see in the page that begins before their window does.

    cuDNN takes the first keys of a page, and here the last ones are seen.
    Shared pages are left to shared_states.
    """
    slots = jnp.arange(len(low))
    place = jnp.maximum(low, 0) // page
    first = view.table[slots, jnp.minimum(place, view.table.shape[1] - 1)]
    cut = (low > place * page) & (first >= 0)
    first = jnp.maximum(first, 0)
    cut &= view.owner[first] == slots
    lanes = jnp.where(cut, slots, -1)
    states = attend(take(first), lanes[:, None], place)
    return jax.tree.map(lambda x: x[:, 0], states), lanes


def prefill(
    fused: Fused,
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

    The chunk attends within itself, and to what was there before it; keys are
    gathered for that, as many as the table is wide.
    """
    page = cache[0].shape[1]
    position, to = views.chunk_written_to(
        view, base, len(q), page, len(cache[0])
    )
    cache = _written(cache, to, position, k, v)
    if kind.window:
        sequence = lambda x: x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)
        take = lambda at: [sequence(x[base + at]) for x in cache]
        return states.running(kind, config, False, take, page, view, q), cache
    scale = softmax_scale(config)
    table = base + jnp.maximum(view.table, 0)
    kept = [x[table].reshape(1, -1, *x.shape[2:]) for x in cache]
    mean, log = fused(
        q[None], *kept, jnp.maximum(view.start, 1)[None], scale, False
    )
    before = state_of(mean, log, (view.start > 0)[None, None, None])
    mean, log = fused(q[None], k[None], v[None], None, scale, True)
    state = merge(before, state_of(mean, log, jnp.ones((1, 1, 1), bool)))
    return jax.tree.map(lambda x: x[0], state), cache


def _written(cache, to, position, k, v):
    """Puts tokens into pages `to`; those past the last go nowhere."""
    place = position % cache[0].shape[1]
    return tuple(
        x.at[to, place].set(new.astype(x.dtype), mode="drop")
        for x, new in zip(cache, (k, v), strict=True)
    )


def state_of(
    mean: Float[Array, "B T H D"],
    log: Float32[Array, "B T H"],
    there: Bool[Array, "#B #T #H"],
) -> SoftmaxState:
    """A mean and the logarithm of a sum as a state; of nothing if not there."""
    there = jnp.broadcast_to(there, log.shape)[..., None]
    log = jnp.where(there, LOG2_E * log[..., None], 0)
    peak = jnp.ceil(log)
    total = jnp.where(there, jnp.exp2(log - peak), 0)
    acc = jnp.where(there, mean.astype(jnp.float32), 0) * total
    return SoftmaxState(jnp.where(there, peak, MASKED), total, acc)
