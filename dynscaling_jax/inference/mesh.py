"""The devices of a process as one mesh, ('data', 'model').

A mesh of one device is none: the engine then is what it is without.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.sharding import AXES, DATA, MODEL
from dynscaling_jax.models.transformer import Params


def build(text: str, devices: Sequence[Any] | None = None) -> Mesh | None:
    """A mesh by its sizes.

    Args:
        text: DATAxMODEL, such as 2x4; auto, all devices along data; empty for
            one device.
        devices: those there are; by default those of this process.

    Raises:
        ValueError: another text, or more devices than there are.
    """
    there = jax.local_devices() if devices is None else devices
    sizes = {"": "1x1", "auto": f"{len(there)}x1"}.get(text, text)
    if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", sizes):
        raise ValueError(
            f"mesh={text!r}: expected DATAxMODEL, such as 2x4, or auto, or "
            "nothing for one device"
        )
    shape = tuple(map(int, sizes.split("x")))
    count = math.prod(shape)
    if count > len(there):
        raise ValueError(
            f"mesh={text} takes {count} devices, and there are {len(there)} "
            f"({there[0].platform})"
        )
    if count == 1:
        return None
    return jax.make_mesh(
        shape,
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=there[:count],
    )


def of(params: Params) -> Mesh | None:
    """The mesh that parameters were put on, if any."""
    where = params["norm"].sharding
    mesh = where.mesh if isinstance(where, NamedSharding) else None
    if isinstance(mesh, Mesh) and mesh.axis_names == AXES:
        return mesh
    return None


def data_size(mesh: Mesh | None) -> int:
    """Parts that rows are cut into."""
    return mesh.shape[DATA] if mesh else 1


def share(config: ModelConfig, mesh: Mesh | None) -> ModelConfig:
    """What a device has of a model's heads and units, for inference.memory."""
    parts = mesh.shape[MODEL] if mesh else 1
    if config.num_key_value_heads % parts == 0:
        config = dataclasses.replace(
            config,
            num_attention_heads=config.num_attention_heads // parts,
            num_key_value_heads=config.num_key_value_heads // parts,
        )
    if config.intermediate_size % parts == 0:
        config = dataclasses.replace(
            config, intermediate_size=config.intermediate_size // parts
        )
    return config


def bytes_held(tree: Any) -> int:
    """Of a tree of arrays, on one device."""
    return sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
    )


def ambient(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Where it is the mesh that arrays are laid out on."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
