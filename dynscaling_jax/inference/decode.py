"""The jitted functions of decoding: start slots, take a chunk of steps.

A step is a host loop over the layers, with one compiled function for each kind
of layer. A call takes some 50 microseconds, which pass while the layer before
is computed. A new number of slots or length of prefix then compiles in about
two seconds, where a whole decoder takes five to eight.
"""

import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from dynscaling_jax.inference import cache, pools, prefill, sampling
from dynscaling_jax.inference.cache import Layers, Prefix, Slots, State
from dynscaling_jax.inference.sampling import LogitSums, ScoredToken, Settings
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.sharding import (
    AXES,
    BOTH,
    ambient,
    constrained,
    fitting,
    on_shards,
)
from dynscaling_jax.models.transformer import Block, Vocabulary

CHUNK = 16  # steps between two looks of the host
AnyState = TypeVar("AnyState", State, pools.State)


class Chunk(NamedTuple):
    """The tokens of C steps; a slot's tokens count while it is active."""

    tokens: ScoredToken  # numpy, each [C, GR]
    active: Bool[np.ndarray, "C GR"]


@functools.partial(jax.jit, donate_argnums=0)
def insert(state: State, prefix: Prefix, group: Int32[Array, ""]) -> State:
    """Jits cache.insert; the state is donated."""
    return cache.insert(state, prefix, group)


@functools.partial(jax.jit, donate_argnums=0)
def start(
    slots: Slots,
    logits: Float32[Array, "G V"],
    seed: UInt32[Array, ""],
    fresh: Bool[Array, " GR"],
    name: UInt32[Array, "GR 3"],
    limit: Int32[Array, " GR"],
    active: Bool[Array, " GR"],
    stops: Int32[Array, " stops"],
    settings: Settings,
) -> tuple[Slots, LogitSums]:
    """Samples the first token of fresh slots from the logits of their group.

    It sees no keys, so one compilation serves prompts of every length.

    Args:
        slots: they are donated.
        logits: as State has them.
        seed: of the run.
        fresh: slots that begin a sample.
        name: of fresh slots, as sampling.sample_key takes it.
        limit: of fresh slots, completion tokens at most.
        active: which of the other slots go on.
        stops: token ids that end a sample, padded with -1.
        settings: how to sample.
    """
    per_group = slots.token.shape[0] // logits.shape[0]
    key = jax.vmap(sampling.sample_key, (None, 0))(seed, name)
    sums = _choose(
        key,
        jnp.zeros_like(limit),
        jnp.repeat(logits, per_group, 0, total_repeat_length=len(limit)),
        settings,
    )
    goes_on = ~_stops(sums.token, stops) & (limit > 1)
    slots = Slots(
        jnp.where(fresh, sums.token, slots.token),
        jnp.where(fresh, 1, slots.count),
        jnp.where(fresh, goes_on, active),
        jnp.where(fresh, limit, slots.limit),
        jnp.where(fresh[:, None], key, slots.key),
    )
    return _replicated(slots), sums


def decode(
    params: Params,
    config: ModelConfig,
    state: AnyState,
    stops: Int32[ArrayLike, " stops"],
    settings: Settings,
    steps: int = CHUNK,
    enough: int = 0,
) -> tuple[AnyState, Chunk]:
    """Takes up to `steps` steps, CHUNK at most, with all slots.

    It stops early when no more than `enough` slots are active. The state is
    donated. Three slots, of which slot 1 samples a stop id in step 0 and slot
    2 was inactive before, with enough = 1:

        step     0        1        2
        token    5 2 9    7 4 1    3 8 8
        active   1 1 0    1 0 0    1 0 0
        sum               2        1        of the step before: <= 1 ends

    active is what a slot was before its token was sampled, so the stop id
    counts and what comes after it does not. The host looks at the step before
    the last, so that the device always has the next one to do.
    """
    top = transformer.without_layers(params)
    chunk = []
    for _ in range(steps):
        x, suffix = _run_layers(params, config, state, state.slots.token)
        slots, step = _sample(top, config, x, state.slots, stops, settings)
        state = state._replace(suffix=suffix, slots=slots)
        chunk.append(step)
        if len(chunk) > 1 and np.asarray(chunk[-2][1]).sum() <= enough:
            break
    sums, active = jax.tree.map(lambda *each: np.stack(each), *chunk)
    return state, Chunk(sampling.score(sums, config.vocab_size), active)


def _run_layers(params, config, state, token) -> tuple[jax.Array, Layers]:
    """Hidden states behind all layers, not normalised, and the new suffix."""
    x = prefill.embed(transformer.without_layers(params), config, token)
    paged = isinstance(state, pools.State)
    run = _paged_layer if paged else _layer
    where = state.view if paged else state.length
    layers = []
    for number, layer in enumerate(params["layers"]):
        x, kv = run(
            layer,
            config,
            config.kind(number),
            x,
            where,
            state.slots.count,
            state.prefix[number],
            state.suffix[number],
        )
        layers.append(kv)
    return x, tuple(layers)


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=7)
def _paged_layer(layer, config, kind, x, view, count, prefix, suffix):
    """One layer over keys in pages: of prompts, and of completions."""
    position = count - 1  # in the completion, of the token that is read
    attend = functools.partial(_attend_pages, config, view, position)
    block = Block(config, kind, layer)
    return block(x, view.ahead + position, attend, (prefix, suffix))


def _attend_pages(config, view, position, kind, kv, q, k, v):
    """Attends to the prompt and to the completion of each slot."""
    prefix, suffix = kv
    batch, heads, dim = q.shape
    suffix = pools.write(suffix, k, v, position, view.suffix.table)
    own = q.reshape(batch, k.shape[1], -1, dim)
    backend, ahead, window = attention.backend(config), view.ahead, kind.window
    merged = attention.merge(
        pools.attend(
            backend,
            own,
            prefix,
            view.prefix,
            ahead,
            ahead + position,
            window,
            twice=True,
        ),
        pools.attend(
            backend, own, suffix, view.suffix, position + 1, position, window
        ),
    )
    return jax.tree.map(lambda x: x.reshape(batch, heads, -1), merged), suffix


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=7)
def _layer(layer, config, kind, x, length, count, prefix, suffix):
    """One layer; positions as in the worked example of inference.cache."""
    per_group = len(count) // len(length)
    ahead = constrained(
        jnp.repeat(length, per_group, total_repeat_length=len(count))
    )
    position = count - 1  # in the suffix, of the token that is read
    attend = _group_attention(config, len(length), ahead, position)
    block = Block(config, kind, layer)
    return block(x, ahead + position, attend, (prefix, suffix))


@functools.partial(jax.jit, static_argnums=1)
def _sample(top, config, hidden, slots, stops, settings):
    """Samples a token for each slot: (slots, (sums, which were active))."""
    logits = Vocabulary(config, top).logits(hidden)
    sums = _choose(slots.key, slots.count, logits, settings)
    step = sums, slots.active
    slots = slots._replace(
        token=sums.token,
        count=slots.count + 1,
        active=slots.active
        & ~_stops(sums.token, stops)
        & (slots.count + 1 < slots.limit),
    )
    return _replicated(slots), step


def grow(state: State, suffix: int) -> State:
    """Gives suffixes so many positions; the state is not used again."""
    layers = tuple(_resize(kv, suffix) for kv in state.suffix)
    return state._replace(suffix=layers)


_resize = jax.jit(cache.resize, static_argnums=1)


def select(
    state: State,
    groups: Int32[np.ndarray, " new_G"],
    slots: Int32[np.ndarray, " new_GR"],
    active: Bool[np.ndarray, " new_GR"],
    bucket: int,
) -> State:
    """Rearranges a state; slots that are not active may repeat others.

    Two groups of two slots, of which slots 1, 2 and 3 go on, become three
    groups of one slot and an empty one:

        groups  [0 1 1 0]    the old group of each new one
        slots   [1 2 3 0]    the old slot of each new one
        active  [1 1 1 0]    the last one is there for its shape alone

    Args:
        state: its arrays are copied.
        groups: old groups by number.
        slots: old slots by number, beside others of their group.
        active: which may go on.
        bucket: positions of a prefix.
    """
    take = lambda layers, index: tuple(_take(kv, index) for kv in layers)
    taken = _take(state.slots, slots)
    prefix = state.prefix
    if bucket != cache.capacity(prefix):
        prefix = tuple(_resize(kv, bucket) for kv in prefix)
    return State(
        take(prefix, groups),
        _take(state.length, groups),
        _take(state.logits, groups),
        take(state.suffix, slots),
        taken._replace(active=taken.active & active),
    )


def take(
    slots: Slots, index: Int32[np.ndarray, " n"], active: Bool[np.ndarray, " n"]
) -> Slots:
    """Rearranges slots alone; those that are not active may repeat others."""
    taken = _take(slots, index)
    return taken._replace(active=taken.active & active)


@jax.jit
def _take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def _group_attention(config: ModelConfig, groups: int, ahead, position):
    """Attention of one new token a slot, to its prefix and to its suffix.

    ahead int32 [GR] are the lengths of prompts, position int32 [GR] those of
    the tokens in their suffixes. On a mesh each device attends with the slots
    and the key heads that it has.
    """
    sizes = ambient()
    slots = fitting(sizes, (groups,), AXES)
    along = fitting(sizes, (groups, config.num_key_value_heads), AXES)

    def attend(kind, kv, q, k, v):
        local = on_shards(
            functools.partial(_attend, kind, attention.backend(config)),
            (slots, slots, along, along, along, along),
            along,
        )
        return local(ahead, position, kv, q, k, v)

    return attend


def _attend(kind, backend, ahead, position, kv, q, k, v):
    """Attends to the prefix as a group and to the suffix as a slot.

    All queries of a group meet its prefix in one product: R slots of `rep`
    query heads each, [R * rep, D] against [D, P] for each key head. Queries
    of slots a and b with rep = 2 lie as

        [GR, H, D]            a0 a1 a2 a3 | b0 b1 b2 b3    K = 2
        [G, K, R * rep, D]    a0 a1 b0 b1 | a2 a3 b2 b3

    Masks, for a prompt of 3 tokens (ahead) and position 1 in the suffix; a
    window of 3 lets the query at 4 see 2, 3 and 4:

        prefix  x x x .   first 0    with the window  . . x .
        suffix  x x . .   first 3                     x x . .
    """
    (pk, pv), suffix = kv
    groups, kv_heads, dim = *pv.shape[:2], pv.shape[-1]
    batch, heads, _ = q.shape
    per_group, rep = batch // groups, heads // kv_heads

    def visible(positions, first, filled):
        """[GR, 1, 1, positions]: written, and inside the window."""
        at = jnp.arange(positions)[None]
        mask = at < filled[:, None]
        if kind.window:
            mask &= (ahead + position - first)[:, None] - at < kind.window
        return mask[:, None, None]

    suffix = sk, sv = cache.write(suffix, k, v, position)
    mask = visible(cache.capacity(((pk, pv),)), jnp.zeros_like(position), ahead)
    shared = q.reshape(groups, per_group, kv_heads, rep, dim).swapaxes(1, 2)
    shared = shared.reshape(groups, kv_heads, per_group * rep, dim)
    mask = jnp.repeat(
        mask.reshape(groups, 1, per_group, -1),
        rep,
        2,
        total_repeat_length=per_group * rep,
    )
    # A lone query would be multiplied as a vector, which rounds otherwise
    # than a matrix: a sample would depend on the size of its group.
    lone = per_group * rep == 1
    if lone:
        shared, mask = jax.lax.optimization_barrier(
            (jnp.repeat(shared, 2, 2), jnp.repeat(mask, 2, 2))
        )
    prefix = attention.attend_blocks(backend, shared, pk, pv, mask)
    if lone:
        prefix = jax.tree.map(lambda x: x[:, :, :1], prefix)
    prefix = jax.tree.map(
        lambda x: (
            x.reshape(groups, kv_heads, per_group, rep, -1)
            .swapaxes(1, 2)
            .reshape(batch, kv_heads, rep, -1)
        ),
        prefix,
    )
    completion = attention.attend_blocks(
        backend,
        q.reshape(batch, kv_heads, rep, dim),
        sk,
        sv,
        visible(cache.capacity(((sk, sv),)), ahead, position + 1),
    )
    merged = attention.merge(prefix, completion)
    return jax.tree.map(lambda x: x.reshape(batch, heads, -1), merged), suffix


def _choose(key, count, logits, settings) -> LogitSums:
    """A token for each slot; its number in the sample ends the chain of keys.

    It is sampled on the device of the slot, from all of the vocabulary.
    """

    def one(key, count, logits, settings):
        key = jax.random.fold_in(jax.random.wrap_key_data(key), count)
        return sampling.choose(key, logits, settings)

    slots = fitting(ambient(), count.shape, (BOTH,))
    choose = on_shards(
        jax.vmap(one, (0, 0, 0, None)), (slots, slots, slots, P()), slots
    )
    return _replicated(choose(key, count, logits, settings))


def _replicated(tree):
    """The same on all devices of a mesh: slots are known to each."""
    return jax.tree.map(constrained, tree)


def _stops(token, stops) -> Bool[Array, " GR"]:
    return (token[:, None] == stops[None]).any(-1)
