"""Runs the functions of a backend on each part of a mesh's data axis.

A part has its own slots and pages. What lies on one device goes through its
parts one after another; without a mesh these are all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int32

from dynscaling_jax.inference.paged.attention import Backend
from dynscaling_jax.models.attention import SoftmaxState
from dynscaling_jax.models.config import Kind, ModelConfig
from dynscaling_jax.models.sharding import (
    AXES,
    DATA,
    MODEL,
    ambient,
    fitting,
    on_shards,
)

Cache = tuple[jax.Array, ...]
"""Arrays [L, D * N, ...]: all layers, or one, and the pages of all parts."""


def step(
    backend: Backend,
    config: ModelConfig,
    cache: Cache,
    view: Any,
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
) -> Any:
    """Makes what the layers of one step share of a view; see Backend.step.

    Args:
        backend: owns the layout of the cache.
        config: of the model.
        cache: its shapes on each device count, and nothing else.
        view: backend.view of the turn.
        position: of each slot's token.
        active: slots.

    Returns:
        What decode takes as its view, arrays [D, ...].
    """
    parts = len(view.table)
    whole = fitting(ambient(), (parts,), (DATA,))

    def local(cache, view, position, active):
        parts = len(view.table)
        own = lambda x: x.reshape(parts, -1, *x.shape[1:])
        made = [
            backend.step(config, cache, *each)
            for each in zip(
                [jax.tree.map(lambda x, n=n: x[n], view) for n in range(parts)],
                own(position),
                own(active),
                strict=True,
            )
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *made)

    kept = _cache_spec(backend, cache, parts)
    return on_shards(local, (kept, whole, whole, whole), whole)(
        cache, view, position, active
    )


def decode(
    backend: Backend,
    kind: Kind,
    config: ModelConfig,
    cache: Cache,
    layer: Int32[Array, ""],
    view: Any,
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    q: Float[Array, "S H D"],
    k: Float[Array, "S K D"],
    v: Float[Array, "S K D"],
) -> tuple[SoftmaxState, Cache]:
    """Writes the keys of one token a slot and attends to all up to there.

    Args:
        backend: owns the layout of the cache.
        kind: of the layer.
        config: of the model.
        cache: is written in place where it is donated.
        layer: its number in the cache; it may be traced.
        view: what step made of the turn's.
        position: of each slot's token.
        active: slots; what the others write goes nowhere.
        q: rotated, not scaled.
        k: rotated.
        v: values.

    Returns:
        What each slot sees, [S, H, D], and the cache.
    """

    def run(cache, base, pages, view, position, active, *qkv):
        return backend.decode(
            kind, config, cache, base, pages, view, position, active, *qkv
        )

    return _each(backend, run, cache, layer, view, position, active, q, k, v)


def prefill(
    backend: Backend,
    kind: Kind,
    config: ModelConfig,
    cache: Cache,
    layer: Int32[Array, ""],
    view: Any,
    q: Float[Array, "DT H D"],
    k: Float[Array, "DT K D"],
    v: Float[Array, "DT K D"],
) -> tuple[SoftmaxState, Cache]:
    """Writes the keys of a chunk a part and attends up to each token.

    Where a part has no chunk, and behind the end of one, what is returned
    means nothing, but is finite.

    Args:
        backend: owns the layout of the cache.
        kind: of the layer.
        config: of the model.
        cache: is written in place where it is donated.
        layer: its number in the cache; it may be traced.
        view: backend.chunk_view of the chunks.
        q: of the parts one after another, rotated, not scaled.
        k: rotated.
        v: values.

    Returns:
        What each token sees, [D * T, H, D], and the cache.
    """

    def run(cache, base, pages, view, *qkv):
        del pages
        return backend.prefill(kind, config, cache, base, view, *qkv)

    return _each(backend, run, cache, layer, view, q, k, v)


def copy(
    backend: Backend,
    cache: Cache,
    source: Int32[Array, "D C"],
    target: Int32[Array, "D C"],
) -> Cache:
    """Copies pages of all layers; those with a target past the last go nowhere.

    Pages are numbered within their part.
    """
    kept = _cache_spec(backend, cache, len(source))
    rows = fitting(ambient(), (len(source),), (DATA,))

    def local(cache, source, target):
        parts, pages = len(source), cache[0].shape[1] // len(source)
        first = pages * jnp.arange(parts)[:, None]
        there = (target >= 0) & (target < pages)
        target = jnp.where(there, first + target, parts * pages).reshape(-1)
        source = (first + jnp.clip(source, 0, pages - 1)).reshape(-1)
        return tuple(
            x.at[:, target].set(x[:, source], mode="drop") for x in cache
        )

    return on_shards(local, (kept, rows, rows), kept)(cache, source, target)


def _each(
    backend: Backend,
    run: Callable[..., tuple[SoftmaxState, Cache]],
    cache: Cache,
    layer: Int32[Array, ""],
    view: Any,
    *rows: jax.Array,
) -> tuple[SoftmaxState, Cache]:
    """Runs a function of one part on each part, on the shards that have it.

    Args:
        backend: owns the layout of the cache.
        run: (cache as [pages of all, ...], the part's first page, the number
            of its pages, view, rows) of a part -> (state, cache).
        cache: of all layers, or one.
        layer: its number in the cache.
        view: arrays [D, ...].
        rows: arrays of rows, the parts one after another: [rows], or
            [rows, heads, D]; values come last.
    """
    sizes, parts = ambient(), len(view.table)
    kept = _cache_spec(backend, cache, parts)
    whole = fitting(sizes, (parts,), (DATA,))
    # queries are split as key heads are, of which the last rows have as many
    heads = fitting(sizes, (parts, rows[-1].shape[1]), AXES)
    inside = [heads if x.ndim > 1 else whole for x in rows]

    def local(cache, layer, view, *rows):
        parts, shapes = len(view.table), [x.shape for x in cache]
        pages = shapes[0][1] // parts
        cache = tuple(x.reshape(-1, *x.shape[2:]) for x in cache)
        states = []
        for part in range(parts):
            own = lambda x, part=part: x.reshape(parts, -1, *x.shape[1:])[part]
            state, cache = run(
                cache,
                (layer * parts + part) * pages,
                pages,
                jax.tree.map(lambda x, part=part: x[part], view),
                *map(own, rows),
            )
            states.append(state)
        state = jax.tree.map(lambda *x: jnp.concatenate(x), *states)
        cache = tuple(
            x.reshape(shape) for x, shape in zip(cache, shapes, strict=True)
        )
        return state, cache

    return on_shards(local, (kept, P(), whole, *inside), (heads, kept))(
        cache, layer, view, *rows
    )


def _cache_spec(backend: Backend, cache: Cache, parts: int) -> P:
    """How [L, D * N, ...] lies on the ambient mesh."""
    axis = backend.heads_axis
    shape = parts, *(cache[0].shape[1 + axis],) * axis
    axes = DATA, *(None,) * (axis - 1), MODEL
    return P(None, *fitting(ambient(), shape, axes))
