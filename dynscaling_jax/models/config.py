"""One ModelConfig for every family; hf_config.py reads it."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

SLIDING, FULL = "sliding_attention", "full_attention"  # layer_types
QK_NORMS = ("", "head", "whole")
MOST_LAYERS = 1000
MOST_EXPERTS = 1000
COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)
COUNTS_OR_NONE = (
    "sliding_window",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
POSITIVE = ("rope_theta", "partial_rotary_factor", "embed_scale")
NOT_NEGATIVE = (  # 0 switches them off
    "rms_norm_eps",
    "rope_local_base_freq",
    "swiglu_limit",
    "swiglu_alpha",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    rope_type is linear, llama3, yarn, or factors: one divisor for each
    frequency, as GGUF files store llama3's and longrope lists them. The
    frequency factors are turns within original_max_position_embeddings
    between which llama3 and yarn blend; attention_factor multiplies what is
    rotated.
    """

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    long_factors: tuple[float, ...] = ()  # of longrope, past the context that
    long_context: int = 0  # the model was trained with, up to this one
    truncate: bool = True  # yarn: blends between whole features

    def __post_init__(self):
        name = "original_max_position_embeddings"
        _check_whole("rope scaling", getattr(self, name), name, least=1)
        lists = (*self.factors, *self.long_factors)
        for value in (self.factor, self.attention_factor, *lists):
            _check_number("rope scaling", value, "each factor", above=True)
        low, high = self.low_freq_factor, self.high_freq_factor
        for value in (low, high):
            _check_number("rope scaling", value, "each turn", above=True)
        if self.rope_type in ("llama3", "yarn") and not low < high:
            raise ValueError(
                f"rope scaling: turns must grow from low to high, got {low} "
                f"and {high}"
            )


class Kind(NamedTuple):
    """What differs from layer to layer of one decoder."""

    window: int  # tokens that a query sees, its own included; 0 sees all
    rope_theta: float  # 0 does not rotate
    rope_scaling: RopeScaling | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder, by the names that config.json has.

    Names are those of the families' own files where they have one. Sizes are
    in features, lengths in tokens. Flags say which biases and norms the tree
    of parameters has; the decoder applies those that it finds there.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int = 0  # of sliding layers; 0 sees everything
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    layer_types: tuple[str, ...] = ()  # SLIDING or FULL; () has one window
    rope_local_base_freq: float = 0.0  # of sliding layers; 0: as others
    no_rope_layers: tuple[int, ...] = ()  # 0 where a layer does not rotate
    partial_rotary_factor: float = 1.0  # of a head's features: the rotated
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False  # of all three projections of the feed-forward
    qk_norm: str = ""  # head: of each head; whole: of all heads at once
    pre_norm: bool = True  # norms before attention and feed-forward
    post_norm: bool = False  # norms after them, before the residual sum
    norm_offset: float = 0.0  # what norms add to their weights
    hidden_act: str = "silu"  # or gelu_pytorch_tanh
    swiglu_limit: float = 0.0  # clamps units; 0 does not
    swiglu_alpha: float = 0.0  # slope of the sigmoid of clamped units
    sinks: bool = False  # heads may look at nothing
    embed_scale: float = 1.0
    query_pre_attn_scalar: float = 0.0  # queries: its ^-1/2; 0 is head_dim
    num_experts: int = 0  # of a layer; 0 has one feed-forward for all tokens
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0  # of each expert
    norm_topk_prob: bool = False  # weights of the chosen experts sum to one
    expert_bias: bool = False  # of experts and their router
    mlp_only_layers: tuple[int, ...] = ()  # those without experts
    attn_logit_softcapping: float = 0.0  # c tanh(x / c); 0 is none
    final_logit_softcapping: float = 0.0
    attention: str = "reference"  # of models.attention.ATTENTION

    def __post_init__(self):
        for name in COUNTS:
            _check_whole("model config", getattr(self, name), name, least=1)
        for name in COUNTS_OR_NONE:
            _check_whole("model config", getattr(self, name), name, least=0)
        for i in self.eos_token_id:
            _check_whole("model config", i, "an id that ends turns", least=0)
        for name in POSITIVE:
            _check_number("model config", getattr(self, name), name, above=True)
        for name in NOT_NEGATIVE:
            _check_number("model config", getattr(self, name), name)
        if self.num_experts > MOST_EXPERTS:
            raise ValueError(
                f"model config: num_experts must be at most {MOST_EXPERTS}, "
                f"got {self.num_experts}"
            )
        if self.qk_norm not in QK_NORMS:
            raise ValueError(
                f"model config: qk_norm must be one of {QK_NORMS}, "
                f"got {self.qk_norm!r}"
            )
        check_layers(self.num_hidden_layers)
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(
                f"model config: num_attention_heads ({heads}) must be a "
                f"multiple of num_key_value_heads ({kv_heads})"
            )
        if (
            self.head_dim % 2
            or self.rope_dim % 2
            or self.partial_rotary_factor > 1
        ):
            raise ValueError(
                f"model config: head_dim must be even, got {self.head_dim}, "
                f"and so must what is rotated of it, {self.rope_dim}, a part"
            )
        scaling = self.rope_scaling or RopeScaling("none")
        for factors in (scaling.factors, scaling.long_factors):
            if factors and len(factors) != self.rope_dim // 2:
                raise ValueError(
                    f"model config: {self.rope_dim // 2} rope factors "
                    f"expected, got {len(factors)}"
                )
        experts, chosen = self.num_experts, self.num_experts_per_tok
        size = self.moe_intermediate_size
        if experts and not (0 < chosen <= experts and size > 0):
            raise ValueError(
                f"model config: {chosen} of {experts} experts of size {size} "
                "for a token"
            )
        for name in ("layer_types", "no_rope_layers"):
            count = len(getattr(self, name))
            if count not in (0, self.num_hidden_layers):
                raise ValueError(
                    f"model config: {name} must have an entry for each of "
                    f"{self.num_hidden_layers} layers, got {count}"
                )

    @property
    def rope_dim(self) -> int:
        """Features of a head that are rotated."""
        # a share such as 30 / 44 is rounded, and must give 30 again
        return int(self.head_dim * self.partial_rotary_factor + 1e-6)

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.num_experts > 0 and layer not in self.mlp_only_layers

    def kind(self, layer: int) -> Kind:
        """What a layer has of its own."""
        kinds = self.layer_types
        local = kinds[layer] == SLIDING if kinds else self.sliding_window > 0
        theta, scaling = self.rope_theta, self.rope_scaling
        if local and self.rope_local_base_freq:
            theta, scaling = self.rope_local_base_freq, None
        if self.no_rope_layers and not self.no_rope_layers[layer]:
            theta = 0.0
        return Kind(self.sliding_window if local else 0, theta, scaling)


def with_context(config: ModelConfig, tokens: int) -> ModelConfig:
    """The same decoder for sequences of so many tokens at most.

    Past the context that a model of longrope (arXiv 2402.13753) was trained
    with it rotates by its long factors, from the first token on.

    Raises:
        ValueError: more than the model can have.
    """
    scaling = config.rope_scaling
    longest = max(
        config.max_position_embeddings, scaling.long_context if scaling else 0
    )
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    if not whole or not 1 < tokens <= longest:
        raise ValueError(
            f"context must lie within 2 and {longest} tokens for this model, "
            f"got {tokens!r}"
        )
    if scaling and tokens > config.max_position_embeddings:
        scaling = dataclasses.replace(scaling, factors=scaling.long_factors)
    return dataclasses.replace(
        config, max_position_embeddings=tokens, rope_scaling=scaling
    )


def _check_whole(where: str, value: Any, name: str, least: int) -> None:
    """Refuses what is no whole number that an array's shape can hold.

    A file's values are of any type; Python or XLA would complain later, and
    far from here.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value < 2**31:
        sign = (
            "a positive whole number" if least else "a whole number from 0 on"
        )
        raise ValueError(
            f"{where}: {name} must be {sign}, below 2**31, got {value!r}"
        )


def _check_number(
    where: str, value: Any, name: str, above: bool = False
) -> None:
    """Refuses NaN and Infinity, which json reads: all logits would be NaN."""
    real = isinstance(value, (int, float)) and math.isfinite(value)
    if not real or value < 0 or (above and not value):
        sign = "positive and finite" if above else "finite and not negative"
        raise ValueError(f"{where}: {name} must be {sign}, got {value!r}")


def check_layers(layers: object) -> None:
    """Raises ValueError for more layers than any decoder has.

    A damaged file may claim them, and each costs memory before its weights
    are looked for.
    """
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(
            f"model config: num_hidden_layers must be at most {MOST_LAYERS}, "
            f"got {layers}"
        )


def rope_frequencies(
    config: ModelConfig, kind: Kind | None = None
) -> np.ndarray:
    """Rotary angles per position, float32 [R/2] (RoFormer, eq. 15).

    R is the number of features that are rotated, rope_dim.

    Llama 3.1 keeps high frequencies, divides low ones by the factor, and
    blends linearly in between; so does YaRN (arXiv 2309.00071), by feature.

    Args:
        config: of the model.
        kind: of the layer; by default of the first.
    """
    kind = kind or config.kind(0)
    exponents = np.arange(0, config.rope_dim, 2) / config.rope_dim
    freqs = (1.0 / kind.rope_theta**exponents).astype(np.float32)
    scaling = kind.rope_scaling
    if scaling is None:
        return freqs
    if scaling.rope_type == "linear":
        return freqs / np.float32(scaling.factor)
    if scaling.rope_type == "factors":
        return freqs / np.asarray(scaling.factors, np.float32)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.rope_type == "yarn":
        return _yarn(config.rope_dim, kind.rope_theta, scaling, freqs)
    turns = scaling.original_max_position_embeddings * freqs / (2 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (freqs * (blend + (1 - blend) / scaling.factor)).astype(np.float32)


def _yarn(
    dim: int, theta: float, scaling: RopeScaling, freqs: np.ndarray
) -> np.ndarray:
    def feature(turns: float) -> float:
        """The one that turns so often within the original context."""
        share = scaling.original_max_position_embeddings / (turns * 2 * np.pi)
        return dim * np.log(share) / (2 * np.log(theta))

    first = feature(scaling.high_freq_factor)
    last = feature(scaling.low_freq_factor)
    if scaling.truncate:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = (last - first) or 0.001
    far = np.clip((np.arange(dim // 2) - first) / width, 0, 1)
    return (freqs * (1 - far + far / scaling.factor)).astype(np.float32)
