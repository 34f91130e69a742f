"""Checkpoint files to parameters; every tensor is accounted for.

A source is a mapping from the file's tensor names to functions that read one
tensor, so that the host holds one tensor at a time beside the model.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dynscaling_jax.models import families
from dynscaling_jax.models.config import ModelConfig, RopeScaling
from dynscaling_jax.models.transformer import Params, param_shapes

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
PARAMS = "params"  # the folder of an Orbax checkpoint
NEIGHBOURS = ("llama", "mistral")  # families whose GGUF files rotate those
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of float types


class Tensor(NamedTuple):
    """A tensor of a file that has not been read yet."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def load_hf(directory: Path, dtype: Any) -> tuple[ModelConfig, Params]:
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
    for fused, parts in families.FAMILIES[config.family].fused.items():
        source = _split(source, fused, parts, config)
    source = _stack(source, config)
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
    names = functools.partial(hf_name, family=config.family)
    return config, place(str(directory), config, source, names, dtype)


def _stack(
    source: Mapping[str, Tensor], config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors of single experts as one of all, named as the dense part."""
    result = dict(source)
    for part, pattern in families.FAMILIES[config.family].stacked.items():
        for layer in filter(config.sparse, range(config.layers)):
            names = [
                f"model.layers.{layer}.{pattern.format(one)}.weight"
                for one in range(config.experts)
            ]
            parts = [result.pop(name) for name in names if name in source]
            shapes = {tensor.shape for tensor in parts}
            if len(parts) < len(names) or len(shapes) > 1:
                result |= {n: source[n] for n in names if n in source}
                continue  # place says what is wrong
            result[hf_name(("layers", layer, part))] = Tensor(
                (config.experts, *parts[0].shape),
                lambda parts=parts: np.stack([t.read() for t in parts]),
            )
    return result


def _split(
    source: Mapping[str, Tensor],
    fused: str,
    parts: tuple[str, ...],
    config: ModelConfig,
) -> dict[str, Tensor]:
    """The parts of a projection that the file holds as one, by rows."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows = (q, kv, kv) if len(parts) == 3 else (config.ffn, config.ffn)
    result: dict[str, Tensor] = {}
    for name, tensor in source.items():
        whole = sum(rows), config.width
        if f".{fused}." not in name or tensor.shape != whole:
            result[name] = tensor
            continue
        ends = np.cumsum(rows)
        for part, end, size in zip(parts, ends, rows, strict=True):
            result[name.replace(fused, part)] = Tensor(
                (size, config.width),
                lambda t=tensor, a=end - size, b=end: t.read()[a:b],
            )
    return result


def read_config(directory: Path) -> ModelConfig:
    """config.json and, where there is one, generation_config.json.

    Raises:
        FileNotFoundError, ValueError: as families.from_hf and read_json.
    """
    generation = directory / "generation_config.json"
    return families.from_hf(
        read_json(directory / "config.json"),
        read_json(generation) if generation.exists() else None,
    )


def hf_dtypes(directory: Path) -> set[str]:
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


def load_gguf(file: Path, dtype: Any) -> tuple[ModelConfig, Params, dict]:
    """Reads a GGUF file and dequantises it; also returns its metadata.

    Raises:
        FileNotFoundError, ValueError: as load_hf.
    """
    metadata, tensors = read_gguf(file)
    config = families.from_gguf(metadata)
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

    params = place(str(file), config, source, gguf_name, dtype, as_hf)
    return config, params, metadata


def place(
    where: str,
    config: ModelConfig,
    source: Mapping[str, Tensor],
    name: Callable[[tuple], str],
    dtype: Any,
    convert: Callable[[tuple, np.ndarray], np.ndarray] = lambda _, v: v,
) -> Params:
    """Fills the parameter tree from a source, one tensor at a time.

    Raises:
        ValueError: names every tensor that is missing, left over or of
            another shape, before anything is read.
    """
    shapes = param_shapes(config)
    wanted = {name(path): (path, s) for path, s in _leaves(shapes)}
    refuse_misfits(
        where,
        {n: shape for n, (_, shape) in wanted.items()},
        {n: tensor.shape for n, tensor in source.items()},
    )
    params: Params = {"layers": [{} for _ in range(config.layers)]}
    for file_name, (path, _) in wanted.items():
        value = convert(path, source[file_name].read())
        node = params
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = jnp.asarray(value, dtype)
    return params


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
        for path, shape in _leaves(param_shapes(config))
    }


def hf_name(path: tuple, family: str = "llama") -> str:
    """Our path of a parameter -> its name in a Hugging Face file."""
    top = {
        "embed": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
    }
    if path[0] in top:
        return f"{top[path[0]]}.weight"
    part, kind = path[2], "weight"
    if part.endswith("_bias"):
        part, kind = part.removesuffix("_bias"), "bias"
    name = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        **{p: f"self_attn.{p}_proj" for p in "qkvo"},
        **{p: f"mlp.{p}_proj" for p in ("gate", "up", "down")},
        **families.FAMILIES[family].names,
    }[part]
    return f"model.layers.{path[1]}.{name}.{kind}"


def gguf_name(path: tuple) -> str:
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


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
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


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent}: {file.name} is missing")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return value


def _dequantize(file: Path, tensor: Any) -> np.ndarray:
    try:
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{file}: {tensor.name} is stored as {tensor.tensor_type.name}, "
            f"which cannot be dequantised ({error}); take another file of "
            "this model, such as Q8_0"
        ) from error


def _kinds(handle: safe_open) -> dict[str, str]:
    return {n: handle.get_slice(n).get_dtype() for n in handle.keys()}


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        handle = safe_open(file, framework="numpy")
        for name, kind in _kinds(handle).items():
            if kind not in FLOATS:
                raise ValueError(
                    f"{file}: {name} is stored as {kind}; expected one of "
                    f"{', '.join(FLOATS)}, that is weights that are not "
                    "quantised"
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


def _leaves(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, tuple]]:
    if isinstance(tree, tuple):
        yield path, tree
    else:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, (*path, key))
