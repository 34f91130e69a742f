"""From a source of tensors to parameters; every tensor is accounted for.

A source is a mapping from the file's tensor names to functions that read one
tensor, so that the host holds one tensor at a time beside the model.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import (
    Parameter,
    Params,
    parameters,
    tree,
)

PARAMS = "params"  # the folder of an Orbax checkpoint
PIECE = 2**20  # values that are converted at a time


Finish = Callable[[ModelConfig, Parameter, np.ndarray], Any]
"""(config, parameter, its values) -> what the tree holds."""


class Tensor(NamedTuple):
    """A tensor of a file that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def place(
    where: str,
    config: ModelConfig,
    source: Mapping[str, Tensor],
    name: Callable[[Parameter], str],
    finish: Finish,
    convert: Callable[[Parameter, np.ndarray], np.ndarray] = lambda _, v: v,
) -> Params:
    """Fills the parameter tree from a source, one tensor at a time.

    Raises:
        ValueError: names every tensor that is missing, left over or of
            another shape, before anything is read.
    """
    refuse_misfits(
        where,
        {name(p): p.shape for p in parameters(config).values()},
        {n: tensor.shape for n, tensor in source.items()},
    )

    def read(parameter: Parameter) -> Any:
        value = convert(parameter, source[name(parameter)].read())
        # else many tensors would wait for their copies to end
        return jax.block_until_ready(finish(config, parameter, value))

    return tree(config, read)


def fill(
    rows: np.ndarray,
    read: Callable[[int, int], np.ndarray],
    start: int = 0,
) -> None:
    """Fills [rows, width] from read(first, end), a few rows at a time.

    So a tensor is not held in the form of the file too. `start` is the first
    row that is read.
    """
    if not rows.size:  # a file may claim any number of rows without values
        return
    step = max(1, PIECE // rows.shape[1])
    for first in range(0, len(rows), step):
        end = min(first + step, len(rows))
        rows[first:end] = read(start + first, start + end)


def refuse_misfits(
    where: str,
    expected: Mapping[str, tuple[int, ...]],
    held: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuses tensors that are missing, left over or of another shape.

    Raises:
        ValueError: names the first of them.
    """
    faults = [f"missing {n}" for n in expected if n not in held]
    faults += [f"unknown {n}" for n in held if n not in expected]
    faults += [
        f"{n}: expected shape {list(shape)}, got {list(held[n])}"
        for n, shape in expected.items()
        if n in held and held[n] != shape
    ]
    if faults:
        shown = "; ".join(faults[:8])
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(
            f"{where}: tensors do not fit the model config: {shown}{more}"
        )
