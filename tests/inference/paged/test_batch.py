"""The paged engine against the one that decodes in groups."""

import collections
import copy

import jax
import numpy as np
import pytest

from dynscaling_jax.inference import Engine, memory, mesh
from dynscaling_jax.inference.paged import runner
from dynscaling_jax.inference.paged.attention import pallas
from dynscaling_jax.models import stacked
from dynscaling_jax.models.config import FULL, SLIDING, RopeScaling
from dynscaling_jax.types import Message, Query, Request

BOUND = 1e-4  # of the measures of a token, in nats
STOPS = (258, 11, 50)
SETTINGS = {"slots": 8, "max_new_tokens": 40}
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"family": "qwen3", "qk_norm": "head", "num_hidden_layers": 3},
    # windows in turn, sinks, biases, experts, yarn: gpt-oss
    "gpt_oss": {
        "family": "gpt_oss",
        "num_hidden_layers": 5,
        "layer_types": (SLIDING, FULL, SLIDING, FULL, SLIDING),
        "sliding_window": 20,
        "sinks": True,
        "qkv_bias": True,
        "o_bias": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "expert_bias": True,
        "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702,
        "rope_scaling": RopeScaling("yarn", 4.0, 1.0, 32.0, 64),
    },
    # caps of scores and of logits, norms behind, a scale of its own: Gemma
    "gemma2": {
        "family": "gemma2",
        "num_hidden_layers": 4,
        "layer_types": (SLIDING, FULL, SLIDING, FULL),
        "sliding_window": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8.0,
        "post_norm": True,
        "norm_offset": 1.0,
        "hidden_act": "gelu_pytorch_tanh",
        "embed_scale": 32**0.5,
        "tie_word_embeddings": True,
    },
    # layers with and without experts, part of a head rotated, none in some
    "mixed": {
        "num_hidden_layers": 4,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": (0, 2),
        "no_rope_layers": (1, 0, 1, 0),
        "partial_rotary_factor": 0.5,
    },
}


def small_pages(engine, pages=44, page=8, chunk=32, rows=3):
    """Gives an engine a pool so small that samples are preempted."""
    sizes = engine._sizes
    engine._sizes = sizes._replace(
        layout=sizes.layout._replace(pages=pages, page=page, longest=pages),
        limits=sizes.limits._replace(
            pages=pages, page=page, chunk=chunk, rows=rows
        ),
    )
    return engine


def stacked_model(model):
    model = copy.copy(model)
    model.params = stacked.stack(model.params, model.config)
    return model


def ask(lengths=(3, 40, 150), samples=5, text="x") -> list[Request]:
    queries = [Query(f"{n}", (Message("user", text * n),)) for n in lengths]
    return [Request(q, q.messages, i) for q in queries for i in range(samples)]


def sampled(engine, work) -> dict:
    assert len([*engine.sample(work)]) == len(work)
    return engine.recorded


def assert_equal(one: dict, other: dict, bound=BOUND) -> None:
    assert one.keys() == other.keys()
    for name, (ids, tokens) in one.items():
        found_ids, found = other[name]
        assert ids == found_ids
        np.testing.assert_array_equal(tokens.token, found.token)
        for a, b in zip(tokens[1:], found[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def decoded_from_pages(recording_engine, model, **settings):
    settings = {**SETTINGS, "attention": "xla", **settings}
    return small_pages(recording_engine(model, **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_of_groups(tiny, recording_engine, family):
    """Layers in a list and stacked; prompts longer than a chunk, and a pool
    that is too small for all slots."""
    model = tiny(eos_token_id=STOPS, **FAMILIES[family])
    settings = {**SETTINGS, "temperature": 0}
    expected = sampled(recording_engine(model, **settings), ask())
    for one in (model, stacked_model(model)):
        engine = decoded_from_pages(recording_engine, one, temperature=0)
        assert_equal(sampled(engine, ask()), expected)
        held = engine._batch._state.cache
        layers = model.config.num_hidden_layers
        assert len(held) == (layers if one is model else 1)


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_samples_of_the_kernel_are_those_of_groups(
    tiny, recording_engine, family
):
    """The Pallas kernel, interpreted, in the step that an engine compiles."""
    model = tiny(eos_token_id=STOPS, **FAMILIES[family])
    settings = {**SETTINGS, "temperature": 0}
    work = ask(lengths=(3, 40), samples=5)
    expected = sampled(recording_engine(model, **settings), work)
    engine = decoded_from_pages(
        recording_engine, stacked_model(model), temperature=0
    )
    kernel = pallas.backend(interpret=True)
    engine._sizes = engine._sizes._replace(backend=kernel)
    assert_equal(sampled(engine, work), expected)


def test_preemption_changes_no_sample(tiny, recording_engine, monkeypatch):
    model, new = tiny(), {"max_new_tokens": 90}
    tight = decoded_from_pages(recording_engine, model, **new)
    roomy = decoded_from_pages(recording_engine, model, **new)
    small_pages(roomy, pages=400)
    preempted = collections.Counter()

    def counted(name, engine):
        engine._batch = engine._new_batch()
        plan = engine._batch._scheduler.turn

        def turn():
            made = plan()
            preempted[name] += len(made.preempted)
            return made

        monkeypatch.setattr(engine._batch._scheduler, "turn", turn)
        return sampled(engine, ask())

    assert_equal(counted("tight", tight), counted("roomy", roomy))
    assert preempted["tight"] > 2 and not preempted["roomy"]


def test_chains_extend_prompts(tiny, recording_engine, monkeypatch):
    """A chain begins with the pages of its query's prompt."""
    model = tiny(eos_token_id=STOPS)
    work = ask((60, 90), 2)
    turn = Message("assistant", "First, I add.")
    work += [
        Request(r.query, (*r.query.messages, turn), 9, 1, (0,))
        for r in work[::2]
    ]
    settings = {**SETTINGS, "temperature": 0}
    expected = sampled(recording_engine(model, **settings), work)
    engine = decoded_from_pages(recording_engine, model, temperature=0)
    assert_equal(sampled(engine, work), expected)
    # what a later call asks is still there
    chunks = []
    prefill = engine._batch._prefill
    monkeypatch.setattr(
        engine._batch,
        "_prefill",
        lambda new: chunks.extend(new) or prefill(new),
    )
    again = [Request(r.query, r.messages, 20, r.round) for r in work[-1:]]
    sampled(engine, again)
    assert chunks and min(chunk.start for chunk in chunks) >= 64


def test_dropped_requests_leave_the_others_as_they_are(tiny, recording_engine):
    model = tiny(eos_token_id=STOPS)
    expected = sampled(recording_engine(model, **SETTINGS), ask())
    engine = decoded_from_pages(recording_engine, model)
    left = engine.sample(ask((70,), 30))
    kept = engine.sample(ask())
    next(left)
    next(kept)
    del left
    assert len([*kept]) == len(ask()) - 1
    found = {k: v for k, v in engine.recorded.items() if k in expected}
    assert_equal(found, expected)
    assert not engine._batch.busy and not sum(engine._batch._scheduler.held)


def test_a_chunk_is_one_call_and_nothing_compiles_again(
    tiny, recording_engine, monkeypatch
):
    model = tiny(eos_token_id=STOPS)
    functions = ("prefill_chunk", "start", "decode_chunk")
    compiled = [getattr(runner, name) for name in functions]
    calls = collections.Counter()
    for name, function in zip(functions, compiled, strict=True):

        def counted(*given, name=name, function=function):
            calls[name] += 1
            return function(*given)

        monkeypatch.setattr(runner, name, counted)
    engine = decoded_from_pages(recording_engine, model)
    lengths = 5, 17, 33, 80, 120, 127, 150  # ends of chunks of all sizes
    sampled(engine, ask(lengths))
    before = [function._cache_size() for function in compiled]
    warm, turns = calls.copy(), 0
    scheduler = engine._batch._scheduler
    plan = scheduler.turn

    def turn():
        nonlocal turns
        turns += 1
        return plan()

    monkeypatch.setattr(scheduler, "turn", turn)
    sampled(engine, ask(lengths, 7, "y"))
    assert [function._cache_size() for function in compiled] == before
    for name in functions:
        assert 0 < calls[name] - warm[name] <= turns


def test_a_failure_frees_the_pages(tiny, recording_engine, monkeypatch):
    """Even while its traceback is kept, as in a notebook."""
    model = tiny(eos_token_id=STOPS)
    others = jax.live_arrays()  # kept, so that no new one has their ids
    engine = decoded_from_pages(recording_engine, model)
    call = engine.sample(ask())
    next(call)
    (pages, *_), *_ = engine._batch._state.cache
    shape = pages.shape
    del pages

    def there():
        old = {*map(id, others)}
        return [
            x.shape
            for x in jax.live_arrays()
            if id(x) not in old and x.shape == shape
        ]

    assert there()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._batch, "_scored", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        list(call)
    assert kept.tb
    assert not there()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="failed in another call"):
        next(call)
    assert len([*engine.sample(ask())]) == len(ask())


def test_the_bits_of_a_sample_do_not_depend_on_what_else_runs(
    tiny, recording_engine
):
    """As docs/runs.md promises of a run that is killed and goes on."""
    model = tiny(eos_token_id=STOPS)
    one = decoded_from_pages(recording_engine, model)
    other = decoded_from_pages(recording_engine, model)
    found = sampled(other, ask()[::-1])
    assert_equal(sampled(one, ask()), found, bound=0)


def test_stop_strings_and_limits(tiny, recording_engine):
    model = tiny()
    for settings in ({"stop": ("a", "e")}, {"max_new_tokens": 1}):
        settings = {**SETTINGS, **settings}
        expected = sampled(recording_engine(model, **settings), ask())
        engine = decoded_from_pages(recording_engine, model, **settings)
        assert_equal(sampled(engine, ask()), expected)


def test_a_prompt_that_no_pool_holds_is_refused(tiny, recording_engine):
    """And what comes after it is numbered as if it had not been."""
    model = tiny()
    engine = decoded_from_pages(recording_engine, model)
    small_pages(engine, pages=12)
    long = ask((300,), 1)
    with pytest.raises(ValueError, match="query '300': .* of a part has 12"):
        engine.sample(ask((3,), 1) + long)
    with pytest.raises(ValueError, match="query '300': .* of a part has 12"):
        engine.check([request.query for request in long])
    assert not engine._batches
    assert len([*engine.sample(ask((3,), 2))]) == 2


def test_the_longest_prompt_is_one_that_the_pool_holds(tiny, recording_engine):
    engine = decoded_from_pages(recording_engine, tiny())
    assert engine.max_prompt_tokens == 43 * 8 + 1 - 40  # a page for a copy
    small_pages(engine, pages=80)
    assert engine.max_prompt_tokens == 512 - 40
    small_pages(engine, pages=12)
    most = engine.max_prompt_tokens
    query = next(
        query
        for n in range(most)
        for query in [Query("long", (Message("user", "x" * n),))]
        if engine.count_tokens(query.messages) == most
    )
    engine.check([query])
    (sample,) = engine.sample([Request(query, query.messages, 0)])
    assert sample.prompt_tokens == most and sample.new_tokens == 40


def test_live_tokens_say_how_many_slots_there_are(tiny):
    """7/8 of a pool are full of slots of 100 tokens, or all of it is of
    samples of 40 that are half done behind prompts of 472."""
    model = tiny()
    settings = {"max_new_tokens": 40, "attention": "xla", "slots": None}
    token = memory.paged_token_bytes(model.config, 4)

    def slots(**more):
        engine = Engine(model, **settings, **more)
        layout = engine._sizes.layout
        return layout.slots, layout.pages

    weights = mesh.bytes_held(model.params)
    pool = memory.paged(
        model.config, 4, weights, 6e7, memory.Lengths(472, 40, 100)
    )
    assert slots(available=6e7, live=100) == (pool.slots, pool.pages)
    assert pool.slots == pool.pages * 128 * 7 // 800
    assert pool.memory.pool == pool.pages * 128 * token
    few, pages = slots(available=6e7)
    assert few == pages * 128 // 492


def test_int8_keys_are_near(tiny, recording_engine):
    model = tiny(eos_token_id=STOPS)
    expected = sampled(
        recording_engine(model, temperature=0, **SETTINGS), ask()
    )
    engine = decoded_from_pages(
        recording_engine, model, temperature=0, kv_dtype="int8"
    )
    found = sampled(engine, ask())
    first = lambda of: np.array([t.logprob[0] for _, t in of.values()])
    names = [*expected]
    difference = first({n: expected[n] for n in names}) - first(
        {n: found[n] for n in names}
    )
    assert 0 < np.abs(difference).max() < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "flash"}, "attention='flash': expected one of auto"),
        ({"kv_dtype": "int8"}, "kv_dtype='int8' is of pages"),
        (
            {"attention": "xla", "kv_dtype": "int4"},
            "kv_dtype='int4': expected int8",
        ),
        ({"attention": "tpu"}, "attention=tpu needs a TPU, and these devices"),
        ({"attention": "gpu"}, "attention=gpu needs a GPU, and these devices"),
        ({"attention": "xla", "available": 1e5}, "one sample of .* tokens"),
        ({"live": 100, "slots": None}, "live=100 says how many slots of pages"),
        ({"live": 100, "attention": "xla"}, "slots=None"),
        ({"live": 0}, "live must be a whole number from 1 on"),
    ],
)
def test_what_cannot_be_is_refused(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(tiny(num_hidden_layers=1), **settings)
