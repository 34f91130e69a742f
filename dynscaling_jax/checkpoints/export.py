"""Parameters to files: Orbax, and the layout of Hugging Face.

DIR/params/                   Orbax; or model*.safetensors
DIR/config.json               as Hugging Face writes it
DIR/tokenizer.json, ...       as the source has them
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.sharding import Mesh
from safetensors.numpy import save_file

from dynscaling_jax.checkpoints import hf_checkpoint, hf_config, hf_layout
from dynscaling_jax.checkpoints import tensors as checkpoints
from dynscaling_jax.checkpoints.files import read_json
from dynscaling_jax.checkpoints.tensors import PARAMS
from dynscaling_jax.checkpoints.tokenizer import Tokenizer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import (
    Parameter,
    Params,
    parameters,
    tree,
)
from dynscaling_jax.models.sharding import param_sharding

SIDE = (  # files that stand beside the weights
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "*.model",
)
SHARD = 4 * 2**30  # bytes of a safetensors file


def save_orbax(directory: Path, params: Params) -> None:
    """Writes DIR/params, each process of a mesh its own part."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute() / PARAMS, params)


def save_hf(
    directory: Path, config: ModelConfig, params: Params, shard: int = SHARD
) -> None:
    """Writes safetensors that transformers loads.

    Where one file would be larger than `shard` bytes there are shards, with
    an index.
    """

    def save(tensors: dict[str, np.ndarray], name: str) -> None:
        file = directory / name
        file.touch()  # the library's own file would be its owner's alone
        mode = file.stat().st_mode
        save_file(tensors, file, {"format": "pt"})
        file.chmod(mode)

    files: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, value in hf_tensors(config, params):
        if files[-1] and size + value.nbytes > shard:
            files.append({})
            size = 0
        files[-1][name] = value
        size += value.nbytes
    if len(files) == 1:
        save(files[0], "model.safetensors")
        return
    where = {}
    for at, tensors in enumerate(files, 1):
        name = f"model-{at:05}-of-{len(files):05}.safetensors"
        save(tensors, name)
        where |= dict.fromkeys(tensors, name)
    total = sum(value.nbytes for tensors in files for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    _write_json(directory / "model.safetensors.index.json", index)


def hf_tensors(
    config: ModelConfig, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of a Hugging Face file."""
    named = (
        (parameters(config)[steps(path)].hf, np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    )
    return hf_layout.pack(named, config)


def save_side_files(
    directory: Path,
    source: Path,
    config: ModelConfig,
    tokenizer: Callable[[], Tokenizer],
) -> None:
    """Writes config and tokenizer: the source's, or made of GGUF metadata."""
    if source.is_dir():
        for pattern in SIDE:
            for file in source.glob(pattern):
                shutil.copyfile(file, directory / file.name)
        raw = read_json(source / "config.json")
        if raw.pop("quantization_config", None):  # what we write is not
            _write_json(directory / "config.json", raw)
        return
    _write_json(directory / "config.json", hf_config.write(config))
    made = tokenizer()
    file = directory / "tokenizer.json"
    file.write_text(made.as_json(), "utf-8")
    _write_json(
        directory / "tokenizer_config.json",
        {
            "chat_template": made.template,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **made.variables,
        },
    )


def load_orbax(
    directory: Path,
    dtype: Any,
    sharding: jax.sharding.Sharding | Mesh | None = None,
) -> tuple[ModelConfig, Params]:
    """Reads what save_orbax wrote.

    Args:
        directory: of params and config.json.
        dtype: of the arrays.
        sharding: where each parameter is to lie, or a mesh on which
            models.sharding says it; it is read straight there.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: arrays that do not fit the config; each is named.
    """
    config = hf_checkpoint.read_config(directory)
    folder = directory.absolute() / PARAMS
    expected = {
        ".".join(map(str, path)): parameter.shape
        for path, parameter in parameters(config).items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        found = _described(checkpointer, folder)
        held = {
            ".".join(map(str, steps(path))): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(found)
        }
        checkpoints.refuse_misfits(str(directory), expected, held)

        def described(parameter: Parameter) -> jax.ShapeDtypeStruct:
            where, shape = sharding, parameter.shape
            if isinstance(where, Mesh):
                where = param_sharding(where, config, parameter, shape)
            return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)

        with _named(folder):
            target = tree(config, described)
            return config, checkpointer.restore(folder, target)


def orbax_dtypes(directory: Path) -> set[str]:
    """The types of the arrays of an Orbax checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        found = _described(checkpointer, directory.absolute() / PARAMS)
    return {str(leaf.dtype) for leaf in jax.tree.leaves(found)}


def _described(checkpointer: ocp.StandardCheckpointer, folder: Path) -> Any:
    """The tree of a checkpoint's arrays, as shapes and types."""
    with _named(folder):
        _check_files(folder)
        found: Any = checkpointer.metadata(folder).item_metadata
        if found is None:
            raise FileNotFoundError("its description cannot be read")
        return found.tree


def _check_files(folder: Path) -> None:
    """Raises an error for a file that is missing, cut or no JSON.

    Once arrays are read, each would complain of it in sixty lines, from
    threads that nobody waits for.
    """
    for name in ("_METADATA", "_sharding", "array_metadatas/*"):
        for file in folder.glob(name):
            read_json(file)
    files = ts.KvStore.open({"driver": "file", "path": f"{folder}/"}).result()
    manifest = ts.ocdbt.dump(files).result()
    # "value:base:name:offset:length", where base/name is a file
    places = [manifest["versions"][-1]["root"]["location"]]
    while places:
        place = places.pop()
        kind, *name, first, length = place.split(":")
        file = folder.joinpath(*name)
        held = file.stat().st_size
        if held < int(first) + int(length):
            raise ValueError(f"{file} is cut after {held} bytes")
        if kind == "btreenode":
            for entry in ts.ocdbt.dump(files, place).result()["entries"]:
                where = entry.get("indirect_value") or entry.get("location")
                places += [where] if where else []


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Says of an error that the checkpoint is damaged, in one line."""
    try:
        yield
    except Exception as error:  # Orbax raises nothing narrower
        reason = str(error).partition(". See full")[0].partition("\n")[0]
        raise ValueError(
            f"{folder}: not a whole Orbax checkpoint ({reason[:300]}); copy it "
            "again"
        ) from error


def steps(path: tuple) -> tuple[Any, ...]:
    """JAX's path of a leaf as ours: ("layers", 0, "q")."""
    return tuple(
        getattr(step, "key", getattr(step, "idx", None)) for step in path
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
