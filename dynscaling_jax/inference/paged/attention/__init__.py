"""How queries meet keys that lie in pages: one interface, four backends."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dynscaling_jax.inference.memory import PAGE
from dynscaling_jax.models.attention import SoftmaxState
from dynscaling_jax.models.config import ModelConfig


class Layout(NamedTuple):
    """Sizes of a paged cache, over all parts of the mesh's data axis."""

    parts: int  # D
    slots: int  # S
    pages: int  # of one part
    page: int  # W, positions of a page
    keys: str  # dtype of the cache: that of the model, or int8
    longest: int  # pages of a sequence at most; the width of its table


def layout_of(
    config: ModelConfig, parts: int, slots: int, pages: int, keys: str
) -> Layout:
    """Lays out a cache for sequences of any length up to the context.

    Args:
        config: of the model.
        parts: of the mesh.
        slots: of one part.
        pages: of one part.
        keys: dtype of the cache.
    """
    context = -(-config.max_position_embeddings // PAGE)
    return Layout(parts, parts * slots, pages, PAGE, keys, min(context, pages))


def unchanged(config: Any, cache: Any, view: Any, *slots: Any) -> Any:
    """What a backend has for `step` where its view needs no more."""
    del config, cache, slots
    return view


class Backend(NamedTuple):
    """Owns the layout of its cache.

    A cache holds all layers of a model, stacked in front: its arrays are
    [L, D * N, ...], and the functions of one layer get the number of its first
    page, which may be traced. So a scan over layers carries one array that is
    written in place; a layer that is sliced out of it would be copied.

    decode and prefill are of one part, on the shards that have it;
    attention.sharded runs them on all. q and k are rotated, and q is not
    scaled: the scale is config's.
    """

    name: str
    heads_axis: int
    """Of key heads in an array of one layer, [pages, ...]."""
    refuses: Callable[[ModelConfig, Layout, int], str]
    """(config, layout, size of the mesh along MODEL) -> why it cannot serve
    this model, or ''."""
    init: Callable[[ModelConfig, Layout, Any], Any]
    """(config, layout, dtype of the model) -> one layer of the cache, as
    ((shape, dtype, axes of the mesh), ...): page dimensions first, along
    DATA; key heads along MODEL. The caller puts L in front, and zeros in."""
    view: Callable[[Layout, Sequence[Sequence[int]], Sequence[int]], Any]
    """(layout, tables, shared) of a Turn -> NumPy arrays [D, ...] of few
    shapes, which step gets. On a mesh they lie along DATA."""
    chunk_view: Callable[[Layout, Sequence[Any]], Any]
    """(layout, chunks of a Turn) -> NumPy arrays [D, ...], which prefill
    gets."""
    decode: Callable[..., tuple[SoftmaxState, Any]]
    """(kind, config, cache [pages, ...], first page, number of pages, what step
    made of the view, position, active, q, k, v) of a part -> (state, cache);
    as sharded.decode."""
    prefill: Callable[..., tuple[SoftmaxState, Any]]
    """(kind, config, cache [pages, ...], first page, view, q, k, v) of a part
    -> (state, cache); with a running softmax, as sharded.prefill."""
    step: Callable[..., Any] = unchanged
    """(config, cache [L, pages of all parts, ...], view, position, active) of
    a part -> what decode gets as its view: made once in a step, for all
    layers. It has the `table` of the view."""
