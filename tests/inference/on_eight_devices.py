"""What test_mesh.py runs in a process of its own, with eight devices."""

import copy
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.checkpoints import Model, export, load_model
from dynscaling_jax.inference import Engine, memory, mesh, sampling
from dynscaling_jax.inference.paged import runner
from dynscaling_jax.inference.paged.attention import Layout, pallas, xla
from dynscaling_jax.inference.paged.turn import Chunk
from dynscaling_jax.inference.slot import Prompt
from dynscaling_jax.models import stacked, transformer
from dynscaling_jax.models.config import FULL, SLIDING, ModelConfig
from dynscaling_jax.models.parameters import parameters, tree
from dynscaling_jax.models.sharding import param_sharding, put
from dynscaling_jax.types import Message, Query, Request

MESHES = ("8x1", "1x8", "2x4")
BOUND = 2e-5  # of what is measured of a token, in nats, on any mesh
SHAPES = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "grouped": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },  # held whole by 4 and by 8
    "num_experts": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
}
SETTINGS = {"slots": 16, "max_new_tokens": 9}
FUNCTIONS = (runner.prefill_chunk, runner.start, runner.decode_chunk)


def mapped(function, tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(export.steps(path), leaf),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def placed(model: Model, text: str) -> Model:
    on = mesh.build(text)
    if on is None:
        return model
    described = parameters(model.config)
    spread = lambda path, leaf: put(on, model.config, described[path], leaf)
    params = mapped(spread, model.params)
    return Model(model.config, params, lambda: model.tokenizer)


def queries() -> list[Query]:
    return [Query(f"{n}", (Message("user", "x" * n),)) for n in (3, 40, 60)]


def sampled(engine, work: list[Request]) -> dict:
    """(query id, index) -> (prompt ids, ScoredToken [T])."""
    assert len(list(engine.sample(work))) == len(work)
    return engine.recorded


def assert_equal(one: dict, other: dict) -> None:
    """Tokens, and the measures of each to BOUND."""
    assert one.keys() == other.keys()
    for name, (_, tokens) in one.items():
        _, found = other[name]
        np.testing.assert_array_equal(tokens.token, found.token)
        for a, b in zip(tokens[1:], found[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=BOUND)


@pytest.mark.parametrize("name", SHAPES)
def test_samples_are_those_of_one_device(tiny, recording_engine, name):
    """Greedy ones and random ones; a mesh of one device is none, and decodes
    in groups. No function is compiled twice: slots once came back from `start`
    spread over devices, where they had gone in known to all."""
    assert mesh.build("1x1") is None
    model = tiny(vocab_size=264, eos_token_id=(258, 11, 50), **SHAPES[name])
    work = [Request(q, q.messages, i) for q in queries() for i in range(7)]
    expected = {}
    for text in ("1x1", *MESHES):
        before = [function._cache_size() for function in FUNCTIONS]
        one = placed(model, text)
        if text == "2x4":
            one = copy.copy(one)
            one.params = stacked.stack(one.params, one.config)
        for temperature in (0, 1):
            engine = recording_engine(one, temperature=temperature, **SETTINGS)
            found = sampled(engine, work)
            expected.setdefault(temperature, found)
            assert_equal(found, expected[temperature])
        for function, size in zip(FUNCTIONS, before, strict=True):
            assert function._cache_size() == size + (text != "1x1")
    lengths = {len(tokens.token) for _, tokens in expected[1].values()}
    assert len(lengths) > 1  # slots were refilled while others went on


def test_chains_extend_prompts(tiny, recording_engine):
    model = tiny(num_hidden_layers=1, vocab_size=264, **SHAPES["grouped"])
    said = Message("assistant", "First, I add.")
    work = [
        request
        for q in queries()
        for request in (
            Request(q, q.messages, 0),
            Request(q, (*q.messages, said), 1, parents=(0,)),
        )
    ]
    settings = {**SETTINGS, "max_new_tokens": 24}
    one, other = (
        sampled(recording_engine(placed(model, text), **settings), work)
        for text in ("1x1", "2x4")
    )
    assert_equal(one, other)


def test_the_kernel_on_a_mesh(tiny, recording_engine):
    """Interpreted: two parts, and two key heads a device."""
    model = tiny(
        num_hidden_layers=2,
        vocab_size=264,
        sliding_window=24,
        layer_types=(SLIDING, FULL),
        **SHAPES["llama"],
    )
    work = [Request(q, q.messages, i) for q in queries()[:2] for i in range(4)]
    settings = {**SETTINGS, "slots": 8, "temperature": 0}
    expected = sampled(recording_engine(model, **settings), work)
    engine = recording_engine(placed(model, "2x4"), **settings)
    kernel = pallas.backend(interpret=True)
    engine._sizes = engine._sizes._replace(backend=kernel)
    assert_equal(sampled(engine, work), expected)


@pytest.mark.parametrize(
    ("name", "quantize", "count"),
    [
        ("llama_grouped", "", 12),
        ("qwen3_moe", "int8", 6),  # six experts, which four do not divide
    ],
)
def test_parameters_are_read_into_their_shards(
    goldens, tmp_path, monkeypatch, name, quantize, count
):
    """The same bits from safetensors and from Orbax, and no device is sent
    the whole of what is split; then a prompt is read, and a token."""
    whole = load_model(goldens / name)
    one = load_model(goldens / name, quantize=quantize)
    export.save_orbax(tmp_path, whole.params)
    export.save_side_files(tmp_path, goldens / name, whole.config, None)
    on, sent = mesh.build("2x4"), []
    put_pieces = jax.make_array_from_callback

    def noted(*what):
        sent.append(put_pieces(*what))
        return sent[-1]

    monkeypatch.setattr(jax, "make_array_from_callback", noted)
    spread = load_model(goldens / name, quantize=quantize, mesh=on)
    monkeypatch.undo()
    assert len(sent) == len(jax.tree.leaves(whole.params))
    split = [x for x in sent if x.addressable_shards[0].data.size < x.size]
    assert len(split) == count
    for other in (spread, load_model(tmp_path, quantize=quantize, mesh=on)):
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
        assert where(spread) == where(other)
    layers = load_model(
        goldens / name, quantize=quantize, mesh=on, stacked=True
    )
    expected = stacked.stack(spread.params, spread.config)
    jax.tree.map(np.testing.assert_array_equal, layers.params, expected)
    assert where(layers) == [
        leaf.sharding for leaf in jax.tree.leaves(expected)
    ]
    ids = np.arange(12)[None] % 40
    for other in (spread, layers):
        np.testing.assert_allclose(
            one.logits(ids), other.logits(ids), atol=1e-5, rtol=1e-5
        )


def where(model: Model) -> list:
    return [leaf.sharding for leaf in jax.tree.leaves(model.params)]


COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|all-to-all|reduce-scatter|"
    r"collective-permute)(?:-start)?\("
)


@pytest.mark.parametrize("text", MESHES[1:])
@pytest.mark.parametrize("name", SHAPES)
def test_no_weight_is_sent(name, text):
    """In the compiled step, what any device is sent is no larger than the
    logits of the slots; each weight is, and so is a part of one."""
    on, backend = mesh.build(text), xla.backend()
    config = ModelConfig(
        family="llama",
        vocab_size=1024,
        hidden_size=256,
        num_hidden_layers=1,
        intermediate_size=512,
        max_position_embeddings=512,
        **{
            "head_dim": 256 // SHAPES[name]["num_attention_heads"],
            **SHAPES[name],
        },
    )
    slots, parts = 16, on.shape["data"]
    largest = slots * config.vocab_size

    def described(parameter):
        shape = parameter.shape
        where = param_sharding(on, config, parameter, shape)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    params = tree(config, described)
    top, layer = transformer.without_layers(params), params["layers"][0]
    assert all(
        w.size > largest
        for name, w in (top | layer).items()
        if len(w.shape) > 1 and name not in ("k", "v", "router")
    )
    layout = Layout(parts, slots, 24, 8, "float32", 8)
    state = runner.empty(config, backend, layout, 2, jnp.float32, False, on)
    stops, settings = np.full(8, -1, np.int32), sampling.settings()
    number = lambda *shape: np.zeros(shape, np.int32)
    active = np.ones(slots, bool)
    view = backend.view(layout, [(1, 2)] * slots, [0] * slots)
    chunks = [
        Chunk(part, Prompt((1,) * 9, (), 0), 0, 9, (1, 2), 0)
        for part in range(parts)
    ]
    chunk = backend.chunk_view(layout, chunks)
    sent = []
    with jax.set_mesh(on):
        for lowered in (
            runner.prefill_chunk.lower(
                params,
                config,
                backend,
                state,
                chunk,
                number(parts, 16),
                *[number(parts)] * 3,
            ),
            runner.start.lower(
                backend,
                state,
                np.uint32(0),
                active,
                np.zeros((slots, 3), np.uint32),
                *[number(slots)] * 3,
                *[number(parts, slots // parts)] * 2,
                number(),
                stops,
                settings,
            ),
            runner.decode_chunk.lower(
                params,
                config,
                backend,
                state,
                view,
                active,
                stops,
                settings,
                np.int32(4),
                np.int32(0),
            ),
        ):
            for line in lowered.compile().as_text().splitlines():
                if found := COLLECTIVE.search(line):
                    sent += re.findall(r"\[([\d,]*)\]", found[1])
    sizes = [np.prod([int(n) for n in s.split(",") if n]) for s in sent]
    assert sent and max(sizes) <= largest


def test_slots_must_divide(tiny):
    model = placed(tiny(num_hidden_layers=1), "8x1")
    message = r"slots \(20\) must be a multiple of data \(8\) of the mesh"
    with pytest.raises(ValueError, match=message):
        Engine(model, slots=20)
    with pytest.raises(ValueError, match="one CPU device alone"):
        Engine(model, slots=16, attention="reference")


def test_slots_that_the_memory_of_all_devices_holds(tiny, monkeypatch):
    """Parameters and key heads are split by four, slots by two."""
    model = tiny(num_hidden_layers=1, vocab_size=264, **SHAPES["llama"])
    settings = {"slots": None, "max_new_tokens": 12, "attention": "xla"}
    counts = {}
    for text, one in {"": model, "2x4": placed(model, "2x4")}.items():
        monkeypatch.setattr(memory, "available", lambda: 1e8)
        layout = Engine(one, **settings)._sizes.layout
        assert layout.parts == (2 if text else 1)
        counts[text] = layout.slots
    assert counts["2x4"] >= 4 * counts[""] > 0
