"""Layers that repeat, stacked: what a scan over layers takes.

Kinds of layers repeat with a period: 1 in most families, 2 where sliding and
full attention alternate, 6 in Gemma 3. The layers at one place of the period
have arrays of the same shapes, which are stacked: with a period of 2,

    layers   0 1 2 3 4 5 6
    places   0 2 4 | 1 3 5    [3, ...] each
    rest     6

XLA:TPU compiles a scan over them several times faster than a list, and reads
each weight where it lies. XLA:GPU would copy every layer out of its stack, so
there a list is better.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params, Path

Layer = dict[str, Any]


class Stacked(NamedTuple):
    """The `layers` of Params, where they are stacked."""

    places: tuple[Layer, ...]  # of the period; arrays are [n, ...]
    rest: tuple[Layer, ...]  # layers behind the last whole period


def period(config: ModelConfig) -> int:
    """Finds the period that leaves the fewest layers to compile.

    Where nothing repeats it is the number of layers.
    """
    layers = config.num_hidden_layers
    what = [(config.kind(at), config.sparse(at)) for at in range(layers)]

    def repeats(count: int) -> bool:
        whole = layers - layers % count
        return all(what[at] == what[at % count] for at in range(whole))

    periods = [p for p in range(1, layers + 1) if repeats(p)]
    return min(periods, key=lambda count: (count + layers % count, count))


def put(stacks: dict, config: ModelConfig, path: Path, value: Any) -> Any:
    """Moves an array of a layer into its stack, which is made if need be.

    So no more than one array lies in memory twice.

    Args:
        stacks: filled here; `collected` takes it.
        config: of the model.
        path: of the array, as of models.parameters.
        value: on its devices.

    Returns:
        None in place of what was moved, else the value.
    """
    count = period(config)
    rounds = config.num_hidden_layers // count
    if path[0] != "layers" or (at := int(path[1])) >= rounds * count:
        return value
    place = at % count, path[2]
    if place not in stacks:
        stacks[place] = jax.tree.map(
            lambda x: jnp.zeros((rounds, *x.shape), x.dtype, device=_above(x)),
            value,
        )
    stacks[place] = jax.tree.map(
        lambda whole, one: _insert(whole, one, at // count, whole.sharding),
        stacks[place],
        value,
    )
    return None


def collected(stacks: dict, config: ModelConfig, params: Params) -> Params:
    """Makes Params of stacks, and of what `put` left in a tree."""
    count = period(config)
    places: list[Layer] = [{} for _ in range(count)]
    for (place, name), value in stacks.items():
        places[place][name] = value
    whole = config.num_hidden_layers // count * count
    rest = tuple(params["layers"][whole:])
    return {**params, "layers": Stacked(tuple(places), rest)}


def stack(params: Params, config: ModelConfig) -> Params:
    """Stacks a list of layers; stacked ones stay.

    The list and the stacks lie in memory both, as long as the caller has the
    list.
    """
    if isinstance(params["layers"], Stacked):
        return params
    stacks: dict = {}
    for at, layer in enumerate(params["layers"]):
        for name, value in layer.items():
            put(stacks, config, ("layers", at, name), value)
    return collected(stacks, config, params)


def unstacked(params: Params) -> Params:
    """Makes a list of layers of stacked ones; a list stays."""
    layers = params["layers"]
    if not isinstance(layers, Stacked):
        return params
    rounds = len(jax.tree.leaves(layers.places[0])[0])
    each = [
        jax.tree.map(lambda x, at=at: x[at], place)
        for at in range(rounds)
        for place in layers.places
    ]
    return {**params, "layers": [*each, *layers.rest]}


def _above(x: jax.Array) -> Any:
    """Where a stack lies: whole along its first axis."""
    if isinstance(x.sharding, NamedSharding):
        spec = PartitionSpec(None, *x.sharding.spec)
        return NamedSharding(x.sharding.mesh, spec)
    return x.sharding


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _insert(whole, one, at, where):
    whole = jax.lax.dynamic_update_index_in_dim(whole, one, at, 0)
    return jax.lax.with_sharding_constraint(whole, where)
