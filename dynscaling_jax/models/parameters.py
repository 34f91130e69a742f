"""Every parameter of the decoder, described once.

Checkpoints, meshes, the quantiser and the decoder read this table: shape and
logical axes of a parameter, its names in files, and whether int8 may hold it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.families import FAMILIES

Path = tuple[str | int, ...]  # ("embed",), or ("layers", 0, "q")
Params = dict[str, Any]
"""{"embed": ..., "layers": [{"q": ..., ...}, ...], "norm": ..., "head": ...},
of arrays, and of qwix.QArray where weights are int8."""


class Parameter(NamedTuple):
    """One array of the decoder."""

    path: Path
    shape: tuple[int, ...]
    axes: tuple[str, ...]  # what each dimension counts, for models.sharding
    hf: str  # its name in Hugging Face's files
    gguf: str  # and in llama.cpp's
    quantised: bool  # where int8 is asked for

    @property
    def name(self) -> str:
        """The last step of the path."""
        return str(self.path[-1])


@functools.lru_cache(64)
def parameters(config: ModelConfig) -> dict[Path, Parameter]:
    """Describes all parameters of a decoder, by their paths in Params."""
    found: dict[Path, Parameter] = {}
    length = sizes(config)
    for path, axes, hf, gguf in _rows(config):
        name = str(path[-1])
        found[path] = Parameter(
            path,
            tuple(length[axis] for axis in axes),
            axes,
            hf,
            gguf,
            # a router is small, and decisions hang on it
            len(axes) > 1 and name != "router" and not name.endswith("_bias"),
        )
    return found


def tree(config: ModelConfig, leaf: Callable[[Parameter], Any]) -> Params:
    """Builds Params whose leaves are leaf(parameter)."""
    params: Params = {"layers": [{} for _ in range(config.num_hidden_layers)]}
    for path, parameter in parameters(config).items():
        node: Any = params
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = leaf(parameter)
    return params


def _rows(config: ModelConfig) -> Iterator[tuple[Path, tuple, str, str]]:
    """Yields (path, axes, name in Hugging Face, in GGUF)."""
    vocab = ("vocab", "hidden")
    yield ("embed",), vocab, "model.embed_tokens.weight", "token_embd.weight"
    family = FAMILIES[config.family]
    for at in range(config.num_hidden_layers):
        for name, (there, bias, axes, hf, gguf) in _layer(config, at).items():
            if not there:
                continue
            kind = "" if name == "sinks" else ".weight"
            hf = f"model.layers.{at}.{family.names.get(name, hf)}"
            gguf = f"blk.{at}.{family.gguf_names.get(name, gguf)}"
            path, axes = ("layers", at, name), tuple(axes.split())
            yield path, axes, hf + kind, f"{gguf}.weight"
            if bias:  # [out], of a weight [out, in]
                path = ("layers", at, f"{name}_bias")
                yield path, axes[:-1], f"{hf}.bias", f"{gguf}.bias"
    yield ("norm",), ("hidden",), "model.norm.weight", "output_norm.weight"
    if not config.tie_word_embeddings:
        yield ("head",), vocab, "lm_head.weight", "output.weight"


def _layer(
    config: ModelConfig, at: int
) -> dict[str, tuple[bool, bool, str, str, str]]:
    """What a layer may have, by name.

    Values are (has it, has it a bias, axes, name in Hugging Face, in GGUF).
    """
    pre, post, qk = config.pre_norm, config.post_norm, bool(config.qk_norm)
    qkv, o, mlp = config.qkv_bias, config.o_bias, config.mlp_bias
    sinks = config.sinks
    up, down, exps, sparse = "mlp hidden", "hidden mlp", "", config.sparse(at)
    if sparse:
        up, down = "experts expert_mlp hidden", "experts hidden expert_mlp"
        mlp, exps = config.expert_bias, "_exps"
    # In Llama this is the norm before the feed-forward. In families with a
    # norm behind attention it is that one, and the other is Gemma's
    # pre_feedforward_layernorm.
    after, last = "post_attention_layernorm", "post_feedforward_layernorm"
    return {
        "q": (True, qkv, "q hidden", "self_attn.q_proj", "attn_q"),
        "k": (True, qkv, "kv hidden", "self_attn.k_proj", "attn_k"),
        "v": (True, qkv, "kv hidden", "self_attn.v_proj", "attn_v"),
        "o": (True, o, "hidden q", "self_attn.o_proj", "attn_output"),
        "gate": (True, mlp, up, "mlp.gate_proj", f"ffn_gate{exps}"),
        "up": (True, mlp, up, "mlp.up_proj", f"ffn_up{exps}"),
        "down": (True, mlp, down, "mlp.down_proj", f"ffn_down{exps}"),
        "attn_norm": (pre, False, "hidden", "input_layernorm", "attn_norm"),
        "ffn_norm": (pre, False, "hidden", after, "ffn_norm"),
        "attn_post_norm": (post, False, "hidden", after, "post_attention_norm"),
        "ffn_post_norm": (post, False, "hidden", last, "post_ffw_norm"),
        "q_norm": (qk, False, "q_norm", "self_attn.q_norm", "attn_q_norm"),
        "k_norm": (qk, False, "k_norm", "self_attn.k_norm", "attn_k_norm"),
        "sinks": (sinks, False, "heads", "self_attn.sinks", "attn_sinks"),
        "router": (sparse, mlp, "router hidden", "mlp.router", "ffn_gate_inp"),
    }


def sizes(config: ModelConfig) -> dict[str, int]:
    """How long each logical axis is."""
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    each = config.qk_norm == "head"
    return {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "q": q,  # features of all heads
        "kv": kv,
        "q_norm": config.head_dim if each else q,
        "k_norm": config.head_dim if each else kv,
        "mlp": config.intermediate_size,
        "experts": config.num_experts,
        "expert_mlp": config.moe_intermediate_size,
        "router": config.num_experts,
    }
