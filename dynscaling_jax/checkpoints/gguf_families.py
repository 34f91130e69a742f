"""The families of models as llama.cpp's files hold them.

An architecture is one entry of GGUF, at the end: what its metadata say
beside the keys that all architectures share, which gguf_config.py reads, and
what llama.cpp knows of it without being told.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
    names: Mapping[str, str] = MappingProxyType({})  # of tensors, where others


def _llama(get: Get, fields: Fields) -> Fields:
    """Mistral's files have the name of Llama's."""
    window = int(get("attention.sliding_window", 0))
    return {"family": "mistral", "window": window} if window else {}


def _smollm3(get: Get, fields: Fields) -> Fields:
    layers = range(fields["layers"])
    return {"rotates": tuple((i + 1) % 4 > 0 for i in layers)}


def _qwen2(get: Get, fields: Fields) -> Fields:
    return {"qkv_bias": True}


def _qwen3(get: Get, fields: Fields) -> Fields:
    return {"qk_norm": "head"}


def _qwen3_moe(get: Get, fields: Fields) -> Fields:
    width = fields["ffn"] // get("expert_used_count")
    width = get("expert_feed_forward_length", width)
    return {**_qwen3(get, fields), **_experts(get, width)}


def _experts(get: Get, width: int) -> Fields:
    return {
        "experts": get("expert_count"),
        "experts_per_token": get("expert_used_count"),
        "expert_ffn": width,
        "expert_renormalise": True,
    }


def _gemma(get: Get, fields: Fields, every: int, largest: int) -> Fields:
    """every: one of so many layers, the last, sees everything; largest: how
    many layers the 27B model has, whose queries are scaled in its own way."""
    scaled = {}
    if fields["layers"] == largest:
        scaled = {"query_scale": (fields["width"] // fields["heads"]) ** -0.5}
    return {
        "post_norm": True,
        "norm_offset": 1.0,
        "activation": "gelu",
        "embed_scale": fields["width"] ** 0.5,
        **scaled,
        **_windows(get, fields["layers"], every),
    }


def _windows(get: Get, layers: int, every: int) -> Fields:
    pattern = get("attention.sliding_window_pattern", every)
    if isinstance(pattern, int):
        pattern = [
            (i + 1) % pattern > 0 if pattern else 1 for i in range(layers)
        ]
    return {"local": tuple(map(bool, pattern[:layers]))}


def _gemma2(get: Get, fields: Fields) -> Fields:
    return {
        **_gemma(get, fields, every=2, largest=46),
        "window": int(get("attention.sliding_window", 4096)),
        "local_rope_theta": float(get("rope.freq_base_swa", 0.0)),
        "softcap": float(get("attn_logit_softcapping", 50.0)),
        "final_softcap": float(get("final_logit_softcapping", 30.0)),
    }


def _gemma3(get: Get, fields: Fields) -> Fields:
    fields = {
        **_gemma(get, fields, every=6, largest=62),
        "qk_norm": "head",
        "window": int(get("attention.sliding_window", 0)),
        "local_rope_theta": float(get("rope.freq_base_swa", 10_000.0)),
        "final_softcap": float(get("final_logit_softcapping", 0.0)),
    }
    if not fields["window"]:
        fields |= {"local": (), "local_rope_theta": 0.0}
    return fields


def _phi3(get: Get, fields: Fields) -> Fields:
    # Files from before August 2024 do not say the window of the models with
    # a context of 4096.
    silent = 2047 if fields["context"] == 4096 else 0
    return {"window": int(get("attention.sliding_window", silent))}


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
        scaling = dataclasses.replace(scaling, whole=False)
    return {
        "rope_scaling": scaling,
        "window": int(get("attention.sliding_window")),
        **_windows(get, fields["layers"], every=2),
        **_experts(get, get("expert_feed_forward_length")),
        "expert_bias": True,
        "sinks": True,
        "activation": "clamped",
        "unit_limit": 7.0,
        "unit_slope": 1.702,
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
    "gpt-oss": Gguf(
        "gpt_oss", _gpt_oss, names={"ffn_norm": "post_attention_norm"}
    ),
}
