"""One ModelConfig for every family; hf_config.py reads it."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

MOST_LAYERS = 1000
MOST_EXPERTS = 1000
COUNTS = (
    "vocab_size",
    "width",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "ffn",
    "context",
)
POSITIVE = ("rope_theta", "rope_share", "embed_scale")
NOT_NEGATIVE = (  # 0 switches them off
    "norm_eps",
    "local_rope_theta",
    "unit_limit",
    "unit_slope",
    "query_scale",
    "softcap",
    "final_softcap",
)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    kind is linear, llama3, yarn, or factors: one divisor for each frequency,
    as GGUF files store llama3's and longrope lists them. The frequency
    factors are turns within original_context between which llama3 and yarn
    blend; attention multiplies what is rotated.
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()
    attention: float = 1.0
    long_factors: tuple[float, ...] = ()  # of longrope, past the context that
    long_context: int = 0  # the model was trained with, up to this one
    whole: bool = True  # yarn: blends between whole features

    def __post_init__(self):
        whole = (self.original_context, "original_context")
        _check_whole("rope scaling", *whole, least=1)
        lists = (*self.factors, *self.long_factors)
        for value in (self.factor, self.attention, *lists):
            _check_number("rope scaling", value, "each factor", above=True)
        low, high = self.low_freq_factor, self.high_freq_factor
        for value in (low, high):
            _check_number("rope scaling", value, "each turn", above=True)
        if self.kind in ("llama3", "yarn") and not low < high:
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
    """The shape of a decoder. Widths are in features, lengths in tokens.

    Which biases and norms a layer has is said by flags, for the tree of
    parameters; the decoder applies those that it finds there.
    """

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
    window: int = 0  # sliding window of local layers; 0 sees everything
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    local: tuple[bool, ...] = ()  # which layers have the window; () is all
    local_rope_theta: float = 0.0  # of local layers, not scaled; 0: as others
    rotates: tuple[bool, ...] = ()  # which layers rotate; () is all
    rope_share: float = 1.0  # of a head's features that are rotated
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False  # of all three projections of the feed-forward
    qk_norm: str = ""  # head: of each head; whole: of all heads at once
    pre_norm: bool = True  # norms before attention and feed-forward
    post_norm: bool = False  # norms after them, before the residual sum
    norm_offset: float = 0.0  # what norms add to their weights
    activation: str = "silu"  # or gelu, its tanh form; or clamped
    unit_limit: float = 0.0  # of clamped units
    unit_slope: float = 0.0  # of their sigmoid
    sinks: bool = False  # heads may look at nothing
    embed_scale: float = 1.0
    query_scale: float = 0.0  # 0 is head_dim^-1/2
    experts: int = 0  # of a layer's feed-forward; 0 has one for all tokens
    experts_per_token: int = 0
    expert_ffn: int = 0
    expert_renormalise: bool = False  # weights of the chosen sum to one
    expert_bias: bool = False  # of experts and their router
    dense: tuple[bool, ...] = ()  # layers without experts; () is none
    softcap: float = 0.0  # of attention scores: c tanh(x / c); 0 is none
    final_softcap: float = 0.0  # of logits

    def __post_init__(self):
        for name in COUNTS:
            _check_whole("model config", getattr(self, name), name, least=1)
        for name in ("window", "experts", "experts_per_token", "expert_ffn"):
            _check_whole("model config", getattr(self, name), name, least=0)
        for i in self.eos_ids:
            _check_whole("model config", i, "an id that ends turns", least=0)
        for name in POSITIVE:
            _check_number("model config", getattr(self, name), name, above=True)
        for name in NOT_NEGATIVE:
            _check_number("model config", getattr(self, name), name)
        if self.experts > MOST_EXPERTS:
            raise ValueError(
                f"model config: experts must be at most {MOST_EXPERTS}, got "
                f"{self.experts}"
            )
        check_layers(self.layers)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model config: heads ({self.heads}) must be a multiple of "
                f"kv_heads ({self.kv_heads})"
            )
        if self.head_dim % 2 or self.rope_dim % 2 or self.rope_share > 1:
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
        if self.experts and not (
            0 < self.experts_per_token <= self.experts and self.expert_ffn > 0
        ):
            raise ValueError(
                f"model config: {self.experts_per_token} of {self.experts} "
                f"experts of width {self.expert_ffn} for a token"
            )
        for name in ("local", "rotates", "dense"):
            if len(getattr(self, name)) not in (0, self.layers):
                raise ValueError(
                    f"model config: {name} must have an entry for each of "
                    f"{self.layers} layers, got {len(getattr(self, name))}"
                )

    @property
    def rope_dim(self) -> int:
        """Features of a head that are rotated."""
        # a share such as 30 / 44 is rounded, and must give 30 again
        return int(self.head_dim * self.rope_share + 1e-6)

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts > 0 and not (self.dense and self.dense[layer])

    def kind(self, layer: int) -> Kind:
        local = self.local[layer] if self.local else bool(self.window)
        theta, scaling = self.rope_theta, self.rope_scaling
        if local and self.local_rope_theta:
            theta, scaling = self.local_rope_theta, None
        if self.rotates and not self.rotates[layer]:
            theta = 0.0
        return Kind(self.window if local else 0, theta, scaling)


def with_context(config: ModelConfig, tokens: int) -> ModelConfig:
    """The same decoder for sequences of so many tokens at most.

    Past the context that a model of longrope (arXiv 2402.13753) was trained
    with it rotates by its long factors, from the first token on.

    Raises:
        ValueError: more than the model can have.
    """
    scaling = config.rope_scaling
    longest = max(config.context, scaling.long_context if scaling else 0)
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    if not whole or not 1 < tokens <= longest:
        raise ValueError(
            f"context must lie within 2 and {longest} tokens for this model, "
            f"got {tokens!r}"
        )
    if scaling and tokens > config.context:
        scaling = dataclasses.replace(scaling, factors=scaling.long_factors)
    return dataclasses.replace(config, context=tokens, rope_scaling=scaling)


def _check_whole(where: str, value: Any, name: str, least: int) -> None:
    """A file's values are of any type: of what is no number, or none that an
    array's shape can hold, Python or XLA would complain later, and far from
    here."""
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
    """json reads NaN and Infinity, of which all logits would become NaN."""
    real = isinstance(value, (int, float)) and math.isfinite(value)
    if not real or value < 0 or (above and not value):
        sign = "positive and finite" if above else "finite and not negative"
        raise ValueError(f"{where}: {name} must be {sign}, got {value!r}")


def check_layers(layers: object) -> None:
    """Raises ValueError for more layers than any decoder has, which a damaged
    file may claim: each costs memory before its weights are looked for."""
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise ValueError(
            f"model config: layers must be at most {MOST_LAYERS}, got {layers}"
        )


def rope_frequencies(
    config: ModelConfig, kind: Kind | None = None
) -> np.ndarray:
    """Rotary angles per position, float32 [D/2] (RoFormer, eq. 15).

    Llama 3.1 keeps high frequencies, divides low ones by the factor, and
    blends linearly in between; so does YaRN (arXiv 2309.00071), by feature.

    Args:
        kind: of the layer; by default of the first.
    """
    kind = kind or config.kind(0)
    exponents = np.arange(0, config.rope_dim, 2) / config.rope_dim
    freqs = (1.0 / kind.rope_theta**exponents).astype(np.float32)
    scaling = kind.rope_scaling
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / np.float32(scaling.factor)
    if scaling.kind == "factors":
        return freqs / np.asarray(scaling.factors, np.float32)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.kind == "yarn":
        return _yarn(config.rope_dim, kind.rope_theta, scaling, freqs)
    turns = scaling.original_context * freqs / (2 * np.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (freqs * (blend + (1 - blend) / scaling.factor)).astype(np.float32)


def _yarn(
    dim: int, theta: float, scaling: RopeScaling, freqs: np.ndarray
) -> np.ndarray:
    def feature(turns: float) -> float:
        """The one that turns so often within the original context."""
        share = scaling.original_context / (turns * 2 * np.pi)
        return dim * np.log(share) / (2 * np.log(theta))

    first = feature(scaling.high_freq_factor)
    last = feature(scaling.low_freq_factor)
    if scaling.whole:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = (last - first) or 0.001
    far = np.clip((np.arange(dim // 2) - first) / width, 0, 1)
    return (freqs * (1 - far + far / scaling.factor)).astype(np.float32)
