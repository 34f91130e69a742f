"""From a source of tensors to parameters; every tensor is accounted for.

A source is a mapping from the file's tensor names to functions that read one
tensor, so that the host holds one tensor at a time beside the model.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.transformer import Params, param_shapes

PARAMS = "params"  # the folder of an Orbax checkpoint
PIECE = 2**20  # values that are converted at a time


Finish = Callable[[ModelConfig, tuple, np.ndarray], Any]
"""(config, path of a parameter, its values) -> what the tree holds."""


class Tensor(NamedTuple):
    """A tensor of a file that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def place(
    where: str,
    config: ModelConfig,
    source: Mapping[str, Tensor],
    name: Callable[[tuple], str],
    finish: Finish,
    convert: Callable[[tuple, np.ndarray], np.ndarray] = lambda _, v: v,
) -> Params:
    """Fills the parameter tree from a source, one tensor at a time.

    Raises:
        ValueError: names every tensor that is missing, left over or of
            another shape, before anything is read.
    """
    shapes = param_shapes(config)
    wanted = {name(path): (path, s) for path, s in leaves(shapes)}
    refuse_misfits(
        where,
        {n: shape for n, (_, shape) in wanted.items()},
        {n: tensor.shape for n, tensor in source.items()},
    )
    params: Params = {"layers": [{} for _ in range(config.num_hidden_layers)]}
    for file_name, (path, _) in wanted.items():
        value = convert(path, source[file_name].read())
        node = params
        for step in path[:-1]:
            node = node[step]
        # else many tensors would wait for their copies to end
        node[path[-1]] = jax.block_until_ready(finish(config, path, value))
    return params


def fill(
    rows: np.ndarray,
    read: Callable[[int, int], np.ndarray],
    start: int = 0,
) -> None:
    """Fills [rows, width] from read(first, end), a few rows at a time from
    `start`, so that a tensor is not held in the form of the file too."""
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
    """Raises ValueError with the first tensors, by name, that are missing,
    left over or of another shape, if there are any."""
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


def shapes_by_path(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """ "layers.0.q" -> shape."""
    return {
        ".".join(map(str, path)): shape
        for path, shape in leaves(param_shapes(config))
    }


def leaves(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, tuple]]:
    if isinstance(tree, tuple):
        yield path, tree
    else:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, (*path, key))
