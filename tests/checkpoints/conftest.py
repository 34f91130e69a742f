"""GGUF files as llama.cpp's converter writes them, and damaged files."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from dynscaling_jax.checkpoints import load_model

ARCHITECTURES = {
    "mistral": "llama",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "gpt_oss": "gpt-oss",
}  # where they are not called as in config.json
F32 = gguf.GGMLQuantizationType.F32


def full_precision(
    _: str, value: np.ndarray
) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    return value.astype(np.float32), F32


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """(file, directory, encode, tensors, metadata) -> file: a directory in
    Hugging Face layout as a GGUF file.

    encode gives the bytes and type of each matrix, by name; tensors are
    further ones; metadata change or, where None, leave out keys.
    """
    return _write


def _write(
    file: Path,
    directory: Path,
    encode: Callable = full_precision,
    tensors: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
    shard: int = 0,
) -> Path:
    raw = json.loads((directory / "config.json").read_text())
    arch = ARCHITECTURES.get(raw["model_type"], raw["model_type"])
    source: dict[str, np.ndarray] = {}
    for part in sorted(directory.glob("*.safetensors")):
        source |= load_file(part)
    if raw.get("tie_word_embeddings"):
        source.pop("lm_head.weight", None)
    writer = gguf.GGUFWriter(file, arch, split_max_tensors=shard)
    for key, value in {**_metadata(raw, arch), **(metadata or {})}.items():
        _add(writer, key, value)
    held = {**_tensors(raw, arch, source), **_rope_tensors(raw)}
    for name, value in {**held, **(tensors or {})}.items():
        if value.ndim == 1:
            writer.add_tensor(name, value.astype(np.float32))
        else:
            data, kind = encode(name, value)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _metadata(raw: Mapping[str, Any], arch: str) -> dict[str, Any]:
    count = raw["vocab_size"]
    rope = raw.get("rope_parameters") or {}
    everywhere = rope.get("full_attention", rope)
    own = {
        "block_count": raw["num_hidden_layers"],
        "context_length": raw["max_position_embeddings"],
        "embedding_length": raw["hidden_size"],
        "feed_forward_length": raw["intermediate_size"],
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
        "attention.key_length": raw.get("head_dim"),
        "attention.value_length": raw.get("head_dim"),
        "rope.freq_base": everywhere["rope_theta"],
        "rope.freq_base_swa": rope.get("sliding_attention", {}).get(
            "rope_theta"
        ),
        "expert_count": raw.get("num_local_experts"),
        "expert_used_count": raw.get("num_experts_per_tok"),
        **_scaling(everywhere),
        **_of_family(raw, arch),
    }
    return {
        **{f"{arch}.{k}": v for k, v in own.items()},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"<{i}>" for i in range(count)],
        "tokenizer.ggml.scores": [-float(i) for i in range(count)],
        "tokenizer.ggml.token_type": [1] * count,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type")
    if kind == "linear":
        return {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": rope["factor"],
        }
    if kind == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope[
                "original_max_position_embeddings"
            ],
            "rope.scaling.yarn_attn_factor": rope.get("attention_factor"),
            "rope.scaling.yarn_beta_fast": rope.get("beta_fast"),
            "rope.scaling.yarn_beta_slow": rope.get("beta_slow"),
        }
    return {"rope.scaling.type": "longrope"} if kind == "longrope" else {}


def _of_family(raw: Mapping[str, Any], arch: str) -> dict[str, Any]:
    head_dim = raw.get(
        "head_dim", raw["hidden_size"] // raw["num_attention_heads"]
    )
    if arch == "llama":
        return {
            "vocab_size": raw["vocab_size"],
            "rope.dimension_count": head_dim,
            # of Mistral no converter writes it, yet it has a key
            "attention.sliding_window": raw.get("sliding_window"),
        }
    if arch == "smollm3":
        return {
            "vocab_size": raw["vocab_size"],
            "rope.dimension_count": head_dim,
        }
    if arch == "qwen3moe":
        return {"expert_feed_forward_length": raw["moe_intermediate_size"]}
    if arch == "gemma2":
        return {
            "attn_logit_softcapping": raw["attn_logit_softcapping"],
            "final_logit_softcapping": raw["final_logit_softcapping"],
            "attention.sliding_window": raw["sliding_window"],
        }
    if arch == "gpt-oss":
        return {
            "attention.sliding_window": raw["sliding_window"],
            "expert_feed_forward_length": raw["intermediate_size"],
        }
    if arch == "gemma3":
        return {"attention.sliding_window": raw["sliding_window"]}
    if arch == "phi3":
        rope = raw["rope_parameters"]
        share = rope.get("partial_rotary_factor", 1.0)
        original = rope.get("original_max_position_embeddings")
        original = original or raw["original_max_position_embeddings"]
        extra = {}
        if "short_factor" in rope:
            stretch = raw["max_position_embeddings"] / original
            size = math.sqrt(1 + math.log(stretch) / math.log(original))
            extra = {"rope.scaling.attn_factor": size}
        return {
            "rope.scaling.original_context_length": original,
            "rope.dimension_count": int(share * head_dim),
            "attention.sliding_window": raw.get("sliding_window") or 0,
            **extra,
        }
    return {}


def _tensors(
    raw: Mapping[str, Any], arch: str, source: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = raw["num_hidden_layers"]
    names = gguf.get_tensor_name_map(kinds[arch], layers)
    result: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, value in source.items():
        *stem, part, _ = name.split(".")
        if arch.startswith("gemma") and part.endswith("norm"):
            value = value + 1
        if arch in ("llama", "smollm3") and part in ("q_proj", "k_proj"):
            which = "attention" if part == "q_proj" else "key_value"
            heads = raw[f"num_{which}_heads"]
            halves = value.reshape(heads, 2, -1, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if "experts" in stem and arch != "gpt-oss":
            whole = ".".join([*stem[:-1], part, "weight"])
            at = int(stem[-1])
            kept = experts.setdefault(whole, [value] * raw["num_local_experts"])
            kept[at] = value
            continue
        result[name] = np.ascontiguousarray(value)
    result |= {name: np.stack(parts) for name, parts in experts.items()}
    if arch == "gpt-oss":
        result = dict(_gpt_oss(result))
    renamed = {}
    for name, value in result.items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new, name
        renamed[new] = value
    return renamed


def _gpt_oss(
    source: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    """Experts [E, in, out] turned; gate and up, which take turns, apart."""
    for name, value in source.items():
        stem, _, part = name.rpartition(".")
        if "experts" not in stem:
            yield name + ".weight" * (part == "sinks"), value
            continue
        which = ".bias" if part.endswith("_bias") else ".weight"
        value = value if which == ".bias" else value.swapaxes(1, 2)
        part = part.removesuffix("_bias")
        if part == "down_proj":
            yield f"{stem}.{part}{which}", np.ascontiguousarray(value)
            continue
        for at, own in enumerate(("gate_proj", "up_proj")):
            yield f"{stem}.{own}{which}", np.ascontiguousarray(value[:, at::2])


def _rope_tensors(raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{which}.weight": np.float32(rope[f"{which}_factor"])
            for which in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    dim = raw["head_dim"]
    wave = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] / wave
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    factors = 1 / (keep + (1 - keep) / rope["factor"])
    return {"rope_freqs.weight": factors.astype(np.float32)}


@pytest.fixture(scope="session")
def refusals() -> Callable[[Path, Path, bytes], int]:
    """(model, file, whole) -> of 200 damaged copies of its file, how many
    the model does not load; nothing but a ValueError may come out."""

    def count(model: Path, file: Path, whole: bytes) -> int:
        refused = 0
        for seed in range(200):
            file.write_bytes(_damaged(whole, 1_500, seed))
            try:
                load_model(model)
            except ValueError:
                refused += 1
        return refused

    return count


def _damaged(whole: bytes, header: int, seed: int) -> bytes:
    """Flips a bit, writes a huge number or leaves bytes out, in the header."""
    random = np.random.RandomState(seed)
    result = bytearray(whole)
    for _ in range(random.randint(1, 4)):
        at, what = random.randint(header), random.randint(3)
        if what == 0:
            result[at] ^= 1 << random.randint(8)
        elif what == 1:
            claim = (2**63, 2**64 - 1, 2**40, 10**9, 0)[random.randint(5)]
            result[at : at + 8] = claim.to_bytes(8, "little")
        else:
            del result[at : at + random.randint(1, 9)]
    return bytes(result)
