"""GGUF metadata to ModelConfig."""

from collections.abc import Callable
from typing import Any

from dynscaling_jax.models.config import (
    ModelConfig,
    RopeScaling,
    check_layers,
)
from dynscaling_jax.models.families import FAMILIES, Fields, Raw


def read(metadata: Raw) -> ModelConfig:
    """Reads GGUF key/value metadata (llama.cpp's names).

    Raises:
        ValueError: an unknown architecture or a missing key.
    """
    arch = str(metadata.get("general.architecture"))
    known = {family.gguf: name for name, family in FAMILIES.items()}
    known["llama"] = "llama"  # and mistral's, which is told by its window
    if arch not in GGUF:
        raise ValueError(
            f"GGUF: architecture {arch!r} is not supported; known: "
            f"{', '.join(sorted(GGUF))}"
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ValueError(f"GGUF: metadata key {arch}.{key} is missing")
        return value

    check_layers(get("block_count"))
    heads, width = get("attention.head_count"), get("embedding_length")
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    if get("rope.scaling.type", "none") not in ("none", "linear"):
        raise ValueError(
            f"GGUF: rope scaling {get('rope.scaling.type')!r} is not supported"
        )
    factor = get("rope.scaling.factor", 1.0)
    eos = [
        metadata.get("tokenizer.ggml.eos_token_id"),
        metadata.get("tokenizer.ggml.eot_token_id"),
    ]
    window = int(get("attention.sliding_window", 0))
    fields: Fields = {
        "family": "mistral" if window and arch == "llama" else known[arch],
        "vocab_size": int(metadata.get(f"{arch}.vocab_size", len(tokens))),
        "width": width,
        "layers": get("block_count"),
        "heads": heads,
        "kv_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", width // heads),
        "ffn": get("feed_forward_length"),
        "context": get("context_length"),
        "norm_eps": float(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(get("rope.freq_base", 10_000.0)),
        "rope_scaling": (
            RopeScaling("linear", factor) if factor != 1.0 else None
        ),
        "window": window,
        "bos_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_ids": tuple(dict.fromkeys(i for i in eos if i is not None)),
    }
    return ModelConfig(**fields | GGUF[arch](fields))


def _gemma3_gguf(fields: Fields) -> Fields:
    """What llama.cpp knows of gemma3 without being told."""
    layers = range(fields["layers"])
    return {
        "qk_norm": "head",
        "post_norm": True,
        "norm_offset": 1.0,
        "activation": "gelu",
        "embed_scale": fields["width"] ** 0.5,
        "local": tuple((i + 1) % 6 > 0 for i in layers),
        "local_rope_theta": 10_000.0,
    }


GGUF: dict[str, Callable[[Fields], Fields]] = {
    "llama": lambda _: {},
    "qwen2": lambda _: {"qkv_bias": True},
    "qwen3": lambda _: {"qk_norm": "head"},
    "gemma3": _gemma3_gguf,
}
