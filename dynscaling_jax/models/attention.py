"""Attention over keys that lie in parts, and their exact merge.

A query attends to parts that are kept apart: the prompt that a whole group
shares, and what its row wrote. Each part is reduced to a SoftmaxState; the
states merge exactly (online softmax, Milakov and Gimelshein 2018).

Exponentials are powers of two, and a part is scaled by a whole power: that
rounds nothing. A product that is added may be rounded once or twice, and XLA
decides which by how the rows lie; a sample would depend on it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynscaling_jax.models.config import ModelConfig

NARROWEST = 16
AT_ONCE = 256  # keys; products over many more round by how many there are
MOST_PARTS = 4  # of the queries of a sequence
MASKED = -1e30  # finite: a part with no visible key must not give NaN
LOG2_E = 1.4426950408889634


class SoftmaxState(NamedTuple):
    """Attention over some of the keys, not yet normalised. float32."""

    max: Float[Array, "... M 1"]  # greatest score, rounded up
    sum: Float[Array, "... M 1"]  # sum of 2**(score - max)
    acc: Float[Array, "... M D"]  # the same sum, weighting the values


Backend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], SoftmaxState]
"""(q, k, v, mask) -> state, of the shapes of reference."""


def reference(
    q: Float[Array, "... M D"],
    k: Float[Array, "... D S"],
    v: Float[Array, "... S D"],
    mask: Bool[Array, "... #M S"],
    softcap: float = 0.0,
) -> SoftmaxState:
    """Attends to one part of the keys, in plain XLA.

    Args:
        q: scaled already, by LOG2_E too.
        k: so, since XLA:CPU multiplies it twice as fast as [..., S, D].
        v: values of the keys.
        mask: broadcasts to [..., M, S]; True where a key is visible.
        softcap: of the scores as natural logarithms; 0 is none.
    """
    count, width = v.shape[-2:]
    if count > AT_ONCE:
        # so that padding behind the keys that count changes nothing
        cuts = [slice(at, at + AT_ONCE) for at in range(0, count, AT_ONCE)]
        return merge(
            *(
                reference(
                    q, k[..., cut], v[..., cut, :], mask[..., cut], softcap
                )
                for cut in cuts
            )
        )
    q, v = _widened(q, -1), _widened(v, -1)
    k = _widened(k, -2)
    scores = jnp.einsum(
        "...md,...ds->...ms", q, k, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask, capped(scores, LOG2_E * softcap), MASKED)
    peak = jnp.ceil(scores.max(-1, keepdims=True))
    # Fused with the sum below, they would round by the number of queries.
    weights, peak = jax.lax.optimization_barrier(
        (jnp.exp2(scores - peak), peak)
    )
    value = jnp.einsum(
        "...ms,...sd->...md",
        weights.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )
    return SoftmaxState(peak, row_sums(weights), value[..., :width])


ATTENTION: dict[str, Callable[..., SoftmaxState]] = {"reference": reference}


def backend(config: ModelConfig) -> Backend:
    """The function that a config names, with its cap of scores.

    Raises:
        ValueError: ATTENTION has none of that name.
    """
    name = config.attention
    if name not in ATTENTION:
        raise ValueError(
            f"attention {name!r} is not in models.attention.ATTENTION; known: "
            f"{', '.join(ATTENTION)}"
        )
    cap = config.attn_logit_softcapping
    return functools.partial(ATTENTION[name], softcap=cap)


def scaled(
    q: Float[Array, "T H D"], config: ModelConfig
) -> Float[Array, "T H D"]:
    """Scales queries for exponentials that are powers of two."""
    scale = softmax_scale(config) * LOG2_E
    return q * np.float32(scale).astype(q.dtype)


def softmax_scale(config: ModelConfig) -> float:
    """What products of queries and keys are multiplied by."""
    return (config.query_pre_attn_scalar or config.head_dim) ** -0.5


def attend_causal(
    attend: Backend,
    q: Float[Array, "... M D"],
    k: Float[Array, "... D T"],
    v: Float[Array, "... T D"],
    positions: Int[Array, " T"],
    window: int,
) -> SoftmaxState:
    """Attends within one sequence, in up to four parts of its queries.

    Keys behind a part, or outside the window of all of it, are left out: of a
    long prompt three eighths of the work. More parts leave out more, and take
    longer to compile. Six tokens in parts of two, keys in cuts of two, and a
    window of 3; x is multiplied, of which the mask hides what lies outside:

        keys         0 1 2 3 4 5
        queries 0 1  x x . . . .
        queries 2 3  x x x x . .
        queries 4 5  . . x x x x

    Args:
        attend: the backend.
        q: as reference's, M = T * rep, rep queries a token.
        k: keys of all tokens.
        v: their values.
        positions: consecutive.
        window: as visible's.
    """
    count = v.shape[-2]
    rep = q.shape[-2] // count
    size = -(-count // (MOST_PARTS * AT_ONCE)) * AT_ONCE
    parts = []
    for first in range(0, count, size):
        last = min(first + size, count)
        unseen = max(0, first - window + 1) if window else 0
        keys = slice(unseen - unseen % AT_ONCE, last)
        own = jnp.repeat(positions[first:last], rep)
        parts.append(
            attend(
                q[..., first * rep : last * rep, :],
                k[..., keys],
                v[..., keys, :],
                visible(own, positions[keys], window),
            )
        )
    return jax.tree.map(lambda *x: jnp.concatenate(x, -2), *parts)


def row_sums(x: Float[Array, "... D"]) -> Float[Array, "... 1"]:
    """Adds in float32, and rounds by the row alone.

    XLA:CPU adds in an order that depends on the number of rows too, so that a
    sample would depend on how many others are generated beside it.
    """
    x = x.astype(jnp.float32)
    return jax.lax.platform_dependent(
        x, cpu=_in_order, default=lambda x: x.sum(-1, keepdims=True)
    )


def _in_order(x: jax.Array) -> jax.Array:
    """Adds sixteen neighbours at a time, each order written out.

    Zeros behind the others change nothing.
    """
    while x.shape[-1] > 1:
        missing = -x.shape[-1] % 16
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
        x = x.reshape(*x.shape[:-1], -1, 16)
        lanes = [x[..., lane] for lane in range(16)]
        x = jax.lax.optimization_barrier(functools.reduce(jnp.add, lanes))
    return x


def capped(x: jax.Array, cap: float) -> jax.Array:
    """Caps x to c tanh(x / c), within c (Gemma 2, arXiv 2408.00118)."""
    return cap * jnp.tanh(x / cap) if cap else x


def _widened(x: jax.Array, axis: int) -> jax.Array:
    """Zeros to NARROWEST: narrower products round by the number of queries."""
    missing = max(0, NARROWEST - x.shape[axis])
    if not missing:
        return x
    wider = [(0, 0)] * x.ndim
    wider[axis] = (0, missing)
    x = jnp.pad(x, wider)
    return jax.lax.optimization_barrier(x)  # or the zeros are left out again


def merge(*states: SoftmaxState) -> SoftmaxState:
    """Joins states over different keys, of the same leading shape.

    Sums of 1.5 at max 3 and 1.25 at max 5 are brought to the greater power:
        1.5 * 2**(3 - 5) + 1.25 * 2**0 = 1.625 at max 5
    """
    peak = functools.reduce(jnp.maximum, [state.max for state in states])
    scales = [power_of_two(state.max - peak) for state in states]
    total, value = (
        functools.reduce(jnp.add, map(jnp.multiply, scales, terms))
        for terms in ([s.sum for s in states], [s.acc for s in states])
    )
    return SoftmaxState(peak, total, value)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """Makes 2**exponent, of whole numbers up to 127, by its bits.

    It is exact, and 0 where float32 holds no such power in full.
    """
    biased = jnp.maximum(exponent, -127).astype(jnp.int32) + 127
    return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)


def output(
    state: SoftmaxState, sinks: Float[Array, " H"] | None = None
) -> Float[Array, "... H D"]:
    """The weighted mean of the values, float32.

    Some key must be visible.

    Args:
        state: over all keys, [..., H, D].
        sinks: scores of a key without value (arXiv 2309.17453), which
            heads look at instead of any other.
    """
    if sinks is not None:
        score = LOG2_E * sinks.astype(jnp.float32)[:, None]
        score = jnp.broadcast_to(score, state.max.shape)
        peak, nothing = jnp.ceil(score), jnp.zeros_like(state.acc)
        sink = SoftmaxState(peak, jnp.exp2(score - peak), nothing)
        state = merge(state, sink)
    return state.acc / state.sum


def visible(
    query_pos: Int[Array, "... M"], key_pos: Int[Array, "... S"], window: int
) -> Bool[Array, "... M S"]:
    """A causal mask from positions.

    A window of 3 lets the query at position 4 see keys 2, 3 and 4:
        keys    0 1 2 3 4 5
        query 4 . . x x x .
    """
    ahead = query_pos[..., :, None] - key_pos[..., None, :]
    seen = ahead >= 0
    return seen & (ahead < window) if window else seen
