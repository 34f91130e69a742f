"""The jitted functions of decoding: start rows, take a chunk of steps.

A step is a loop of the host over the layers, one compiled function for each
kind of them. Calling it takes some 50 microseconds, which pass while the
layer before is computed; and a new number of rows or length of prompt
compiles in about two seconds, where a whole decoder takes five to eight.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from dynscaling_jax.inference import cache, prefill, sampling
from dynscaling_jax.inference.cache import Layers, Prefix, Rows, State
from dynscaling_jax.inference.sampling import Draw, Settings, Sums
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.sharding import (
    AXES,
    BOTH,
    ambient,
    constrained,
    fitting,
    on_shards,
)
from dynscaling_jax.models.transformer import Params

CHUNK = 16  # steps between two looks of the host


class Chunk(NamedTuple):
    """What a chunk of C steps drew. A row's tokens count while live; finished
    rows and ghosts go on drawing what nobody reads."""

    draws: Draw  # numpy, each [C, GR]
    live: np.ndarray  # bool [C, GR]


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
) -> tuple[Rows, Sums]:
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
    return _known(rows), drawn


def decode(
    params: Params,
    config: ModelConfig,
    state: State,
    stops: jax.typing.ArrayLike,
    settings: Settings,
    steps: int = CHUNK,
    enough: int = 0,
) -> tuple[State, Chunk]:
    """Takes `steps` steps, CHUNK at most, with all rows; fewer when no more
    than `enough` rows are left live. The state is used up."""
    top = transformer.without_layers(params)
    chunk = []
    for _ in range(steps):
        x, suffix = _layers(params, config, state, state.rows.token)
        rows, step = _turn(top, config, x, state.rows, stops, settings)
        state = state._replace(suffix=suffix, rows=rows)
        chunk.append(step)
        # one step behind, so that the device always has the next to do
        if len(chunk) > 1 and np.asarray(chunk[-2][1]).sum() <= enough:
            break
    sums, live = jax.tree.map(lambda *each: np.stack(each), *chunk)
    draws = sampling.measures(sums, config.vocab_size)
    return state, Chunk(draws, live)


def read(
    params: Params, config: ModelConfig, state: State, token: jax.Array
) -> tuple[jax.Array, State]:
    """Reads a token int32 [GR] of each row in place of a drawn one.

    Returns:
        Logits float32 [GR, V] of the token after it, and the state, which is
        used up, with one more token a row.
    """
    x, suffix = _layers(params, config, state, token)
    x = transformer.rms_norm(x, params["norm"], config)
    rows = state.rows._replace(drawn=state.rows.drawn + 1)
    state = state._replace(suffix=suffix, rows=rows)
    return transformer.head(params, config, x), state


def _layers(params, config, state, token) -> tuple[jax.Array, Layers]:
    """The tokens behind all layers, [GR, width], not normalised, and the
    suffix with their keys and values."""
    x = prefill.embed(transformer.without_layers(params), config, token)
    kept = []
    for number, layer in enumerate(params["layers"]):
        x, suffix = _layer(
            layer,
            config,
            config.kind(number),
            x,
            state.length,
            state.rows.drawn,
            state.prefix[number],
            state.suffix[number],
        )
        kept.append(suffix)
    return x, tuple(kept)


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=7)
def _layer(layer, config, kind, x, length, drawn, prefix, suffix):
    ahead = constrained(
        jnp.repeat(
            length, len(drawn) // len(length), total_repeat_length=len(drawn)
        )
    )
    slot = drawn - 1  # of the token that is read
    attend = _grouped(config, len(length), ahead, slot)
    return transformer.block(
        layer, config, kind, x, ahead + slot, attend, (prefix, suffix)
    )


@functools.partial(jax.jit, static_argnums=1)
def _turn(top, config, hidden, rows, stops, settings):
    """Draws a token of each row; returns the rows and (sums, was live)."""
    hidden = transformer.rms_norm(hidden, top["norm"], config)
    logits = transformer.head(top, config, hidden)
    drawn = _draw(rows.key, rows.drawn, logits, settings)
    step = drawn, rows.live
    rows = rows._replace(
        token=drawn.token,
        drawn=rows.drawn + 1,
        live=rows.live
        & ~_ends(drawn.token, stops)
        & (rows.drawn + 1 < rows.limit),
    )
    return _known(rows), step


def grow(state: State, slots: int) -> State:
    """The same with room for `slots` drawn tokens a row; it is used up."""
    suffix = tuple(_resized(kv, slots) for kv in state.suffix)
    return state._replace(suffix=suffix)


_resized = jax.jit(cache.resized, static_argnums=1)


def select(
    state: State,
    groups: np.ndarray,
    rows: np.ndarray,
    live: np.ndarray,
    size: int,
) -> State:
    """Groups [G'] and rows [G' R'] of a state, by number, with prompts of
    `size` slots; rows stand beside the others of their group, and those not
    live are ghosts."""
    take = lambda pairs, index: tuple(_take(kv, index) for kv in pairs)
    kept = _take(state.rows, rows)
    prefix = state.prefix
    if size != cache.slots(prefix):
        prefix = tuple(_resized(kv, size) for kv in prefix)
    return State(
        take(prefix, groups),
        _take(state.length, groups),
        _take(state.logits, groups),
        take(state.suffix, rows),
        kept._replace(live=kept.live & live),
    )


@jax.jit
def _take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def _grouped(config: ModelConfig, groups: int, ahead, slot):
    """Attention of one new token a row, to its prompt and to its suffix.

    On a mesh each device attends with the rows and the key heads that it has.

    Args:
        ahead: int32 [GR], tokens of the prompt; slot: int32 [GR], drawn ones
            that were read before this one.
    """
    sizes = ambient()
    rows = fitting(sizes, (groups,), AXES)
    along = fitting(sizes, (groups, config.num_key_value_heads), AXES)

    def attend(kind, kept, q, k, v):
        own = on_shards(
            functools.partial(_attend, kind, config.attn_logit_softcapping),
            (rows, rows, along, along, along, along),
            along,
        )
        return own(ahead, slot, kept, q, k, v)

    return attend


def _attend(kind, softcap, ahead, slot, kept, q, k, v):
    """Queries of a group meet its prefix in one product, [R * rep, D] against
    [D, P] for each key head."""
    (pk, pv), suffix = kept
    groups, kv_heads, dim = *pv.shape[:2], pv.shape[-1]
    batch, heads, _ = q.shape
    per, rep = batch // groups, heads // kv_heads

    def seen(slots, first, filled):
        """[GR, 1, 1, slots]: written, and inside the window."""
        at = jnp.arange(slots)[None]
        mask = at < filled[:, None]
        if kind.window:
            mask &= (ahead + slot - first)[:, None] - at < kind.window
        return mask[:, None, None]

    suffix = sk, sv = cache.write(suffix, k, v, slot)
    nothing = jnp.zeros_like(slot)
    prefix_mask = seen(cache.slots(((pk, pv),)), nothing, ahead)
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
    prefix = attention.attend_blocks(shared, pk, pv, mask, softcap)
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
    own = attention.attend_blocks(
        q.reshape(batch, kv_heads, rep, dim),
        sk,
        sv,
        seen(cache.slots(((sk, sv),)), ahead, slot + 1),
        softcap,
    )
    part = jax.tree.map(
        lambda x: x.reshape(batch, heads, -1), attention.merge(prefix, own)
    )
    return part, suffix


def _draw(key, position, logits, settings) -> Sums:
    """One token a row; the position in the sample ends the chain of keys."""

    def one(key, position, logits, settings):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), position)
        return sampling.choose(key, logits, settings)

    # each device draws some rows, from all of the vocabulary
    rows = fitting(ambient(), position.shape, (BOTH,))
    draw = on_shards(
        jax.vmap(one, (0, 0, 0, None)), (rows, rows, rows, P()), rows
    )
    drawn = draw(key, position, logits, settings)
    return _known(drawn)


def _known(rows):
    """What each row is doing, known to all devices of a mesh."""
    return jax.tree.map(constrained, rows)


def _ends(token: jax.Array, stops: jax.Array) -> jax.Array:
    return (token[:, None] == stops[None]).any(-1)
