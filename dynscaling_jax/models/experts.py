"""Mixture of experts: each token through the few that its router prefers.

Assignments of tokens to experts are sorted by expert and cut into blocks of
one expert each, so that the work is that of the experts chosen, not of all,
and a token's result does not depend on which others run beside it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


from dynscaling_jax.models import sharding
from dynscaling_jax.models.attention import row_sums

BLOCK = 8  # rows that meet one expert's weights at a time


def route(
    logits: jax.Array, count: int, renormalise: bool
) -> tuple[jax.Array, jax.Array]:
    """Weights float32 [T, count] and ids int32 [T, count] of the experts that
    a softmax over logits [T, E] prefers."""
    logits = logits.astype(jnp.float32)
    odds = jnp.exp(logits - logits.max(-1, keepdims=True))
    weight, chosen = jax.lax.top_k(odds, count)
    return weight / row_sums(weight if renormalise else odds), chosen


def mix(
    x: jax.Array,
    weight: jax.Array,
    chosen: jax.Array,
    experts: int,
    apply: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The weighted sum of what its experts make of each token.

    Args:
        x: [T, width].
        weight: float32 [T, k]; chosen: int32 [T, k], ids below `experts`.
        apply: (rows [BLOCK, width], expert id []) -> [BLOCK, width].

    Returns:
        [T, width], summed in float32.
    """
    tokens, per_token = chosen.shape
    total = tokens * per_token
    expert_A = chosen.reshape(total)  # A: assignments
    # Sorted by expert, each expert's begin at a whole block.
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
    x: jax.Array,
    weight: jax.Array,
    chosen: jax.Array,
    experts: int,
    stacks: Any,
    apply: Callable[[jax.Array, Any, jax.Array], jax.Array],
) -> jax.Array:
    """As mix; where jax.set_mesh set a mesh, each device serves the experts
    that it holds, and what they give is summed.

    Args:
        stacks: a tree of arrays [E, ...], the experts' weights.
        apply: (rows [BLOCK, width], stacks, expert id []) -> [BLOCK, width].
    """
    sizes = sharding.ambient()
    if sizes is None:
        return mix(
            x, weight, chosen, experts, lambda rows, one: apply(rows, stacks, one)
        )
    rows = sharding.fitting(sizes, x.shape, (sharding.DATA,))
    held = sharding.fitting(sizes, (experts,), (sharding.MODEL,))
    own = experts // sizes[sharding.MODEL] if held[0] else experts

    def part(x, weight, chosen, stacks):
        here = chosen
        if held[0]:
            here -= own * jax.lax.axis_index(sharding.MODEL)
        here = jnp.where((here >= 0) & (here < own), here, own)  # or nobody's

        def one_block(rows, one):
            return jax.lax.cond(
                one < own,
                lambda: apply(rows, stacks, jnp.minimum(one, own - 1)),
                lambda: jnp.zeros_like(rows),
            )

        made = mix(x, weight, here, own + 1, one_block)
        return jax.lax.psum(made, sharding.MODEL) if held[0] else made

    return jax.shard_map(
        part,
        in_specs=(rows, rows, rows, held),
        out_specs=rows,
        check_vma=False,
    )(x, weight, chosen, stacks)
