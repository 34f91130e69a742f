"""Samples that end because the model is not sure of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.grouped import layout
from dynscaling_jax.inference.sampling import ScoredToken
from dynscaling_jax.inference.slot import Prompt, Slot
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.tasks import with_answers
from dynscaling_jax.thinking import Marks, Thinking
from dynscaling_jax.types import Message, Query, Request

STOPS = (258, 11, 50)
SHAPE = {"slots": 8, "slots_per_group": 4, "max_new_tokens": 40}
QUERY = Query("a", (Message("user", "x"),))
WINDOW = 6


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(num_hidden_layers=1, eos_token_id=STOPS)


@pytest.fixture
def window(monkeypatch):
    monkeypatch.setattr(sampling, "WINDOW", WINDOW)


def started(least, forced=None):
    request = Request(QUERY, QUERY.messages, 0, least_confidence=least)
    return Slot(0, request, Prompt((1,), (1,), 0), 10_000, forced=forced)


def scored(confidences):
    trace = np.array(confidences, np.float32)[:, None]
    return ScoredToken(np.zeros_like(trace, np.int32), trace, trace, trace)


def given_in(slot, confidences, sizes):
    at = 0
    for size in sizes:
        part = confidences[at : at + size]
        slot.append(scored(part), 0, len(part))
        at += size
    return slot


def first_below(confidences, least, size):
    """By the mean of each window, one after the other."""
    for end in range(size, len(confidences) + 1):
        if sampling.windowed(confidences[:end], size)["tail"] < least:
            return end
    return None


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [2, 3, 4], [5, 4]])
@pytest.mark.parametrize(
    ("least", "end"), [(4.0, 7), (4.1, 3), (3.9, 7), (3.5, None), (6, 3)]
)
def test_windows_by_hand(monkeypatch, sizes, least, end):
    """Means of three: 4, 4, 4, 4, 11/3, ... A first token of 1 is no window;
    what is equal to the bound goes on."""
    monkeypatch.setattr(sampling, "WINDOW", 3)
    slot = given_in(started(least), [1, 6, 5, 1, 6, 5, 0, 9, 9], sizes)
    assert slot.unsure == (end is not None)
    assert slot.count == (end or 9) == sum(len(t.token) for t in slot.tokens)


def test_a_forced_token_is_in_no_window(monkeypatch):
    """Tokens 2 and 3; 6 5 4 are a window, whose mean is 5."""
    monkeypatch.setattr(sampling, "WINDOW", 3)
    for sizes in ([6], [2, 4], [3, 3], [1] * 6):
        trace = [6, 5, 0, 0, 4, 3]
        slot = given_in(started(5, range(2, 4)), trace, sizes)
        assert slot.unsure and slot.count == 6
        slot = given_in(started(5.1, range(2, 4)), trace, sizes)
        assert slot.unsure and slot.count == 5
        slot = given_in(started(5, range(2, 2)), trace, sizes)
        assert slot.unsure and slot.count == 3


@settings(deadline=None)
@given(st.data())
def test_each_window_is_that_of_the_signals(data):
    """To the bit: a bound that is a mean ends no sample at it."""
    number = st.floats(0, 20, width=32)
    trace = data.draw(st.lists(number, min_size=1, max_size=60))
    trace = np.array(trace, np.float32)
    size = data.draw(st.integers(1, 9))
    sizes = data.draw(st.lists(st.integers(1, 16), min_size=len(trace)))
    means = [
        sampling.windowed(trace[:end], size)["lowest"]
        for end in range(1, len(trace) + 1)
    ]
    least = data.draw(st.one_of(number, st.sampled_from(means)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "WINDOW", size)
        slot = given_in(started(least), trace, sizes)
    lowest = sampling.windowed(trace, size)["lowest"]
    if len(trace) >= size:
        assert slot.unsure == (lowest < least)
    else:
        assert not slot.unsure
    end = first_below(trace, least, size) if slot.unsure else len(trace)
    assert slot.count == end


def test_what_is_kept_is_a_window(monkeypatch):
    monkeypatch.setattr(sampling, "WINDOW", 8)
    slot = given_in(started(0.5), [1.0] * 100, [16] * 7)
    assert len(slot.sums) == 8 and slot.count == 100


# In an engine


def ask(least, count=12, lengths=(3, 40)) -> list[Request]:
    queries = [Query(f"{n}", (Message("user", "x" * n),)) for n in lengths]
    return [
        Request(q, q.messages, i, least_confidence=least)
        for q in queries
        for i in range(count)
    ]


def sampled(engine, work):
    samples = {(s.query_id, s.index): s for s in engine.sample(work)}
    assert len(samples) == len(work)
    tokens = {k: t for k, (_, t) in engine.recorded.items() if k in samples}
    return samples, tokens


def bound_of(free, share=0.7):
    """One that most samples fall below somewhere."""
    lowest = [
        sampling.windowed(t.confidence, WINDOW)["lowest"]
        for t in free[1].values()
    ]
    return float(np.quantile(lowest, share))


@pytest.mark.parametrize("attention", ["reference", "xla"])
@pytest.mark.parametrize("most", [None, 13])
def test_samples_end_at_the_token(
    model, recording_engine, window, attention, most
):
    """Against the whole samples, with forced tokens and without."""
    known = {**SHAPE, "attention": attention, "max_thinking_tokens": most}
    marks = (Marks("[a-m]", "[n-zN-Z]"),)
    known["thinking"] = Thinking(marks, end="so")
    free = sampled(recording_engine(model, **known), ask(None))
    least = bound_of(free)
    found = sampled(recording_engine(model, **known), ask(least))
    ended, whole = 0, 0
    for name, was in free[0].items():
        now, tokens = found[0][name], free[1][name]
        ids = tokens.token.tolist()
        forced = []
        if most and ids[most : most + 2] == model.tokenizer.encode("so"):
            forced = [most, most + 1]
        own = [i for i in range(len(ids)) if i not in forced]
        end = first_below(tokens.confidence[own], least, WINDOW)
        end = len(ids) if end is None else own[end - 1] + 1
        if end == len(ids):  # at its last token a sample is whole
            whole += 1
            assert now == was
            continue
        ended += 1
        assert now.finish_reason == "confidence" and now.answer is None
        assert found[1][name].token.tolist() == ids[:end]
        assert now.text == model.tokenizer.decode(ids[:end])
        assert now.new_tokens == end
        assert now.flops == sample_flops(
            model.config, now.prompt_tokens, now.cached_tokens, end
        )
        own = [i for i in own if i < end]
        assert now.confidence == float(tokens.confidence[own].mean())
        assert now.logprob == float(tokens.logprob[own].mean())
    assert ended > 5 and whole > 5


def test_it_depends_on_nothing_else(
    model, recording_engine, window, monkeypatch
):
    free = sampled(recording_engine(model, **SHAPE), ask(None))
    work = ask(bound_of(free))
    expected, _ = sampled(recording_engine(model, **SHAPE), work)
    reasons = [s.finish_reason for s in expected.values()]
    assert {*reasons} == {"confidence", "stop", "length"}
    for per, slots in ((1, 8), (4, 32)):
        shape = {**SHAPE, "slots": slots, "slots_per_group": per}
        found, _ = sampled(recording_engine(model, **shape), work)
        assert found == expected
    for steps in (1, 5):
        monkeypatch.setattr(layout, "CHUNK", steps)
        found, _ = sampled(recording_engine(model, **SHAPE), work)
        assert found == expected
    monkeypatch.undo()


def test_a_bound_is_of_its_own_request(model, recording_engine, window):
    free, _ = sampled(recording_engine(model, **SHAPE), ask(None))
    mixed = [
        r._replace(least_confidence=1e9 if r.index % 2 else None)
        for r in ask(None)
    ]
    found, _ = sampled(recording_engine(model, **SHAPE), mixed)
    for (name, index), sample in found.items():
        was = free[name, index]
        if index % 2 and was.new_tokens > WINDOW:
            assert sample.new_tokens == WINDOW
            assert sample.finish_reason == "confidence"
        else:
            assert sample == was


@pytest.mark.parametrize("stop_first", [True, False])
def test_what_is_first_ends_a_sample(
    model, recording_engine, window, stop_first
):
    """A stop string within the window, or behind it in the same chunk."""
    free = sampled(recording_engine(model, **SHAPE), ask(None))
    at = WINDOW - 3 if stop_first else WINDOW + 2
    decode, compared = model.tokenizer.decode, 0
    for name, tokens in free[1].items():
        ids = tokens.token.tolist()
        stop = decode(ids[at : at + 1])
        alone = len(ids) > at + 2 and len(stop) == 1 and stop.isascii()
        if not alone or stop in decode(ids[:at]) or compared == 3:
            continue
        compared += 1
        work = [r for r in ask(1e9) if (r.query.id, r.index) == name]
        engine = recording_engine(model, **SHAPE, stop=[stop])
        (sample,) = engine.sample(work)
        if stop_first:
            assert (sample.finish_reason, sample.new_tokens) == ("stop", at + 1)
            assert sample.text == decode(ids[:at])
        else:
            assert sample.finish_reason == "confidence"
            assert sample.new_tokens == WINDOW
    assert compared == 3


def test_no_answer_is_read_of_it(model, recording_engine, window):
    engine = recording_engine(model, **SHAPE)
    (sample,) = engine.sample(ask(1e9, 1, (3,)))
    assert sample.finish_reason == "confidence"
    sample = sample._replace(text="The answer is 42.")
    read = with_answers(lambda requests: iter([sample]), "number")
    assert [s.answer for s in read(ask(1e9, 1, (3,)))] == [None]
    cut = sample._replace(finish_reason="length")
    read = with_answers(lambda requests: iter([cut]), "number")
    assert [s.answer for s in read(ask(1e9, 1, (3,)))] == ["42"]
