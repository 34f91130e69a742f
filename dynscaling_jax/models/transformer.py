"""The decoder in flax.nnx: tokens and a cache to hidden states and a cache.

Modules are made of a config and a tree of parameters, within jit as well as
outside: an engine keeps the plain tree, which costs nothing to pass to a
compiled function, and a module is made where it is traced. A user's own
training loop takes the module itself.

Projections keep the [out, in] layout of the files, which XLA:CPU multiplies
twice as fast as its transpose, and so need no copy on loading. Where keys and
values live is the caller's affair: each layer hands its new ones to an
`attend` function and gets back what its queries saw, so that a plain
sequence, a prefill and a grouped decode step are the same decoder.

Dimension letters are those of docs/glossary.md; I and O are features that a
projection takes and gives, U the units of a feed-forward.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dynscaling_jax.models import attention, experts
from dynscaling_jax.models.attention import SoftmaxState
from dynscaling_jax.models.config import Kind, ModelConfig, rope_frequencies
from dynscaling_jax.models.parameters import Params, parameters, tree
from dynscaling_jax.models.sharding import DATA, MODEL, constrained

DEVIATION = 0.02  # of random parameters
Cache = Any  # what one layer keeps
Attend = Callable[
    [Kind, Cache, jax.Array, jax.Array, jax.Array],
    tuple[SoftmaxState, Cache],
]
"""(kind of layer, cache, q [T, H, D], k [T, K, D], v [T, K, D]) ->
(state [T, H, D], cache); q and k are rotated, q is not scaled."""


class Module(nnx.Module):
    """Holds arrays by the names that they have in Params.

    Biases and norms that are not there are left out of what is computed.
    """

    def __init__(self, config: ModelConfig, params: Params):
        self.config = config
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))

    def value(self, name: str) -> Any:
        """The array of a parameter, None where there is none."""
        variable = getattr(self, name, None)
        return None if variable is None else variable.get_value()

    def linear(
        self, x: Float[Array, "... I"], name: str
    ) -> Float[Array, "... O"]:
        """Multiplies by a weight and adds its bias."""
        return linear(x, self.value(name), self.value(f"{name}_bias"))

    def normed(
        self, x: Float[Array, "... F"], name: str
    ) -> Float[Array, "... F"]:
        """rms_norm with a weight."""
        return rms_norm(x, self.value(name), self.config)


class Vocabulary(Module):
    """What is before and behind the layers: embed, norm and head."""

    def embedded(self, tokens: Int[Array, " T"]) -> Float[Array, "T F"]:
        """Rows of the table, scaled; F is hidden_size."""
        table, config = self.value("embed"), self.config
        if isinstance(table, jax.Array):
            x = table[tokens]
        else:
            x = table.qvalue[tokens].astype(jnp.float32) * table.scale[tokens]
            x = x.astype(self.value("norm").dtype)
        if config.embed_scale != 1.0:
            x *= jnp.asarray(config.embed_scale, x.dtype)
        return constrained(x, DATA)

    def logits(self, x: Float[Array, "... F"]) -> Float[Array, "... V"]:
        """From the residual stream, not normed yet; float32."""
        head = "embed" if self.value("head") is None else "head"
        logits = self.linear(self.normed(x, "norm"), head)
        logits = constrained(logits, DATA, MODEL).astype(jnp.float32)
        return attention.capped(logits, self.config.final_logit_softcapping)


class Block(Module):
    """One layer over the residual stream: attention, then feed-forward."""

    def __init__(self, config: ModelConfig, kind: Kind, params: Params):
        super().__init__(config, params)
        self.kind = kind

    def __call__(
        self,
        x: Float[Array, "T F"],
        positions: Int[Array, " T"],
        attend: Attend,
        cache: Cache,
    ) -> tuple[Float[Array, "T F"], Cache]:
        """Returns the stream behind the layer, and the cache with its keys."""
        seen, cache = self.self_attention(
            self.normed(x, "attn_norm"), positions, attend, cache
        )
        x = x + self.normed(self.linear(seen, "o"), "attn_post_norm")
        made = self.feed_forward(self.normed(x, "ffn_norm"))
        x = x + self.normed(made, "ffn_post_norm")
        return constrained(x, DATA), cache

    def self_attention(
        self,
        h: Float[Array, "T F"],
        positions: Int[Array, " T"],
        attend: Attend,
        cache: Cache,
    ) -> tuple[Float[Array, "T HD"], Cache]:
        """What the heads saw, not projected by `o` yet."""
        config, (count, _) = self.config, h.shape
        q, k, v = (self.linear(h, name) for name in "qkv")
        q, k = self._heads(q, "q_norm"), self._heads(k, "k_norm")
        q, k = (rotate(y, positions, config, self.kind) for y in (q, k))
        v = v.reshape(count, config.num_key_value_heads, config.head_dim)
        state, cache = attend(self.kind, cache, q, k, v)
        seen = attention.output(state, self.value("sinks"))
        return seen.reshape(count, -1).astype(h.dtype), cache

    def _heads(
        self, x: Float[Array, "T HD"], norm: str
    ) -> Float[Array, "T H D"]:
        """Splits heads and norms them: all at once, or each of them.

        The length of the weight says which.
        """
        heads = x.reshape(x.shape[0], -1, self.config.head_dim)
        weight = self.value(norm)
        if weight is not None and weight.shape[0] == x.shape[1]:
            return self.normed(x, norm).reshape(heads.shape)
        return self.normed(heads, norm)

    def feed_forward(self, h: Float[Array, "T F"]) -> Float[Array, "T F"]:
        """Gated units, through experts where the layer has them."""
        config = self.config
        weights = {
            name: value
            for part in ("gate", "up", "down")
            for name in (part, f"{part}_bias")
            if (value := self.value(name)) is not None
        }
        if self.value("router") is None:
            return gated(config, h, weights)
        return experts.spread(
            h,
            self.linear(h, "router"),
            lambda logits: experts.route(
                logits, config.num_experts_per_tok, config.norm_topk_prob
            ),
            weights,
            functools.partial(gated, config),
        )


class Decoder(Vocabulary):
    """The whole decoder, as a module to train.

    nnx.state of it has one nnx.Param for each entry of models.parameters,
    under the same path, whose out_sharding names its logical axes.
    """

    def __init__(self, config: ModelConfig, params: Params):
        super().__init__(config, without_layers(params))
        self.layers = nnx.List(
            Block(config, config.kind(at), layer)
            for at, layer in enumerate(params["layers"])
        )
        for path, parameter in parameters(config).items():
            variable: Any = self
            for step in path:
                variable = (
                    variable[step]
                    if isinstance(step, int)
                    else getattr(variable, step)
                )
            # a mesh shards when parameters are put on it, not here
            variable.set_metadata(
                out_sharding=parameter.axes, eager_sharding=False
            )

    def __call__(self, tokens: Int[Array, " L"]) -> Float[Array, "L V"]:
        """Logits of one sequence, float32, without a cache."""
        positions = jnp.arange(tokens.shape[0])
        attend = causal(self.config, positions)
        empty = [None] * len(self.layers)
        return self.logits(self.stream(tokens, positions, attend, empty)[0])

    def stream(
        self,
        tokens: Int[Array, " T"],
        positions: Int[Array, " T"],
        attend: Attend,
        caches: list[Cache],
    ) -> tuple[Float[Array, "T F"], list[Cache]]:
        """Runs the layers.

        T may be the tokens of one sequence or one token each of many: only
        `attend` knows the difference.

        Returns:
            The residual stream, and one cache a layer.
        """
        x, kept = self.embedded(tokens), []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, positions, attend, cache)
            kept.append(cache)
        return x, kept

    def params(self) -> Params:
        """The tree of parameters, as of load_model, for an engine or a file."""
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        return {**params, "layers": [*params["layers"].values()]}


def without_layers(params: Params) -> Params:
    """What is before and behind the layers: embed, norm and head."""
    return {name: part for name, part in params.items() if name != "layers"}


def init_params(
    key: jax.Array, config: ModelConfig, dtype: Any = jnp.float32
) -> Params:
    """Random parameters: matrices normal with DEVIATION, vectors at one."""
    shapes = tree(config, lambda parameter: parameter.shape)
    leaves, structure = jax.tree.flatten(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jnp.ones(s, dtype)
            if len(s) == 1
            else DEVIATION * jax.random.normal(k, s, dtype)
            for k, s in zip(keys, leaves, strict=True)
        ],
    )


def gate_units(
    config: ModelConfig, gate: Float[Array, "T U"], up: Float[Array, "T U"]
) -> Float[Array, "T U"]:
    """What a gated feed-forward passes on to `down`."""
    if config.hidden_act == "gelu_pytorch_tanh":
        return jax.nn.gelu(gate, approximate=True) * up
    if not config.swiglu_limit:
        return jax.nn.silu(gate) * up
    # gpt-oss (arXiv 2508.10925)
    gate = jnp.minimum(gate, config.swiglu_limit)
    up = jnp.clip(up, -config.swiglu_limit, config.swiglu_limit)
    return gate * jax.nn.sigmoid(config.swiglu_alpha * gate) * (up + 1)


def linear(
    x: Float[Array, "... I"],
    weight: Any,
    bias: Float[Array, " O"] | None = None,
) -> Float[Array, "... O"]:
    """Multiplies by a weight [O, I], an array or a qwix.QArray."""
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    if isinstance(weight, jax.Array):
        y = jax.lax.dot_general(x, weight, axes, None, x.dtype)
    else:  # int8: models.quantization
        whole = weight.qvalue.astype(x.dtype)
        y = jax.lax.dot_general(x, whole, axes, None, jnp.float32)
        y = (y * _last(weight.scale[:, 0], y)).astype(x.dtype)
    return y if bias is None else y + _last(bias, y)


def gated(
    config: ModelConfig,
    rows: Float[Array, "T F"],
    weights: Params,
    multiply: Callable[..., jax.Array] = linear,
) -> Float[Array, "T F"]:
    """A gated feed-forward; multiply may be that of experts."""

    def project(x: jax.Array, name: str) -> jax.Array:
        return multiply(x, weights[name], weights.get(f"{name}_bias"))

    units = gate_units(config, project(rows, "gate"), project(rows, "up"))
    return project(units, "down")


def rms_norm(
    x: Float[Array, "... F"],
    weight: Float[Array, " F"] | None,
    config: ModelConfig,
) -> Float[Array, "... F"]:
    """Root-mean-square norm in float32 (arXiv 1910.07467).

    Without a weight it is x itself.
    """
    if weight is None:
        return x
    wide = x.astype(jnp.float32)
    mean = attention.row_sums(wide * wide) / wide.shape[-1]
    wide *= jax.lax.rsqrt(mean + config.rms_norm_eps)
    if config.norm_offset:  # Gemma rounds after the product, Llama before
        weight = weight.astype(jnp.float32) + config.norm_offset
        return (wide * _last(weight, wide)).astype(x.dtype)
    return wide.astype(x.dtype) * _last(weight, wide)


def rotate(
    x: Float[Array, "T H D"],
    positions: Int[Array, " T"],
    config: ModelConfig,
    kind: Kind,
) -> Float[Array, "T H D"]:
    """Rotary embedding (RoFormer, arXiv 2104.09864, eq. 34).

    Halves of the first rope_dim features of each head pair. With rope_dim 4
    of D = 6, and c, s the cosine and sine of an angle:

        x    a0            a1            b0            b1            r0 r1
        out  a0 c0 - b0 s0 a1 c1 - b1 s1 b0 c0 + a0 s0 b1 c1 + a1 s1 r0 r1
    """
    if not kind.rope_theta:
        return x
    freqs = jnp.asarray(rope_frequencies(config, kind))
    angles = jnp.outer(positions.astype(jnp.float32), freqs)
    size = kind.rope_scaling.attention_factor if kind.rope_scaling else 1.0
    cos, sin = (f(angles)[:, None] * size for f in (jnp.cos, jnp.sin))
    turned, rest = x[..., : config.rope_dim], x[..., config.rope_dim :]
    a, b = jnp.split(turned.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


def _last(weight: jax.Array, x: jax.Array) -> jax.Array:
    """[D] with leading axes of one, as many as x has axes."""
    return weight.reshape((1,) * (x.ndim - 1) + weight.shape)


def causal(config: ModelConfig, positions: Int[Array, " T"]) -> Attend:
    """Attends within one sequence, whose keys and values are the cache."""

    def attend(kind, _, q, k, v):
        q = attention.scaled(q, config)
        q = group_heads(q, config.num_key_value_heads)
        k, v = heads_first(k, v)
        backend = attention.backend(config)
        seen = attention.attend_causal(backend, q, k, v, positions, kind.window)
        rep = config.num_attention_heads // config.num_key_value_heads
        return ungroup_heads(seen, rep), (k, v)

    return attend


def heads_first(
    k: Float[Array, "T K D"], v: Float[Array, "T K D"]
) -> tuple[Float[Array, "K D T"], Float[Array, "K T D"]]:
    """Keys and values as attention takes them, for all of a mesh's slots."""
    k, v = k.transpose(1, 2, 0), v.swapaxes(0, 1)
    return constrained(k, MODEL), constrained(v, MODEL)


def group_heads(
    q: Float[Array, "T H D"], kv_heads: int
) -> Float[Array, "K M D"]:
    """Puts queries beside the keys they share.

    Two tokens a, b of four heads, for two key heads:
        a0 a1 a2 a3 | b0 b1 b2 b3  ->  a0 a1 b0 b1 | a2 a3 b2 b3
    """
    count, heads, dim = q.shape
    q = q.reshape(count, kv_heads, heads // kv_heads, dim)
    return q.swapaxes(0, 1).reshape(kv_heads, -1, dim)


def ungroup_heads(part: SoftmaxState, rep: int) -> SoftmaxState:
    """[K, T * rep, D] -> [T, H, D]."""

    def ungroup(x):
        kv_heads, _, dim = x.shape
        x = x.reshape(kv_heads, -1, rep, dim).swapaxes(0, 1)
        return x.reshape(x.shape[0], -1, dim)

    return jax.tree.map(ungroup, part)
