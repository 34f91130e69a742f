"""What Hugging Face's files hold otherwise than as a tensor for each of ours.

Some families fuse projections, by rows; some hold each expert apart; gpt-oss
holds all experts as one, transposed, with gate and up in turns, and may pack
them as MXFP4. FAMILIES says which.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dynscaling_jax.checkpoints.tensors import Tensor
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.families import FAMILIES
from dynscaling_jax.models.parameters import parameters

Arrays = list[np.ndarray]
# MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 values of four bits, two
# in a byte, the lower half first, and an exponent for each block.
HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FOUR_BITS = np.concatenate([HALF, -HALF])
PACKED = ("_blocks", "_scales")  # the two tensors of a packed one


class Join(NamedTuple):
    """Tensors of ours that a file holds as others."""

    ours: dict[str, tuple[int, ...]]
    held: dict[str, tuple[int, ...]]
    split: Callable[[Arrays], Arrays]  # ours to those held
    join: Callable[[Iterator[np.ndarray]], Arrays]  # and back


def unpack(
    source: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, Tensor]:
    """Turns a file's tensors into ours.

    What does not fit stays as it is, for checkpoints.place to name.
    """
    result = _dequantized(source)
    for join in _joins(config):
        held = [result.get(name) for name in join.held]
        if [t and t.shape for t in held] != list(join.held.values()):
            continue
        for name in join.held:
            del result[name]
        for at, (name, shape) in enumerate(join.ours.items()):
            result[name] = Tensor(
                shape,
                lambda join=join, held=held, at=at: join.join(
                    t.read() for t in held if t
                )[at],
            )
    return result


def pack(
    named: Iterable[tuple[str, np.ndarray]], config: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Our tensors, by their names, as a file holds them."""
    joins = {name: join for join in _joins(config) for name in join.ours}
    waiting: dict[str, np.ndarray] = {}
    for name, value in named:
        join = joins.get(name)
        if join is None:
            yield name, value
            continue
        waiting[name] = value
        if all(n in waiting for n in join.ours):
            ours = [waiting.pop(n) for n in join.ours]
            held = join.split(ours)
            yield from zip(
                join.held, map(np.ascontiguousarray, held), strict=True
            )


def _joins(config: ModelConfig) -> Iterator[Join]:
    family = FAMILIES[config.family]
    if not (family.fused or family.stacked or family.turned):
        return
    described = parameters(config)
    for layer in range(config.num_hidden_layers):
        here = f"model.layers.{layer}"

        def ours(*parts: str, layer=layer) -> dict[str, tuple[int, ...]]:
            paths = [("layers", layer, part) for part in parts]
            found = [described[path] for path in paths if path in described]
            return {parameter.hf: parameter.shape for parameter in found}

        for fused, parts in family.fused.items():
            yield _fused(ours(*parts), f"{here}.{fused}.weight")
        if not config.sparse(layer):
            continue
        for part, pattern in family.stacked.items():
            names = [
                f"{here}.{pattern.format(one)}.weight"
                for one in range(config.num_experts)
            ]
            yield _stacked(ours(part), names)
        for turned, parts in family.turned.items():
            yield _turned(ours(*parts), f"{here}.{turned}")
            biases = [f"{part}_bias" for part in parts]
            yield _turned(ours(*biases), f"{here}.{turned}_bias")


def _fused(ours: dict[str, tuple[int, ...]], name: str) -> Join:
    """Rows of one tensor."""
    rows = [shape[0] for shape in ours.values()]
    (width,) = {shape[1] for shape in ours.values()}
    return Join(
        ours,
        {name: (sum(rows), width)},
        lambda parts: [np.concatenate(parts)],
        lambda whole: np.split(next(whole), np.cumsum(rows)[:-1]),
    )


def _stacked(ours: dict[str, tuple[int, ...]], names: list[str]) -> Join:
    """A tensor for each expert."""
    (shape,) = ours.values()
    return Join(
        ours,
        dict.fromkeys(names, shape[1:]),
        lambda whole: list(whole[0]),
        lambda parts: [_stack(parts, len(names))],
    )


def _stack(parts: Iterator[np.ndarray], count: int) -> np.ndarray:
    """As np.stack, yet with one part at a time in memory."""
    first = next(parts)
    whole = np.empty((count, *first.shape), first.dtype)
    for at, part in enumerate(itertools.chain([first], parts)):
        whole[at] = part
    return whole


def _turned(ours: dict[str, tuple[int, ...]], name: str) -> Join:
    """All experts at once, input before output, whose features take turns."""
    count = len(ours)
    experts, out, *rest = next(iter(ours.values()))
    return Join(
        ours,
        {name: (experts, *rest, count * out)},
        lambda parts: [
            np.moveaxis(
                np.stack(parts, 2).reshape(experts, count * out, *rest), 1, -1
            )
        ],
        lambda whole: _every(np.moveaxis(next(whole), -1, 1), count),
    )


def _every(rows: np.ndarray, count: int) -> Arrays:
    return [rows[:, at::count] for at in range(count)]


def _dequantized(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MXFP4 tensors in place of their blocks and exponents."""
    result = dict(source)
    blocks, scales = PACKED
    for name in source:
        whole = name.removesuffix(blocks)
        if whole == name or whole + scales not in source:
            continue
        block, scale = source[name], source[whole + scales]
        if block.shape != (*scale.shape, 16) or len(scale.shape) != 3:
            continue
        del result[name], result[whole + scales]
        experts, rows, groups = scale.shape
        result[whole] = Tensor(
            (experts, 32 * groups, rows),
            lambda b=block, s=scale: mxfp4(b.read(), s.read()).swapaxes(1, 2),
        )
    return result


def mxfp4(block: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Unpacks MXFP4 to float32 [E, rows, 32 B].

    Args:
        block: uint8 [E, rows, B, 16], two values a byte.
        scale: uint8 [E, rows, B], exponents, which are 127 too large.
    """
    value = np.empty((*block.shape, 2), np.float32)
    value[..., 0] = FOUR_BITS[block & 15]
    value[..., 1] = FOUR_BITS[block >> 4]
    exponent = scale.astype(np.int32) - 127
    value *= np.ldexp(np.float32(1), exponent)[..., None, None]
    return value.reshape(*block.shape[:2], -1)
