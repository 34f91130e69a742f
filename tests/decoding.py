"""Decoding in groups, step by step: a token is given, not sampled."""

from collections.abc import Sequence

import jax
import numpy as np

from dynscaling_jax.inference.grouped import cache, layout, pages, runner
from dynscaling_jax.inference.grouped.cache import State, View
from dynscaling_jax.inference.grouped.pages import Pages
from dynscaling_jax.inference.grouped.prefill import Prefix
from dynscaling_jax.inference.slots import Slots
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params


def state_of(
    config: ModelConfig, prefixes: Sequence[Prefix], per: int, new: int
) -> State:
    """Makes a state of `per` slots for each prompt, with `new` positions."""
    count = per * len(prefixes)
    dtype = prefixes[0].logits.dtype
    lengths = {group: int(p.length) for group, p in enumerate(prefixes)}
    prompts, done = pages.settle(Pages(), lengths)
    layers = [*cache.empty(config, dtype)]
    cache.apply(layers, done)
    for wide, page, block in pages.fresh(Pages(), prompts):
        start = block.number * pages.WIDE
        keys = prefixes[block.owner].layers
        cache.insert(layers, keys, wide, page, start)
    written = dict.fromkeys(range(count), new)
    least = layout.SHORTEST_SUFFIX
    completions, done = pages.settle(
        Pages(width=least), written, least, whole=count
    )
    suffix = [*cache.empty(config, dtype)]
    cache.apply(suffix, done)
    groups = {g: [*range(g * per, g * per + per)] for g in lengths}
    view = View(
        np.repeat([*lengths.values()], per).astype("i4"),
        pages.index(prompts, groups, per, count, pages.blocks(lengths)),
        pages.index(
            completions,
            {slot: [slot] for slot in written},
            1,
            count,
            pages.blocks(written),
        ),
    )
    return State(
        tuple(layers), tuple(suffix), jax.device_put(view), Slots.idle(count)
    )


def read_token(
    params: Params, config: ModelConfig, state: State, token: jax.Array
) -> tuple[jax.Array, State]:
    """Logits float32 [GR, V] after a token int32 [GR] of each slot, and the
    state with one more token a slot; the old one is donated."""
    x, suffix = runner._run_layers(params, config, state, token)
    slots = state.slots._replace(count=state.slots.count + 1)
    state = state._replace(suffix=suffix, slots=slots)
    return transformer.Decoder(config, params).logits(x), state
