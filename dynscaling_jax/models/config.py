"""One ModelConfig for every family, read from config.json or GGUF metadata."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    kind is linear, llama3, or factors: one divisor for each frequency, as
    GGUF files store llama3's.
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Widths are in features, lengths in tokens."""

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    norm_eps: float = 1e-5
    tied: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window: int = 0  # sliding window of attention; 0 sees everything
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for name in (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "context",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"model config: {name} must be a positive whole number, "
                    f"got {value!r}"
                )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model config: heads ({self.heads}) must be a multiple of "
                f"kv_heads ({self.kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"model config: head_dim must be even, got {self.head_dim}"
            )
        factors = self.rope_scaling.factors if self.rope_scaling else ()
        if factors and len(factors) != self.head_dim // 2:
            raise ValueError(
                f"model config: {self.head_dim // 2} rope factors expected, "
                f"got {len(factors)}"
            )


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Rotary angles per position, float32 [D/2] (RoFormer, eq. 15).

    Llama 3.1 keeps high frequencies, divides low ones by the factor, and
    blends linearly in between.
    """
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    freqs = (1.0 / config.rope_theta**exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / np.float32(scaling.factor)
    if scaling.kind == "factors":
        return freqs / np.asarray(scaling.factors, np.float32)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_context * freqs / (2 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (freqs * (blend + (1 - blend) / scaling.factor)).astype(np.float32)


FAMILIES = {
    # config.json model_type -> GGUF architecture of the same decoder
    "llama": "llama",
    "mistral": "llama",
}


def from_hf(
    raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Reads config.json and, for the ids that end a turn, generation_config.

    Raises:
        ValueError: an unknown family, a missing field or one we cannot obey.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {family!r} is not supported; known: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"config.json: hidden_act must be silu for {family}, got "
            f"{raw['hidden_act']!r}"
        )
    for flag in ("attention_bias", "mlp_bias"):
        if raw.get(flag):
            raise ValueError(f"config.json: {flag}=true is not supported")
    mistral = family == "mistral"  # its fields have defaults of their own
    try:
        width, heads = raw["hidden_size"], raw["num_attention_heads"]
        rope = {**_rope_defaults(raw), **(raw.get("rope_parameters") or {})}
        return ModelConfig(
            family=family,
            vocab_size=raw["vocab_size"],
            width=width,
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads", 8 if mistral else None)
            or heads,
            head_dim=raw.get("head_dim") or width // heads,
            ffn=raw["intermediate_size"],
            context=raw["max_position_embeddings"],
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            rope_theta=float(rope.get("rope_theta", 10_000.0)),
            rope_scaling=_rope_scaling(rope, raw["max_position_embeddings"]),
            window=raw.get("sliding_window", 4096) or 0 if mistral else 0,
            bos_id=_first_id(raw.get("bos_token_id")),
            eos_ids=_ids(
                (generation or {}).get("eos_token_id", raw.get("eos_token_id"))
            ),
        )
    except KeyError as error:
        raise ValueError(f"config.json: field {error} is missing") from None
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"config.json: a field is wrong ({error})") from None


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json that describes this decoder.

    Raises:
        ValueError: rope factors, for which config.json has no field.
    """
    if config.rope_scaling and config.rope_scaling.factors:
        raise ValueError(
            "config.json cannot hold the rope factors of this GGUF file; "
            "start from the model's Hugging Face directory"
        )
    raw = {
        "architectures": [
            {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[
                config.family
            ]
        ],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids) or None,
    }
    if config.family == "mistral":
        raw["sliding_window"] = config.window or None
    if config.rope_scaling:
        scaling = config.rope_scaling
        raw["rope_scaling"] = {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
        }
        if scaling.kind == "llama3":
            raw["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    return raw


def from_gguf(metadata: Mapping[str, Any]) -> ModelConfig:
    """Reads GGUF key/value metadata (llama.cpp's names).

    Raises:
        ValueError: an unknown architecture or a missing key.
    """
    arch = str(metadata.get("general.architecture"))
    if arch not in FAMILIES.values():
        raise ValueError(
            f"GGUF: architecture {arch!r} is not supported; known: "
            f"{', '.join(sorted(set(FAMILIES.values())))}"
        )

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ValueError(f"GGUF: metadata key {arch}.{key} is missing")
        return value

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
    return ModelConfig(
        family="mistral" if window else arch,
        vocab_size=int(metadata.get(f"{arch}.vocab_size", len(tokens))),
        width=width,
        layers=get("block_count"),
        heads=heads,
        kv_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", width // heads),
        ffn=get("feed_forward_length"),
        context=get("context_length"),
        norm_eps=float(get("attention.layer_norm_rms_epsilon")),
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        rope_scaling=RopeScaling("linear", factor) if factor != 1.0 else None,
        window=window,
        bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_ids=tuple(dict.fromkeys(i for i in eos if i is not None)),
    )


def _rope_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 4 wrote rope_theta and rope_scaling side by side; 5 writes
    # one rope_parameters, which wins.
    return {
        "rope_theta": raw.get("rope_theta", 10_000.0),
        **(raw.get("rope_scaling") or {}),
    }


def _rope_scaling(rope: Mapping[str, Any], context: int) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope.get("original_max_position_embeddings", context)),
        )
    raise ValueError(
        f"config.json: rope scaling {kind!r} is not supported; known: "
        "default, linear, llama3"
    )


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _first_id(value: int | list[int] | None) -> int | None:
    return next(iter(_ids(value)), None)
