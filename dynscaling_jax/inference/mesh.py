"""The devices of a process as one mesh, ('data', 'model').

A mesh of one device is None: an engine works there as without a mesh.
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
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.sharding import AXES, DATA, MODEL


def build(text: str, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Makes a mesh by its sizes.

    text is DATAxMODEL, such as 2x4; auto, for all devices along data; or
    empty for one device. The devices are by default those of this process.

    Raises:
        ValueError: another text, or more devices than there are.
    """
    there = devices or jax.local_devices()
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
    """Returns the mesh that parameters were put on, if any."""
    where = params["norm"].sharding
    mesh = where.mesh if isinstance(where, NamedSharding) else None
    if isinstance(mesh, Mesh) and mesh.axis_names == AXES:
        return mesh
    return None


def platform(mesh: Mesh | None) -> str:
    """Names what the devices are: cpu, gpu or tpu."""
    if mesh is None:
        return jax.default_backend()
    return mesh.devices.flat[0].platform


def scans(mesh: Mesh | None) -> bool:
    """Tells whether layers are to be stacked: see models.stacked."""
    return platform(mesh) == "tpu"


def data_size(mesh: Mesh | None) -> int:
    """Counts the parts that slots are split into."""
    return mesh.shape[DATA] if mesh else 1


def share(config: ModelConfig, mesh: Mesh | None) -> ModelConfig:
    """Returns a device's part of a model's heads, for inference.memory."""
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
    """Counts the bytes of a tree of arrays on one device."""
    return sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
    )


def ambient(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Lays arrays out on this mesh within its block."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
