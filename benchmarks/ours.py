"""Our side of a comparison: the engine on some prompts."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import prompts
from benchmarks.common import Config, rate, timed_calls
from dynscaling_jax.checkpoints import Model, load_model
from dynscaling_jax.inference import Engine
from dynscaling_jax.inference.grouped import prefill
from dynscaling_jax.inference.grouped import runner as grouped
from dynscaling_jax.inference.paged import runner as paged
from dynscaling_jax.tasks import load_task
from dynscaling_jax.types import Query, Request

# what engines call on the device
READING = {prefill: ("prefill", "extend")}
CALLS = {
    **READING,
    grouped: ("start", "decode"),
    paged: ("prefill_chunk", "start", "decode_chunk"),
}


class Work(NamedTuple):
    """What all sides do: `candidates` samples of each query, each of exactly
    new_tokens tokens."""

    model: Model
    queries: list[Query]
    warm_up: list[Query]  # others of the same length
    candidates: int
    new_tokens: int
    temperature: float


class Setting(NamedTuple):
    slots: int
    slots_per_group: int


class Full(NamedTuple):
    """A run over all the work."""

    tokens: int
    seconds: float
    idle: float  # share of slot-steps without a token


class Wave(NamedTuple):
    """One filling of the slots; prompts are cached, or their time left out."""

    tokens: int  # without the first ones, which belong to the prompts
    seconds: float
    device: float  # seconds of it within the functions of decoding
    step: float  # seconds of a decode step, on the device
    steps: int


def load(config: Config) -> Model:
    return endless(load_model(config.model, config.dtype))


def endless(model: Model) -> Model:
    """Without ids that end a sample: all samples are as long."""
    config = dataclasses.replace(model.config, eos_token_id=())
    copy = Model(config, model.params, lambda: model.tokenizer)
    copy.eos_ids = ()
    return copy


def make_work(config: Config, size: Config, model: Model) -> Work:
    """Prompts of the task for the queries, and as many others."""
    task = load_task(**config.task)
    made = prompts.queries(task, model, 2 * size.queries, size.prompt_tokens)
    return Work(
        model,
        made[: size.queries],
        made[size.queries :],
        size.candidates,
        size.new_tokens,
        size.temperature,
    )


def engine(work: Work, setting: Setting, attention: str = "auto") -> Engine:
    return Engine(
        work.model,
        max_new_tokens=work.new_tokens,
        temperature=work.temperature,
        slots=setting.slots,
        slots_per_group=setting.slots_per_group,
        attention=attention,
    )


def best_setting(
    work: Work, settings: Sequence[Sequence[int]]
) -> tuple[Setting, list[dict[str, Any]]]:
    """The fastest in a probe, which also compiles all that it needs."""
    tried = []
    for setting in map(Setting._make, settings):
        first = rate(
            setting.slots, _wave(work, setting, engine(work, setting)).step
        )
        tried.append({**setting._asdict(), "tokens_per_second": first})
    best = max(tried, key=lambda one: one["tokens_per_second"])
    return Setting(best["slots"], best["slots_per_group"]), tried


def full(work: Work, setting: Setting) -> tuple[Full, Engine]:
    """All the work by a fresh engine, which keeps the prefixes."""
    fresh = engine(work, setting)
    begin = time.perf_counter()
    tokens = generate(fresh, work.queries, work.candidates)
    seconds = time.perf_counter() - begin
    idle = 1 - fresh.active_steps / max(1, fresh.slot_steps)
    expected = len(work.queries) * work.candidates * work.new_tokens
    if tokens != expected:
        raise RuntimeError(f"{tokens} tokens were generated, not {expected}")
    return Full(tokens, seconds, round(float(idle), 4)), fresh


def wave(work: Work, setting: Setting, used: Engine) -> Wave:
    """Decoding alone, by an engine that has cached the prefixes."""
    return _wave(work._replace(warm_up=work.queries), setting, used)


def _wave(work: Work, setting: Setting, used: Engine) -> Wave:
    count = max(1, setting.slots // work.candidates)
    each = min(setting.slots, work.candidates)
    some = work.warm_up[:count]
    before = used.slot_steps
    with timed_calls(CALLS) as times:
        begin = time.perf_counter()
        tokens = generate(used, some, each)
        seconds = time.perf_counter() - begin
    # engines that decode from pages compute the last chunk of a prompt again
    seconds -= sum(times.pop("prefill_chunk", ()))
    steps = int(used.slot_steps - before) // setting.slots
    chunks = sorted(times["decode"] or times["decode_chunk"])
    usual = chunks[(len(chunks) - 1) // 2]  # one of them may have compiled
    return Wave(
        tokens - len(some) * each,
        seconds,
        sum(map(sum, times.values())),
        usual * len(chunks) / max(1, steps),
        steps,
    )


def generate(used: Engine, some: Sequence[Query], candidates: int) -> int:
    """Samples, and returns the count of completion tokens."""
    requests = [
        Request(query, query.messages, index)
        for query in some
        for index in range(candidates)
    ]
    return sum(sample.new_tokens for sample in used.sample(requests))


def line(
    size: Config,
    setting: Setting,
    tried: list[dict[str, Any]],
    done: Full,
    decoding: Wave,
) -> dict[str, Any]:
    return {
        "bench": size.name,
        **setting._asdict(),
        "queries": size.queries,
        "candidates": size.candidates,
        "prompt_tokens": size.prompt_tokens,
        "new_tokens": size.new_tokens,
        "seconds": round(done.seconds, 2),
        "tokens_per_second": rate(done.tokens, done.seconds),
        "decode_tokens_per_second": rate(decoding.tokens, decoding.seconds),
        "idle": done.idle,
        "tried": tried,
    }
