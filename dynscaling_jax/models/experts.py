"""Mixture of experts: each token through the few that its router prefers.

There are three forms. On a CPU assignments of tokens to experts are sorted by
expert and cut into blocks of one expert each, so that the work is that of the
experts chosen, not of all, and a token's result does not depend on which
others run beside it. Accelerators would take the blocks one after another.
There all experts meet all tokens while those are few: the time is that of
reading the weights, which both forms do, and they are read where they lie.
Of many tokens the experts meet their own, sorted, by jax.lax.ragged_dot. It
copies the weights, since XLA wants them as [E, in, out]: by the TPU compiler's
count 512 tokens of 128 experts, 8 of them chosen, take as long in both forms.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynscaling_jax.models.attention import row_sums
from dynscaling_jax.models.sharding import (
    DATA,
    MODEL,
    ambient,
    fitting,
    on_shards,
)

BLOCK = 8  # rows that meet one expert's weights at a time
# tokens, at most, that meet all experts on an accelerator: all slots of a step
# do, since the TPU compiler copies ragged_dot's weights of all layers at once
FEW = 1024


def route(
    logits: Float[Array, "T E"], count: int, renormalise: bool
) -> tuple[Float[Array, "T {count}"], Int[Array, "T {count}"]]:
    """Weights, float32, and ids of the experts that a softmax prefers."""
    logits = logits.astype(jnp.float32)
    odds = jnp.exp(logits - logits.max(-1, keepdims=True))
    weight, chosen = jax.lax.top_k(odds, count)
    return weight / row_sums(weight if renormalise else odds), chosen


def mix(
    x: Float[Array, "T F"],
    weight: Float[Array, "T k"],
    chosen: Int[Array, "T k"],
    experts: int,
    apply: Callable[[Array, Array], Array],
) -> Float[Array, "T F"]:
    """Sums, with weights, what its experts make of each token.

    Args:
        x: the tokens.
        weight: float32, of the chosen experts.
        chosen: their ids, below `experts`.
        experts: how many there are.
        apply: (rows [BLOCK, F], expert id []) -> [BLOCK, F].

    Returns:
        Summed in float32, of x's dtype.
    """
    tokens, per_token = chosen.shape
    total = tokens * per_token
    # Three tokens with two of three experts each, in blocks of 2 (BLOCK is 8):
    #   chosen    [[0, 2], [2, 0], [2, 1]]
    #   expert_A  0 2 2 0 2 1       assignments, A // 2 is the token
    #   order_A   0 3 | 5 | 1 2 4   by expert
    #   count_E   2 1 3             in blocks_E 1 1 2, that end_E at 1 2 4
    #   rank_A    0 1 | 0 | 0 1 2   among those of the expert
    #   place_A   0 1 | 2 | 4 5 6   each expert's begin at a whole block
    #   rows      0 1 | 2 - | 0 1 | 2 - | - - | - -   tokens; - is of zeros
    #   owner_B    0     1     2     2     2     2    spare blocks behind
    expert_A = chosen.reshape(total)
    count_E = jnp.zeros(experts, jnp.int32).at[expert_A].add(1)
    blocks_E = -(-count_E // BLOCK)
    end_E = jnp.cumsum(blocks_E)
    order_A = jnp.argsort(expert_A, stable=True)
    before_E = jnp.cumsum(count_E) - count_E
    rank_A = jnp.arange(total) - before_E[expert_A[order_A]]
    place_A = (end_E - blocks_E)[expert_A[order_A]] * BLOCK + rank_A
    blocks = -(-total // BLOCK) + min(experts, total)
    rows = (
        jnp.full(blocks * BLOCK, tokens).at[place_A].set(order_A // per_token)
    )
    padded = jnp.concatenate([x, jnp.zeros_like(x[:1])])
    owner_B = jnp.searchsorted(end_E, jnp.arange(blocks), side="right")
    made = jax.lax.map(
        lambda block: apply(padded[block[0]], block[1]),
        (rows.reshape(blocks, BLOCK), jnp.minimum(owner_B, experts - 1)),
    )
    found_A = jnp.zeros(total, jnp.int32).at[order_A].set(place_A)
    made_TK = made.reshape(blocks * BLOCK, -1)[found_A]
    made_TK = made_TK.reshape(tokens, per_token, -1).astype(jnp.float32)
    return (made_TK * weight[..., None]).sum(1).astype(x.dtype)


def mix_all(
    x: Float[Array, "T F"],
    weight: Float[Array, "T k"],
    chosen: Int[Array, "T k"],
    stacks: Any,
    apply: Callable[[Array, Any], Array],
) -> Float[Array, "T F"]:
    """Like mix, by all experts for each token; those not chosen weigh 0.

    Args:
        x: the tokens.
        weight: float32, of the chosen experts.
        chosen: their ids; those out of range are left out.
        stacks: a tree of arrays [E, ...], the experts' weights.
        apply: (rows [T, F], weights of one expert) -> [T, F].
    """
    made_ETF = jax.vmap(apply, (None, 0))(x, stacks)
    ids_E = jnp.arange(len(made_ETF))[:, None, None]
    weight_ET = jnp.where(chosen[None] == ids_E, weight[None], 0.0).sum(-1)
    weight_ETF = weight_ET[..., None]
    # what an expert makes of a token that is not its own may overflow
    made_ETF = jnp.where(weight_ETF > 0, made_ETF.astype(jnp.float32), 0.0)
    return (made_ETF * weight_ETF).sum(0).astype(x.dtype)


def mix_sorted(
    x: Float[Array, "T F"],
    weight: Float[Array, "T k"],
    chosen: Int[Array, "T k"],
    stacks: Any,
    apply: Callable[[Array, Any, Callable], Array],
) -> Float[Array, "T F"]:
    """Like mix, by jax.lax.ragged_dot over assignments sorted by expert.

    With two experts of three on this device, chosen [[0, 2], [1, 0]]:

        order_A   0 3 | 2 | 1    assignments, A // 2 is the token
        owner_A   0 0 | 1 | 1    the last is of no expert here, and left out
        size_E    2     1

    Args:
        x: the tokens.
        weight: float32, of the chosen experts.
        chosen: their ids; those out of range are left out.
        stacks: a tree of arrays [E, ...], the experts' weights.
        apply: (rows [A, F], stacks, function in place of linear) -> [A, F].
    """
    tokens, per_token = chosen.shape
    experts = len(jax.tree.leaves(stacks)[0])
    mine_A = ((chosen >= 0) & (chosen < experts)).reshape(-1)
    expert_A = jnp.where(mine_A, chosen.reshape(-1), experts)
    order_A = jnp.argsort(expert_A, stable=True)
    size_E = jnp.zeros(experts, jnp.int32).at[expert_A].add(1, mode="drop")
    owner_A = jnp.minimum(expert_A[order_A], experts - 1)
    made = apply(
        x[order_A // per_token],
        stacks,
        functools.partial(_ragged_linear, size_E, owner_A),
    )
    found_A = (
        jnp.zeros_like(order_A)
        .at[order_A]
        .set(jnp.arange(len(order_A), dtype=order_A.dtype))
    )
    made_AF = jnp.where(mine_A[:, None], made[found_A].astype(jnp.float32), 0.0)
    made_TKF = made_AF.reshape(tokens, per_token, -1)
    return (made_TKF * weight[..., None]).sum(1).astype(x.dtype)


def _ragged_linear(size_E, owner_A, x, weight, bias=None):
    """transformer.linear where each row meets the weight of its owner."""

    def product(weight, kind):
        return jax.lax.ragged_dot(
            x, weight.swapaxes(1, 2), size_E, preferred_element_type=kind
        )

    if isinstance(weight, jax.Array):
        y = product(weight, x.dtype)
    else:  # int8: models.quantization
        y = product(weight.qvalue.astype(x.dtype), jnp.float32)
        y = (y * weight.scale[..., 0][owner_A]).astype(x.dtype)
    return y if bias is None else y + bias[owner_A]


def spread(
    x: Float[Array, "T F"],
    logits: Float[Array, "T E"],
    route: Callable[[Array], tuple[Array, Array]],
    stacks: Any,
    apply: Callable[..., Array],
) -> Float[Array, "T F"]:
    """Mixes the experts that `route` prefers.

    On a mesh each device serves those that it holds, and what they give is
    summed.

    Args:
        x: the tokens.
        logits: of the router.
        route: logits -> weight [T, k] and chosen [T, k], as mix takes them.
        stacks: a tree of arrays [E, ...], the experts' weights.
        apply: (rows, weights of one expert) -> rows; or, with a third
            argument, (rows, stacks, function in place of linear) -> rows.
    """
    sizes, count = ambient(), logits.shape[-1]
    held = fitting(sizes, (count,), (MODEL,))
    parts = sizes.get(MODEL, 1)
    if count % parts:
        parts = 1

    def part(x, logits, stacks):
        weight, chosen = route(logits)
        if parts > 1:
            chosen -= count // parts * jax.lax.axis_index(MODEL)
        many = mix_all if len(x) <= FEW else mix_sorted
        made = jax.lax.platform_dependent(
            x,
            weight,
            chosen,
            stacks,
            cpu=functools.partial(_mix_blocks, parts, apply),
            default=functools.partial(many, apply=apply),
        )
        return made if parts == 1 else jax.lax.psum(made, MODEL)

    rows = fitting(sizes, x.shape, (DATA,))
    return on_shards(part, (rows, rows, held), rows)(x, logits, stacks)


def _mix_blocks(parts, apply, x, weight, chosen, stacks):
    """Mixes by blocks; with several parts, the experts that are held here."""
    own = len(jax.tree.leaves(stacks)[0])
    one_of = lambda rows, one: apply(
        rows, jax.tree.map(lambda w: w[one], stacks)
    )
    if parts == 1:
        return mix(x, weight, chosen, own, one_of)
    mine = (chosen >= 0) & (chosen < own)

    def one_of_mine(rows, number):
        return jax.lax.cond(
            number < own,
            lambda: one_of(rows, number),
            lambda: jnp.zeros_like(rows),  # of others
        )

    return mix(x, weight, jnp.where(mine, chosen, own), own + 1, one_of_mine)
