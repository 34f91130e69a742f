"""Memory: what is predicted against what is taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.inference import Engine, memory, sampling
from dynscaling_jax.inference.grouped import (
    layout,
    pages,
    prefill,
    runner,
)
from dynscaling_jax.inference.grouped.cache import View
from dynscaling_jax.inference.grouped.pages import Pages
from dynscaling_jax.inference.memory import Memory, Size
from dynscaling_jax.inference.slots import Slots
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import ModelConfig

SHAPES = {
    "large vocabulary": {"vocab_size": 9_000, "intermediate_size": 96},
    "wide": {"vocab_size": 300, "intermediate_size": 2_000},
    "one key head": {
        "vocab_size": 500,
        "intermediate_size": 200,
        "num_key_value_heads": 1,
    },
}
SIZES = (Size(4, 8, 128, 64), Size(16, 1, 512, 32))


def config_of(vocab_size, intermediate_size, num_key_value_heads=2):
    shape = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": 16,
    }
    return ModelConfig(
        "llama",
        vocab_size,
        num_hidden_layers=2,
        intermediate_size=intermediate_size,
        max_position_embeddings=1024,
        **shape,
    )


def nbytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("size", SIZES)
def test_pages_are_no_larger_than_predicted(size):
    """From the first chunk of samples to the last, with the old and the new
    pages of one layer beside each other where they become longer."""
    config = config_of(**SHAPES["wide"])
    token = memory.token_bytes(config, 2)

    def held(*of):
        return token * sum(
            len(one.narrow) * one.width + len(one.wide) * pages.WIDE
            for one in of
        )

    prompts, _ = pages.settle(
        Pages(), dict.fromkeys(range(size.groups), size.prefix)
    )
    now, taken = Pages(width=layout.SHORTEST_SUFFIX), []
    for count in range(16, size.suffix + 1, 16):
        lengths = dict.fromkeys(range(size.slots), count)
        old = now
        now, done = pages.settle(
            old, lengths, layout.SHORTEST_SUFFIX, size.slots
        )
        beside = held(old) // config.num_hidden_layers if done else 0
        taken.append(held(prompts, now) + beside)
    logits = size.groups * config.vocab_size * 4
    predicted = memory.predicted(config, size, 7, 2, 11)
    assert predicted[:2] == (7, 11)
    assert predicted.working == memory.working(config, size)
    most = max(taken) + logits
    assert most <= predicted.state <= 1.6 * most


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_compiled_functions_take_no_more_than_predicted(fields, size):
    config = config_of(**fields)
    params = jax.eval_shape(
        functools.partial(transformer.init_params, config=config),
        jax.random.key(0),
    )
    layer, kind = params["layers"][0], config.kind(0)
    hidden = lambda count: jax.ShapeDtypeStruct((count, 64), jnp.float32)
    stops = jax.ShapeDtypeStruct((8,), jnp.int32)
    settings = jax.eval_shape(sampling.settings)
    count = size.slots
    slots = jax.eval_shape(lambda: Slots.idle(count))
    index, pools = [], []
    groups = {
        g: [*range(g * size.per_group, (g + 1) * size.per_group)]
        for g in range(size.groups)
    }
    for readers, length, lanes in (
        (groups, size.prefix, size.per_group),
        ({slot: [slot] for slot in range(count)}, size.suffix, 1),
    ):
        lengths = dict.fromkeys(readers, length)
        held, _ = pages.settle(Pages(), lengths)
        index.append(
            pages.index(held, readers, lanes, count, pages.blocks(lengths))
        )
        pools.append(
            tuple(
                (
                    jax.ShapeDtypeStruct((len(own), heads, 16, width), "f4"),
                    jax.ShapeDtypeStruct((len(own), heads, width, 16), "f4"),
                )
                for own, width in (
                    (held.narrow, held.width),
                    (held.wide, pages.WIDE),
                )
                for heads in [config.num_key_value_heads]
            )
        )
    view = View(np.zeros(count, np.int32), *index)
    taken = [
        lowered.compile().memory_analysis().temp_size_in_bytes
        for lowered in (
            runner._layer.lower(
                layer, config, kind, hidden(count), view, slots.count, *pools
            ),
            runner._sample.lower(
                transformer.without_layers(params),
                config,
                hidden(count),
                slots,
                stops,
                settings,
            ),
            prefill._prefill_layer.lower(
                layer, config, kind, hidden(size.prefix)
            ),
        )
    ]
    assert max(taken) <= memory.working(config, size) <= 8 * max(taken)


def test_the_most_groups_by_hand():
    """Weights of 100, prompts of 10; each group takes 20 and works with 3."""
    predict = lambda groups: Memory(100, 10, 20 * groups, 3 * groups)
    assert memory.most_groups(8, 110 + 8 * 23, predict) == 8
    assert memory.most_groups(8, 110 + 8 * 23 - 1, predict) == 4
    assert memory.most_groups(8, 1e9, predict) == memory.MOST_SLOTS // 8
    with pytest.raises(ValueError, match="one group of 8 slots takes 1.33e"):
        memory.most_groups(8, 132, predict)


PAGED = config_of(300, 200)  # a token: 2 x 2 layers x 2 heads x 16 numbers
TOKEN = 128


def test_the_slots_and_pages_by_hand():
    """Tokens of 128 x 2 bytes, pages of 128; a slot of 392 on average, in a
    pool that is full to 7/8: 448. 35 pages are 4,480 tokens, ten slots."""
    page, lengths = 128 * TOKEN * 2, memory.Lengths(256, 1000, 392)
    working = memory.paged_working(PAGED, 10, 35)
    needed = 1000 + 35 * page + 10 * 300 * 4 + working
    found = memory.paged(PAGED, 2, 1000, needed, lengths)
    assert found == (10, 35, (1000, 35 * page, 10 * 300 * 4, working))
    assert found.memory.total == needed
    less = memory.paged(PAGED, 2, 1000, needed - 1, lengths)
    assert (less.slots, less.pages) == (9, 34)
    # without live, a sample of 1,000 after 256 is half done at 756
    half = memory.paged(PAGED, 2, 1000, needed, lengths._replace(live=0))
    assert half.slots == 35 * 128 // 756


def test_a_pool_takes_what_is_there_up_to_the_context_of_its_slots():
    """And one page, to which that of a lone slot's prompt is copied."""
    lengths = memory.Lengths(100, 156, 128)  # two pages, of a context of 8
    found = memory.paged(PAGED, 2, 0, 1e12, lengths, slots=3)
    assert (found.slots, found.pages) == (3, 24 + 1)
    found = memory.paged(PAGED, 2, 0, 1e15, lengths)
    assert (found.slots, found.pages) == (1024, 8 * 1024 + 1)
    nine = 9 * 128 * TOKEN * 2 + 3 * 300 * 4 + memory.paged_working(PAGED, 3, 9)
    assert memory.paged(PAGED, 2, 0, nine, lengths, slots=3).pages == 9
    assert memory.paged(PAGED, 2, 0, nine - 1, lengths, slots=3).pages == 8


def test_a_pool_holds_the_longest_sample():
    """However short samples are on average, one may come to 1,256 tokens."""
    lengths = memory.Lengths(256, 1000, 300)
    page = 128 * TOKEN * 2
    one = memory.paged(PAGED, 2, 0, 1e12, lengths, slots=1).memory
    assert one.pool == (10 + 1) * page
    # ten pages have room for three such slots, and so three rows of logits
    working = memory.paged_working(PAGED, 3, 10)
    least = 10 * page + 3 * one.logits + working
    assert memory.paged(PAGED, 2, 0, least, lengths).pages == 10
    with pytest.raises(ValueError, match="one sample of 1256 tokens takes"):
        memory.paged(PAGED, 2, 0, least - 1, lengths)


def test_keys_in_int8_take_half_and_their_scales():
    assert memory.paged_token_bytes(PAGED, 2) == 2 * TOKEN
    assert memory.paged_token_bytes(PAGED, 4) == 4 * TOKEN
    assert memory.paged_token_bytes(PAGED, 2, "int8") == TOKEN * (16 + 4) / 16


def test_an_engine_takes_the_slots_that_memory_holds(tiny, monkeypatch):
    """The samples are those of any other number of slots."""
    prompts = ["one", "two", "three"]
    model = tiny(num_hidden_layers=1)
    settings = {"max_new_tokens": 12, "slots_per_group": 8}
    expected = Engine(model, slots=16, **settings).generate(prompts, n=16)
    counts = []
    decode = runner.decode

    def noted(params, config, state, *more):
        counts.append(len(state.slots.count))
        return decode(params, config, state, *more)

    monkeypatch.setattr(runner, "decode", noted)
    engine = Engine(model, slots=None, prefix_bytes=1e6, **settings)
    least = engine_memory(engine, groups=1)
    for bytes_there, most in ((10 * least, 64), (1.01 * least, 8)):
        monkeypatch.setattr(
            memory, "available", lambda there=bytes_there: there
        )
        assert engine.generate(prompts, n=16) == expected
        assert 8 <= max(counts) <= most
        counts.clear()
    monkeypatch.setattr(memory, "available", lambda: 0.9 * least)
    with pytest.raises(ValueError, match="one group of 8 slots takes"):
        engine.generate(prompts, n=16)


def engine_memory(engine, groups):
    weights = nbytes(engine.model.params)
    size = Size(groups, 8, 128, 32)
    return memory.predicted(
        engine.model.config, size, weights, 4, int(1e6)
    ).total


def test_there_is_memory():
    assert memory.available() > 1e8
    assert np.isfinite(memory.available())
