"""Mixture of experts: each token through the few that its router prefers.

Assignments of tokens to experts are sorted by expert and cut into blocks of
one expert each, so that the work is that of the experts chosen, not of all,
and a token's result does not depend on which others run beside it.
"""

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


def spread(
    x: Float[Array, "T F"],
    logits: Float[Array, "T E"],
    route: Callable[[Array], tuple[Array, Array]],
    stacks: Any,
    apply: Callable[[Array, Any, Array], Array],
) -> Float[Array, "T F"]:
    """Mixes the experts that `route` prefers.

    On a mesh each device serves those that it holds, and what they give is
    summed.

    Args:
        x: the tokens.
        logits: of the router.
        route: logits -> weight [T, k] and chosen [T, k], as mix takes them.
        stacks: a tree of arrays [E, ...], the experts' weights.
        apply: (rows [BLOCK, F], stacks, expert id []) -> [BLOCK, F].
    """
    sizes, count = ambient(), logits.shape[-1]
    held = fitting(sizes, (count,), (MODEL,))
    parts = sizes.get(MODEL, 1)
    if count % parts:
        parts = 1

    def part(x, logits, stacks):
        weight, chosen = route(logits)
        if parts == 1:
            one = lambda rows, number: apply(rows, stacks, number)
            return mix(x, weight, chosen, count, one)
        own = count // parts
        chosen -= own * jax.lax.axis_index(MODEL)
        mine = (chosen >= 0) & (chosen < own)

        def one_of_mine(rows, number):
            return jax.lax.cond(
                number < own,
                lambda: apply(rows, stacks, number),
                lambda: jnp.zeros_like(rows),  # of others
            )

        chosen = jnp.where(mine, chosen, own)
        made = mix(x, weight, chosen, own + 1, one_of_mine)
        return jax.lax.psum(made, MODEL)

    rows = fitting(sizes, x.shape, (DATA,))
    return on_shards(part, (rows, rows, held), rows)(x, logits, stacks)
