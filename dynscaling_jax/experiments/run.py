"""One experiment: a task, a sampler and a method to a directory."""

import contextlib
import dataclasses
import functools
import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynscaling_jax.analysis import statistics
from dynscaling_jax.analysis.graded import (
    GradedQuestion,
    GradedRun,
    RecordedRun,
    grade_questions,
)
from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.experiments import identity
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.config import (
    EngineConfig,
    RunConfig,
    get_config,
    typed,
)
from dynscaling_jax.experiments.environment import about, use_compilation_cache
from dynscaling_jax.experiments.log import Log, checksum, refuse_changed
from dynscaling_jax.experiments.metrics import AddPoint, Metrics, board
from dynscaling_jax.experiments.processes import difference
from dynscaling_jax.experiments.scale import same_answer
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
from dynscaling_jax.sampler import tap
from dynscaling_jax.scaling import spec
from dynscaling_jax.scaling.loop import (
    Result,
    Round,
    check,
    for_queries,
    run_rounds,
)
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import STRATEGIES
from dynscaling_jax.scaling.timer import Timer
from dynscaling_jax.scaling.votes import VOTES
from dynscaling_jax.tasks import Comparer, Task, load_task, with_answers
from dynscaling_jax.thinking import Thinking, named
from dynscaling_jax.types import (
    Budget,
    Method,
    Query,
    Request,
    Sample,
    SampleFn,
    Sampler,
    Schedule,
)

_PER_QUERY = ("samples_per_query", "round_per_query", "first_round_per_query")


class Run(NamedTuple):
    """A finished run: its directory, its summary, and what came of it."""

    workdir: Path
    summary: dict[str, Any]
    result: Result

    def __str__(self) -> str:
        return table(self.summary)


class Origin(NamedTuple):
    """What config.json says of a run.

    config has to be the same for the run to go on, and so has identity: the
    fingerprints of what config only names. defaults are of fields that the
    config of an earlier version lacks.
    """

    config: Mapping[str, Any]
    identity: Mapping[str, str] = {}
    defaults: Mapping[str, Any] = {}


def run(
    task: Task,
    sampler: Sampler,
    method: Method,
    budget: Budget,
    workdir: str | Path,
    *,
    seed: int = 0,
    origin: Origin | None = None,
    processes: Processes = ALONE,
    tensorboard: bool = False,
) -> Run:
    """Runs an experiment, or goes on with it.

    The directory takes the samples as they come, and in the end the answers,
    a summary and a report. Called again with the same arguments after a kill,
    a run goes on to the same bytes.

    Args:
      task: queries and their references, which grade the run in the end.
      sampler: what answers.
      method: strategy, policy, vote and schedule.
      budget: caps for all queries together.
      workdir: of this run alone.
      seed: of the policy and the chains; the sampler has a seed of its own.
      origin: what config.json says; by default what the arguments say.
      processes: that generate it together, each called with its own; the
        first writes the files of the run.
      tensorboard: whether to write curves into WORKDIR/tensorboard.

    Raises:
      ValueError, OSError, RuntimeError: with what to do about it; samples
        that came stay in the log.
    """
    workdir = Path(workdir)
    if origin is None:
        origin = _origin(task, sampler, method, budget, seed)
    named = {**origin.identity, **identity.of_questions(task)}
    origin = origin._replace(identity=named)
    names = {
        "task": task.name,
        "kind": task.kind,
        "model": sampler.name,
        "method": method.name,
        "strategy": method.strategy.name,
        "policy": method.policy.name,
        "vote": method.vote.name,
    }
    use_compilation_cache()
    check([p.query for p in task.problems], budget, method.schedule)
    if fault := difference(processes.exchange(dumps(named), nothing)):
        raise ValueError(fault)
    with Comparer() as compare:
        with board(workdir / "tensorboard", tensorboard) as draw:
            summary, result, graded_run = _run(
                task, sampler, method, budget, workdir, seed, origin, names,
                processes, draw, compare,
            )  # fmt: skip
        if processes.number == 0:
            reporting.write_page([graded_run], workdir)
    return Run(workdir, summary, result)


def _run(
    task: Task,
    sampler: Sampler,
    method: Method,
    budget: Budget,
    workdir: Path,
    seed: int,
    origin: Origin,
    names: Mapping[str, str],
    processes: Processes,
    draw: AddPoint,
    compare: Comparer,
) -> tuple[dict[str, Any], Result, GradedRun]:
    queries = [problem.query for problem in task.problems]
    budget = for_queries(budget, len(queries))
    first = processes.number == 0
    log = functools.partial(Log, about=about(), **origin._asdict())
    references = {p.query.id: p.reference for p in task.problems}
    texts = {q.id: q.messages[-1].content for q in queries}
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(
            open_log(workdir, log, processes, clock=lambda: timer())
        )
        if first:  # beside the log, so that it can be replayed as a bank
            refuse_changed(workdir)
            write_json(workdir / "references.json", references)
            write_json(workdir / "questions.json", texts)
        metrics = stack.enter_context(
            contextlib.closing(
                Metrics(workdir, budget, processes.number, draw, len(queries))
            )
        )
        timer = Timer(budget.seconds, metrics.before)
        reading = functools.partial(
            with_answers, kind=task.kind, thinking=sampler.thinking
        )

        def kept_votes(sample: SampleFn) -> SampleFn:
            def answer(requests: Sequence[Request]) -> Iterator[Sample]:
                with open_log(workdir, log, processes, "vote") as kept:
                    yield from kept.cached(sample)(requests)

            return answer

        def on_round(done: Round) -> None:
            opened.round(round_row(queries, done))
            metrics.round(done)

        result = run_rounds(
            queries,
            tap(
                sampler,
                reading,
                timer.within,
                metrics.metered,
                opened.cached,
                metrics.with_progress,
            ),
            method,
            budget,
            jax.random.key(seed),
            same=same_answer(compare, {q.id: task.kind for q in queries}),
            vote_sampler=tap(sampler, reading, metrics.metered, kept_votes),
            on_round=on_round,
            clock=opened.clock,
        )
        samples = [s for of_query in result.samples for s in of_query]
        questions = grade_questions(samples, references, task.kind, compare)
        answers = answer_rows(result, references, questions)
        voted_Q = np.array([answers[q.id]["right"] for q in questions])
        summary = {
            **names,
            **spent(result, metrics),
            **accuracies(questions, voted_Q, samples),
        }
    if first:
        summary["log"] = checksum(workdir)
        write_json(workdir / "answers.json", answers)
        write_json(workdir / "summary.json", summary)
    finish(workdir, processes)
    rounds = [round_row(queries, done) for done in result.rounds]
    recorded = RecordedRun(
        workdir.resolve().name, summary, references, texts, answers, samples,
        rounds,
    )  # fmt: skip
    return summary, result, GradedRun(recorded, questions)


def _origin(
    task: Task, sampler: Sampler, method: Method, budget: Budget, seed: int
) -> Origin:
    """What the arguments of run say."""
    parts = method._asdict()
    names = {n: parts[n].name for n in ("strategy", "policy", "vote")}
    schedule = {
        n: None if v == math.inf else v
        for n, v in method.schedule._asdict().items()
    }
    return Origin(
        {
            "task": task.name,
            "kind": task.kind,
            "model": sampler.name,
            "method": {"name": method.name, **names, "schedule": schedule},
            "budget": budget._asdict(),
            "seed": seed,
        }
    )


def run_config(
    config: Any,
    workdir: Path,
    sampler: Sampler | None = None,
    identity: Mapping[str, str] = {},
    processes: Processes = ALONE,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Runs what a ConfigDict of get_config says; returns its summary.

    Args:
      config: of get_config.
      workdir: as run.
      sampler: what answers; by default what the config says.
      identity: fingerprints of what a given sampler is made of.
      processes: as run.
      tensorboard: as run.

    Raises:
      ValueError, OSError, RuntimeError: as run.
    """
    origin = Origin(config_row(config), identity, config_row(get_config()))
    fields = typed(config)
    axes = method_axes(fields)
    task = load_task(**fields.task._asdict())
    budget = budget_of(fields, len(task.problems))
    method = method_of(fields, axes)
    queries = [problem.query for problem in task.problems]
    check(queries, budget, method.schedule)
    if sampler is None:
        sampler = open_sampler(fields, queries)
        origin = origin._replace(identity=model_identity(fields))
    done = run(
        task,
        dataclasses.replace(tap(sampler), name=fields.model),
        method,
        budget,
        workdir,
        seed=fields.seed,
        origin=origin,
        processes=processes,
        tensorboard=tensorboard,
    )
    return done.summary


def config_row(config: Any) -> dict[str, Any]:
    """Returns a config as JSON can hold it.

    No cap on samples, inf, is null. A run may go on with other values of the
    fields that are left out.
    """
    values = config.to_dict()
    if values["budget"]["samples_per_query"] == math.inf:
        values["budget"]["samples_per_query"] = None
    for name in ("concurrency", "timeout", "retries"):  # change no sample
        del values["endpoint"][name]
    return values


def method_axes(config: RunConfig) -> dict[str, str]:
    """The strategy, policy and vote that a config asks for, as text."""
    preset = spec.choose("method", config.method, METHODS)()
    axes = {
        name: getattr(config, name) or getattr(preset, name).name
        for name in ("strategy", "policy", "vote")
    }
    axes["strategy"] = spec.completed(
        axes["strategy"],
        STRATEGIES,
        "strategy",
        chain_options(config.chain._asdict()),
    )
    return axes


def chain_options(chain: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of chains that a config sets."""
    return {k: v for k, v in chain.items() if v not in (None, "")}


def method_of(config: RunConfig, axes: Mapping[str, str]) -> Method:
    """The method that a config asks for; axes as method_axes gives them.

    Where nothing is learnt from one round for the next, as in parallel x
    uniform, all samples are one round.
    """
    preset = METHODS[config.method]()
    first, later = preset.schedule[:2]
    if (axes["strategy"], axes["policy"]) == ("parallel", "uniform"):
        first = later = math.inf
    elif first == math.inf:
        first = later = 1
    caps = config.budget
    if caps.first_round_per_query is not None:
        first = caps.first_round_per_query
    if caps.round_per_query is not None:
        later = caps.round_per_query
    tables = {"strategy": STRATEGIES, "policy": POLICIES, "vote": VOTES}
    # a text is named as it stands, so that files of a run keep their bytes
    values = {
        axis: spec.parse(axes[axis], known, axis)._replace(name=axes[axis])
        for axis, known in tables.items()
    }
    schedule = Schedule(first, later, caps.stale_rounds, caps.capacity)
    return Method(**values, schedule=schedule, name=config.method)


def open_sampler(config: RunConfig, queries: Sequence[Query] = ()) -> Sampler:
    """A local model behind an engine, or an endpoint.

    Raises:
      ValueError: a field that it cannot have; a query whose prompt leaves no
        room for an answer.
    """
    if config.model.startswith("openai://"):
        return endpoint_sampler(config)
    engine = open_engine(config, mesh.build(config.mesh))
    engine.check(queries)
    return with_thinking(config, engine)


def endpoint_sampler(config: RunConfig) -> Sampler:
    """What a server offers a run.

    Raises:
      ValueError: a field that only a local model can have.
    """
    defaults = RunConfig()
    local = ("dtype", "quantize", "mesh", "context", "adapter")
    for name in (*local, "template_variables"):
        value, default = getattr(config, name), getattr(defaults, name)
        if value != default:
            raise ValueError(
                f"config.{name}={value!r} is of local models; a server has "
                f"its own. Leave it at {default!r}, and see docs/endpoints.md"
            )
    from dynscaling_jax.inference.endpoint import Endpoint, parse_url

    fields = config.endpoint._asdict()
    fields["extra_body"] = json_object(config, "endpoint.extra_body")
    fields["seed"] = config.seed if fields["seed"] else None
    engine = config.engine
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p"):
        fields[name] = getattr(engine, name)
    model, url = parse_url(config.model)
    endpoint = Endpoint(model, url, stop=tuple(engine.stop), **fields)
    return with_thinking(config, endpoint)


def with_thinking(config: RunConfig, sampler: Sampler) -> Sampler:
    """A sampler whose thoughts are told as a config says, if it does."""
    how = thinking_of(config, sampler.thinking)
    return dataclasses.replace(tap(sampler), thinking=how)


def thinking_of(
    config: RunConfig,
    found: Thinking = Thinking(),  # noqa: B008, immutable
) -> Thinking:
    """How thoughts are told: as found, unless the config says how."""
    end = config.end_of_thinking
    return found if end is None else found._replace(marks=named(end))


def open_engine(
    config: RunConfig, on: Mesh | None, available: float | None = None
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


def model_identity(config: RunConfig) -> dict[str, str]:
    """Fingerprints of a local model and its adapter."""
    if config.model.startswith("openai://"):
        return {}
    found = identity.of_model(config.model)
    if config.adapter:
        files = identity.of_model(config.adapter)
        found |= {f"{config.adapter}/{name}": of for name, of in files.items()}
    return found


def engine_fields(engine: EngineConfig) -> dict[str, Any]:
    """Returns what Engine takes."""
    fields = engine._asdict()
    groups = fields.pop("groups")
    if groups not in ("", "auto"):
        raise ValueError(
            f"config.engine.groups={groups!r}: expected auto, or nothing for "
            "config.engine.slots"
        )
    return {**fields, "slots": None} if groups else fields


def json_object(config: RunConfig, name: str) -> dict[str, Any]:
    """What a field that is JSON holds."""
    text = operator.attrgetter(name)(config)
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


def budget_of(config: RunConfig, queries: int) -> Budget:
    """The caps of a run."""
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
        value = getattr(fields, name)
        endless = name == "samples_per_query" and value == math.inf
        if value is not None and not endless:
            if not 0 < value * queries < 2**31:
                raise ValueError(
                    f"budget.{name}={shown(value)}: expected a number above 0, "
                    f"of which {queries} questions have fewer than 2^31"
                )
    return Budget(
        samples_per_query=None if samples == math.inf else samples,
        new_tokens=fields.new_tokens,
        total_tokens=fields.total_tokens,
        flops=fields.flops,
        seconds=fields.seconds,
    )


def round_row(queries: Sequence[Query], done: Round) -> dict[str, Any]:
    """Returns a line of rounds.jsonl.

    Of each query it has the samples granted, and the uncertainty at which
    they were granted.
    """
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


def answer_rows(
    result: Result,
    references: Mapping[str, str],
    questions: Sequence[GradedQuestion],
) -> dict[str, dict[str, Any]]:
    """Returns what answers.json says: of each question, its answer graded."""
    return {
        question.id: {
            "answer": answer,
            "reference": references[question.id],
            "right": question.number(answer) in question.right,
            "right_samples": round(_share(question.right_N), 6),
        }
        for question, answer in zip(questions, result.answers, strict=True)
    }


def accuracies(
    questions: Sequence[GradedQuestion],
    voted_Q: np.ndarray,
    samples: Sequence[Sample],
) -> dict[str, Any]:
    """Returns the accuracy of the vote and of single samples."""
    return {
        "accuracy": float(voted_Q.mean()),
        "accuracy_ci95": list(statistics.wilson_interval(voted_Q)),
        "pass_at_1": float(np.mean([_share(q.right_N) for q in questions])),
        "unparsed": sum(s.answer is None for s in samples),
        "failed": sum(s.finish_reason.startswith("error") for s in samples),
    }


def _share(right_N: Sequence[bool]) -> float:
    return float(np.mean(right_N)) if right_N else 0.0


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
