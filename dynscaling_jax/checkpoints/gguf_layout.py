"""What llama.cpp's files hold otherwise than as a tensor for each of ours."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax.checkpoints.tensors import Tensor, fill
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Parameter, parameters

FUSED = {  # rows of one tensor, which some files hold instead
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_up": ("ffn_gate", "ffn_up"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}


class Stored(NamedTuple):
    """A tensor of a file, of which rows can be read."""

    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    """(first, end) -> float32 [end - first, last axis], all other axes
    taken as one."""


def unpack(
    source: Mapping[str, Stored], config: ModelConfig, dtype: Any
) -> dict[str, Tensor]:
    """Splits a file's tensors into ours, vectors in float32, others in dtype.

    What does not fit stays as it is, for checkpoints.place to name.
    """
    wanted = {p.gguf: p.shape for p in parameters(config).values()}
    result: dict[str, Tensor] = {}
    for name, stored in source.items():
        parts = _parts(name, wanted)
        axis = -1 if len(stored.shape) == 1 else -2
        sizes = [wanted[part][axis] for part in parts]
        if not parts or sum(sizes) != stored.shape[axis]:
            parts, sizes = [name], [stored.shape[axis]]
        first = 0
        for part, size in zip(parts, sizes, strict=True):
            result[part] = _slice(stored, axis, first, size, dtype)
            first += size
    return result


def _parts(name: str, wanted: Mapping[str, Any]) -> list[str]:
    """The tensors of ours that one called so holds, where it holds several."""
    stem, _, kind = name.rpartition(".")
    layer, _, fused = stem.rpartition(".")
    names = [f"{layer}.{part}.{kind}" for part in FUSED.get(fused, ())]
    return names if all(part in wanted for part in names) else []


def _slice(
    stored: Stored, axis: int, first: int, size: int, dtype: Any
) -> Tensor:
    if axis == -1:
        return Tensor(
            (size,), lambda: stored.rows(0, 1)[0, first : first + size]
        )
    *outer, whole, width = stored.shape
    shape = (*outer, size, width)

    def read() -> np.ndarray:
        value = np.empty((math.prod(outer), size, width), dtype)
        for at, rows in enumerate(value):
            fill(rows, stored.rows, at * whole + first)
        return value.reshape(shape)

    return Tensor(shape, read)


def as_ours(
    parameter: Parameter,
    value: np.ndarray,
    config: ModelConfig,
    neighbours: bool,
) -> np.ndarray:
    """Brings the values of llama.cpp's files to our form.

    Norms lose what the decoder adds to them; rows of the q and k projections
    lie in halves, where a file's are neighbours.
    """
    part = parameter.name.removesuffix("_bias")
    if config.norm_offset and part.endswith("norm"):
        return value - config.norm_offset
    if part not in ("q", "k") or not neighbours:
        return value
    heads = (
        config.num_attention_heads
        if part == "q"
        else config.num_key_value_heads
    )
    paired = value.reshape(heads, config.head_dim // 2, 2, -1)
    return paired.swapaxes(1, 2).reshape(value.shape)
