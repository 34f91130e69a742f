"""Where a model lies on a mesh of devices.

The mesh has two axes. Rows of samples lie along `data`; along `model` each
device has its share of heads, feed-forward units, experts and vocabulary, and
multiplies by the weights that it holds (Megatron-LM, arXiv 1909.08053). What
moves between devices is activations, never a weight.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynscaling_jax.models.config import ModelConfig

DATA, MODEL = AXES = ("data", "model")
BOTH = (DATA, MODEL)  # of one dimension
Axis = str | tuple[str, ...] | None


def param_sharding(
    mesh: Mesh, config: ModelConfig, path: tuple, shape: tuple[int, ...]
) -> NamedSharding:
    """Where a parameter lies; the same for its quantised values and scales.

    Args:
        path: e.g. ("layers", 0, "q").
        shape: of the array; sizes that the mesh does not divide stay whole.
    """
    axes = _axes(config, path, mesh.shape[MODEL])
    return NamedSharding(mesh, fitting(mesh.shape, shape, axes))


def _axes(config: ModelConfig, path: tuple, parts: int) -> tuple[Axis, ...]:
    part = str(path[-1])
    weight = part.removesuffix("_bias")
    if path[0] == "layers" and config.sparse(path[1]):
        if weight in ("gate", "up", "down"):
            return (MODEL,)  # whole experts
    heads = None if config.num_attention_heads % parts else MODEL
    keys = None if config.num_key_value_heads % parts else MODEL
    outer = {
        "q": heads,
        "k": keys,
        "v": keys,
        "sinks": heads,
        "gate": MODEL,
        "up": MODEL,
        "embed": MODEL,
        "head": MODEL,
    }
    if weight in outer:
        return (outer[weight],)
    # what these give is summed over the devices
    inner = {"o": heads, "down": MODEL}
    return (None, inner[part]) if part in inner else ()


def put(mesh: Mesh, config: ModelConfig, path: tuple, value: Any) -> Any:
    """A parameter in its shards; a host's array goes there piece by piece, so
    that no device ever holds the whole of it, and each process puts what its
    own devices hold."""

    def one(x: Any) -> jax.Array:
        where = param_sharding(mesh, config, path, x.shape)
        if isinstance(x, jax.Array):
            return jax.device_put(x, where)
        return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

    return jax.tree.map(one, value)


def fitting(
    sizes: Mapping[str, int], shape: Sequence[int], axes: Sequence[Axis]
) -> PartitionSpec:
    """The axes of a mesh for each dimension, but for those whose size does not
    divide it: of several, the last is left out first.

    What says the same is the same, or it would be compiled again: no axes of
    size one, no None at the end.
    """

    def fit(count: int, axis: Axis) -> Axis:
        names = (axis,) if isinstance(axis, str) else axis or ()
        names = tuple(name for name in names if sizes.get(name) != 1)
        while names and count % math.prod(sizes.get(n, 1) for n in names):
            names = names[:-1]
        return names if names[1:] else (*names, None)[0]

    fits = [fit(*one) for one in zip(shape, axes, strict=False)]
    while fits and fits[-1] is None:
        fits.pop()
    return PartitionSpec(*fits)


def ambient() -> Mapping[str, int]:
    """The sizes of the mesh that jax.set_mesh set; empty without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape if mesh.axis_names == AXES else {}


def constrained(x: jax.Array, *axes: Axis) -> jax.Array:
    """x, each dimension along its axes of the ambient mesh as far as they fit,
    further ones whole. Without a mesh x itself."""
    sizes = ambient()
    if not sizes:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(sizes, x.shape, axes))


def on_shards(
    function: Callable, inside: Sequence[PartitionSpec], outside: PartitionSpec
) -> Callable:
    """A function of whole arrays that each device of the ambient mesh runs on
    its own shards of them. Without a mesh the function itself."""
    if not ambient():
        return function
    return jax.shard_map(
        function, in_specs=tuple(inside), out_specs=outside, check_vma=False
    )
