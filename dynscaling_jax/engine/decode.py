"""The jitted functions of decoding: start rows, take a chunk of steps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynscaling_jax.engine import cache, sampling
from dynscaling_jax.engine.cache import Layers, Prefix, Rows, State
from dynscaling_jax.engine.sampling import Draw, Settings
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.transformer import Params

CHUNK = 16  # steps between two looks of the host


class Chunk(NamedTuple):
    """What a chunk drew. A row's tokens count while live; finished rows
    and ghosts go on drawing what nobody reads."""

    draws: Draw  # each [C, GR]
    live: jax.Array  # bool [C, GR]


@functools.partial(jax.jit, donate_argnums=0)
def place(state: State, prefix: Prefix, group: jax.Array) -> State:
    """cache.place, jitted."""
    return cache.place(state, prefix, group)


@functools.partial(jax.jit, donate_argnums=0)
def start(
    rows: Rows,
    logits: jax.Array,
    seed: jax.Array,
    fresh: jax.Array,
    name: jax.Array,
    limit: jax.Array,
    live: jax.Array,
    stops: jax.Array,
    settings: Settings,
) -> tuple[Rows, Draw]:
    """Draws the first token of fresh rows from their group's logits [G, V].

    It sees no keys, so that one compilation serves prompts of every length.

    Args:
        seed: uint32, of the run.
        fresh: bool [GR], rows that begin a sample.
        name: uint32 [GR, 3], as sampling.row_key; limit: int32 [GR], tokens
            to draw at most; both of fresh rows.
        live: bool [GR], which other rows go on.
        stops: int32 [E], token ids that end a sample, padded with -1.
    """
    repeat = rows.token.shape[0] // logits.shape[0]
    key = jax.vmap(sampling.row_key, (None, 0))(seed, name)
    drawn = _draw(
        key,
        jnp.zeros_like(limit),
        jnp.repeat(logits, repeat, 0, total_repeat_length=len(limit)),
        settings,
    )
    rows = Rows(
        jnp.where(fresh, drawn.token, rows.token),
        jnp.where(fresh, 1, rows.drawn),
        jnp.where(fresh, ~_ends(drawn.token, stops) & (limit > 1), live),
        jnp.where(fresh, limit, rows.limit),
        jnp.where(fresh[:, None], key, rows.key),
    )
    return rows, drawn


@functools.partial(jax.jit, static_argnums=(1,), donate_argnums=2)
def decode(
    params: Params,
    config: ModelConfig,
    state: State,
    stops: jax.Array,
    settings: Settings,
) -> tuple[State, Chunk]:
    """Takes CHUNK steps with all rows, fewer when no row is left live."""
    batch = state.rows.token.shape[0]
    start = state.rows.drawn - 1
    recent = jax.tree.map(
        lambda s: jnp.zeros((*s.shape[:2], CHUNK, s.shape[3]), s.dtype),
        state.suffix,
    )
    float_rows = jnp.zeros((CHUNK, batch), jnp.float32)
    chunk = Chunk(
        Draw(float_rows.astype(jnp.int32), float_rows, float_rows, float_rows),
        jnp.zeros((CHUNK, batch), bool),
    )

    def step(carry):
        at, rows, recent, chunk = carry
        logits, recent = read(params, config, state, recent, rows.token, at)
        drawn = _draw(rows.key, rows.drawn, logits, settings)
        chunk = jax.tree.map(
            lambda whole, new: whole.at[at].set(new),
            chunk,
            Chunk(drawn, rows.live),
        )
        rows = rows._replace(
            token=drawn.token,
            drawn=rows.drawn + 1,
            live=rows.live
            & ~_ends(drawn.token, stops)
            & (rows.drawn + 1 < rows.limit),
        )
        return at + 1, rows, recent, chunk

    _, rows, recent, chunk = jax.lax.while_loop(
        lambda carry: (carry[0] < CHUNK) & carry[1].live.any(),
        step,
        (0, state.rows, recent, chunk),
    )
    suffix = cache.append(state.suffix, recent, start)
    return state._replace(rows=rows, suffix=suffix), chunk


def read(
    params: Params,
    config: ModelConfig,
    state: State,
    recent: Layers,
    token: jax.Array,
    at: jax.Array,
) -> tuple[jax.Array, Layers]:
    """Reads one more token int32 [GR] of each row.

    Args:
        recent: keys and values of this chunk's steps before `at`.

    Returns:
        Logits float32 [GR, V] of the token after it, and recent with its own.
    """
    start = state.rows.drawn - 1
    batch, groups = len(token), len(state.length)
    ahead = jnp.repeat(state.length, batch // groups, total_repeat_length=batch)
    hidden, kept = transformer.hidden_states(
        params,
        config,
        token,
        ahead + start + at,
        _grouped(config, state, start, at),
        list(zip(state.prefix, state.suffix, recent, strict=True)),
    )
    return transformer.head(params, config, hidden), tuple(kept)


def _grouped(config: ModelConfig, state: State, start, at):
    """Attention of one new token a row: prefix, suffix and recent keys.

    Queries of a group meet its prefix in one product, [R * rep, D] against
    [P, D] for each key head.
    """
    batch, groups = start.shape[0], state.length.shape[0]
    per, rep = batch // groups, config.heads // config.kv_heads
    kv_heads, dim = config.kv_heads, config.head_dim
    ahead = jnp.repeat(state.length, per, total_repeat_length=batch)

    def seen(kind, slots, first, filled):
        """[GR, 1, 1, slots]: written, and inside the window."""
        slot = jnp.arange(slots)[None]
        mask = slot < filled[:, None]
        if kind.window:
            now = ahead + start + at
            mask &= now[:, None] - (first[:, None] + slot) < kind.window
        return mask[:, None, None]

    def attend(kind, kept, q, k, v):
        (pk, pv), (sk, sv), recent = kept
        recent = tuple(
            jax.lax.dynamic_update_index_in_dim(r, new, at, 2)
            for r, new in zip(recent, (k, v), strict=True)
        )
        nothing = jnp.zeros_like(start)
        prefix_mask = seen(kind, pk.shape[2], nothing, ahead)
        shared = q.reshape(groups, per, kv_heads, rep, dim).swapaxes(1, 2)
        shared = shared.reshape(groups, kv_heads, per * rep, dim)
        mask = jnp.repeat(
            prefix_mask.reshape(groups, 1, per, -1),
            rep,
            2,
            total_repeat_length=per * rep,
        )
        # A lone query would be multiplied as a vector, which rounds otherwise
        # than a matrix: a sample would depend on the size of its group.
        lone = per * rep == 1
        if lone:
            shared, mask = jax.lax.optimization_barrier(
                (jnp.repeat(shared, 2, 2), jnp.repeat(mask, 2, 2))
            )
        prefix = attention.attend(shared, pk, pv, mask, config.softcap)
        if lone:
            prefix = jax.tree.map(lambda x: x[:, :, :1], prefix)
        prefix = jax.tree.map(
            lambda x: (
                x.reshape(groups, kv_heads, per, rep, -1)
                .swapaxes(1, 2)
                .reshape(batch, kv_heads, rep, -1)
            ),
            prefix,
        )
        own = q.reshape(batch, kv_heads, rep, dim)
        suffix = attention.attend(
            own, sk, sv, seen(kind, sk.shape[2], ahead, start), config.softcap
        )
        newest = attention.attend(
            own,
            *recent,
            seen(
                kind,
                recent[0].shape[2],
                ahead + start,
                jnp.full_like(start, at + 1),
            ),
            config.softcap,
        )
        part = jax.tree.map(
            lambda x: x.reshape(batch, config.heads, -1),
            attention.merge(prefix, suffix, newest),
        )
        return part, recent

    return attend


def _draw(key, position, logits, settings) -> Draw:
    """One token a row; the position in the sample ends the chain of keys."""

    def one(key, position, logits):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
        return sampling.draw(key, logits, settings)

    return jax.vmap(one)(key, position, logits)


def _ends(token: jax.Array, stops: jax.Array) -> jax.Array:
    return (token[:, None] == stops[None]).any(-1)
