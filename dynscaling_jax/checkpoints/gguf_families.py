"""The families of models as llama.cpp's files hold them.

An architecture is one entry of GGUF, at the end: what its metadata say
beside the keys that all architectures share, which gguf_config.py reads, and
what llama.cpp knows of it without being told.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dynscaling_jax.models.config import FULL, SLIDING

Fields = dict[str, Any]
Get = Callable[..., Any]
"""(key without the architecture, default) -> value; without a default the
key must be there."""


class Gguf(NamedTuple):
    """One general.architecture.

    read gives fields of ModelConfig, from metadata and the fields that all
    architectures share.
    """

    family: str
    read: Callable[[Get, Fields], Fields]
    neighbours: bool = False  # it rotates neighbours, Hugging Face halves


def _llama(get: Get, fields: Fields) -> Fields:
    """Mistral's files have the name of Llama's."""
    window = int(get("attention.sliding_window", 0))
    return {"family": "mistral", "sliding_window": window} if window else {}


def _smollm3(get: Get, fields: Fields) -> Fields:
    layers = range(fields["num_hidden_layers"])
    return {"no_rope_layers": tuple(int((i + 1) % 4 > 0) for i in layers)}


def _qwen2(get: Get, fields: Fields) -> Fields:
    return {"qkv_bias": True}


def _qwen3(get: Get, fields: Fields) -> Fields:
    return {"qk_norm": "head"}


def _qwen3_moe(get: Get, fields: Fields) -> Fields:
    width = fields["intermediate_size"] // get("expert_used_count")
    width = get("expert_feed_forward_length", width)
    return {**_qwen3(get, fields), **_experts(get, width)}


def _experts(get: Get, width: int) -> Fields:
    return {
        "num_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "moe_intermediate_size": width,
        "norm_topk_prob": True,
    }


def _gemma(get: Get, fields: Fields, every: int, largest: int) -> Fields:
    """Reads what Gemma 2 and 3 share.

    Args:
        get: as of Gguf.read.
        fields: likewise.
        every: of so many layers the last sees everything.
        largest: layers of the 27B model, which scales queries in its own way.
    """
    scaled, width = {}, fields["hidden_size"]
    if fields["num_hidden_layers"] == largest:
        scale = width // fields["num_attention_heads"]
        scaled = {"query_pre_attn_scalar": scale}
    return {
        "post_norm": True,
        "norm_offset": 1.0,
        "hidden_act": "gelu_pytorch_tanh",
        "embed_scale": width**0.5,
        **scaled,
        **_windows(get, fields["num_hidden_layers"], every),
    }


def _windows(get: Get, layers: int, every: int) -> Fields:
    pattern = get("attention.sliding_window_pattern", every)
    if isinstance(pattern, int):
        pattern = [
            (i + 1) % pattern > 0 if pattern else 1 for i in range(layers)
        ]
    return {
        "layer_types": tuple(SLIDING if s else FULL for s in pattern[:layers])
    }


def _gemma2(get: Get, fields: Fields) -> Fields:
    return {
        **_gemma(get, fields, every=2, largest=46),
        "sliding_window": int(get("attention.sliding_window", 4096)),
        "rope_local_base_freq": float(get("rope.freq_base_swa", 0.0)),
        "attn_logit_softcapping": float(get("attn_logit_softcapping", 50.0)),
        "final_logit_softcapping": float(get("final_logit_softcapping", 30.0)),
    }


def _gemma3(get: Get, fields: Fields) -> Fields:
    fields = {
        **_gemma(get, fields, every=6, largest=62),
        "qk_norm": "head",
        "sliding_window": int(get("attention.sliding_window", 0)),
        "rope_local_base_freq": float(get("rope.freq_base_swa", 10_000.0)),
        "final_logit_softcapping": float(get("final_logit_softcapping", 0.0)),
    }
    if not fields["sliding_window"]:
        fields |= {"layer_types": (), "rope_local_base_freq": 0.0}
    return fields


def _phi3(get: Get, fields: Fields) -> Fields:
    # Files from before August 2024 do not say the window of the models with
    # a context of 4096.
    silent = 2047 if fields["max_position_embeddings"] == 4096 else 0
    return {"sliding_window": int(get("attention.sliding_window", silent))}


def _olmo2(get: Get, fields: Fields) -> Fields:
    if get("attention.sliding_window", 0):
        raise ValueError(
            "GGUF: olmo2 with a sliding window is OLMo 3, which is not "
            "supported; give a file of OLMo 2"
        )
    return {"qk_norm": "whole", "pre_norm": False, "post_norm": True}


def _gpt_oss(get: Get, fields: Fields) -> Fields:
    scaling = fields["rope_scaling"]
    if scaling:
        scaling = dataclasses.replace(scaling, truncate=False)
    return {
        "rope_scaling": scaling,
        "sliding_window": int(get("attention.sliding_window")),
        **_windows(get, fields["num_hidden_layers"], every=2),
        **_experts(get, get("expert_feed_forward_length")),
        "expert_bias": True,
        "sinks": True,
        "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702,
    }


GGUF: Mapping[str, Gguf] = {
    "llama": Gguf("llama", _llama, neighbours=True),
    "smollm3": Gguf("smollm3", _smollm3, neighbours=True),
    "qwen2": Gguf("qwen2", _qwen2),
    "qwen3": Gguf("qwen3", _qwen3),
    "qwen3moe": Gguf("qwen3_moe", _qwen3_moe),
    "gemma2": Gguf("gemma2", _gemma2),
    "gemma3": Gguf("gemma3_text", _gemma3),
    "phi3": Gguf("phi3", _phi3),
    "olmo2": Gguf("olmo2", _olmo2),
    "gpt-oss": Gguf("gpt_oss", _gpt_oss),
}
