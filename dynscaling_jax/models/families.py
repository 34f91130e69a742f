"""The families: what config.json and GGUF metadata mean for each.

A family is one entry of FAMILIES: how its config.json is read and written
beyond the fields that all share, and where its files name a tensor otherwise
than Llama's do. docs/add_a_model.md shows how one is added.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dynscaling_jax.models.config import (
    ModelConfig,
    RopeScaling,
    check_layers,
)

Raw = Mapping[str, Any]
Fields = dict[str, Any]


class Family(NamedTuple):
    """One model_type of config.json.

    read gives fields of ModelConfig, write the fields of config.json that
    stand for them. names replaces parts of Hugging Face tensor names;
    fused, parts that the file holds as rows of one tensor; stacked, parts of
    layers with experts that it holds as a tensor for each expert.
    """

    architecture: str
    gguf: str  # llama.cpp's name of the architecture; empty: none yet
    read: Callable[[Raw], Fields]
    write: Callable[[ModelConfig], Fields]
    names: Mapping[str, str] = {}
    fused: Mapping[str, tuple[str, ...]] = {}
    stacked: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}  # of config.json, where it is silent


def from_hf(raw: Raw, generation: Raw | None = None) -> ModelConfig:
    """Reads config.json and, for the ids that end a turn, generation_config.

    Raises:
        ValueError: an unknown family, a missing field or one we cannot obey.
    """
    name = raw.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {name!r} is not supported; known: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[name]
    raw = {**family.defaults, **raw}
    check_layers(raw.get("num_hidden_layers", 1))
    if raw.get("mlp_bias"):
        raise ValueError("config.json: mlp_bias=true is not supported")
    try:
        width, heads = raw["hidden_size"], raw["num_attention_heads"]
        fields = {
            "kv_heads": raw.get("num_key_value_heads") or heads,
            "head_dim": raw.get("head_dim") or width // heads,
            "context": raw["max_position_embeddings"],
            "tied": bool(raw.get("tie_word_embeddings", False)),
            **_activation(raw),
            **_rope(raw),
            **family.read(raw),
        }
        eos = (generation or {}).get("eos_token_id", raw.get("eos_token_id"))
        return ModelConfig(
            family=name,
            vocab_size=raw["vocab_size"],
            width=width,
            layers=raw["num_hidden_layers"],
            heads=heads,
            ffn=raw["intermediate_size"],
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            bos_id=_first_id(raw.get("bos_token_id")),
            eos_ids=_ids(eos),
            **fields,
        )
    except KeyError as error:
        raise ValueError(f"config.json: field {error} is missing") from None
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"config.json: a field is wrong ({error})") from None


def to_hf(config: ModelConfig) -> Fields:
    """The config.json that describes this decoder.

    Raises:
        ValueError: rope factors, for which config.json has no field.
    """
    scaling = config.rope_scaling
    if scaling and scaling.factors:
        raise ValueError(
            "config.json cannot hold the rope factors of this file; start "
            "from the model's Hugging Face directory"
        )
    family = FAMILIES[config.family]
    raw = {
        "architectures": [family.architecture],
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
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids) or None,
    }
    if scaling:
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
        if scaling.kind == "yarn":
            raw["rope_scaling"] |= {
                "beta_slow": scaling.low_freq_factor,
                "beta_fast": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
                "attention_factor": scaling.attention,
                "truncate": scaling.whole,
            }
    return raw | family.write(config)


# What config.json says in more than one family.


def _activation(raw: Raw) -> Fields:
    name = raw.get("hidden_activation") or raw.get("hidden_act", "silu")
    known = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
    if name not in known:
        raise ValueError(
            f"config.json: activation {name!r} is not supported; known: "
            f"{', '.join(known)}"
        )
    return {"activation": known[name]}


def _rope(raw: Raw) -> Fields:
    # transformers 4 wrote rope_theta and rope_scaling side by side; 5 writes
    # one rope_parameters, which wins, with an entry for each kind of layer
    # where they differ.
    rope = {
        "rope_theta": raw.get("rope_theta", 10_000.0),
        **(raw.get("rope_scaling") or {}),
    }
    given = raw.get("rope_parameters") or {}
    rope |= given.get("full_attention", given)
    fields: Fields = {"rope_theta": float(rope["rope_theta"])}
    local = given.get("sliding_attention", {}).get("rope_theta")
    local = local or raw.get("rope_local_base_freq")
    if local:
        fields["local_rope_theta"] = float(local)
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share is not None:
        fields["rope_share"] = float(share)
    kind = rope.get("rope_type", rope.get("type", "default"))
    return fields | _rope_scaling(raw, rope, kind)


def _rope_scaling(raw: Raw, rope: Raw, kind: str) -> Fields:
    context = raw["max_position_embeddings"]
    original = rope.get("original_max_position_embeddings")
    original = original or raw.get("original_max_position_embeddings", context)
    if kind == "default":
        return {"rope_scaling": None}
    if kind == "linear":
        return {"rope_scaling": RopeScaling("linear", float(rope["factor"]))}
    if kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(original),
        )
        return {"rope_scaling": scaling}
    if kind in ("longrope", "su"):
        # The short factors, up to the context that the model was trained
        # with: past it all keys would have to be rotated anew.
        stretch = context / original
        attention = rope.get("attention_factor")
        if attention is None:
            log = math.log(stretch) / math.log(original)
            attention = math.sqrt(1 + log) if stretch > 1 else 1.0
        factors = tuple(map(float, rope["short_factor"]))
        scaling = RopeScaling(
            "factors", factors=factors, attention=float(attention)
        )
        return {"rope_scaling": scaling, "context": int(original)}
    if kind == "yarn":
        factor = float(rope.get("factor") or context / original)
        attention = rope.get("attention_factor")
        if attention is None:
            scale, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
            attention = _yarn_size(factor, 1.0)
            if scale and of_all:
                attention = _yarn_size(factor, scale)
                attention /= _yarn_size(factor, of_all)
        scaling = RopeScaling(
            "yarn",
            factor,
            float(rope.get("beta_slow") or 1),
            float(rope.get("beta_fast") or 32),
            int(original),
            attention=float(attention),
            whole=bool(rope.get("truncate", True)),
        )
        return {"rope_scaling": scaling}
    raise ValueError(
        f"config.json: rope scaling {kind!r} is not supported; known: "
        "default, linear, llama3, yarn, longrope"
    )


def _yarn_size(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _windows(
    raw: Raw, window: int | None, local: Callable[[int], bool]
) -> Fields:
    """window, and the layers that have it, which layer_types says or, where
    the file has none, local(layer)."""
    kinds = raw.get("layer_types") or [
        "sliding_attention" if local(layer) else "full_attention"
        for layer in range(raw["num_hidden_layers"])
    ]
    flags = tuple(kind == "sliding_attention" for kind in kinds)
    if not window or not any(flags):
        return {}
    return {"window": window, "local": () if all(flags) else flags}


def _biases(raw: Raw) -> Fields:
    bias = bool(raw.get("attention_bias"))
    return {"qkv_bias": bias, "o_bias": bias}


def _layer_types(config: ModelConfig) -> list[str]:
    return [
        "sliding_attention" if config.kind(i).window else "full_attention"
        for i in range(config.layers)
    ]


# The families.


def _llama(raw: Raw) -> Fields:
    return _biases(raw)


def _write_llama(config: ModelConfig) -> Fields:
    return {"hidden_act": "silu", "attention_bias": config.qkv_bias}


def _mistral(raw: Raw) -> Fields:
    return _windows(raw, raw["sliding_window"], lambda _: True)


def _write_window(config: ModelConfig) -> Fields:
    return {"hidden_act": "silu", "sliding_window": config.window or None}


def _smollm3(raw: Raw) -> Fields:
    every = raw.get("no_rope_layer_interval", 4)
    layers = range(raw["num_hidden_layers"])
    rotates = raw.get("no_rope_layers") or [(i + 1) % every for i in layers]
    rotates = tuple(map(bool, rotates))
    window = raw.get("use_sliding_window") and raw.get("sliding_window")
    return {
        **_biases(raw),
        "rotates": () if all(rotates) else rotates,
        **_windows(raw, window, lambda layer: not rotates[layer]),
    }


def _write_smollm3(config: ModelConfig) -> Fields:
    rotates = config.rotates or (True,) * config.layers
    return {
        **_write_llama(config),
        "no_rope_layers": [int(r) for r in rotates],
        "use_sliding_window": bool(config.window),
        "sliding_window": config.window or None,
        "layer_types": _layer_types(config),
    }


def _qwen_window(raw: Raw) -> Fields:
    window = raw.get("use_sliding_window") and raw.get("sliding_window", 4096)
    first = raw.get("max_window_layers", 28)
    return _windows(raw, window, lambda layer: layer >= first)


def _qwen2(raw: Raw) -> Fields:
    return {"qkv_bias": True, **_qwen_window(raw)}


def _qwen3(raw: Raw) -> Fields:
    return {"qk_norm": "head", **_biases(raw), **_qwen_window(raw)}


def _qwen3_moe(raw: Raw) -> Fields:
    every = raw.get("decoder_sparse_step", 1)
    only = raw.get("mlp_only_layers") or ()
    layers = range(raw["num_hidden_layers"])
    dense = tuple(i in only or (i + 1) % every > 0 for i in layers)
    return {
        **_qwen3(raw),
        "experts": raw.get("num_experts") or raw["num_local_experts"],
        "experts_per_token": raw["num_experts_per_tok"],
        "expert_ffn": raw["moe_intermediate_size"],
        "expert_renormalise": bool(raw.get("norm_topk_prob", False)),
        "dense": dense if any(dense) else (),
    }


def _write_qwen3_moe(config: ModelConfig) -> Fields:
    return {
        **_write_qwen(config),
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_ffn,
        "norm_topk_prob": config.expert_renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, d in enumerate(config.dense) if d],
    }


def _write_qwen(config: ModelConfig) -> Fields:
    return {
        "hidden_act": "silu",
        "attention_bias": config.o_bias,
        "use_sliding_window": bool(config.window),
        "sliding_window": config.window or None,
        "layer_types": _layer_types(config),
    }


def _gemma(raw: Raw) -> Fields:
    return {
        **_biases(raw),
        "post_norm": True,
        "norm_offset": 1.0,
        "embed_scale": raw["hidden_size"] ** 0.5,
        "query_scale": raw["query_pre_attn_scalar"] ** -0.5,
        "final_softcap": raw.get("final_logit_softcapping") or 0.0,
    }


def _gemma2(raw: Raw) -> Fields:
    return {
        **_gemma(raw),
        **_windows(raw, raw["sliding_window"], lambda layer: layer % 2 == 0),
        "softcap": raw.get("attn_logit_softcapping") or 0.0,
    }


def _gemma3(raw: Raw) -> Fields:
    if raw.get("use_bidirectional_attention"):
        raise ValueError(
            "config.json: use_bidirectional_attention=true is an encoder's"
        )
    every = raw.get("sliding_window_pattern", 6)
    return {
        **_gemma(raw),
        **_windows(raw, raw["sliding_window"], lambda i: (i + 1) % every > 0),
        "qk_norm": "head",
    }


def _write_gemma(config: ModelConfig) -> Fields:
    scale = config.query_scale or config.head_dim**-0.5
    raw = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.qkv_bias,
        "sliding_window": config.window or config.context,
        "layer_types": _layer_types(config),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config.softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
    }
    if config.local_rope_theta:
        raw["rope_local_base_freq"] = config.local_rope_theta
    return raw


def _phi3(raw: Raw) -> Fields:
    return _windows(raw, raw.get("sliding_window"), lambda _: True)


def _write_phi3(config: ModelConfig) -> Fields:
    return {
        **_write_window(config),
        "partial_rotary_factor": config.rope_share,
        "original_max_position_embeddings": config.context,
    }


def _olmo2(raw: Raw) -> Fields:
    return {
        **_biases(raw),
        "qk_norm": "whole",
        "pre_norm": False,
        "post_norm": True,
    }


_GEMMA_NAMES = {
    "attn_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", _llama, _write_llama),
    "mistral": Family(
        "MistralForCausalLM",
        "llama",
        _mistral,
        _write_window,
        defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM", "smollm3", _smollm3, _write_smollm3
    ),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", _qwen2, _write_qwen),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "qwen3",
        _qwen3,
        _write_qwen,
        defaults={"head_dim": 128},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        "",
        _qwen3_moe,
        _write_qwen3_moe,
        names={"router": "mlp.gate"},
        stacked={
            p: f"mlp.experts.{{}}.{p}_proj" for p in ("gate", "up", "down")
        },
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "gemma2",
        _gemma2,
        _write_gemma,
        names=_GEMMA_NAMES,
        defaults={
            **_GEMMA_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "gemma3",
        _gemma3,
        _write_gemma,
        names=_GEMMA_NAMES,
        defaults={
            **_GEMMA_DEFAULTS,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "phi3",
        _phi3,
        _write_phi3,
        fused={
            "self_attn.qkv_proj": tuple(f"self_attn.{p}_proj" for p in "qkv"),
            "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
        },
        defaults={"rms_norm_eps": 1e-5},
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        "olmo2",
        _olmo2,
        _write_llama,
        names={"attn_post_norm": "post_attention_layernorm"},
        defaults={"rms_norm_eps": 1e-5},
    ),
}


# GGUF.


def from_gguf(metadata: Raw) -> ModelConfig:
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


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _first_id(value: int | list[int] | None) -> int | None:
    return next(iter(_ids(value)), None)
