"""Thoughts with a limit: what is forced, and what stays as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from dynscaling_jax.checkpoints import Model, load_model
from dynscaling_jax.checkpoints.tokenizer import from_json
from dynscaling_jax.inference import Engine, sampling
from dynscaling_jax.inference.grouped import layout
from dynscaling_jax.inference.grouped import runner as grouped
from dynscaling_jax.inference.paged import runner as paged
from dynscaling_jax.inference.slots import Forced, Slots, advance, resumed
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.tasks import extract
from dynscaling_jax.thinking import Marks, Thinking, named, unfinished
from dynscaling_jax.types import Message, Query, Request
from tests.conftest import CHATML

STOPS = (258, 11, 50)
SHAPE = {"slots": 8, "slots_per_group": 4, "max_new_tokens": 40}
# bytes are marks, so that a random model writes them
LETTERS = Thinking((Marks("[a-m]", "[n-zN-Z]"),), end="so")
TURN = "assistant\n{% endif %}"
OPENED, CLOSED = (
    CHATML.replace(TURN, TURN.replace("\n", f"\n{start}"))
    for start in ("<think>", "<think></think>")
)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(num_hidden_layers=1, eos_token_id=STOPS)


def with_template(model, template, added=("<think>", "</think>")):
    """Its marks are a token each, or spelt in bytes."""
    backend = Backend.from_str(model.tokenizer.as_json())
    backend.add_tokens([AddedToken(t, special=False) for t in added])
    tokenizer = from_json(backend.to_str(), template)
    return Model(model.config, model.params, lambda: tokenizer)


def ask(count=12, lengths=(3, 40), turn="") -> list[Request]:
    queries = [Query(f"{n}", (Message("user", "x" * n),)) for n in lengths]
    more = (Message("assistant", turn),) if turn else ()
    return [
        Request(q, (*q.messages, *more), i)
        for q in queries
        for i in range(count)
    ]


def sampled(engine, work):
    """Samples and tokens by query and index."""
    samples = {(s.query_id, s.index): s for s in engine.sample(work)}
    assert len(samples) == len(work)
    tokens = {k: t for k, (_, t) in engine.recorded.items() if k in samples}
    return samples, tokens


def in_steps(engine, steps):
    """Decodes from pages, so many steps a call."""
    sizes = engine._sizes
    engine._sizes = sizes._replace(limits=sizes.limits._replace(steps=steps))
    return engine


# On the device


def test_a_mark_is_forced_by_hand():
    """The example of slots.advance; logits of 1 make the likeliest token."""
    settings = sampling.settings(temperature=0)
    stops = np.full(8, -1, np.int32)
    logits = lambda *tokens: 1.0 * jax.nn.one_hot(jnp.array(tokens), 12)
    slots = Slots.idle(2)._replace(
        token=jnp.array([3, 3]),
        active=jnp.array([True, True]),
        limit=jnp.array([20, 20]),
    )
    known = lambda *values: np.array(values)
    forced = Forced(
        np.array([7, 8], np.int32),
        np.int32(3),
        known(0, 0) > 0,
        known(0, 0) > 0,
    )
    met = []

    def step(slots, *tokens):
        active = slots.active
        slots, sums = jax.jit(advance)(
            slots, logits(*tokens), stops, settings, forced
        )
        met.append((*sums.token.tolist(), *active.tolist()))
        assert sums.logit.tolist() == [1, 1]  # of what would be sampled
        return slots

    slots = step(step(slots, 5, 4), 2, 4)
    assert slots.active.tolist() == [False, False]
    slots = step(slots, 9, 9)  # they wait
    assert slots.token.tolist() == [2, 4] and slots.count.tolist() == [3, 3]
    forced = forced._replace(ends=known(1, 0) > 0, resumed=known(1, 1) > 0)
    slots = step(step(step(resumed(slots, forced), 6, 1), 3, 9), 1, 2)
    assert slots.active.all() and slots.count.tolist() == [6, 6]
    assert [tokens for *tokens, a, b in met if a and b] == [
        [5, 4], [2, 4], [7, 1], [8, 9], [1, 2],
    ]  # fmt: skip


# Samples


def check(model, thinking, free, capped, after, work, temperature):
    """Against the samples without a limit, and logits of whole sequences.

    Returns how many were forced, and how many went on as they were.
    """
    mark = model.tokenizer.encode(thinking.end)
    decode = model.tokenizer.decode
    settings = sampling.settings(temperature)
    choose = jax.jit(sampling.choose_each)
    counts = [0, 0]
    for request in work:
        name = request.query.id, request.index
        was, now = free[0][name], capped[0][name]
        ids, scored = capped[1][name].token.tolist(), capped[1][name]
        old = free[1][name].token.tolist()
        start = thinking.turn_start(request.messages)
        over = len(old) > after and unfinished(
            decode(old[:after]), thinking, start
        )
        if not over:
            counts[1] += len(old) > after
            assert now == was and ids == old
            continue
        counts[0] += 1
        behind = after + len(mark)
        assert ids[:behind] == [*old[:after], *mark][: len(ids)]
        assert now.text.startswith(decode(ids[:behind]))
        own = np.array([i for i in range(len(ids)) if not after <= i < behind])
        # each sampled token has the key of its position
        prompt = model.tokenizer.encode_chat(request.messages)
        size = SHAPE["max_new_tokens"]  # padded, and compiled once
        padded = np.zeros((1, 160), np.int32)
        padded[0, : len(prompt) + len(ids)] = [*prompt, *ids]
        logits = np.asarray(model.logits(padded))[0, len(prompt) - 1 :][:size]
        words = sampling.query_words(request.query.id)
        key = sampling.sample_key(
            np.uint32(0), np.array([*words, request.index], np.uint32)
        )
        keys = jnp.tile(key, (size, 1))
        sums = choose(keys, np.arange(size), logits, settings)
        sums = jax.tree.map(np.asarray, sums)
        assert np.array(ids)[own].tolist() == sums.token[own].tolist()
        # and alone is measured
        expected = sampling.score(sums, model.config.vocab_size)
        for measure in ("logprob", "confidence"):
            mean = getattr(expected, measure)[own].mean()
            assert getattr(now, measure) == pytest.approx(mean, abs=1e-4)
        lowest = sampling.windowed(scored.confidence[own])
        assert now.signals == {
            **lowest,
            "certainty": float(scored.certainty[own].mean()),
        }
        # all are read, and paid for
        assert now.new_tokens == len(ids)
        assert now.flops == sample_flops(
            model.config, now.prompt_tokens, now.cached_tokens, len(ids)
        )
        ends = ids[-1] in model.eos_ids
        assert now.finish_reason == ("stop" if ends else "length")
        assert ends or len(ids) == SHAPE["max_new_tokens"]
    return counts


@pytest.mark.parametrize("attention", ["reference", "xla"])
@pytest.mark.parametrize(
    ("kind", "after", "temperature"),
    [("letters", 13, 0), ("letters", 1, 1), ("letters", 16, 1),
     ("letters", 37, 1), ("a token", 11, 1), ("bytes", 11, 1),
     ("closed", 11, 1), ("not begun", 11, 1)],
)  # fmt: skip
def test_thoughts_end(
    model, recording_engine, attention, kind, after, temperature
):
    """A random model seldom writes a mark that is one of its tokens."""
    settings = {**SHAPE, "attention": attention, "temperature": temperature}
    if kind == "letters":
        thinking, known = LETTERS, {"thinking": LETTERS}
    else:
        template = {"closed": CLOSED, "not begun": CHATML}.get(kind, OPENED)
        spelt = () if kind == "bytes" else ("<think>", "</think>")
        model = with_template(model, template, spelt)
        thinking, known = model.tokenizer.thinking, {}
        assert len(model.tokenizer.encode(thinking.end)) == (1 if spelt else 8)
    work = ask() if temperature else ask(1, range(3, 43, 2))
    free = sampled(recording_engine(model, **settings, **known), work)
    engine = recording_engine(
        model, **settings, **known, max_thinking_tokens=after
    )
    capped = sampled(engine, work)
    forced, others = check(
        model, thinking, free, capped, after, work, temperature
    )
    if kind == "letters":
        assert forced > 2 and others > 2
    elif kind in ("closed", "not begun"):
        assert forced < 3 and others > 9
    else:
        assert forced > 9 and others < 3


def test_it_depends_on_nothing_else(model, recording_engine, monkeypatch):
    """Slots, groups, chunks of steps, pages, and pools without room."""
    known = {**SHAPE, "thinking": LETTERS, "max_thinking_tokens": 13}
    work = ask()
    samples, tokens = sampled(recording_engine(model, **known), work)
    assert {len(t.token) for t in tokens.values()} > {40}

    def same(engine, work=work, bound=0.0):
        found, ids = sampled(engine, work)
        for name in found:
            assert found[name].text == samples[name].text
            assert bound or found[name] == samples[name]
            for a, b in zip(ids[name], tokens[name], strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=bound)

    one = recording_engine(model, **known)
    for request in work[:3]:
        same(one, [request])
    for per, slots in ((1, 8), (8, 16), (4, 32)):
        shape = {"slots": slots, "slots_per_group": per}
        same(recording_engine(model, **{**known, **shape}))
    for steps in (1, 5, 7):
        monkeypatch.setattr(layout, "CHUNK", steps)
        same(recording_engine(model, **known))
    monkeypatch.undo()
    pages = {**known, "attention": "xla"}
    engine = recording_engine(model, **pages)
    same(engine, bound=1e-4)
    samples, tokens = sampled(engine, work)
    for steps in (1, 5, 13):
        same(in_steps(recording_engine(model, **pages), steps))
    few = recording_engine(model, **pages)
    sizes = few._sizes
    few._sizes = sizes._replace(
        layout=sizes.layout._replace(pages=14, page=8, longest=14),
        limits=sizes.limits._replace(pages=14, page=8, chunk=32, rows=3),
    )
    preempted = []
    batch = few._new_batch()
    plan = batch._scheduler.turn

    def turn():
        planned = plan()
        preempted.extend(planned.preempted)
        return planned

    monkeypatch.setattr(batch._scheduler, "turn", turn)
    same(few, bound=1e-4)
    assert preempted


@pytest.mark.parametrize("attention", ["reference", "xla"])
def test_a_long_prompt_cuts_the_mark(model, recording_engine, attention):
    """The context ends within the mark; the sample is one that was cut."""
    known = {**SHAPE, "attention": attention, "max_thinking_tokens": 11}
    model = with_template(model, OPENED, ())
    engine = recording_engine(model, **known)
    base = engine.count_tokens([Message("user", "")])
    work = ask(6, [model.config.max_position_embeddings - base - 15])
    samples, tokens = sampled(engine, work)
    cut = [k for k, s in samples.items() if s.new_tokens == 15]
    assert cut
    for name in cut:
        assert samples[name].finish_reason == "length"
        assert samples[name].text.endswith("</th")
        own = tokens[name].logprob[:11]
        assert samples[name].logprob == float(own.mean())


def test_a_turn_that_goes_on(model, recording_engine):
    """Whose words end within a thought, or behind it."""
    model = with_template(model, CHATML)
    known = {**SHAPE, "max_thinking_tokens": 11}
    engine = recording_engine(model, **known)
    samples, _ = sampled(engine, ask(turn="<think>36? Wait"))
    long = [s for s in samples.values() if s.new_tokens > 11]
    assert long and all("</think>" in s.text for s in long)
    work = ask(turn="<think>36?</think>So")
    samples, _ = sampled(engine, work)
    assert any(s.new_tokens > 11 for s in samples.values())
    free, _ = sampled(recording_engine(model, **SHAPE), work)
    same = [k for k, s in free.items() if "<think>" not in s.text]
    assert len(same) > 16 and all(samples[k] == free[k] for k in same)


def test_a_mark_that_ends_no_thought_is_not_forced(model, recording_engine):
    """A tag of another name would leave it in its thought."""
    model = with_template(model, OPENED.replace("<think>", "<seed:think>"))
    known = {**SHAPE, "max_thinking_tokens": 11}
    thinking = model.tokenizer.thinking._replace(end="</think>")
    found = sampled(recording_engine(model, **known, thinking=thinking), ask())
    free = sampled(recording_engine(model, **SHAPE), ask())
    assert found[0] == free[0]


@pytest.mark.parametrize("attention", ["reference", "xla"])
def test_stop_strings_end_what_was_forced(model, recording_engine, attention):
    model = with_template(model, OPENED)
    known = {**SHAPE, "attention": attention, "max_thinking_tokens": 11}
    plain, tokens = sampled(recording_engine(model, **known), ask())
    found, _ = sampled(recording_engine(model, **known, stop=["nk>"]), ask())
    for name, sample in found.items():
        assert sample.text == plain[name].text.split("nk>")[0]
        before = model.tokenizer.decode(tokens[name].token[:11])
        if plain[name].new_tokens > 11 and "nk>" not in before:
            assert (sample.new_tokens, sample.finish_reason) == (12, "stop")


def test_none_and_zero_are_no_limit(model):
    for off in (None, 0):
        engine = Engine(model, **SHAPE, max_thinking_tokens=off)
        assert engine._setup.cap is None


@pytest.mark.parametrize("attention", ["reference", "xla"])
def test_nothing_is_compiled_twice(model, attention):
    """Nor with another limit, or where some slots wait."""
    functions = (
        (grouped.start, grouped._sample, grouped._resumed)
        if attention == "reference"
        else (paged.start, paged.decode_chunk)
    )
    known = {**SHAPE, "attention": attention, "thinking": LETTERS}

    def run(after):
        engine = Engine(model, **known, max_thinking_tokens=after)
        assert len([*engine.sample(ask())]) == len(ask())
        return [function._cache_size() for function in functions]

    assert run(13) == run(1) == run(30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither the template nor the tokens"),
        ({"max_thinking_tokens": -1}, "max_thinking_tokens must be a whole"),
        ({"max_thinking_tokens": 2.5}, "max_thinking_tokens must be a whole"),
        ({"end": "</think>", "max_thinking_tokens": 32},
         r"max_new_tokens \(40\) leaves no room for 32 tokens of thought, 8 "),
        ({"end": "so{stop}"}, "'so.*' holds a token that ends a turn"),
        ({"end": "so<|im_start|>"}, "spells the mark 'so<|im_start|>' as 'so'"),
    ],
)  # fmt: skip
def test_limits_that_cannot_be(model, settings, message):
    settings = {"max_thinking_tokens": 8, **settings}
    end = settings.pop("end", "")
    if end:
        end = end.replace("{stop}", model.tokenizer.decode(STOPS[-1:]))
        settings["thinking"] = Thinking(named(end), end=end)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        Engine(model, **SHAPE, **settings)


def test_as_much_as_there_is_room_for(model, recording_engine):
    thinking = Thinking(named("</think>"), lambda _: "<think>", "</think>")
    engine = recording_engine(
        model, **SHAPE, thinking=thinking, max_thinking_tokens=31
    )
    samples, _ = sampled(engine, ask())
    full = [s for s in samples.values() if s.new_tokens == 40]
    assert full and all("</think>" in s.text[-10:] for s in full)


def test_the_bundled_model_answers_when_it_is_told_to():
    """Its mark begins no thought: each sample thinks from its first token."""
    model = load_model("reasoner")
    end = "The answer is"
    thinking = Thinking(named(end), end=end)
    settings = {"max_new_tokens": 60, "temperature": 0.7, "slots": 8}
    question = "What is 14 + 27 + 35?"
    ((*free,),) = Engine(model, **settings).generate([question], 8)
    engine = Engine(model, **settings, thinking=thinking, max_thinking_tokens=8)
    ((*found,),) = engine.generate([question], 8)
    assert any(end not in s.text[:20] for s in free)
    for was, now in zip(free, found, strict=True):
        mark = now.text.index(end)
        assert was.text[:mark] == now.text[:mark]
        assert extract(now.text, "number", thinking) is not None
