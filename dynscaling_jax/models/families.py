"""The families of models: what is their own in config.json and in files.

A family is one entry of FAMILIES, at the end. docs/how_to_family.md shows how
one is added. hf_config.py reads what all families share; gguf_families.py says
what is their own in GGUF files.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dynscaling_jax.models.config import FULL, SLIDING, ModelConfig

Raw = Mapping[str, Any]
Fields = dict[str, Any]


class Family(NamedTuple):
    """One model_type of config.json.

    read gives fields of ModelConfig, write the fields of config.json that
    stand for them. names and gguf_names take the place of those that
    models.parameters has, in Hugging Face's files and in llama.cpp's. The
    others say what files hold otherwise than as a tensor for each of ours,
    with our names of the parts: fused, as rows of one; stacked, as one for
    each expert; turned, as one of all experts, in turns.
    """

    architecture: str
    read: Callable[[Raw], Fields]
    write: Callable[[ModelConfig], Fields]
    names: Mapping[str, str] = {}
    gguf_names: Mapping[str, str] = {}
    fused: Mapping[str, tuple[str, ...]] = {}
    stacked: Mapping[str, str] = {}
    turned: Mapping[str, tuple[str, ...]] = {}
    defaults: Mapping[str, Any] = {}  # of config.json, where it is silent


def windows(
    raw: Raw, window: int | None, local: Callable[[int], bool]
) -> Fields:
    """Reads sliding_window and the layers that have it.

    layer_types says which, or where the file has none local(layer).
    """
    layers = raw["num_hidden_layers"]
    kinds = raw.get("layer_types") or [
        SLIDING if local(layer) else FULL for layer in range(layers)
    ]
    known = {SLIDING, FULL}
    if not set(kinds) <= known or len(kinds) != layers:
        raise ValueError(
            f"config.json: layer_types must be {layers} times one of "
            f"{', '.join(sorted(known))}, got {kinds}"
        )
    if not window or SLIDING not in kinds:
        return {}
    one = FULL not in kinds
    return {"sliding_window": window, "layer_types": () if one else (*kinds,)}


def biases(raw: Raw) -> Fields:
    """Those of attention's four projections, all or none."""
    bias = bool(raw.get("attention_bias"))
    return {"qkv_bias": bias, "o_bias": bias}


def layer_types(config: ModelConfig) -> list[str]:
    """SLIDING or FULL, of each layer."""
    return [
        SLIDING if config.kind(i).window else FULL
        for i in range(config.num_hidden_layers)
    ]


def _llama(raw: Raw) -> Fields:
    return {**biases(raw), "mlp_bias": bool(raw.get("mlp_bias"))}


def _write_llama(config: ModelConfig) -> Fields:
    bias = {"mlp_bias": True} if config.mlp_bias else {}
    return {
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        **bias,
    }


def _mistral(raw: Raw) -> Fields:
    return windows(raw, raw["sliding_window"], lambda _: True)


def _write_window(config: ModelConfig) -> Fields:
    return {
        "hidden_act": "silu",
        "sliding_window": config.sliding_window or None,
    }


def _smollm3(raw: Raw) -> Fields:
    every = raw.get("no_rope_layer_interval", 4)
    layers = range(raw["num_hidden_layers"])
    rotates = raw.get("no_rope_layers") or [(i + 1) % every for i in layers]
    rotates = tuple(int(bool(r)) for r in rotates)
    if len(rotates) != len(layers):
        raise ValueError(
            f"config.json: no_rope_layers must have {len(layers)} entries, "
            f"got {len(rotates)}"
        )
    # transformers heeds use_sliding_window where layer_types are not given
    heeded = raw.get("layer_types") or raw.get("use_sliding_window")
    window = heeded and raw.get("sliding_window")
    return {
        **_llama(raw),
        "no_rope_layers": () if all(rotates) else rotates,
        **windows(raw, window, lambda layer: not rotates[layer]),
    }


def _write_smollm3(config: ModelConfig) -> Fields:
    rotates = config.no_rope_layers or (1,) * config.num_hidden_layers
    return {
        **_write_llama(config),
        "no_rope_layers": list(rotates),
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "layer_types": layer_types(config),
    }


def _qwen_window(raw: Raw) -> Fields:
    window = raw.get("use_sliding_window") and raw.get("sliding_window", 4096)
    first = raw.get("max_window_layers", 28)
    return windows(raw, window, lambda layer: layer >= first)


def _qwen2(raw: Raw) -> Fields:
    return {"qkv_bias": True, **_qwen_window(raw)}


def _qwen3(raw: Raw) -> Fields:
    return {"qk_norm": "head", **biases(raw), **_qwen_window(raw)}


def _qwen3_moe(raw: Raw) -> Fields:
    every = raw.get("decoder_sparse_step", 1)
    only = raw.get("mlp_only_layers") or ()
    layers = range(raw["num_hidden_layers"])
    dense = tuple(i for i in layers if i in only or (i + 1) % every)
    # a window is of all layers, whatever max_window_layers says
    everywhere = {**raw, "layer_types": None, "max_window_layers": 0}
    return {
        **_qwen3(everywhere),
        "num_experts": raw.get("num_experts") or raw["num_local_experts"],
        "num_experts_per_tok": raw["num_experts_per_tok"],
        "moe_intermediate_size": raw["moe_intermediate_size"],
        "norm_topk_prob": bool(raw.get("norm_topk_prob", False)),
        "mlp_only_layers": dense,
    }


def _write_qwen3_moe(config: ModelConfig) -> Fields:
    return {
        **_write_qwen(config),
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": config.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.mlp_only_layers),
    }


def _write_qwen(config: ModelConfig) -> Fields:
    return {
        "hidden_act": "silu",
        "attention_bias": config.o_bias,
        "use_sliding_window": bool(config.sliding_window),
        "sliding_window": config.sliding_window or None,
        "layer_types": layer_types(config),
    }


def _gemma(raw: Raw) -> Fields:
    if raw["query_pre_attn_scalar"] <= 0:  # 0 is none of a file's
        raise ValueError(
            "config.json: query_pre_attn_scalar must be positive, got "
            f"{raw['query_pre_attn_scalar']}"
        )
    return {
        **biases(raw),
        "post_norm": True,
        "norm_offset": 1.0,
        "embed_scale": raw["hidden_size"] ** 0.5,
        "query_pre_attn_scalar": raw["query_pre_attn_scalar"],
        "final_logit_softcapping": raw.get("final_logit_softcapping") or 0.0,
    }


def _gemma2(raw: Raw) -> Fields:
    return {
        **_gemma(raw),
        **windows(raw, raw["sliding_window"], lambda layer: layer % 2 == 0),
        "attn_logit_softcapping": raw.get("attn_logit_softcapping") or 0.0,
    }


def _gemma3(raw: Raw) -> Fields:
    if raw.get("use_bidirectional_attention"):
        raise ValueError(
            "config.json: use_bidirectional_attention=true is an encoder's"
        )
    every = raw.get("sliding_window_pattern", 6)
    return {
        **_gemma(raw),
        **windows(raw, raw["sliding_window"], lambda i: (i + 1) % every > 0),
        "qk_norm": "head",
    }


def _write_gemma(config: ModelConfig) -> Fields:
    raw = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.qkv_bias,
        "sliding_window": config.sliding_window
        or config.max_position_embeddings,
        "layer_types": layer_types(config),
        "query_pre_attn_scalar": config.query_pre_attn_scalar
        or config.head_dim,
        "attn_logit_softcapping": config.attn_logit_softcapping or None,
        "final_logit_softcapping": config.final_logit_softcapping or None,
    }
    if config.rope_local_base_freq:
        raw["rope_local_base_freq"] = config.rope_local_base_freq
    return raw


def _phi3(raw: Raw) -> Fields:
    return windows(raw, raw.get("sliding_window"), lambda _: True)


def _write_phi3(config: ModelConfig) -> Fields:
    return {
        **_write_window(config),
        "partial_rotary_factor": config.partial_rotary_factor,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def _gpt_oss(raw: Raw) -> Fields:
    return {
        **biases(raw),
        **windows(raw, raw["sliding_window"], lambda layer: layer % 2 == 0),
        "num_experts": raw["num_local_experts"],
        "num_experts_per_tok": raw["num_experts_per_tok"],
        "moe_intermediate_size": raw["intermediate_size"],
        "norm_topk_prob": True,
        "expert_bias": True,
        "sinks": True,
        "swiglu_limit": float(raw["swiglu_limit"]),
        "swiglu_alpha": float(raw["swiglu_alpha"]),
    }


def _write_gpt_oss(config: ModelConfig) -> Fields:
    return {
        **_write_llama(config),
        "sliding_window": config.sliding_window or None,
        "layer_types": layer_types(config),
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "swiglu_limit": config.swiglu_limit,
        "swiglu_alpha": config.swiglu_alpha,
    }


def _olmo2(raw: Raw) -> Fields:
    return {
        **biases(raw),
        "qk_norm": "whole",
        "pre_norm": False,
        "post_norm": True,
    }


_GEMMA_NAMES = {"ffn_norm": "pre_feedforward_layernorm"}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _llama, _write_llama),
    "mistral": Family(
        "MistralForCausalLM",
        _mistral,
        _write_window,
        defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "smollm3": Family("SmolLM3ForCausalLM", _smollm3, _write_smollm3),
    "qwen2": Family("Qwen2ForCausalLM", _qwen2, _write_qwen),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _qwen3,
        _write_qwen,
        defaults={"head_dim": 128},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _qwen3_moe,
        _write_qwen3_moe,
        names={"router": "mlp.gate"},
        stacked={
            p: f"mlp.experts.{{}}.{p}_proj" for p in ("gate", "up", "down")
        },
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
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
        _phi3,
        _write_phi3,
        fused={
            "self_attn.qkv_proj": ("q", "k", "v"),
            "mlp.gate_up_proj": ("gate", "up"),
        },
        defaults={"rms_norm_eps": 1e-5},
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _olmo2,
        _write_llama,
        defaults={"rms_norm_eps": 1e-5},
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        _gpt_oss,
        _write_gpt_oss,
        gguf_names={"ffn_norm": "post_attention_norm"},
        turned={
            "mlp.experts.gate_up_proj": ("gate", "up"),
            "mlp.experts.down_proj": ("down",),
        },
        defaults={
            "attention_bias": True,
            "head_dim": 64,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150_000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "swiglu_alpha": 1.702,
        },
    ),
}
