"""A whole DynScaling run: rounds, chains, slots that are filled again."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from benchmarks import ours, prompts
from benchmarks.common import Config, Lines, compilations, rate, timed_calls
from dynscaling_jax.checkpoints import Model, load_model
from dynscaling_jax.inference import Engine
from dynscaling_jax.inference.grouped import layout
from dynscaling_jax.methods import METHODS, WITHOUT_ROUNDS, in_rounds
from dynscaling_jax.sampler import tap
from dynscaling_jax.scaling.arrivals import run_arrivals
from dynscaling_jax.scaling.loop import Event, Result, run_rounds
from dynscaling_jax.tasks import Task, load_task, with_answers
from dynscaling_jax.types import (
    Budget,
    Message,
    Query,
    Request,
    Sample,
    SampleFn,
)


def lines(config: Config) -> Lines:
    size = config.dynscaling
    task = load_task(**config.task)
    model = load_model(config.model, config.dtype)
    run(size, model, task)  # the same run, compiling
    with compilations() as compiled, timed_calls(ours.READING) as times:
        engine, result, seconds, sampling, requests = run(size, model, task)
    chains = sum(bool(s.parents) for many in result.samples for s in many)
    # on a CPU a prompt token costs as much as a completion token
    reading = _reading(times)
    sampled = rate(result.ledger.new_tokens, sampling - reading)
    at_once = at_once_rate(size, model, requests, result.ledger.new_tokens)
    plain = plain_rate(config, size, model)
    idle = 1 - engine.active_steps / max(1, engine.slot_steps)
    yield {
        "bench": "dynscaling",
        "queries": size.queries,
        "samples": result.ledger.samples,
        "rounds": len(result.rounds),
        "stale_rounds": size.stale_rounds,
        "chains": chains,
        "new_tokens": result.ledger.new_tokens,
        "seconds": round(seconds, 2),
        "compilations": len(compiled),  # of what should all be there
        "sampling_seconds": round(sampling - reading, 2),
        "reading_seconds": round(reading, 2),
        "prompt_tokens_per_second": rate(
            result.ledger.prompt_tokens - result.ledger.cached_tokens, reading
        ),
        "tokens_per_second": sampled,
        "plain_tokens_per_second": plain,
        "share": round(sampled / plain, 3),
        "goal": 0.85,
        "at_once_tokens_per_second": at_once,
        "share_of_at_once": round(sampled / at_once, 3),
    }
    yield {
        "bench": "dynscaling, idle slots",
        "slot_steps": int(engine.slot_steps),
        "active_steps": int(engine.active_steps),
        "idle": round(float(idle), 4),
        "goal": 0.15,
    }
    yield without_rounds_line(size, model, task)
    yield extension_line(size, model, task)


def without_rounds_line(
    size: Config, model: Model, task: Task
) -> dict[str, Any]:
    """The same budget without rounds, as many samples at once as slots.

    Idle slots are counted up to the last grant, and in the whole run.
    """
    method = METHODS[size.method]()
    schedule = WITHOUT_ROUNDS._replace(
        concurrent=size.slots, poll_steps=size.poll_steps
    )
    counts: list[tuple[int, int]] = []
    for _ in range(2):  # the first run compiles
        engine = _engine(size, model, size.new_tokens, size.poll_steps)
        reading = functools.partial(
            with_answers, kind=task.kind, thinking=engine.thinking
        )
        counts.clear()

        def count(event: Event, engine: Engine = engine) -> None:
            if event.kind == "grant":
                counts.append((engine.slot_steps, engine.active_steps))

        begin = time.perf_counter()
        result = run_arrivals(
            [problem.query for problem in task.problems[: size.queries]],
            tap(engine, reading),
            method._replace(schedule=schedule),
            Budget(samples_per_query=size.samples_per_query),
            jax.random.key(0),
            on_event=count,
        )
        seconds = time.perf_counter() - begin
    steps, active = counts[-1]
    whole = 1 - engine.active_steps / max(1, engine.slot_steps)
    return {
        "bench": "dynscaling, without rounds",
        "concurrent": size.slots,
        "poll_steps": size.poll_steps,
        "samples": result.ledger.samples,
        "new_tokens": result.ledger.new_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": rate(result.ledger.new_tokens, seconds),
        "idle": round(float(whole), 4),
        "idle_before_the_tail": round(1 - active / max(1, steps), 4),
        "goal": 0.05,
    }


def run(
    size: Config, model: Model, task: Task
) -> tuple[Engine, Result, float, float, list[Request]]:
    """(engine, result, seconds, of these within the engine, its requests)."""
    engine = _engine(size, model, size.new_tokens)
    method = in_rounds(METHODS[size.method]())
    schedule = method.schedule._replace(stale=size.stale_rounds)
    spent, requests = [0.0], list[Request]()
    reading = functools.partial(
        with_answers, kind=task.kind, thinking=engine.thinking
    )
    begin = time.perf_counter()
    result = run_rounds(
        [problem.query for problem in task.problems[: size.queries]],
        tap(engine, lambda sample: _metered(sample, spent, requests), reading),
        method._replace(schedule=schedule),
        Budget(samples_per_query=size.samples_per_query),
        jax.random.key(0),
    )
    return engine, result, time.perf_counter() - begin, spent[0], requests


def at_once_rate(
    size: Config, model: Model, requests: Sequence[Request], tokens: int
) -> float:
    """Tokens a second of the same samples without rounds: no slot waits for
    an answer, so that what a run has less is what rounds cost, and what this
    rate has less than the plain one is what chains cost, and its tail."""
    for engine in (_engine(size, model, size.new_tokens) for _ in range(2)):
        begin = time.perf_counter()  # of the second; the first one compiles
        with timed_calls(ours.READING) as times:
            samples = engine.sample(requests)
            generated = sum(sample.new_tokens for sample in samples)
        seconds = time.perf_counter() - begin - _reading(times)
    if generated != tokens:
        raise RuntimeError(
            f"{generated} tokens were generated at once, not {tokens}"
        )
    return rate(tokens, seconds)


def plain_rate(config: Config, size: Config, model: Model) -> float:
    """Tokens a second of slots that are all active, prefill aside."""
    work = ours.make_work(config, size, ours.endless(model))
    setting = ours.Setting(size.slots, size.slots_per_group)
    engine = ours.engine(work, setting)
    ours.wave(work, setting, engine)  # caches the prefixes
    wave = ours.wave(work, setting, engine)
    return rate(wave.tokens, wave.seconds)


def extension_line(size: Config, model: Model, task: Task) -> dict[str, Any]:
    """Prefill of a chain from a cached prefix, against all of it: seconds
    within the functions of prefill."""
    texts = prompts.queries(task, model, size.chains + 1, size.chain_prompt)
    engine = _engine(size, model, 2)
    fresh, extended = [], []
    for query in texts:
        chain = (*query.messages, Message("assistant", _attempt(size, model)))
        alone = Query(f"{query.id}/alone", chain)
        _sample(engine, query, query.messages)
        with timed_calls(ours.READING) as times:
            _sample(engine, query, chain)
        extended.append(_reading(times))
        with timed_calls(ours.READING) as times:
            _sample(engine, alone, chain)
        fresh.append(_reading(times))
    # the first ones compiled
    share = statistics.median(extended[1:]) / statistics.median(fresh[1:])
    return {
        "bench": "dynscaling, a chain behind a cached prompt",
        "prompt_tokens": size.chain_prompt,
        "chain_tokens": size.chain_tokens,
        "extended_ms": round(1e3 * statistics.median(extended[1:]), 1),
        "fresh_ms": round(1e3 * statistics.median(fresh[1:]), 1),
        "share": round(share, 3),
        "goal": 0.3,
    }


def _attempt(size: Config, model: Model) -> str:
    """A text of about chain_tokens tokens."""
    text = "The answer is 7."
    each = len(model.tokenizer.encode(text))
    return " ".join([text] * max(1, size.chain_tokens // (each + 1)))


def _reading(times: dict[str, list[float]]) -> float:
    """Seconds of all calls."""
    return sum(map(sum, times.values()))


def _sample(
    engine: Engine, query: Query, messages: tuple[Message, ...]
) -> None:
    for _ in engine.sample([Request(query, messages, 0)]):
        pass


def _engine(
    size: Config, model: Model, new_tokens: int, steps: int = layout.CHUNK
) -> Engine:
    return Engine(
        model,
        max_new_tokens=new_tokens,
        temperature=size.temperature,
        slots=size.slots,
        slots_per_group=size.slots_per_group,
        steps=steps,
    )


def _metered(
    sample_fn: Callable, spent: list[float], requests: list[Request]
) -> SampleFn:
    """Adds the seconds within sample_fn up, and keeps its requests."""

    def sample(wanted: Sequence[Request]) -> Iterator[Sample]:
        requests.extend(wanted)
        begin = time.perf_counter()
        samples = iter(sample_fn(wanted))
        spent[0] += time.perf_counter() - begin
        return timed(samples)

    def timed(samples: Iterator[Sample]) -> Iterator[Sample]:
        while True:
            begin = time.perf_counter()
            sample = next(samples, None)
            spent[0] += time.perf_counter() - begin
            if sample is None:
                return
            yield sample

    return sample
