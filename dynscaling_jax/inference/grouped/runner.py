"""The jitted functions of decoding: start slots, take a chunk of steps.

A step is a host loop over the layers, with one compiled function for each kind
of layer. A call takes some 50 microseconds, which pass while the layer before
is computed. A new number of slots or length of prefix then compiles in about
two seconds, where a whole decoder takes five to eight.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Int32

from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.grouped import cache, prefill
from dynscaling_jax.inference.grouped.cache import Pools, State
from dynscaling_jax.inference.grouped.layout import CHUNK
from dynscaling_jax.inference.sampling import ScoredToken, Settings
from dynscaling_jax.inference.slots import (
    Forced,
    Slots,
    advance,
    begin,
    resumed,
)
from dynscaling_jax.models import attention, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.transformer import Block, Vocabulary


class Chunk(NamedTuple):
    """The tokens of C steps; a slot's tokens count while it is active."""

    tokens: ScoredToken  # numpy, each [C, GR]
    active: Bool[np.ndarray, "C GR"]


# It sees no keys, so one compilation serves prompts of every length.
start = jax.jit(begin, donate_argnums=0)


def decode(
    params: Params,
    config: ModelConfig,
    state: State,
    active: Bool[np.ndarray, " GR"],
    stops: Int32[ArrayLike, " stops"],
    settings: Settings,
    steps: int = CHUNK,
    enough: int = 0,
    forced: Forced | None = None,
) -> tuple[State, Chunk]:
    """Takes up to `steps` steps, CHUNK at most, with all slots.

    It stops early when no more than `enough` slots are active. The state is
    donated. active says which slots have samples for the host, which ends some
    that the device does not: at a stop string, or when a call is left.

    Three slots, of which slot 1 samples a stop id in step 0 and slot
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
    slots = _kept(state.slots, active)
    if forced is not None:
        forced = jax.device_put(forced)
        slots = _resumed(slots, forced)
    state = state._replace(slots=slots)
    chunk = []
    for _ in range(steps):
        x, suffix = _run_layers(params, config, state, state.slots.token)
        before = state.slots.active
        slots, sums = _sample(
            top, config, x, state.slots, stops, settings, forced
        )
        state = state._replace(suffix=suffix, slots=slots)
        chunk.append((sums, before))
        if len(chunk) > 1 and np.asarray(chunk[-2][1]).sum() <= enough:
            break
    sums, before = jax.tree.map(lambda *each: np.stack(each), *chunk)
    return state, Chunk(sampling.score(sums, config.vocab_size), before)


def _run_layers(
    params: Params, config: ModelConfig, state: State, token: jax.Array
) -> tuple[jax.Array, tuple[Pools, ...]]:
    """Hidden states behind all layers, not normalised, and the new suffix."""
    x = prefill.embed(transformer.without_layers(params), config, token)
    layers = []
    for number, layer in enumerate(params["layers"]):
        x, kv = _layer(
            layer,
            config,
            config.kind(number),
            x,
            state.view,
            state.slots.count,
            state.prefix[number],
            state.suffix[number],
        )
        layers.append(kv)
    return x, tuple(layers)


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=7)
def _layer(layer, config, kind, x, view, count, prefix, suffix):
    """One layer; positions as in the worked example of grouped.cache."""
    position = count - 1  # in the completion, of the token that is read
    attend = functools.partial(_attend, config, view, position)
    block = Block(config, kind, layer)
    return block(x, view.ahead + position, attend, (prefix, suffix))


def _attend(config, view, position, kind, kv, q, k, v):
    """Attends to the prompt and to the completion of each slot."""
    prefix, suffix = kv
    batch, heads, dim = q.shape
    q = attention.scaled(q, config)
    suffix = cache.write(suffix, k, v, position, view.suffix.table)
    own = q.reshape(batch, k.shape[1], -1, dim)
    backend, ahead, window = attention.backend(config), view.ahead, kind.window
    merged = attention.merge(
        cache.attend(
            backend,
            own,
            prefix,
            view.prefix,
            ahead,
            ahead + position,
            window,
            twice=True,
        ),
        cache.attend(
            backend, own, suffix, view.suffix, position + 1, position, window
        ),
    )
    return jax.tree.map(lambda x: x.reshape(batch, heads, -1), merged), suffix


@functools.partial(jax.jit, static_argnums=1)
def _sample(top, config, hidden, slots, stops, settings, forced=None):
    """Samples a token for each slot."""
    logits = Vocabulary(config, top).logits(hidden)
    return advance(slots, logits, stops, settings, forced)


_resumed = jax.jit(resumed)


@jax.jit
def _kept(slots, active):
    return slots._replace(active=slots.active & active)


def take(
    slots: Slots, index: Int32[np.ndarray, " n"], active: Bool[np.ndarray, " n"]
) -> Slots:
    """Rearranges slots alone; those that are not active may repeat others."""
    return _kept(_take(slots, index), active)


@jax.jit
def _take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)
