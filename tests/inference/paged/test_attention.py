"""Back ends of paged attention against a dense softmax written here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
    ref_ragged_paged_attention,
)

from dynscaling_jax.inference.paged.attention import (
    Layout,
    gpu,
    pallas,
    select,
    sharded,
    tpu,
    views,
    xla,
)
from dynscaling_jax.inference.paged.attention import states as softmax_states
from dynscaling_jax.inference.paged.turn import Chunk
from dynscaling_jax.inference.slot import Prompt
from dynscaling_jax.models import attention
from dynscaling_jax.models.config import Kind, ModelConfig

W = 8  # positions of a page
LAYOUT = Layout(parts=2, slots=8, pages=23, page=W, keys="float32", longest=5)
ONE_PART = Layout(
    parts=1, slots=20, pages=64, page=W, keys="float32", longest=5
)
T = 12  # tokens of a chunk: no multiple of W


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Several blocks of each loop, the last ones not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "BLOCK", 5)
        patch.setattr(softmax_states, "SHARED_BLOCK", 2)
        patch.setattr(softmax_states, "PREFILL_BLOCK", 2)
        patch.setattr(views, "LANES", 4)
        patch.setattr(pallas, "MOST_PAGES", 2)
        yield


def model(heads, kv_heads, dim, **fields):
    return ModelConfig(
        family="llama",
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        intermediate_size=8,
        max_position_embeddings=512,
        **fields,
    )


# name: (heads, key heads, head_dim, window, other fields)
CASES = {
    "grouped": (4, 2, 16, 0, {}),
    "one_key_head": (5, 1, 8, 0, {}),
    "a_key_head_each": (3, 3, 64, 0, {}),
    "window": (4, 2, 16, 11, {}),
    "window_of_a_token": (2, 2, 8, 1, {}),
    "wide_window": (2, 1, 8, 30, {}),
    "cap": (4, 2, 16, 0, {"attn_logit_softcapping": 2.0}),
    "scalar_and_window": (2, 1, 256, 9, {"query_pre_attn_scalar": 30.0}),
    "sinks": (8, 1, 64, 10, {"sinks": True}),
    # features behind positions, also in int8; queries that a kernel pads
    "of_128": (20, 2, 128, 0, {}),
}


class Sequence:
    """Keys, values and queries of one slot, by position."""

    def __init__(self, random, config, tokens, dtype):
        heads, dim = config.num_attention_heads, config.head_dim
        kv_heads = config.num_key_value_heads
        draw = lambda *shape: np.array(
            jnp.asarray(random.standard_normal(shape), dtype).astype("f")
        )
        self.q = draw(tokens, heads, dim)
        self.k, self.v = draw(2, tokens, kv_heads, dim)


def dense(config, window, sinks, q, k, v, position):
    """Attention of one query [H, D] over k, v [P, K, D], in float64."""
    rep = config.num_attention_heads // config.num_key_value_heads
    scale = (config.query_pre_attn_scalar or config.head_dim) ** -0.5
    k, v = (np.repeat(x[: position + 1], rep, 1) for x in (k, v))
    scores = scale * np.einsum("hd,phd->hp", q.astype(float), k.astype(float))
    if cap := config.attn_logit_softcapping:
        scores = cap * np.tanh(scores / cap)
    at = np.arange(position + 1)
    if window:
        scores[:, at <= position - window] = -np.inf
    if sinks is not None:
        scores = np.concatenate([scores, sinks[:, None]], 1)
        v = np.concatenate([v, np.zeros_like(v[:1])])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("hp,phd->hd", weights, v.astype(float))


@st.composite
def states(draw, layout):
    """(seed, for each part: (shared pages, slots that share them), for each
    slot: (tokens with keys, active))."""
    per_part = layout.slots // layout.parts
    room = layout.pages // per_part
    longest = min(layout.longest, room) * W - 2
    slots = [
        (draw(st.integers(0, longest)), draw(st.booleans()))
        for _ in range(layout.slots)
    ]
    shared = [
        (
            draw(st.integers(0, 2)),
            draw(st.sets(st.integers(0, per_part - 1))),
        )
        for _ in range(layout.parts)
    ]
    return draw(st.integers(0, 2**32 - 1)), shared, slots


def laid_out(layout, state, random):
    """Tables and shared counts, of pages in a random order."""
    per_part = layout.slots // layout.parts
    tables, counts = [], []
    for part, (pages, sharers) in enumerate(state[1]):
        free = [int(page) for page in random.permutation(layout.pages)]
        common = [free.pop() for _ in range(pages)]
        for slot in range(per_part):
            tokens, _ = state[2][part * per_part + slot]
            head = common if slot in sharers and tokens >= pages * W else []
            own = (tokens + 2 + W - 1) // W - len(head)
            tables.append([*head, *(free.pop() for _ in range(own))])
            counts.append(len(head))
    return tables, counts


@functools.lru_cache
def jitted(backend, config, kind):
    """prefill and decode; the kernel's reference runs outside of jit."""
    jit = functools.partial(jax.jit, donate_argnums=0)
    if backend.name == "tpu":
        jit = lambda f: f

    def decode(cache, number, view, position, active, *qkv):
        seen = sharded.step(backend, config, cache, view, position, active)
        return sharded.decode(
            backend, kind, config, cache, number, seen, position, active, *qkv
        )

    prefill = functools.partial(sharded.prefill, backend, kind, config)
    return jit(prefill), jit(decode)


def rounded(x):
    """What int8 and a scale for each vector leave of it."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    return np.round(x / scale) * scale


def check(backend, config, window, layout, state, dtype, bound, exact=True):
    """Prefills the slots of a state, then takes two steps with all."""
    seed, _, slots = state
    random = np.random.RandomState(seed)
    kind = Kind(window, 10_000.0, None)
    prefill, decode = jitted(backend, config, kind)
    sinks = None
    if config.sinks:
        sinks = random.standard_normal(config.num_attention_heads)
    tables, counts = laid_out(layout, state, random)
    sequences = [
        Sequence(random, config, tokens + 2, dtype) for tokens, _ in slots
    ]
    per_part = layout.slots // layout.parts
    for part in range(layout.parts):  # what is shared is the same
        own = range(part * per_part, (part + 1) * per_part)
        sharers = [slot for slot in own if counts[slot]]
        for slot in sharers[1:]:
            for name in ("k", "v"):
                head = getattr(sequences[sharers[0]], name)
                same = counts[slot] * W
                getattr(sequences[slot], name)[:same] = head[:same]
    # what is not written yet is large, and must not be seen
    cache = tuple(
        jnp.full((2, *shape), 99 if dtype == "int8" else 30, dtype)
        for shape, dtype, _ in backend.init(config, layout, dtype)
    )
    number = jnp.int32(1)
    output = lambda state: np.asarray(
        attention.output(state, None if sinks is None else jnp.asarray(sinks))
    )
    expected = lambda slot, at: dense(
        config,
        window,
        sinks,
        *(getattr(sequences[slot], name)[at] for name in "q"),
        kept(sequences[slot].k),
        kept(sequences[slot].v),
        at,
    )
    kept = rounded if layout.keys == "int8" and exact else lambda x: x
    cast = lambda x: jnp.asarray(x, dtype)
    written = set()
    for first in range(per_part):  # one slot of each part at a time
        todo = {part: part * per_part + first for part in range(layout.parts)}
        begun = {
            part: counts[slot] * W if (part, counts[slot] > 0) in written else 0
            for part, slot in todo.items()
        }
        written |= {(part, True) for part, s in todo.items() if counts[s]}
        while True:
            chunks = [
                Chunk(
                    part,
                    Prompt((), (), 0),
                    begun[part],
                    min(begun[part] + T, slots[slot][0]),
                    tuple(tables[slot]),
                    0,
                )
                for part, slot in todo.items()
                if begun[part] < slots[slot][0]
            ]
            if not chunks:
                break
            view = backend.chunk_view(layout, chunks)
            rows = {name: [] for name in "qkv"}
            for part, slot in todo.items():
                for name, x in rows.items():
                    values = getattr(sequences[slot], name)
                    at = slice(begun[part], begun[part] + T)
                    part_of = np.full((T, *values.shape[1:]), 7.0, "f")
                    there = values[: slots[slot][0]][at]
                    part_of[: len(there)] = there
                    x.append(part_of)
            arrays = [cast(np.concatenate(x)) for x in rows.values()]
            state, cache = prefill(cache, number, view, *arrays)
            seen = output(state)
            assert np.isfinite(seen).all()
            for chunk in chunks:
                slot = todo[chunk.part]
                for at in range(chunk.start, chunk.end):
                    close(
                        seen[chunk.part * T + at - chunk.start],
                        expected(slot, at),
                        bound,
                    )
                begun[chunk.part] = chunk.end
    view = backend.view(layout, tables, counts)
    active = jnp.asarray([active for _, active in slots])
    for step in range(2):
        position = np.array([tokens for tokens, _ in slots], np.int32) + step
        arrays = [
            cast(
                np.stack(
                    [
                        getattr(sequences[slot], name)[position[slot]]
                        for slot in range(layout.slots)
                    ]
                )
            )
            for name in "qkv"
        ]
        state, cache = decode(
            cache, number, view, jnp.asarray(position), active, *arrays
        )
        seen = output(state)
        assert np.isfinite(seen).all()
        for slot, (_, goes_on) in enumerate(slots):
            if goes_on:
                close(seen[slot], expected(slot, position[slot]), bound)
    for x in cache:  # the other layer
        assert (x[0] == x[0].reshape(-1)[0]).all()


def close(seen, expected, bound):
    np.testing.assert_allclose(
        seen, expected, rtol=0, atol=bound * np.abs(expected).max()
    )


def config_of(case):
    heads, kv_heads, dim, window, fields = CASES[case]
    fields = {**fields, "sliding_window": window}
    return model(heads, kv_heads, dim, **fields), window


def as_rows(*arrays):
    """cuDNN's arguments for XLA's own attention, which stands in for it."""
    *qkv, count, scale, causal = arrays
    mean, log = jax.nn.dot_product_attention(
        *(x.astype(jnp.float32) for x in qkv),
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=count,
        implementation="xla",
        return_residual=True,
    )
    return mean.astype(qkv[0].dtype), log


def plain(q, *arrays, num_kv_pages_per_block, num_queries_per_block, **others):
    """The kernel's reference; rows of no sequence are what they may be."""
    assert 0 < num_kv_pages_per_block <= arrays[2].shape[1]
    assert num_queries_per_block > 0
    seen = ref_ragged_paged_attention(q, *arrays, **others)
    unset = [(0, len(q) - len(seen)), (0, 0), (0, 0)]
    return jnp.pad(seen, unset, constant_values=jnp.nan)


BACKENDS = {
    "xla": xla.backend(),
    "gpu": gpu.backend(as_rows),
    "tpu": tpu.backend(plain),
    "pallas": pallas.backend(interpret=True),
}


SHARING = (
    1,
    [(2, {0, 1, 3}), (1, {1, 2})],
    [(17, True), (21, True), (9, False), (16, True), *[(11, True)] * 4],
)


@pytest.mark.parametrize("name", ["xla", "pallas"])
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=3, deadline=None)
@given(state=states(LAYOUT))
@example(state=SHARING)
def test_in_float32(name, case, state):
    config, window = config_of(case)
    check(BACKENDS[name], config, window, LAYOUT, state, "float32", 1e-5)


@pytest.mark.parametrize(
    "case", ["grouped", "one_key_head", "window", "sinks", "wide_window"]
)
@settings(max_examples=3, deadline=None)
@given(state=states(LAYOUT))
@example(state=SHARING)
def test_gpu_in_float32(case, state):
    config, window = config_of(case)
    check(BACKENDS["gpu"], config, window, LAYOUT, state, "float32", 1e-5)


@pytest.mark.parametrize("case", ["grouped", "window", "cap"])
def test_tpu_in_float32(case):
    """Its reference runs operation by operation: one state, not many."""
    config, window = config_of(case)
    slots = [(13, True), (9, True), (0, True), (21, False)]
    state = 0, [(1, {0, 1}), (0, set())], slots
    layout = LAYOUT._replace(slots=4)
    check(BACKENDS["tpu"], config, window, layout, state, "float32", 1e-5)


@pytest.mark.parametrize("case", ["grouped", "window"])
def test_pallas_takes_slots_in_turn(case, monkeypatch):
    """Where the pages of all have no room in the scalar memory."""
    # of two slots, or of three; a part has four
    monkeypatch.setattr(pallas, "SCALARS", 30)
    fresh = pallas.backend(interpret=True)  # not what was compiled before
    config, window = config_of(case)
    check(fresh, config, window, LAYOUT, SHARING, "float32", 1e-5)


def test_blocks_of_the_kernel():
    """Slots with three, one, no and two pages, in blocks of two."""
    table = jnp.array([[7, 3, 5, 0], [2, 0, 0, 0], [1, 4, 6, 0], [8, 9, 0, 0]])
    length = jnp.array([2 * W + 1, W, 0, W + 1])
    found = pallas.listed(table, length, 0, W, 2)
    assert found.count == 5
    assert found.slot[:5].tolist() == [0, 0, 1, 2, 3]
    assert found.start[:5].tolist() == [0, 2 * W, 0, 0, 0]
    pages = found.page.reshape(-1, 2)[:5]
    # behind a last page stands what the block before has there
    assert pages.tolist() == [[7, 3], [5, 3], [2, 3], [1, 3], [8, 9]]
    # a window of W + 2 meets the last two pages, or three
    found = pallas.listed(table, length, W + 2, W, 2)
    assert found.count == 5
    assert found.start[:5].tolist() == [0, 2 * W, 0, 0, 0]
    length = jnp.array([3 * W, W, 0, W + 1])
    found = pallas.listed(table, length, W + 2, W, 2)
    assert found.count == 4
    assert found.start[:4].tolist() == [W, 0, 0, 0]
    assert found.page.reshape(-1, 2)[:4].tolist() == [
        [3, 5],
        [2, 5],
        [1, 5],
        [8, 9],
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 9 * W), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(0, 3 * W),
)
def test_the_kernel_copies_each_page_once(lengths, at_once, window):
    """A page is copied where a place of a block names another than before."""
    table = np.arange(len(lengths) * 9).reshape(-1, 9)
    at_once = min(at_once, pallas.most_seen(window, W, 9))
    found = pallas.listed(
        jnp.asarray(table), jnp.asarray(lengths), window, W, at_once
    )
    pages = np.asarray(found.page).reshape(-1, at_once)[: int(found.count)]
    changes = pages[1:] != pages[:-1]
    copied = [*pages[0], *pages[1:][changes]]
    first = [max(n - window, 0) // W if window else 0 for n in lengths]
    seen = [
        page
        for own, n, begin in zip(table, lengths, first, strict=True)
        for page in own[begin : max(-(-n // W), 1)]
    ]
    # the first block has none before it: places that it has no page for hold
    # whatever the table has there, one page each
    assert len(copied) <= len(seen) + at_once - 1
    assert {*seen} <= {*copied}


def test_which_backend_serves_a_model():
    def serve(config, keys="bfloat16", split=1):
        layout = LAYOUT._replace(keys=keys)
        return select.select("auto", "tpu", config, layout, split).name

    qwen, gpt_oss = model(32, 8, 128), model(64, 8, 64, sinks=True)
    odd = model(4, 2, 80)
    assert serve(qwen) == "tpu"
    assert serve(gpt_oss) == "pallas"
    assert serve(qwen, keys="int8") == "pallas"
    assert serve(model(8, 4, 256)) == "pallas"
    assert serve(model(6, 3, 128)) == "pallas"
    assert serve(odd) == "xla"
    assert serve(gpt_oss, split=16) == "xla"
    huge = LAYOUT._replace(page=128, keys="bfloat16")
    why = select.BACKENDS["pallas"]().refuses(model(64, 64, 256), huge, 1)
    assert why == "a page of keys takes 4194304 bytes, over 2097152"
    with pytest.raises(ValueError, match="pallas needs a TPU, and these"):
        select.select("pallas", "cpu", gpt_oss, LAYOUT, 1)
    with pytest.raises(ValueError, match="pallas cannot serve this .* of 64"):
        select.select("pallas", "tpu", odd, LAYOUT, 1)


@pytest.mark.parametrize("name", ["xla", "gpu", "pallas"])
@settings(max_examples=3, deadline=None)
@given(state=states(LAYOUT))
def test_bfloat16(name, state):
    config, window = config_of("window")
    check(BACKENDS[name], config, window, LAYOUT, state, "bfloat16", 2e-2)


@pytest.mark.parametrize("name", ["xla", "pallas"])
@pytest.mark.parametrize("case", ["grouped", "scalar_and_window", "of_128"])
@settings(max_examples=3, deadline=None)
@given(state=states(LAYOUT))
def test_int8_attends_to_what_it_keeps(name, case, state):
    """Where XLA divides otherwise than NumPy, an entry is a unit off."""
    config, window = config_of(case)
    layout = LAYOUT._replace(keys="int8")
    check(BACKENDS[name], config, window, layout, state, "float32", 1e-2)


NEAR = (210, [(0, set())] * 2, [(n, False) for n in (0, 0, 2, 38, 25, 0, 0, 0)])


@settings(max_examples=3, deadline=None)
@given(state=states(LAYOUT))
@example(state=NEAR)
def test_int8_is_near_the_whole(state):
    """An entry is off by a 254th of the largest of its vector at most.

    Scores add up 16 of them: an output of NEAR is off by 3% of the largest.
    """
    config, window = config_of("grouped")
    layout = LAYOUT._replace(keys="int8")
    check(
        BACKENDS["xla"], config, window, layout, state, "float32", 6e-2, False
    )


@pytest.mark.parametrize("name", ["xla", "gpu"])
def test_many_slots_share(name):
    """More slots read a page than are read at a time, one of them alone."""
    config, window = config_of("grouped")
    slots = [(8 + slot, slot % 5 > 0) for slot in range(13)]
    slots += [(slot, True) for slot in range(7)]
    state = 0, [(1, {*range(13)})], slots
    check(BACKENDS[name], config, window, ONE_PART, state, "float32", 1e-5)
