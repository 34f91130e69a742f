"""How queries meet keys that lie in pages: one interface, three backends."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class Backend(NamedTuple):
    """Owns the layout of its cache.

    A cache holds all layers of a model, stacked in front: its arrays are
    [L, D * N, ...], and the functions of one layer get its number, which may
    be traced. So a scan over layers carries one array that is written in
    place; a layer that is sliced out of it would be copied.

    Within the jitted functions arrays have all parts; a backend goes to the
    shards of the ambient mesh by models.sharding.on_shards. q and k are
    rotated, and q is not scaled: the scale is config's.
    """

    name: str
    refuses: Callable[[ModelConfig, Layout, int], str]
    """(config, layout, size of the mesh along MODEL) -> why it cannot serve
    this model, or ''."""
    init: Callable[[ModelConfig, Layout, Any], Any]
    """(config, layout, dtype of the model) -> one layer of the cache, as
    ((shape, dtype, axes of the mesh), ...): page dimensions first, along
    DATA; key heads along MODEL. The caller puts L in front, and zeros in."""
    view: Callable[[Layout, Sequence[Sequence[int]], Sequence[int]], Any]
    """(layout, tables, shared) of a Turn -> NumPy arrays [D, ...] of few
    shapes, which decode gets. On a mesh they lie along DATA."""
    decode: Callable[..., tuple[SoftmaxState, Any]]
    """(kind, config, cache, layer, view, position [S], active [S],
    q [S, H, D], k [S, K, D], v [S, K, D]) -> (state [S, H, D], cache): writes
    the keys of one token a slot at its position and attends to all up to
    there. What inactive slots write goes nowhere."""
    chunk_view: Callable[[Layout, Sequence[Any], int], Any]
    """(layout, chunks of a Turn, tokens T of a chunk) -> NumPy arrays
    [D, ...], which prefill gets."""
    prefill: Callable[..., tuple[SoftmaxState, Any]]
    """(kind, config, cache, layer, view, q [D * T, H, D], k, v) -> (state,
    cache): writes the keys of a chunk a part and attends to the prompt up to
    each token, with a running softmax. Where a part has no chunk, and behind
    the end of one, what is returned means nothing, but is finite."""
    copy: Callable[[Any, Any, Any], Any]
    """(cache, from [D, C], to [D, C]) -> cache: copies pages of all layers;
    those with a `to` past the last page go nowhere."""
