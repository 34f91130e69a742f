"""How queries meet keys that lie in pages: one interface, three back ends."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax.models.attention import SoftmaxState
from dynscaling_jax.models.config import Kind, ModelConfig


class Layout(NamedTuple):
    """Sizes of a paged cache, over all parts of the mesh's data axis."""

    parts: int  # D
    slots: int  # S
    pages: int  # of one part
    page: int  # W, positions of a page
    keys: str  # dtype of the cache: that of the model, or int8


class Backend(NamedTuple):
    """Owns the layout of its cache; functions are of one layer.

    Within the jitted functions arrays have all parts; a backend goes to the
    shards of the ambient mesh by models.sharding.on_shards. q and k are
    rotated, and q is not scaled: the scale is config's.
    """

    name: str
    refuses: Callable[[ModelConfig, Layout], str]
    """Why it cannot serve this model, or ''."""
    init: Callable[[ModelConfig, Layout, Any], Any]
    """(config, layout, dtype of the model) -> the cache of one layer, as
    ((shape, dtype, axes of the mesh), ...): page dimensions first, along
    DATA; key heads along MODEL."""
    view: Callable[[Layout, Sequence[Sequence[int]], Sequence[int]], Any]
    """(layout, tables, shared) of a Turn -> NumPy arrays of few shapes, which
    decode gets. Lengths are bucketed, so that shapes repeat."""
    decode: Callable[..., tuple[SoftmaxState, Any]]
    """(kind, config, cache, view, position [S], active [S], q [S, H, D],
    k [S, K, D], v [S, K, D]) -> (state [S, H, D], cache): writes the keys of
    one token a slot at its position and attends to all up to there. What
    inactive slots write goes nowhere."""
    chunk_view: Callable[[Layout, Sequence[Any], int], Any]
    """(layout, chunks of a Turn, tokens T of a chunk) -> NumPy arrays, which
    prefill gets."""
    prefill: Callable[..., tuple[SoftmaxState, Any]]
    """(kind, config, cache, view, q [D * T, H, D], k, v) -> (state, cache):
    writes the keys of a chunk a part and attends to the prompt up to each
    token, with a running softmax."""
    copy: Callable[[Any, np.ndarray, np.ndarray], Any]
    """(cache, from [D, C], to [D, C]) -> cache: copies pages; those with a
    `to` past the last page go nowhere."""
