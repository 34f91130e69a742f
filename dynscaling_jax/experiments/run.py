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

from dynscaling_jax.analysis import statistics
from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.experiments import identity
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.board import Draw, board
from dynscaling_jax.experiments.config import get_config
from dynscaling_jax.experiments.environment import about, use_compilation_cache
from dynscaling_jax.experiments.log import Log, checksum, refuse_changed
from dynscaling_jax.experiments.metrics import Metrics
from dynscaling_jax.experiments.processes import difference
from dynscaling_jax.experiments.shared import (
    ALONE,
    Processes,
    finish,
    nothing,
    open_log,
)
from dynscaling_jax.files import write_json
from dynscaling_jax.inference import Engine, mesh
from dynscaling_jax.lines import dumps, shown
from dynscaling_jax.methods import METHODS
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.scaling import spec
from dynscaling_jax.scaling.chains import Reader
from dynscaling_jax.scaling.loop import Result, Round, check, scale
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import STRATEGIES
from dynscaling_jax.scaling.timer import Timer
from dynscaling_jax.scaling.votes import VOTES
from dynscaling_jax.tasks import Comparer, Task, grade, load_task, with_answers
from dynscaling_jax.thinking import Thinking, named
from dynscaling_jax.types import Budget, Query, Request, Sample, SampleFn

Config = Any  # ml_collections.ConfigDict, as configs/common.py
_PER_QUERY = ("samples_per_query", "round_per_query", "first_round_per_query")


class Source(NamedTuple):
    """What samples come from."""

    sample_fn: SampleFn
    reader: Reader  # what chains may hold
    max_cost: Budget  # of one sample
    check: Callable[[Sequence[Query]], None]  # refuses prompts too long
    identity: Mapping[str, str] = {}  # what the config only names, as it is


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
    budget, first_round, round_size = budget_of(config, len(queries), axes)
    stale = config.budget.stale_rounds
    sizes = config.budget.capacity, round_size, first_round, stale
    check(queries, budget, *sizes)
    source = source or open_source(config)
    source.check(queries)
    strategy = spec.parse(
        axes["strategy"], STRATEGIES, "strategy", reader=source.reader
    )
    policy = spec.parse(axes["policy"], POLICIES, "policy")
    vote = spec.parse(axes["vote"], VOTES, "vote", reader=source.reader)
    named = {**source.identity, **identity.of_questions(task)}
    brought = processes.exchange(dumps(named), nothing)
    if fault := difference(brought):
        raise ValueError(fault)
    with contextlib.ExitStack() as stack:
        log = functools.partial(
            Log,
            config=config_row(config),
            identity=named,
            about=about(),
            defaults=config_row(get_config()),
        )
        opened = stack.enter_context(
            open_log(workdir, log, processes, clock=lambda: timer())
        )
        if first:  # beside the log, so that it can be replayed as a bank
            refuse_changed(workdir)
            references = {p.query.id: p.reference for p in task.problems}
            write_json(workdir / "references.json", references)
            texts = {q.id: q.messages[-1].content for q in queries}
            write_json(workdir / "questions.json", texts)
        metrics = stack.enter_context(
            contextlib.closing(
                Metrics(workdir, budget, processes.number, draw, len(queries))
            )
        )
        thinking = source.reader.thinking
        model = with_answers(source.sample_fn, task.kind, thinking)
        timer = Timer(budget.seconds, metrics.before)

        def asked_by_vote(requests: Sequence[Request]) -> Iterator[Sample]:
            with open_log(workdir, log, processes, "vote") as kept:
                yield from kept.remembered(metrics.counted(model))(requests)

        def same() -> Callable[[str, str], bool]:
            one = compare.question()
            return lambda a, b: one(a, b, task.kind) == "equal"

        def observe(done: Round) -> None:
            opened.round(round_row(queries, done))
            metrics.round(done)

        result = scale(
            queries,
            metrics.watched(
                opened.remembered(metrics.counted(timer.within(model)))
            ),
            strategy,
            policy,
            vote,
            budget,
            jax.random.key(config.seed),
            max_cost=source.max_cost,
            capacity=config.budget.capacity,
            same=same,
            observe=observe,
            first_round=first_round,
            round_size=round_size,
            stale=stale,
            vote_fn=asked_by_vote,
            clock=opened.clock,
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
        summary["log"] = checksum(workdir)
        write_json(workdir / "answers.json", answers)
        write_json(workdir / "summary.json", summary)
    finish(workdir, processes)
    return summary


def config_row(config: Config) -> dict[str, Any]:
    """A config as JSON can hold it: no cap on samples, inf, is null. A run
    may go on with others of the fields that it leaves out."""
    values = config.to_dict()
    if values["budget"]["samples_per_query"] == math.inf:
        values["budget"]["samples_per_query"] = None
    for name in ("concurrency", "timeout", "retries"):  # change no sample
        del values["endpoint"][name]
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
    return endpoint_source(config)


def endpoint_source(config: Config) -> Source:
    """What a server offers a run.

    Raises:
        ValueError: a field that only a local model can have.
    """
    defaults = get_config()
    local = ("dtype", "quantize", "mesh", "context", "adapter")
    for name in (*local, "template_variables"):
        if config.get(name) != defaults.get(name):
            raise ValueError(
                f"config.{name}={config[name]!r} is of local models; a "
                f"server has its own. Leave it at {defaults[name]!r}, and see "
                "docs/endpoints.md"
            )
    from dynscaling_jax.inference.endpoint import endpoint, parse_url

    fields = config.endpoint.to_dict()
    fields["extra_body"] = json_object(config, "endpoint.extra_body")
    fields["seed"] = config.seed if fields["seed"] else None
    engine = config.engine
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p"):
        fields[name] = engine[name]
    model, url = parse_url(config.model)
    sample_fn = endpoint(model, url, stop=tuple(engine.stop), **fields)
    most = Budget(new_tokens=config.engine.max_new_tokens)
    # what a reply says is a turn of its own, whose prompt nobody here knows
    thinking = thinking_of(config, Thinking(begun=lambda _: ""))
    return Source(sample_fn, Reader(thinking=thinking), most, lambda _: None)


def thinking_of(
    config: Config,
    found: Thinking = Thinking(),  # noqa: B008, immutable
) -> Thinking:
    """How thoughts are told: as found, unless the config says how."""
    end = config.end_of_thinking
    return found if end is None else found._replace(marks=named(end))


def open_engine(
    config: Config, on: Mesh | None, available: float | None = None
) -> Engine:
    """A local model on a mesh, or on one device; available as of Engine."""
    model = load_model(
        config.model,
        config.dtype,
        config.quantize,
        config.context,
        json_object(config, "template_variables"),
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
    thinking = thinking_of(config, engine.model.tokenizer.thinking)
    reader = Reader(engine.count_tokens, context - new, thinking)
    named = identity.of_model(config.model)
    if config.adapter:
        files = identity.of_model(config.adapter)
        named |= {f"{config.adapter}/{name}": of for name, of in files.items()}
    return Source(engine, reader, most, engine.check, named)


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


def json_object(config: Config, name: str) -> dict[str, Any]:
    """What a field that is JSON holds."""
    text = functools.reduce(lambda c, part: c[part], name.split("."), config)
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config.{name}={text!r} is not JSON ({error})") from (
            None
        )
    if not isinstance(fields, dict):
        raise ValueError(
            f"config.{name}={text!r}: expected a JSON object, such as "
            '{"enable_thinking": false}'
        )
    return fields


def budget_of(
    config: Config, queries: int, axes: dict[str, str]
) -> tuple[Budget, int | None, int | None]:
    """The caps of a run, the size of its first round and of the others.

    Where nothing is learnt from one round for the next, as in parallel x
    uniform, all samples are one round.
    """
    if not 0 <= config.seed < 2**32:
        raise ValueError(
            f"config.seed={shown(config.seed)}: expected a whole number from 0 "
            "on, below 2^32"
        )
    fields = config.budget
    if fields.stale_rounds < 0:
        raise ValueError(
            f"budget.stale_rounds={fields.stale_rounds} is less than 0"
        )
    samples = fields.samples_per_query
    if not samples >= 1:
        raise ValueError(
            f"budget.samples_per_query={samples} is less than one sample for "
            "each question; raise it, or take fewer questions by task.limit"
        )
    for name in _PER_QUERY:
        value = fields[name]
        endless = name == "samples_per_query" and value == math.inf
        if value is not None and not endless:
            if not 0 < value * queries < 2**31:
                raise ValueError(
                    f"budget.{name}={shown(value)}: expected a number above 0, "
                    f"of which {queries} questions have fewer than 2^31"
                )
    budget = Budget(
        samples=None if samples == math.inf else math.ceil(samples * queries),
        new_tokens=fields.new_tokens,
        total_tokens=fields.total_tokens,
        flops=fields.flops,
        seconds=fields.seconds,
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
    seconds = metrics.seconds()
    ledger, extra = result.ledger, result.vote_ledger
    tokens = ledger.new_tokens + extra.new_tokens
    return {
        "queries": len(result.answers),
        "samples": ledger.samples,
        "rounds": len(result.rounds),
        "stopped": result.stopped,
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

    voted = np.zeros(len(task.problems), bool)
    single = np.zeros(len(task.problems))
    failed = 0
    for q, problem in enumerate(task.problems):
        one, reference = compare.question(), problem.reference
        known = functools.cache(
            lambda answer, reference=reference, one=one: (
                grade(answer, reference, task.kind, one) == "right"
            )
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
