"""The device side of paged decoding: three jitted calls.

`prefill_chunk` computes the next tokens of a prompt in each part of a mesh,
`start` samples first tokens, `decode_chunk` takes steps. Each donates the
State that it is given. What a call does follows from arrays; their shapes are
few, and nothing is compiled twice.

Layers that are stacked (models.stacked) are scanned, with the whole cache in
the carry; those of a list are unrolled, and each has a cache of its own. Both
write keys in place and copy neither weights nor pages, the first on a TPU, the
second on a GPU.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.batch import CHUNK
from dynscaling_jax.inference.paged.attention import Backend, Layout, sharded
from dynscaling_jax.inference.sampling import LogitSums, Settings
from dynscaling_jax.inference.slots import (
    Forced,
    Slots,
    advance,
    begin,
    resumed,
)
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.sharding import DATA, ambient, fitting, on_shards
from dynscaling_jax.models.stacked import Stacked
from dynscaling_jax.models.transformer import Block, Vocabulary


class State(NamedTuple):
    """All that lies on the devices beside the weights; donated on."""

    cache: tuple[Any, ...]  # one of all layers, or one of each
    logits: Float32[Array, "D rows V"]  # behind prompts that slots begin from
    slots: Slots
    length: Int32[Array, " S"]  # of the prompts of slots


def empty(
    config: ModelConfig,
    backend: Backend,
    layout: Layout,
    rows: int,
    dtype: Any,
    stacked: bool,
    mesh: Mesh | None = None,
) -> State:
    """Makes a state of inactive slots and free pages, as described.

    It is zeros, since 0 x NaN would leak through a mask.
    """
    state = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding),
        described(config, backend, layout, rows, dtype, stacked, mesh),
    )
    slots = state.slots
    return state._replace(slots=slots._replace(count=slots.count + 1))


def described(
    config: ModelConfig,
    backend: Backend,
    layout: Layout,
    rows: int,
    dtype: Any,
    stacked: bool,
    mesh: Mesh | None = None,
) -> State:
    """Describes a state by jax.ShapeDtypeStruct, of which it has no array.

    On a mesh pages, rows and slots lie along `data`, key heads along `model`;
    all devices know Slots.

    Args:
        config: of the model.
        backend: owns the layout of the cache.
        layout: its sizes.
        rows: of logits in each part.
        dtype: of the model.
        stacked: whether its layers are.
        mesh: that the parameters lie on.
    """

    def array(shape: tuple[int, ...], dtype: Any, *axes: Any) -> Any:
        where = mesh and NamedSharding(mesh, fitting(mesh.shape, shape, axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def layers(number: int) -> tuple[Any, ...]:
        return tuple(
            array((number, *shape), kind, None, *axes)
            for shape, kind, axes in backend.init(config, layout, dtype)
        )

    count, slots = config.num_hidden_layers, layout.slots
    return State(
        (layers(count),) if stacked else tuple(layers(1) for _ in range(count)),
        array((layout.parts, rows, config.vocab_size), jnp.float32, DATA),
        Slots(
            array((slots,), jnp.int32),
            array((slots,), jnp.int32),
            array((slots,), bool),
            array((slots,), jnp.int32),
            array((slots, 2), jnp.uint32),
        ),
        array((slots,), jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def prefill_chunk(
    params: Params,
    config: ModelConfig,
    backend: Backend,
    state: State,
    view: Any,
    tokens: Int32[Array, "D T"],
    begin: Int32[Array, " D"],
    last: Int32[Array, " D"],
    row: Int32[Array, " D"],
) -> State:
    """Computes keys of a chunk of a prompt in each part, and logits behind it.

    With T = 4, and a prompt of 6 tokens in part 0 that ends here; part 1 has
    a chunk of a longer prompt:

        tokens  [[e f . .] [a b c d]]    . is padding, never seen
        begin   [4 0]
        last    [1 3]
        row     [2 rows]                 part 1 keeps no logits

    Args:
        params: of the model.
        config: of the model.
        backend: of attention.
        state: is donated.
        view: backend.chunk_view of the chunks.
        tokens: of the chunks, right-padded.
        begin: the position of each chunk's first token.
        last: of the tokens, the prompt's last one.
        row: of State.logits, where they go; past the last one nowhere.
    """
    parts, count = tokens.shape
    positions = (begin[:, None] + jnp.arange(count)[None]).reshape(-1)
    vocabulary = Vocabulary(config, transformer.without_layers(params))
    x, cache = _run_layers(
        params,
        config,
        state.cache,
        vocabulary.embedded(tokens.reshape(-1)),
        positions,
        lambda kind, cache, layer, *qkv: sharded.prefill(
            backend, kind, config, cache, layer, view, *qkv
        ),
    )
    along = fitting(ambient(), (parts,), (DATA,))
    ends = on_shards(_ends, (along, along), along)(x, last)
    logits = vocabulary.logits(ends)
    put = on_shards(_put_rows, (along, along, along), along)
    return state._replace(cache=cache, logits=put(state.logits, logits, row))


def _ends(x, last):
    """The last token of each part's chunk: [D * T, F] -> [D, F]."""
    x = x.reshape(len(last), -1, x.shape[-1])
    return x[jnp.arange(len(last)), last]


def _put_rows(logits, new, row):
    return logits.at[jnp.arange(len(row)), row].set(new, mode="drop")


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def start(
    backend: Backend,
    state: State,
    seed: UInt32[Array, ""],
    fresh: Bool[Array, " S"],
    name: UInt32[Array, "S 3"],
    row: Int32[Array, " S"],
    length: Int32[Array, " S"],
    limit: Int32[Array, " S"],
    source: Int32[Array, "D C"],
    target: Int32[Array, "D C"],
    copies: Int32[Array, ""],
    stops: Int32[Array, " stops"],
    settings: Settings,
    after: Int32[Array, ""] | None = None,
) -> tuple[State, LogitSums]:
    """Begins samples: copies pages, samples first tokens from rows of logits.

    Args:
        backend: of attention.
        state: is donated.
        seed: of the run.
        fresh: slots that begin a sample; of others nothing changes.
        name: of fresh slots, as sampling.sample_key takes it.
        row: of logits, within the slot's part.
        length: of their prompts.
        limit: completion tokens at most.
        source: pages within their part that are copied, in their order,
        target: to these; past the last page goes nowhere.
        copies: how many of C there are.
        stops: token ids that end a sample, padded with -1.
        settings: how to sample.
        after: of slots.Forced, where thoughts have a limit.

    Returns:
        The state, and the tokens; those of fresh slots count.
    """
    parts = len(state.logits)
    along = fitting(ambient(), (parts,), (DATA,))
    take = on_shards(_take_rows, (along, along), along)
    slots, sums = begin(
        state.slots,
        take(state.logits, row),
        seed,
        fresh,
        name,
        limit,
        state.slots.active,
        stops,
        settings,
        after,
    )
    length = jnp.where(fresh, length, state.length)

    def copy(number, caches):
        """One page of each part: all at once would be copied twice."""
        one = lambda x: jax.lax.dynamic_slice_in_dim(x, number, 1, 1)
        return tuple(
            sharded.copy(backend, cache, one(source), one(target))
            for cache in caches
        )

    cache = jax.lax.fori_loop(0, copies, copy, state.cache)
    slots, length = sampling.replicated((slots, length))
    return State(cache, state.logits, slots, length), sums


def _take_rows(logits, row):
    """Logits [D, rows, V] of slots [S] of these parts -> [S, V]."""
    part = jnp.repeat(
        jnp.arange(len(logits)),
        len(row) // len(logits),
        total_repeat_length=len(row),
    )
    return logits[part, row]


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=3)
def decode_chunk(
    params: Params,
    config: ModelConfig,
    backend: Backend,
    state: State,
    view: Any,
    active: Bool[Array, " S"],
    stops: Int32[Array, " stops"],
    settings: Settings,
    steps: Int32[Array, ""],
    enough: Int32[Array, ""],
    forced: Forced | None = None,
) -> tuple[State, LogitSums, Bool[Array, "CHUNK S"]]:
    """Takes up to `steps` steps, CHUNK at most, with all slots.

    It takes one at least, and ends when no more than `enough` slots are
    active. Three slots, of which slot 1 samples a stop id in step 0, and the
    host holds slot 2 to be inactive; steps = 3, enough = 0, CHUNK = 4:

        step     0        1        2        3
        token    5 2 9    7 4 1    3 8 8    0 0 0
        active   1 1 0    1 0 0    1 0 0    0 0 0

    active is what a slot was before its token was sampled, so the stop id
    counts and what comes after it does not.

    Args:
        params: of the model.
        config: of the model.
        backend: of attention.
        state: is donated.
        view: backend.view of the turn.
        active: slots that the host holds to be active.
        stops: token ids that end a sample, padded with -1.
        settings: how to sample.
        steps: at most; from 1 to CHUNK.
        enough: active slots that are too few to go on for.
        forced: what ends thoughts, where they have a limit.

    Returns:
        The state, tokens [CHUNK, S], and which slots were active.
    """
    length, count = state.length, len(state.length)
    vocabulary = Vocabulary(config, transformer.without_layers(params))

    def step(carry):
        number, cache, slots, sums, ran = carry
        position = length + slots.count - 1  # of the token that is read
        seen = sharded.step(
            backend, config, cache[0], view, position, slots.active
        )
        x, cache = _run_layers(
            params,
            config,
            cache,
            vocabulary.embedded(slots.token),
            position,
            lambda kind, cache, layer, *qkv: sharded.decode(
                backend,
                kind,
                config,
                cache,
                layer,
                seen,
                position,
                slots.active,
                *qkv,
            ),
        )
        logits = vocabulary.logits(x)
        moved, new = advance(slots, logits, stops, settings, forced)
        put = lambda all_steps, one: all_steps.at[number].set(one)
        sums, ran = jax.tree.map(put, (sums, ran), (new, slots.active))
        return number + 1, cache, *sampling.replicated((moved, sums, ran))

    def goes_on(carry):
        number, _, slots, _, _ = carry
        worth = (number == 0) | (slots.active.sum() > enough)
        return (number < steps) & worth

    kinds = LogitSums(jnp.int32, *[jnp.float32] * 4)
    slots = state.slots if forced is None else resumed(state.slots, forced)
    begin = sampling.replicated(
        (
            slots._replace(active=slots.active & active),
            jax.tree.map(lambda kind: jnp.zeros((CHUNK, count), kind), kinds),
            jnp.zeros((CHUNK, count), bool),
        )
    )
    _, cache, slots, sums, ran = jax.lax.while_loop(
        goes_on, step, (jnp.int32(0), state.cache, *begin)
    )
    slots, sums, ran = sampling.replicated((slots, sums, ran))
    return state._replace(cache=cache, slots=slots), sums, ran


def _run_layers(
    params: Params,
    config: ModelConfig,
    caches: tuple[Any, ...],
    x: jax.Array,
    positions: jax.Array,
    attend: Callable[..., tuple[Any, Any]],
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Hidden states behind all layers, not normalised, and their caches.

    attend is (kind, cache, number of the layer in it, q, k, v) ->
    (state, cache).
    """

    def run(weights, at, x, cache, layer):
        """Layer `at` of the model, `layer` of its cache."""
        here = lambda kind, cache, *qkv: attend(kind, cache, layer, *qkv)
        block = Block(config, config.kind(at), weights)
        return block(x, positions, here, cache)

    layers = params["layers"]
    if not isinstance(layers, Stacked):
        kept = []
        for at, (weights, cache) in enumerate(zip(layers, caches, strict=True)):
            x, cache = run(weights, at, x, cache, jnp.int32(0))
            kept.append(cache)
        return x, tuple(kept)

    def rounds(carry, one):
        """Of a period of two, layers 0 and 1, then 2 and 3, ..."""
        x, cache = carry
        places, first = one
        for at, weights in enumerate(places):
            x, cache = run(weights, at, x, cache, first + at)
        return (x, cache), None

    (cache,) = caches
    period = len(layers.places)
    whole = config.num_hidden_layers - len(layers.rest)
    first = jnp.arange(0, whole, period, dtype=jnp.int32)
    (x, cache), _ = jax.lax.scan(rounds, (x, cache), (layers.places, first))
    for at, weights in enumerate(layers.rest, whole):
        x, cache = run(weights, at, x, cache, jnp.int32(at))
    return x, (cache,)
