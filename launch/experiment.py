"""One experiment, joined from its parts: a config and a directory to a
summary."""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from configs.methods import METHODS
from dynscaling_jax.analysis import statistics
from dynscaling_jax.engine import Engine, mesh
from dynscaling_jax.models import load_model
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.records.shared import (
    ALONE,
    Processes,
    finish,
    open_log,
)
from dynscaling_jax.scaling import spec
from dynscaling_jax.scaling.chains import Reader
from dynscaling_jax.scaling.loop import Result, Round, check, scale
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import STRATEGIES
from dynscaling_jax.scaling.votes import VOTES
from dynscaling_jax.tasks import Comparer, Task, answered, grade, load_task
from dynscaling_jax.types import Budget, Query, Request, Sample, SampleFn
from launch import reporting
from launch.board import Draw, board
from launch.environment import about, use_compilation_cache
from launch.files import write_json
from launch.metrics import Metrics

Config = Any  # ml_collections.ConfigDict, as configs/common.py


class Source(NamedTuple):
    """What samples come from."""

    sample_fn: SampleFn
    reader: Reader  # what chains may hold
    max_cost: Budget  # of one sample
    check: Callable[[Sequence[Query]], None]  # refuses prompts too long


def run(
    config: Config,
    workdir: Path,
    source: Source | None = None,
    processes: Processes = ALONE,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Runs an experiment, or goes on with it, and returns its summary.

    Args:
        source: what samples come from; by default what the config says.
        processes: that draw it together, each called with its own; the first
            writes the files of the run.
        tensorboard: whether to write curves into WORKDIR/tensorboard.

    Raises:
        ValueError, OSError, RuntimeError: with what to do about it; rows
            that were drawn stay in the log.
    """
    with Comparer() as compare:
        with board(workdir / "tensorboard", tensorboard) as draw:
            summary = _run(config, workdir, source, processes, draw, compare)
        if processes.number == 0:
            reporting.write([workdir], workdir, compare)
    return summary


def _run(
    config: Config,
    workdir: Path,
    source: Source | None,
    processes: Processes,
    draw: Draw,
    compare: Comparer,
) -> dict[str, Any]:
    use_compilation_cache()
    first = processes.number == 0
    axes = method_axes(config)
    task = load_task(task_fields(config.task.to_dict()))
    queries = [problem.query for problem in task.problems]
    source = source or open_source(config)
    source.check(queries)
    strategy = spec.parse(
        axes["strategy"], STRATEGIES, "strategy", reader=source.reader
    )
    policy = spec.parse(axes["policy"], POLICIES, "policy")
    vote = spec.parse(axes["vote"], VOTES, "vote", reader=source.reader)
    budget, first_round, round_size = budget_of(config, len(queries), axes)
    check(queries, budget, config.budget.capacity, first_round, round_size)
    with contextlib.ExitStack() as stack:
        log = functools.partial(
            open_log, workdir, config_row(config), about(), processes
        )
        remembered, write_round = stack.enter_context(log())
        if first:  # beside the log, so that it can be replayed as a bank
            references = {p.query.id: p.reference for p in task.problems}
            write_json(workdir / "references.json", references)
            texts = {q.id: q.messages[-1].content for q in queries}
            write_json(workdir / "questions.json", texts)
        metrics = stack.enter_context(
            contextlib.closing(
                Metrics(workdir, budget, processes.number, draw, len(queries))
            )
        )
        model = answered(source.sample_fn, task.kind)

        def asked_by_vote(requests: Sequence[Request]) -> Iterator[Sample]:
            with log("vote") as (kept, _):
                yield from kept(metrics.counted(model))(requests)

        def observe(done: Round) -> None:
            write_round(round_row(queries, done))
            metrics.round(done)

        result = scale(
            queries,
            metrics.watched(
                remembered(metrics.counted(model, config.budget.seconds))
            ),
            strategy,
            policy,
            vote,
            budget,
            jax.random.key(config.seed),
            max_cost=source.max_cost,
            capacity=config.budget.capacity,
            same=lambda a, b: compare(a, b, task.kind) == "equal",
            observe=observe,
            first_round=first_round,
            round_size=round_size,
            stale=config.budget.stale_rounds,
            vote_fn=asked_by_vote,
        )
        summary = {
            "task": task.name,
            "kind": task.kind,
            "model": config.model,
            "method": config.method,
            **axes,
            **spent(result, metrics),
            **graded(task, result, compare),
        }
    answers = summary.pop("answers")
    if first:
        write_json(workdir / "answers.json", answers)
        write_json(workdir / "summary.json", summary)
    finish(workdir, processes)
    return summary


def config_row(config: Config) -> dict[str, Any]:
    """A config as JSON can hold it: no cap on samples, inf, is null."""
    values = config.to_dict()
    if values["budget"]["samples_per_query"] == math.inf:
        values["budget"]["samples_per_query"] = None
    return values


def method_axes(config: Config) -> dict[str, str]:
    """The strategy, policy and vote that a config asks for, as text."""
    preset = spec.choose("method", config.method, METHODS)
    names = ("strategy", "policy", "vote")
    axes = {name: config[name] or getattr(preset, name) for name in names}
    axes["strategy"] = spec.completed(
        axes["strategy"], STRATEGIES, "strategy", chain_options(config)
    )
    return axes


def chain_options(config: Config) -> dict[str, Any]:
    """Those options of chains that a config sets."""
    return {k: v for k, v in config.chain.items() if v not in (None, "")}


def task_fields(task: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task; of the columns of a file, those that are named."""
    named = {k: v for k, v in task["fields"].items() if v}
    return {**task, "fields": named}


def open_source(config: Config) -> Source:
    """A local model behind an engine, or an endpoint."""
    if not config.model.startswith("openai://"):
        engine = open_engine(config, mesh.build(config.mesh))
        return local_source(config, engine)
    if template_variables(config):
        raise ValueError(
            "config.template_variables is of the templates of local "
            "models; an endpoint renders by its own settings"
        )
    from dynscaling_jax.engine.endpoint import endpoint, parse_url

    sample_fn = endpoint(
        *parse_url(config.model),
        seed=config.seed,
        max_new_tokens=config.engine.max_new_tokens,
        temperature=config.engine.temperature,
        top_p=config.engine.top_p,
        stop=tuple(config.engine.stop),
    )
    most = Budget(new_tokens=config.engine.max_new_tokens)
    reader = Reader(end_of_thinking=config.end_of_thinking or None)
    return Source(sample_fn, reader, most, lambda _: None)


def open_engine(
    config: Config, on: Mesh | None, available: float | None = None
) -> Engine:
    """A local model on a mesh, or on one device; available as of Engine."""
    model = load_model(
        config.model,
        config.dtype,
        config.quantize,
        config.context,
        template_variables(config),
        on,
        config.adapter,
    )
    fields = engine_fields(config.engine)
    return Engine(model, seed=config.seed, available=available, **fields)


def local_source(config: Config, engine: Engine) -> Source:
    """What an engine offers a run."""
    shape = engine.model.config
    context, new = shape.context, config.engine.max_new_tokens
    most = Budget(
        new_tokens=new,
        total_tokens=context,
        flops=sample_flops(shape, context - new, 0, new),
    )
    thinking = config.end_of_thinking or None
    reader = Reader(engine.count_tokens, context - new, thinking)
    return Source(engine, reader, most, engine.check)


def engine_fields(engine: Config) -> dict[str, Any]:
    """What Engine takes."""
    fields = engine.to_dict()
    groups = fields.pop("groups")
    if groups not in ("", "auto"):
        raise ValueError(
            f"config.engine.groups={groups!r}: expected auto, or nothing for "
            "config.engine.rows"
        )
    return {**fields, "rows": None} if groups else fields


def template_variables(config: Config) -> dict[str, Any]:
    """What the chat template is to read, from JSON."""
    text = config.template_variables
    try:
        variables = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(
            f"config.template_variables={text!r} is not JSON ({error})"
        ) from None
    if not isinstance(variables, dict):
        raise ValueError(
            f"config.template_variables={text!r}: expected a JSON object, "
            'such as {"enable_thinking": false}'
        )
    return variables


def budget_of(
    config: Config, queries: int, axes: dict[str, str]
) -> tuple[Budget, int | None, int | None]:
    """The caps of a run, the size of its first round and of the others.

    Where nothing is learnt from one round for the next, as in parallel x
    uniform, all samples are one round.
    """
    fields = config.budget
    samples = fields.samples_per_query
    if not samples >= 1:
        raise ValueError(
            f"budget.samples_per_query={samples} is less than one sample for "
            "each question; raise it, or take fewer questions by task.limit"
        )
    budget = Budget(
        samples=None if samples == math.inf else math.ceil(samples * queries),
        new_tokens=fields.new_tokens,
        total_tokens=fields.total_tokens,
        flops=fields.flops,
        # Metrics.counted ends the drawing: what the log holds takes no time
        seconds=None if fields.seconds is None else math.inf,
    )
    blind = axes["strategy"] == "parallel" and axes["policy"] == "uniform"
    first = METHODS[config.method].first

    def size(per_query: float | None, default: float) -> int | None:
        if per_query is None and blind:
            return budget.samples
        share = default if per_query is None else per_query
        return math.ceil(share * queries)

    return (
        budget,
        size(fields.first_round_per_query, first),
        size(fields.round_per_query, 1),
    )


def round_row(queries: Sequence[Query], done: Round) -> dict[str, Any]:
    """A line of rounds.jsonl: of each query, the samples granted and the
    uncertainty that they were granted at."""
    ids = [query.id for query in queries]
    return {
        "round": done.number,
        "grants": dict(zip(ids, done.grants_Q.tolist(), strict=True)),
        "uncertainty": {
            i: round(float(u), 6)
            for i, u in zip(ids, done.uncertainty_Q, strict=True)
        },
        "samples": done.ledger.samples,
        "new_tokens": done.ledger.new_tokens,
    }


def spent(result: Result, metrics: Metrics) -> dict[str, Any]:
    """The ledger of a run, what a vote asked of the model included."""
    seconds = round(metrics.seconds(), 3)
    ledger, extra = result.ledger, result.vote_ledger
    tokens = ledger.new_tokens + extra.new_tokens
    return {
        "queries": len(result.answers),
        "samples": ledger.samples,
        "rounds": len(result.rounds),
        "stopped": "seconds" if metrics.timed_out else result.stopped,
        "prompt_tokens": ledger.prompt_tokens + extra.prompt_tokens,
        "cached_tokens": ledger.cached_tokens + extra.cached_tokens,
        "new_tokens": tokens,
        "flops": ledger.flops + extra.flops,
        "seconds": seconds,
        "loop_share": metrics.loop_share(),
        "new_tokens_per_second": round(tokens / max(seconds, 1e-3), 2),
    }


def graded(task: Task, result: Result, compare: Comparer) -> dict[str, Any]:
    """Accuracy of the vote and of single samples, against the references;
    and of each question, its answer and how that was graded."""

    def right(answer: str | None, reference: str) -> bool:
        return grade(answer, reference, task.kind, compare) == "right"

    voted = np.zeros(len(task.problems), bool)
    single = np.zeros(len(task.problems))
    failed = 0
    for q, problem in enumerate(task.problems):
        known = functools.cache(
            lambda answer, ref=problem.reference: right(answer, ref)
        )
        voted[q] = known(result.answers[q])
        samples = result.samples[q]
        if samples:
            single[q] = np.mean([known(s.answer) for s in samples])
        failed += sum(s.finish_reason.startswith("error") for s in samples)
    return {
        "accuracy": float(voted.mean()),
        "accuracy_ci95": list(statistics.wilson_interval(voted)),
        "pass_at_1": float(single.mean()),
        "unparsed": sum(
            s.answer is None for samples in result.samples for s in samples
        ),
        "failed": failed,
        "answers": {
            problem.query.id: {
                "answer": answer,
                "reference": problem.reference,
                "right": bool(voted[q]),
                "right_samples": round(float(single[q]), 6),
            }
            for q, (problem, answer) in enumerate(
                zip(task.problems, result.answers, strict=True)
            )
        },
    }


def table(summary: dict[str, Any]) -> str:
    """What a person reads at the end."""
    low, high = summary["accuracy_ci95"]
    uncached = summary["prompt_tokens"] - summary["cached_tokens"]
    lines = {
        "task": f"{summary['task']}, {summary['queries']} questions, "
        f"answers: {summary['kind']}",
        "model": summary["model"],
        "method": "{strategy} x {policy} x {vote}".format(**summary),
        "samples": f"{summary['samples']} in {summary['rounds']} rounds "
        f"({summary['stopped']}), {summary['unparsed']} without an answer",
        "tokens": f"{summary['new_tokens']} new, {uncached} read, "
        f"{summary['cached_tokens']} read from the cache",
        "rate": f"{summary['new_tokens_per_second']} new tokens/s, "
        f"{summary['seconds']:.0f} s",
        "one sample": f"{summary['pass_at_1']:.1%} right",
        "the vote": f"{summary['accuracy']:.1%} right "
        f"(95% interval {low:.1%} to {high:.1%})",
    }
    if summary["failed"]:
        lines["failed"] = f"{summary['failed']} samples; see samples.jsonl"
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())
