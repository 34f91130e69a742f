"""config.json to ModelConfig and back."""

import math

from dynscaling_jax.models.config import (
    ModelConfig,
    RopeScaling,
    check_layers,
)
from dynscaling_jax.models.families import FAMILIES, Fields, Raw

# fields that every family's file has under the name of ours
SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "bos_token_id",
)
NEEDED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def read(raw: Raw, generation: Raw | None = None) -> ModelConfig:
    """Reads config.json and, for the ids that end a turn, generation_config.

    Raises:
        ValueError: an unknown family, a missing field or one we cannot obey.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {name!r} is not supported; known: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[name]
    raw = {**family.defaults, **raw}
    check_layers(raw.get("num_hidden_layers", 1))
    try:
        heads = raw["num_attention_heads"]
        fields = {
            **{field: raw[field] for field in NEEDED},
            "num_key_value_heads": raw.get("num_key_value_heads") or heads,
            "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
            "rms_norm_eps": float(raw.get("rms_norm_eps", 1e-6)),
            "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
            "bos_token_id": next(iter(_ids(raw, "bos_token_id")), None),
            "eos_token_id": _ids({**raw, **(generation or {})}, "eos_token_id"),
            "hidden_act": _activation(raw),
            **_rope(raw),
            **family.read(raw),
        }
        return ModelConfig(family=name, **fields)
    except KeyError as error:
        raise ValueError(f"config.json: field {error} is missing") from None
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise ValueError(f"config.json: a field is wrong ({error})") from None


def write(config: ModelConfig) -> Fields:
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
        **{field: getattr(config, field) for field in SHARED},
        "eos_token_id": list(config.eos_token_id) or None,
    }
    original = "original_max_position_embeddings"
    if scaling:
        raw["rope_scaling"] = {
            "rope_type": scaling.rope_type,
            "factor": scaling.factor,
        }
        if scaling.rope_type == "llama3":
            raw["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                original: getattr(scaling, original),
            }
        if scaling.rope_type == "yarn":
            raw["rope_scaling"] |= {
                "beta_slow": scaling.low_freq_factor,
                "beta_fast": scaling.high_freq_factor,
                original: getattr(scaling, original),
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.truncate,
            }
    return raw | family.write(config)


def _activation(raw: Raw) -> str:
    name = raw.get("hidden_activation") or raw.get("hidden_act", "silu")
    known = ("silu", "gelu_pytorch_tanh")
    if name not in known:
        raise ValueError(
            f"config.json: activation {name!r} is not supported; known: "
            f"{', '.join(known)}"
        )
    return name


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
    own = given.get("sliding_attention", {})
    if own.get("rope_type", "default") != "default":
        raise ValueError(
            "config.json: rope_parameters of sliding_attention must not be "
            f"scaled, got {own['rope_type']!r}"
        )
    local = own.get("rope_theta") or raw.get("rope_local_base_freq")
    if local:
        fields["rope_local_base_freq"] = float(local)
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if share is not None:
        fields["partial_rotary_factor"] = float(share)
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
        # A sequence has one set of factors: keys that were rotated by the
        # short ones cannot be met by queries rotated by the long ones.
        stretch = float(rope.get("factor") or context / original)
        attention = rope.get("attention_factor")
        if attention is None:
            log = math.log(stretch) / math.log(original)
            attention = math.sqrt(1 + log) if stretch > 1 else 1.0
        scaling = RopeScaling(
            "factors",
            factors=tuple(map(float, rope["short_factor"])),
            attention_factor=float(attention),
            long_factors=tuple(map(float, rope["long_factor"])),
            long_context=int(context),
        )
        return {
            "rope_scaling": scaling,
            "max_position_embeddings": int(original),
        }
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
            attention_factor=float(attention),
            truncate=bool(rope.get("truncate", True)),
        )
        return {"rope_scaling": scaling}
    raise ValueError(
        f"config.json: rope scaling {kind!r} is not supported; known: "
        "default, linear, llama3, yarn, longrope"
    )


def _yarn_size(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ids(raw: Raw, name: str) -> tuple[int, ...]:
    value = raw.get(name)
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int | None) for i in ids):
        raise ValueError(
            f"config.json or generation_config.json: {name} must be the id of "
            f"a token, or a list of ids, got {value!r}"
        )
    return tuple(i for i in ids if i is not None)
