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
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Parameter, sizes

DATA, MODEL = AXES = ("data", "model")
BOTH = (DATA, MODEL)  # of one dimension
Axis = str | tuple[str, ...] | None


def param_sharding(
    mesh: Mesh, config: ModelConfig, parameter: Parameter, shape: Sequence[int]
) -> NamedSharding:
    """Says where a parameter lies, and its quantised values and scales.

    With 4 heads of 16 features on a mesh of 1 x 2, a `q` of axes (q, hidden)
    gives each device the rows of two heads, and the `o` of axes (hidden, q)
    that is multiplied by what they saw gives it their columns:
        q [64, D]: rows 0-31 | rows 32-63        o [D, 64]: columns likewise

    Args:
        mesh: of ('data', 'model').
        config: of the model.
        parameter: its axes are used.
        shape: of the array; sizes that the mesh does not divide stay whole.
    """
    along = mesh_axes(config, mesh.shape[MODEL])
    axes = [along[axis] for axis in parameter.axes]
    return NamedSharding(mesh, fitting(mesh.shape, shape, axes))


def mesh_axes(config: ModelConfig, parts: int) -> dict[str, str | None]:
    """Gives each logical axis of models.parameters its axis of the mesh.

    None stays whole. Heads are split in `parts` if no head is cut.
    """
    split = {"vocab", "mlp", "experts"}
    if config.num_attention_heads % parts == 0:
        split |= {"heads", "q"}
    if config.num_key_value_heads % parts == 0:
        split |= {"kv"}
    return {axis: MODEL if axis in split else None for axis in sizes(config)}


def put(
    mesh: Mesh | None, config: ModelConfig, parameter: Parameter, value: Any
) -> Any:
    """Puts a parameter into its shards.

    A host's array goes there piece by piece, so that no device ever holds the
    whole of it, and each process puts what its own devices hold. Without a
    mesh it goes to the default device.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, value)

    def one(x: Any) -> jax.Array:
        where = param_sharding(mesh, config, parameter, x.shape)
        if isinstance(x, jax.Array):
            return jax.device_put(x, where)
        return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

    return jax.tree.map(one, value)


def fitting(
    sizes: Mapping[str, int], shape: Sequence[int], axes: Sequence[Axis]
) -> PartitionSpec:
    """Leaves out axes of a mesh whose size does not divide a dimension.

    Of several axes of a dimension, the last is left out first.

    On a mesh of data 2 and model 4, the axes ((data, model), model) of an array
    [8, 6] are P((data, model)): 8 is split in 8, and 6 cannot be in 4; those
    of [6, 8] are P(data, model).

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
    """Lays x along axes of the ambient mesh, as far as they fit.

    Further dimensions stay whole. Without a mesh it is x itself.
    """
    sizes = ambient()
    if not sizes:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(sizes, x.shape, axes))


def on_shards(
    function: Callable,
    inside: Sequence[PartitionSpec],
    outside: PartitionSpec | tuple[PartitionSpec, ...],
) -> Callable:
    """Makes each device of the ambient mesh run a function on its own shards.

    Without a mesh it is the function itself.
    """
    if not ambient():
        return function
    return jax.shard_map(
        function, in_specs=tuple(inside), out_specs=outside, check_vma=False
    )
