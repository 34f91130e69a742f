"""One experiment: a task, a sampler and a method to a directory."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dynscaling_jax import sampler as samplers
from dynscaling_jax.analysis import statistics
from dynscaling_jax.analysis.graded import (
    GradedQuestion,
    GradedRun,
    RecordedRun,
    grade_questions,
)
from dynscaling_jax.experiments import identity
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.environment import about, use_compilation_cache
from dynscaling_jax.experiments.log import (
    Log,
    checksum,
    refuse_changed,
    sound,
)
from dynscaling_jax.experiments.metrics import AddPoint, Metrics, board
from dynscaling_jax.experiments.processes import difference
from dynscaling_jax.experiments.scale import key_of, same_answer
from dynscaling_jax.experiments.shared import (
    ALONE,
    Processes,
    finish,
    nothing,
    open_log,
)
from dynscaling_jax.files import write_json
from dynscaling_jax.lines import dumps, shown
from dynscaling_jax.methods import for_sampler
from dynscaling_jax.sampler import tap
from dynscaling_jax.scaling.arrivals import run_arrivals
from dynscaling_jax.scaling.loop import (
    Event,
    Result,
    Round,
    check,
    for_queries,
    run_rounds,
)
from dynscaling_jax.scaling.timer import Timer
from dynscaling_jax.tasks import Comparer, Task, read_reference, with_answers
from dynscaling_jax.types import (
    Budget,
    Method,
    Query,
    Request,
    Sample,
    SampleFn,
    SampleKey,
    Sampler,
)


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
      method: strategy, policy, vote and schedule. The first three need names:
        a directory tells by them alone whether a run goes on as it began.
      budget: caps for all queries together.
      workdir: a local directory, of this run alone.
      seed: of the policy and the chains; the sampler has a seed of its own.
      origin: what config.json says; by default what the arguments say.
      processes: that generate it together, each called with its own; the
        first writes the files of the run.
      tensorboard: whether to write curves into WORKDIR/tensorboard.

    Raises:
      ValueError, OSError, RuntimeError: with what to do about it; samples
        that came stay in the log.
    """
    _check(task, sampler, method, budget, workdir)
    method = for_sampler(method, sampler)
    workdir, key = Path(workdir), key_of(seed)
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
    if fault := difference(processes.exchange(dumps(named), nothing)):
        raise ValueError(fault)
    with Comparer() as compare:
        with board(workdir / "tensorboard", tensorboard) as draw:
            summary, result, graded_run = _run(
                task, sampler, method, budget, workdir, key, origin, names,
                processes, draw, compare,
            )  # fmt: skip
        if processes.number == 0:
            reporting.write_page([graded_run], workdir)
    return Run(workdir, summary, result)


def _check(
    task: Task,
    sampler: Sampler,
    method: Method,
    budget: Budget,
    workdir: str | Path,
) -> None:
    """Refuses what a run would fail at in the end, or mix up."""
    if not isinstance(task, Task):
        raise ValueError(
            f"the task is {shown(task)}: expected a Task, such as "
            'load_task("gsm8k")'
        )
    samplers.check(sampler)
    check([p.query for p in task.problems], method, budget)
    for part in ("strategy", "policy", "vote"):
        if not getattr(method, part).name:
            raise ValueError(
                f"the {part} has no name, by which a run that goes on is told "
                f'from another; give it one: {part}._replace(name="mine")'
            )
    if method.cancel and not method.cancel.name:
        raise ValueError(
            "the rule of cancelling has no name, by which a run that goes on "
            'is told from another; give it one: cancel._replace(name="mine")'
        )
    for query, reference in task.problems:
        whole = isinstance(reference, str)
        if not whole or read_reference(reference, task.kind) is None:
            raise ValueError(
                f"query {query.id!r}: the reference {shown(reference)} cannot "
                f"be read whole as {task.kind}"
            )
    if not str(workdir) or "://" in str(workdir):
        raise ValueError(
            f"workdir={str(workdir)!r}: expected a local directory; "
            "launch.run keeps a copy in a bucket"
        )


def _run(
    task: Task,
    sampler: Sampler,
    method: Method,
    budget: Budget,
    workdir: Path,
    key: jax.Array,
    origin: Origin,
    names: Mapping[str, str],
    processes: Processes,
    draw: AddPoint,
    compare: Comparer,
) -> tuple[dict[str, Any], Result, GradedRun]:
    queries = [problem.query for problem in task.problems]
    budget = for_queries(budget, len(queries))
    first = processes.number == 0
    rounds = not method.schedule.concurrent
    log = functools.partial(
        Log, in_rounds=rounds, about=about(), **origin._asdict()
    )
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
        # a cap that one process reached earlier is reached for all
        own = dumps(metrics.before)
        before = max(map(float, processes.exchange(own, nothing)))
        timer = Timer(budget.seconds, before)
        reading = functools.partial(
            with_answers, kind=task.kind, thinking=sampler.thinking
        )

        def kept_votes(sample: SampleFn) -> SampleFn:
            def answer(requests: Sequence[Request]) -> Iterator[Sample]:
                votes = functools.partial(log, in_rounds=True)
                with open_log(workdir, votes, processes, "vote") as kept:
                    yield from kept.cached(sample)(requests)

            return answer

        def on_round(done: Round) -> None:
            opened.step(round_row(queries, done))
            metrics.round(done)

        def on_event(event: Event) -> None:
            if event.sample:
                opened.end(event.sample)
            opened.step(event_row(event))
            metrics.event(event)

        watched = tap(
            sampler,
            sound,
            reading,
            timer.within,
            metrics.metered,
            opened.cached,
            metrics.with_progress,
        )
        spend = functools.partial(run_rounds, on_round=on_round)
        in_steps = False
        if not rounds:
            in_steps = bool(watched.watch and watched.watch.in_steps)
            watched = dataclasses.replace(
                watched, watch=metrics.with_steps(opened.watch(watched.watch))
            )
            spend = functools.partial(
                run_arrivals,
                on_event=on_event,
                earlier=keyed_events(opened.begun),
            )
        result = spend(
            queries,
            watched,
            method,
            budget,
            key,
            same=same_answer(compare, {q.id: task.kind for q in queries}),
            vote_sampler=tap(
                sampler, sound, reading, metrics.metered, kept_votes
            ),
            clock=opened.clock,
        )
        samples = [s for of_query in result.samples for s in of_query]
        questions = grade_questions(samples, references, task.kind, compare)
        answers = answer_rows(result, references, questions)
        voted_Q = np.array([answers[q.id]["right"] for q in questions])
        summary = {
            **names,
            **spent(result, metrics, bool(result.events) and in_steps),
            **accuracies(questions, voted_Q, samples),
        }
    if first:
        summary["log"] = checksum(workdir)
        write_json(workdir / "answers.json", answers)
        write_json(workdir / "summary.json", summary)
    finish(workdir, processes)
    rows = [round_row(queries, done) for done in result.rounds]
    recorded = RecordedRun(
        workdir.resolve().name, summary, references, texts, answers, samples,
        rows, [*map(event_row, result.events)],
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
        if method.schedule.concurrent or n not in ("concurrent", "poll_steps")
    }
    return Origin(
        {
            "task": task.name,
            "kind": task.kind,
            "model": sampler.name,
            "method": {"name": method.name, **names, "schedule": schedule},
            **({"cancel": method.cancel.name} if method.cancel else {}),
            "budget": budget._asdict(),
            "seed": seed,
        }
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


def event_row(event: Event) -> dict[str, Any]:
    """Returns a line of events.jsonl.

    step counts decode steps; of an endpoint, which tells none, samples that
    ended.
    """
    request, sample = event.request, event.sample
    row = {
        "event": event.kind,
        "step": event.step,
        "grant": event.number,
        "query": request.query.id,
        "index": request.index,
    }
    if sample is None:
        return {**row, "parents": list(request.parents)}
    return {**row, "new_tokens": sample.new_tokens}


def keyed_events(
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, SampleKey]]:
    """The kinds of the events in rows of events.jsonl, and their samples.

    Raises:
        ValueError: a row is none of an event.
    """
    try:
        return [(row["event"], (row["query"], row["index"])) for row in rows]
    except (KeyError, TypeError):
        raise ValueError(
            "events.jsonl has a row that is no event; use a new workdir"
        ) from None


def spent(result: Result, metrics: Metrics, in_steps: bool) -> dict[str, Any]:
    """The ledger of a run, what a vote asked of the model included.

    in_steps: whether its events are told in decode steps.
    """
    seconds = metrics.seconds()
    ledger, extra = result.ledger, result.vote_ledger
    tokens = ledger.new_tokens + extra.new_tokens
    return {
        "queries": len(result.answers),
        "samples": ledger.samples,
        "rounds": len(result.rounds),
        **({"steps": result.events[-1].step} if in_steps else {}),
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
    cancelled = sum(s.finish_reason == samplers.CANCELLED for s in samples)
    return {
        "accuracy": float(voted_Q.mean()),
        "accuracy_ci95": list(statistics.wilson_interval(voted_Q)),
        "pass_at_1": float(np.mean([_share(q.right_N) for q in questions])),
        "unparsed": sum(s.answer is None for s in samples) - cancelled,
        **({"cancelled": cancelled} if cancelled else {}),
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
        "model": summary["model"] or "of no name",
        "method": "{strategy} x {policy} x {vote}".format(**summary),
        "samples": f"{summary['samples']} {_course(summary)} "
        f"({summary['stopped']}), {summary['unparsed']} without an answer",
        "tokens": f"{summary['new_tokens']} new, {uncached} read, "
        f"{summary['cached_tokens']} read from the cache",
        "rate": f"{summary['new_tokens_per_second']} new tokens/s, "
        f"{summary['seconds']:.0f} s",
        "all samples": f"{summary['pass_at_1']:.1%} right",
        "the vote": f"{summary['accuracy']:.1%} right "
        f"(95% interval {low:.1%} to {high:.1%})",
    }
    if summary.get("cancelled"):
        lines["cancelled"] = f"{summary['cancelled']} samples"
    if summary["failed"]:
        lines["failed"] = f"{summary['failed']} samples; see samples.jsonl"
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())


def _course(summary: dict[str, Any]) -> str:
    """Says in how many rounds or steps a run took its samples."""
    if "steps" in summary:
        return f"in {summary['steps']} steps"
    if summary["rounds"] or not summary["samples"]:
        return f"in {summary['rounds']} rounds"
    return "as they arrived"
