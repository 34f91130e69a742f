"""GGUF metadata to ModelConfig."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dynscaling_jax.checkpoints.gguf_families import GGUF, Fields, Get, Gguf
from dynscaling_jax.models.config import (
    ModelConfig,
    RopeScaling,
    check_layers,
)
from dynscaling_jax.models.families import Raw


def architecture(metadata: Raw) -> Gguf:
    """What is known of a file's general.architecture.

    Raises:
        ValueError: nothing is.
    """
    name = str(metadata.get("general.architecture"))
    if name not in GGUF:
        raise ValueError(
            f"GGUF: architecture {name!r} is not supported; known: "
            f"{', '.join(sorted(GGUF))}"
        )
    return GGUF[name]


Factors = Mapping[str, tuple[float, ...]]


def read(metadata: Raw, factors: Factors = MappingProxyType({})) -> ModelConfig:
    """Reads GGUF key/value metadata (llama.cpp's names).

    Args:
        metadata: keys and values of the file.
        factors: of rotary frequencies, which files hold as tensors: all, or
            short and long.

    Raises:
        ValueError: an unknown architecture, a missing key or a wrong value.
    """
    arch = architecture(metadata)
    name = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{name}.{key}", default)
        if value is None:
            raise ValueError(f"GGUF: metadata key {name}.{key} is missing")
        return value

    check_layers(get("block_count"))
    try:
        fields = _shared(metadata, get, factors)
        return ModelConfig(
            **{"family": arch.family, **fields, **arch.read(get, fields)}
        )
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise ValueError(f"GGUF: a metadata value is wrong ({error})") from None


def _shared(metadata: Raw, get: Get, factors: Factors) -> Fields:
    heads, width = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length", width // heads)
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    ends = [
        metadata.get("tokenizer.ggml.eos_token_id"),
        metadata.get("tokenizer.ggml.eot_token_id"),
    ]
    return {
        "vocab_size": get("vocab_size", len(tokens)),
        "hidden_size": width,
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": _context(get, factors),
        "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(get("rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(get, factors),
        "partial_rotary_factor": get("rope.dimension_count", head_dim)
        / head_dim,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": tuple(dict.fromkeys(i for i in ends if i is not None)),
    }


def _context(get: Get, factors: Factors) -> int:
    """Reads the context, of longrope that which its short factors serve."""
    longest = get("context_length")
    if "short" not in factors:
        return longest
    return get("rope.scaling.original_context_length", longest)


def _rope_scaling(get: Get, factors: Factors) -> RopeScaling | None:
    kind = get("rope.scaling.type", "linear")
    factor = get("rope.scaling.factor", 0) or get("rope.scale_linear", 0)
    factor = float(factor or 1)
    attention = float(get("rope.scaling.attn_factor", 1.0))
    if "short" in factors and "long" in factors:
        return RopeScaling(
            "factors",
            factors=factors["short"],
            attention_factor=attention,
            long_factors=factors["long"],
            long_context=get("context_length"),
        )
    if kind == "linear" and "all" in factors:
        every = tuple(factor * f for f in factors["all"])
        return RopeScaling("factors", factors=every, attention_factor=attention)
    if kind == "none" or (kind == "linear" and factor == attention == 1):
        return None
    if kind == "linear":
        return RopeScaling("linear", factor, attention_factor=attention)
    if kind == "yarn" and not factors:
        attention *= 1 + 0.1 * math.log(factor)
        return RopeScaling(
            "yarn",
            factor,
            float(get("rope.scaling.yarn_beta_slow", 1)),
            float(get("rope.scaling.yarn_beta_fast", 32)),
            get("rope.scaling.original_context_length", get("context_length")),
            attention_factor=float(
                get("rope.scaling.yarn_attn_factor", attention)
            ),
        )
    raise ValueError(
        f"GGUF: rope scaling {kind!r} with factors {sorted(factors)} is not "
        "supported; known: none, linear, yarn, and longrope with the tensors "
        "rope_factors_short and rope_factors_long"
    )
