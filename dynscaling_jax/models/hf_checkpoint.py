"""Hugging Face directories: config.json and safetensors to parameters."""

import functools
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from dynscaling_jax.models import checkpoints, hf_config, hf_layout
from dynscaling_jax.models.checkpoints import Finish, Tensor, read_json
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.transformer import Params

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of float types


def load(directory: Path, finish: Finish) -> tuple[ModelConfig, Params]:
    """Reads config.json and safetensors, one file or sharded.

    Raises:
        FileNotFoundError: no config.json or no safetensors.
        ValueError: a corrupt file, pickled weights, or tensors that do not
            fit the config one for one.
    """
    config = read_config(directory)
    source: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        source.update(_safetensors(file))
    # buffers that early files carry; the decoder computes them
    source = {k: v for k, v in source.items() if "rotary_emb.inv_freq" not in k}
    source = hf_layout.unpack(source, config)
    if config.tied:
        # The config decides (as in transformers): some files of tied models
        # repeat the embedding as the head, and it must then be the same.
        extra = source.pop("lm_head.weight", None)
        embed = source.get("model.embed_tokens.weight")
        if extra and embed and not np.array_equal(extra.read(), embed.read()):
            raise ValueError(
                f"{directory}: tie_word_embeddings is true, yet "
                "lm_head.weight differs from model.embed_tokens.weight"
            )
    names = functools.partial(hf_layout.tensor_name, family=config.family)
    return config, checkpoints.place(
        str(directory), config, source, names, finish
    )


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
    """The float types of the tensors, by safetensors' names."""
    return {
        kind
        for file in _weight_files(directory)
        for kind in _kinds(safe_open(file, framework="numpy")).values()
    }


def _weight_files(directory: Path) -> list[Path]:
    """The files that the index names, else model.safetensors, else all."""
    files = sorted(directory.glob("*.safetensors"))
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


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        handle = safe_open(file, framework="numpy")
        for name, kind in _kinds(handle).items():
            packed = kind == "U8" and name.endswith(hf_layout.PACKED)
            if kind not in FLOATS and not packed:
                raise ValueError(
                    f"{file}: {name} is stored as {kind}; expected one of "
                    f"{', '.join(FLOATS)}, that is weights that are not "
                    "quantised, or MXFP4"
                )
        return {
            name: Tensor(
                tuple(handle.get_slice(name).get_shape()),
                lambda name=name: handle.get_tensor(name),
            )
            for name in handle.keys()
        }
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file}: not a whole safetensors file ({error}); fetch it again"
        ) from error
