"""GGUF files: metadata and quantised tensors to parameters."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from dynscaling_jax.models import checkpoints, gguf_config
from dynscaling_jax.models.checkpoints import Finish, Tensor
from dynscaling_jax.models.config import ModelConfig, RopeScaling
from dynscaling_jax.models.transformer import Params

NEIGHBOURS = ("llama", "mistral")  # families whose GGUF files rotate those


def load(file: Path, finish: Finish) -> tuple[ModelConfig, Params, dict]:
    """Reads a GGUF file and dequantises it; also returns its metadata.

    Raises:
        FileNotFoundError, ValueError: as hf_checkpoint.load.
    """
    metadata, tensors = read(file)
    config = gguf_config.read(metadata)
    source = {
        name: Tensor(
            tuple(int(n) for n in reversed(t.shape)),
            lambda t=t: _dequantize(file, t),
        )
        for name, t in tensors.items()
    }
    factors = source.pop("rope_freqs.weight", None)
    scaling = (
        RopeScaling("factors", factors=tuple(map(float, factors.read())))
        if factors
        else config.rope_scaling
    )
    config = dataclasses.replace(
        config, tied="output.weight" not in source, rope_scaling=scaling
    )

    def as_hf(path: tuple, value: np.ndarray) -> np.ndarray:
        if config.norm_offset and path[-1].endswith("norm"):
            return value - config.norm_offset  # llama.cpp adds it
        # In Llama's files llama.cpp rotates neighbours, HF rotates halves:
        # rows of the q and k projections are stored in another order.
        if path[-1] not in ("q", "k") or config.family not in NEIGHBOURS:
            return value
        heads = config.heads if path[-1] == "q" else config.kv_heads
        paired = value.reshape(heads, config.head_dim // 2, 2, -1)
        return paired.swapaxes(1, 2).reshape(value.shape)

    params = checkpoints.place(
        str(file), config, source, tensor_name, finish, as_hf
    )
    return config, params, metadata


def tensor_name(path: tuple) -> str:
    """Our path of a parameter -> its name in a GGUF file."""
    top = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
    if path[0] in top:
        return f"{top[path[0]]}.weight"
    part, kind = path[2], "weight"
    if part.endswith("_bias"):
        part, kind = part.removesuffix("_bias"), "bias"
    name = {
        "attn_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "attn_post_norm": "post_attention_norm",
        "ffn_post_norm": "post_ffw_norm",
        **{p: f"attn_{p}" for p in "qkv"},
        "o": "attn_output",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        **{p: f"ffn_{p}" for p in ("gate", "up", "down")},
    }[part]
    return f"blk.{path[1]}.{name}.{kind}"


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors (mapped, not read) of a GGUF file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GGUF file, a truncated or a corrupt one.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such GGUF file")
    try:
        reader = gguf.GGUFReader(file)
        metadata = {k: f.contents() for k, f in reader.fields.items()}
        tensors = {t.name: t for t in reader.tensors}
    except (
        ArithmeticError,
        IndexError,
        KeyError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{file}: not a whole GGUF file ({type(error).__name__}: {error});"
            " fetch it again"
        ) from error
    return metadata, tensors


def _dequantize(file: Path, tensor: Any) -> np.ndarray:
    try:
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{file}: {tensor.name} is stored as {tensor.tensor_type.name}, "
            f"which cannot be dequantised ({error}); take another file of "
            "this model, such as Q8_0"
        ) from error
