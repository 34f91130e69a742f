"""Hugging Face directories: config.json and safetensors to parameters."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dynscaling_jax.checkpoints import hf_config, hf_layout
from dynscaling_jax.checkpoints import tensors as checkpoints
from dynscaling_jax.checkpoints.files import read_json
from dynscaling_jax.checkpoints.tensors import Finish, Tensor
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
FLOATS = {  # by safetensors' names
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}


def load(
    directory: Path, dtype: Any, finish: Finish
) -> tuple[ModelConfig, Params]:
    """Reads config.json and safetensors, one file or sharded, as dtype.

    Raises:
        FileNotFoundError: no config.json or no safetensors.
        ValueError: a corrupt file, pickled weights, or tensors that do not
            fit the config one for one.
    """
    config = read_config(directory)
    source: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        source.update(read_tensors(file, dtype))
    # buffers that early files carry; the decoder computes them
    source = {k: v for k, v in source.items() if "rotary_emb.inv_freq" not in k}
    source = hf_layout.unpack(source, config)
    if config.tie_word_embeddings:
        # The config decides (as in transformers): some files of tied models
        # repeat the embedding as the head, and it must then be the same.
        extra = source.pop("lm_head.weight", None)
        embed = source.get("model.embed_tokens.weight")
        if extra and embed and not np.array_equal(extra.read(), embed.read()):
            raise ValueError(
                f"{directory}: tie_word_embeddings is true, yet "
                "lm_head.weight differs from model.embed_tokens.weight"
            )
    params = checkpoints.place(
        str(directory), config, source, lambda p: p.hf, finish
    )
    return config, params


def read_config(directory: Path) -> ModelConfig:
    """config.json and, where there is one, generation_config.json.

    Raises:
        FileNotFoundError, ValueError: as hf_config.read and read_json.
    """
    generation = directory / "generation_config.json"
    return hf_config.read(
        read_json(directory / "config.json"),
        read_json(generation) if generation.exists() else None,
    )


def dtypes(directory: Path) -> set[str]:
    """The float types of the tensors, by safetensors' names.

    Raises:
        ValueError: a corrupt file.
    """
    kinds: set[str] = set()
    for file in _weight_files(directory):
        with _whole(file):
            kinds |= {*_kinds(safe_open(file, framework="numpy")).values()}
    return kinds


def _weight_files(directory: Path) -> list[Path]:
    """The files that the index names, else model.safetensors, else all."""
    files = [
        file
        for file in sorted(directory.glob("*.safetensors"))
        if not file.name.startswith("adapter_")
    ]
    index = directory / "model.safetensors.index.json"
    whole = directory / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: its weight_map names no file")
        named = set(map(str, weight_map.values()))
        missing = sorted(named - {f.name for f in files})
        if missing:
            raise FileNotFoundError(
                f"{directory}: {index.name} names {missing[0]}, which is "
                "missing; fetch the remaining files"
            )
        return [f for f in files if f.name in named]
    if not files:
        pickled = [p.name for p in directory.iterdir() if p.suffix in PICKLED]
        if pickled:
            raise ValueError(
                f"{directory}: {pickled[0]} is a pickle, which can run code "
                "when it is read, and is refused. Convert it where you trust "
                "it: AutoModelForCausalLM.from_pretrained(DIR)"
                ".save_pretrained(OUT, safe_serialization=True)"
            )
        raise FileNotFoundError(f"{directory}: no *.safetensors file in it")
    return [whole] if whole in files else files


def _kinds(handle: safe_open) -> dict[str, str]:
    return {n: handle.get_slice(n).get_dtype() for n in handle.keys()}


def read_tensors(file: Path, dtype: Any) -> dict[str, Tensor]:
    """Describes the tensors of a safetensors file.

    Floats are read as dtype, packed ones as they are.

    Raises:
        ValueError: a corrupt file, or tensors that are quantised.
    """
    with _whole(file):
        handle = safe_open(file, framework="numpy")
        kinds = _kinds(handle)
        for name, kind in kinds.items():
            packed = kind == "U8" and name.endswith(hf_layout.PACKED)
            if kind not in FLOATS and not packed:
                raise ValueError(
                    f"{file}: {name} is stored as {kind}; expected one of "
                    f"{', '.join(FLOATS)}, that is weights that are not "
                    "quantised, or MXFP4"
                )
        begins = _begins(file)
        return {
            name: _tensor(
                file,
                begins[name],
                tuple(handle.get_slice(name).get_shape()),
                np.dtype(FLOATS.get(kind, np.uint8)),
                np.dtype(dtype if kind in FLOATS else np.uint8),
            )
            for name, kind in kinds.items()
        }


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[None]:
    """Raises ValueError where what is read shows that a file is cut."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file}: not a whole safetensors file ({error}); fetch it again"
        ) from error


def _begins(file: Path) -> dict[str, int]:
    """Where in a whole file each tensor begins."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {
        name: 8 + size + entry["data_offsets"][0]
        for name, entry in header.items()
    }


def _tensor(
    file: Path,
    begin: int,
    shape: tuple[int, ...],
    stored: np.dtype,
    dtype: np.dtype,
) -> Tensor:
    """Describes a tensor that is read from the file, not from a map of it.

    Pages of a map would count as memory of the process, until the whole file
    lies in it.
    """
    *outer, width = shape or (1,)

    def rows(first: int, end: int) -> np.ndarray:
        size = width * stored.itemsize
        data = np.fromfile(
            file, np.uint8, (end - first) * size, offset=begin + first * size
        )
        return data.view(stored).reshape(end - first, width)

    def read() -> np.ndarray:
        value = np.empty((math.prod(outer), width), dtype)
        checkpoints.fill(value, rows)
        return value.reshape(shape)

    return Tensor(shape, read)
