"""One comparison, joined from its runs: a config to a report."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynscaling_jax.analysis import comparison, statistics
from dynscaling_jax.analysis.comparison import Trial
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.config import typed
from dynscaling_jax.experiments.configured import (
    model_identity,
    open_sampler,
    run_config,
)
from dynscaling_jax.files import read_json, write_json, write_text
from dynscaling_jax.methods import METHODS
from dynscaling_jax.sampler import Middleware, tap
from dynscaling_jax.scaling import spec
from dynscaling_jax.types import Request, Sample, SampleFn, Sampler

Known = dict[Any, Sample]
"""Samples by their requests."""
BASELINE = "self_consistency"
STABILITY = (
    "between seeds: standard deviation of the accuracy, each seed with "
    "samples, and where problems are generated problems, of its own; on "
    "average over the budgets. over budgets: standard deviation of the "
    "accuracies at the budgets. worst step back: the largest drop in accuracy "
    "from a smaller to a larger budget. In points."
)


def compare(
    config: Any,
    workdir: Path,
    methods: Sequence[str],
    budgets: Sequence[str],
    seeds: int,
) -> str:
    """Runs what is not there yet, writes the report and returns it.

    Raises:
        ValueError, OSError, RuntimeError: with what to do about it.
    """
    from dynscaling_jax.analysis import plots  # where there is matplotlib

    names = [BASELINE, *(m for m in methods if m != BASELINE)]
    for name in names:
        spec.choose("method", name, METHODS)
    sizes = sorted({_budget(text) for text in budgets})
    if not sizes:
        raise ValueError("--budgets names none; give some, such as 4,8,16")
    runs = Runs(config, workdir, seeds)
    # the largest first: its samples are those of the smaller ones too
    trials = runs.trials([(n, size) for n in names for size in sizes[::-1]])
    trials.sort(key=lambda t: (t.budget, names.index(t.method)))
    baseline = [t for t in trials if t.method == BASELINE]
    known = {t.budget for t in baseline}
    wanted = {_as_dear(t, baseline) for t in trials if t.method != BASELINE}
    more = sorted(wanted - known, reverse=True)
    extra = runs.trials([(BASELINE, size) for size in more])
    standings = comparison.standings(trials, [*baseline, *extra])
    text = _report(config, standings, seeds)
    if seeds > 1:
        text += f"\n\n{comparison.stability(trials)}\n\n{STABILITY}"
    write_json(workdir / "report.json", _rows([*trials, *extra]))
    write_text(workdir / "report.md", text + "\n")
    for axis in ("samples", "tokens"):
        plots.trials([*trials, *extra], axis, workdir / f"{axis}.png")
    reporting.write([workdir], workdir)
    return text


class Runs:
    """Runs of one config; those of a seed share an engine, and samples.

    One engine is there at a time: a device may have no room for two.
    """

    def __init__(self, config: Any, workdir: Path, seeds: int):
        """Runs in WORKDIR, with so many seeds from config.seed on."""
        self._config, self._workdir = config, workdir
        self._seeds = range(seeds)
        self._known: dict[int, Known] = {seed: {} for seed in self._seeds}
        self._open: tuple[int, Sampler] | None = None  # of which seed
        self._identity: dict[str, str] = {}

    def trials(self, wanted: Sequence[tuple[str, float]]) -> list[Trial]:
        """Runs methods at budgets, each over all seeds."""
        # first the seed whose engine is there
        there = self._open and self._open[0]
        done = {
            seed: [self._run(method, budget, seed) for method, budget in wanted]
            for seed in sorted(self._seeds, key=lambda seed: seed != there)
        }
        of_each = zip(*(done[seed] for seed in self._seeds), strict=True)
        return [
            self._trial(method, budget, of_seeds)
            for (method, budget), of_seeds in zip(wanted, of_each, strict=True)
        ]

    def _trial(
        self, method: str, budget: float, done: Sequence[tuple[dict, dict]]
    ) -> Trial:
        """What came of a method at one budget; done as _run, by seed."""
        # seeds of a benchmark ask the same questions, whose answers are not
        # independent: each question counts once
        by_question: dict[Any, list] = {}
        for _, answers in done:
            for question, answer in answers.items():
                by_question.setdefault(question, []).append(answer)

        def mean_Q(value: Callable[[dict[str, Any]], float]) -> np.ndarray:
            return np.array(
                [np.mean([*map(value, a)]) for a in by_question.values()]
            )

        accuracy_S = np.array([summary["accuracy"] for summary, _ in done])
        questions = sum(len(answers) for _, answers in done)
        total = lambda field: sum(summary[field] for summary, _ in done)
        prompt = total("prompt_tokens") - total("cached_tokens")
        return Trial(
            method,
            budget,
            mean_Q(lambda answer: answer["right"]),
            mean_Q(lambda answer: answer["right_samples"]),
            mean_Q(lambda answer: answer["right_samples"] > 0),
            accuracy_S,
            total("samples") / questions,
            (prompt + total("new_tokens")) / questions,
        )

    def _run(
        self, method: str, budget: float, seed: int
    ) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
        """The summary of a run, and by (id, text) what its questions got."""
        folder = self._workdir / reporting.run_name(seed, method, budget)
        config = self._of_seed(seed)
        config.method = method
        config.budget.samples_per_query = budget
        if self._open is None or self._open[0] != seed:
            self._open = None  # before the next one takes its room
            fields = typed(config)
            middleware = cached(self._known[seed])
            self._open = seed, tap(open_sampler(fields), middleware)
            self._identity = self._identity or model_identity(fields)
        summary = run_config(config, folder, self._open[1], self._identity)
        answers = read_json(folder / "answers.json")
        texts = read_json(folder / "questions.json")
        return summary, {(i, texts[i]): a for i, a in answers.items()}

    def _of_seed(self, seed: int) -> Any:
        config = self._config.copy_and_resolve_references()
        config.seed += seed
        config.task.seed += seed
        return config


def cached(known: Known) -> Middleware:
    """Generates each sample once: the same request gets the same sample.

    Args:
        known: the samples so far; it is added to.
    """

    def name(r: Request) -> Any:
        bound = r.least_confidence
        return r.query.id, r.index, r.messages, r.shared, bound

    def put_on(sample_fn: SampleFn) -> SampleFn:
        def answer(requests: Sequence[Request]) -> Iterator[Sample]:
            missing = [r for r in requests if name(r) not in known]
            held = [r for r in requests if name(r) in known]
            return in_turn(held, missing, sample_fn(missing))

        return answer

    def in_turn(
        held: Sequence[Request],
        missing: Sequence[Request],
        samples: Iterator[Sample],
    ) -> Iterator[Sample]:
        for r in held:
            yield known[name(r)]._replace(round=r.round, parents=r.parents)
        names = {(r.query.id, r.index): name(r) for r in missing}
        for sample in samples:
            known[names[sample.query_id, sample.index]] = sample
            yield sample

    return put_on


def _budget(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise ValueError(
            f"--budgets={text!r}: expected samples a question, such as 4,8,16"
        )
    return value


def _as_dear(trial: Trial, baseline: Sequence[Trial]) -> float:
    """Samples a question that cost self-consistency no fewer tokens."""
    few, many = baseline[0], baseline[-1]
    if many.budget > few.budget:
        each = (many.tokens - few.tokens) / (many.budget - few.budget)
        once = few.tokens - each * few.budget
    else:
        each, once = few.tokens / few.budget, 0.0
    # a little more, since lengths of samples vary
    return max(1.0, math.ceil(1.02 * (trial.tokens - once) / each))


def _report(
    config: Any, found: Sequence[comparison.Standing], seeds: int
) -> str:
    first = found[0].trial
    low, high = statistics.bootstrap_interval(first.single_Q)
    return "\n".join(
        (
            f"{config.task.name}, {config.model}: {len(first.right_Q)} "
            f"questions over {seeds} seed{'s' * (seeds > 1)}. One sample is "
            f"right {first.single_Q.mean():.1%} (95% interval {low:.1%} to "
            f"{high:.1%}).",
            "",
            comparison.markdown(found),
            "",
            "budget: samples a question, on average. oracle: questions with a "
            "right sample, which a perfect verifier of the same samples would "
            "answer. same samples: points "
            "ahead of self-consistency at that budget, with the paired 95% "
            "interval; same tokens: ahead of self-consistency at the budget "
            "in brackets, which spends no fewer tokens. tokens: a question; "
            "prompts that were read count, what the cache held does not.",
        )
    )


def _rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    return [
        {
            "method": t.method,
            "budget": t.budget,
            "accuracy": float(t.right_Q.mean()),
            "pass_at_1": float(t.single_Q.mean()),
            "samples_per_question": t.samples,
            "tokens_per_question": t.tokens,
            "questions": len(t.right_Q),
        }
        for t in trials
    ]
