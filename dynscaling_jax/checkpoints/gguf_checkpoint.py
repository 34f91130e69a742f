"""GGUF files: metadata and quantised tensors to parameters."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

from dynscaling_jax.checkpoints import gguf_config, gguf_layout
from dynscaling_jax.checkpoints import tensors as checkpoints
from dynscaling_jax.checkpoints.gguf_layout import Stored
from dynscaling_jax.checkpoints.tensors import Finish
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params

_MOST_ITEMS = 2**22  # of all arrays; Gemma's vocabulary has a fifth of it
_MOST_READS = 2**18  # six for each tensor
FACTORS = {  # of rotary frequencies, by kind
    "all": "rope_freqs.weight",
    "short": "rope_factors_short.weight",
    "long": "rope_factors_long.weight",
}


def load(
    file: Path, dtype: Any, finish: Finish
) -> tuple[ModelConfig, Params, dict]:
    """Reads and dequantises a GGUF file, or the files of which it is the first.

    It returns the metadata too.

    Raises:
        FileNotFoundError, ValueError: as hf_checkpoint.load.
    """
    metadata, tensors = read(file)
    source = {name: _stored(*found) for name, found in tensors.items()}
    arch = gguf_config.architecture(metadata)
    factors = {
        kind: tuple(map(float, source.pop(name).rows(0, 1)[0]))
        for kind, name in FACTORS.items()
        if name in source
    }
    config = _as_held(gguf_config.read(metadata, factors), source)
    params = checkpoints.place(
        str(file),
        config,
        gguf_layout.unpack(source, config, dtype),
        lambda p: p.gguf,
        finish,
        functools.partial(
            gguf_layout.as_ours, config=config, neighbours=arch.neighbours
        ),
    )
    return config, params, metadata


def _as_held(config: ModelConfig, source: Mapping[str, Stored]) -> ModelConfig:
    """Sees by the tensors whether there are biases and a head of its own."""
    qkv_bias = {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}
    return dataclasses.replace(
        config,
        tie_word_embeddings="output.weight" not in source,
        qkv_bias=config.qkv_bias or not qkv_bias.isdisjoint(source),
        o_bias="blk.0.attn_output.bias" in source,
        mlp_bias="blk.0.ffn_down.bias" in source,
    )


def read(file: Path) -> tuple[dict[str, Any], dict[str, tuple[Path, Any]]]:
    """Metadata, and each tensor's file and description.

    Raises:
        FileNotFoundError: no such file, or one of a split file is missing.
        ValueError: not a GGUF file, a truncated or a corrupt one, or one of
            a split file that is not the first.
    """
    metadata, described = _header(file)
    count = metadata.get("split.count", 1)
    tensors = {name: (file, t) for name, t in described.items()}
    for at, part in enumerate(_parts(file, metadata)[1:], 1):
        if not part.is_file():
            raise FileNotFoundError(
                f"{file} is the first of {count} files, and {part.name} is "
                "missing beside it; fetch it too"
            )
        found, described = _header(part)
        if found.get("split.no") != at or not tensors.keys().isdisjoint(
            described
        ):
            raise ValueError(
                f"{part}: not part {at} (split.no) of {file.name}, or its "
                "tensors are there already; fetch it again"
            )
        tensors |= {name: (part, t) for name, t in described.items()}
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ValueError(
            f"{file}: {expected} tensors expected in its {count} files, got "
            f"{len(tensors)}; fetch them again"
        )
    return metadata, tensors


def _parts(file: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The files of a split model, of which `file` must be the first."""
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 2:
        return [file]
    named = re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", file.name)
    if not named or int(named[2]) != count or metadata.get("split.no"):
        raise ValueError(
            f"{file}: one of the {count} files of a split model; give the "
            f"first, whose name ends in -00001-of-{count:05}.gguf"
        )
    return [
        file.with_name(f"{named[1]}-{at:05}-of-{count:05}.gguf")
        for at in range(1, count + 1)
    ]


class _Reader(gguf.GGUFReader):
    """Ends where the file ends, or after as many reads as no header needs.

    The library's own reader takes what lies past the end for empty: an array
    that claims 2**40 numbers would keep it busy for days. It follows arrays
    of arrays, which no key of llama.cpp's has, as deep as a file nests them,
    and reads items one by one, 200 bytes for each.
    """

    _reads = _items = 0

    def _get(self, offset, dtype, count=1, override_order=None):
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ValueError("its header claims more than a header holds")
        ordered = np.dtype(dtype).newbyteorder(
            override_order or self.byte_order
        )
        try:
            return np.ndarray(int(count), ordered, self.data, offset)
        except (TypeError, ValueError) as error:  # past the end, or 2**63
            raise ValueError(f"it ends within {count} numbers") from error

    def _get_field_parts(self, orig_offs, raw_type):
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        self._items += count
        if kind == GGUFValueType.ARRAY or self._items > _MOST_ITEMS:
            raise ValueError(f"it has an array of {count} items, {kind.name}")
        start = orig_offs + 12
        if kind == GGUFValueType.STRING:
            texts, size = self._texts(start, count)
            values = np.array(texts, object)
        else:
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            size = values.nbytes
        return 12 + size, [values], [0], [GGUFValueType.ARRAY]

    def _texts(self, start: int, count: int) -> tuple[list[str], int]:
        """Strings, and the bytes that they and their lengths take."""
        data, at, texts = self.data.data, start, []
        for _ in range(count):
            end = at + 8 + int.from_bytes(data[at : at + 8], "little")
            if end > len(data):
                raise ValueError(f"it ends within {count} strings")
            texts.append(str(data[at + 8 : end], "utf-8"))
            at = end
        return texts, at - start


def _header(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and descriptions of tensors, which lie within the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such GGUF file")
    try:
        reader = _Reader(file)
        metadata = {k: f.contents() for k, f in reader.fields.items()}
        if reader.byte_order == "S":
            raise ValueError("its bytes are in the order of another machine")
        return metadata, {t.name: t for t in reader.tensors}
    except (
        ArithmeticError,
        IndexError,
        KeyError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{file}: not a whole GGUF file ({type(error).__name__}: {error});"
            " fetch it again"
        ) from error


def _stored(file: Path, tensor: Any) -> Stored:
    """Describes a tensor whose rows are read from the file.

    Pages of a map of it would count as the process's memory, until the whole
    file lies in it.
    """
    shape = tuple(int(n) for n in reversed(tensor.shape)) or (1,)
    size = int(tensor.n_bytes) // max(1, math.prod(shape[:-1]))

    def rows(first: int, end: int) -> np.ndarray:
        data = np.fromfile(
            file,
            np.uint8,
            (end - first) * size,
            offset=tensor.data_offset + first * size,
        )
        try:
            return gguf.dequantize(
                data.reshape(end - first, size), tensor.tensor_type
            )
        except (NotImplementedError, ValueError) as error:
            raise ValueError(
                f"{file}: {tensor.name} is stored as "
                f"{tensor.tensor_type.name}, which cannot be dequantised "
                f"({error}); take another file of this model, such as Q8_0"
            ) from error

    return Stored(shape, rows)
