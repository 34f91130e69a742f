"""What recorded runs say: rows -> the numbers and series of a report.

Everything returned is plain JSON (dict, list, str, finite number, None), so
that a page, a notebook or a test can read it.

Letters: Q questions, M budgets, R rounds, B bins.
"""

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynscaling_jax.analysis import statistics, timeline
from dynscaling_jax.analysis.chain_usage import RELATIONS, chain_usage
from dynscaling_jax.analysis.diagnostics import DRAWS, diagnostics
from dynscaling_jax.analysis.graded import (
    GradedQuestion,
    GradedRun,
    RecordedRun,
    majorities,
    majority,
)
from dynscaling_jax.analysis.timeline import Flight
from dynscaling_jax.lines import finite
from dynscaling_jax.sampler import CANCELLED
from dynscaling_jax.types import Sample

POINTS = 32  # of a curve, at most
TEXT = 30_000_000  # characters of samples' texts that a report holds


def report(runs: Sequence[GradedRun]) -> dict[str, Any]:
    """Computes the report of one or several runs.

    The others are compared with the first.

    Returns:
        `runs`: of each its summary, outcome, difference from the first,
        losses, diagnostics, curve, allocation, calibration and use of chains;
        without rounds, also the time that its samples took.
        `questions`: every question of any run, and what each run made of it
        (None where it was not asked).
        `details`: of each run and question, the samples as columns.

    Raises:
        ValueError: no runs; a round that lacks a question; an event that is
            not of the run's samples.
    """
    if not runs:
        raise ValueError("there are no runs to report on")
    rows: dict[Key, list[GradedQuestion | None]] = {}
    for r, run in enumerate(runs):
        for key, question in zip(_keys(run), run.questions, strict=True):
            rows.setdefault(key, [None] * len(runs))[r] = question
    lengths = [len(s.text) for one in runs for s in one.recorded.samples]
    limit = _fair_limit(lengths, TEXT)
    found = [timeline.flights(run.recorded) for run in runs]
    flights = [
        timeline.by_question(run.recorded, own)
        for run, own in zip(runs, found, strict=True)
    ]
    return {
        "runs": [
            _run(run, difference, own)
            for run, difference, own in zip(
                runs, _differences(runs), found, strict=True
            )
        ],
        "questions": [
            {
                "id": id,
                "text": text,
                "reference": reference,
                "runs": [
                    question and _outcome(run.recorded, question, own.get(id))
                    for run, question, own in zip(
                        runs, row, flights, strict=True
                    )
                ],
            }
            for (id, text, reference), row in rows.items()
        ],
        "details": [
            [one and _details(one, limit, own.get(one.id)) for one in column]
            for column, own in zip(
                zip(*rows.values(), strict=True), flights, strict=True
            )
        ],
        "text_limit": limit,
        "draws": DRAWS,
    }


def _run(
    run: GradedRun,
    difference: dict[str, Any] | None,
    flights: Sequence[Flight],
) -> dict[str, Any]:
    run = timeline.in_order_of_ends(run, flights)
    found = diagnostics(run)
    samples = run.recorded.samples
    tokens = sum(
        s.prompt_tokens - s.cached_tokens + s.new_tokens for s in samples
    )
    return {
        "name": run.recorded.name,
        "summary": finite(dict(run.recorded.summary)),
        "outcome": {
            "samples": _short(len(samples) / len(run.questions)),
            "tokens": _short(tokens / len(run.questions)),
            "oracle": _mean(np.array([bool(q.right) for q in run.questions])),
        },
        "difference": difference,
        "losses": losses(run, difference),
        "diagnostics": [
            {**finite(one._asdict()), "crossed": bool(one.crossed)}
            for one in found
        ],
        "curve": curve(run, flights),
        "allocation": allocation(run),
        "calibration": calibration(run),
        "chain_usage": [
            {**one._asdict(), "meaning": RELATIONS[one.relation]}
            for one in chain_usage(run)
        ],
        "corrupted": run.corrupted,
        **({"time": over_time(run, flights)} if run.recorded.events else {}),
    }


def losses(run: GradedRun, difference: dict[str, Any] | None) -> list[str]:
    """Says what a run lost beyond chance; diagnostics may explain it.

    It is compared with the first run and with single samples.
    """
    found = []
    if difference and difference["shared"] and difference["high"] < 0:
        found.append(
            f"{-100 * difference['difference']:.1f} points behind the first "
            f"run on {difference['shared']} questions"
        )
    sampled_Q = np.array([bool(question.samples) for question in run.questions])
    if sampled_Q.any():
        single_Q = np.array(
            [np.mean(q.right_N) for q in run.questions if q.samples]
        )
        vote_Q = run.vote_right_Q[sampled_Q]
        behind = statistics.paired_bootstrap(vote_Q, single_Q, draws=DRAWS)
        if behind.high < 0:
            found.append(
                f"the vote is {-100 * behind.mean:.1f} points behind a single "
                "sample"
            )
    return found


def curve(
    run: GradedRun, flights: Sequence[Flight] = ()
) -> dict[str, list[float | None]]:
    """Computes the accuracy of the majority of growing sets of samples.

    Samples count in the order of `waves`. A question without a sample so far
    counts as wrong. low and high are the 95% percentile bootstrap over
    questions.

    Args:
        run: without rounds, its samples in the order of their ends.
        flights: of a run without rounds.

    Returns:
        samples, tokens (prompt, less what the cache held, and completion)
        and flops, each a question; accuracy, low, high; all [M]. A wave ends
        at each.
    """
    bought = waves(run, flights)
    last = max(len(bought), 1)
    # one by one, from about one of each question on, as a first wave is
    first = min(len(run.questions), last) if flights else 1
    kept = np.geomspace(first, last, POINTS)
    return _curve(run, bought, kept.round().astype(int).tolist())


def _curve(
    run: GradedRun,
    bought: Sequence[Sequence[tuple[int, Sample]]],
    kept: Sequence[int],
) -> dict[str, list[float | None]]:
    """The curve after so many waves as each of kept says."""
    count = [0] * len(run.questions)
    changed: set[int] = set()
    right_Q = np.zeros(len(run.questions), bool)
    spent_3 = np.zeros(3)
    names = ("samples", "tokens", "flops", "accuracy", "low", "high")
    points: list[tuple[float, ...]] = []
    for number, wave in enumerate(bought, 1):
        for q, sample in wave:
            count[q] += sample.finish_reason != CANCELLED
            prompt = sample.prompt_tokens - sample.cached_tokens
            spent_3 += 1, prompt + sample.new_tokens, sample.flops
            changed.add(q)
        if number in kept:
            for q in changed:
                right_Q[q] = majority(run.questions[q], count[q]).right
            changed.clear()
            interval = statistics.bootstrap_interval(right_Q, draws=DRAWS)
            spent = spent_3 / len(right_Q)
            points.append((*spent, float(right_Q.mean()), *interval))
    columns = zip(*points, strict=True) if points else [()] * len(names)
    return {
        name: [_short(value) for value in column]
        for name, column in zip(names, columns, strict=True)
    }


def waves(
    run: GradedRun, flights: Sequence[Flight] = ()
) -> list[list[tuple[int, Sample]]]:
    """Orders all samples, with their questions, as a growing budget buys them.

    Round after round, and within a round the first sample of every question
    before the second of any. Without rounds one by one, as they ended.
    """
    if flights:
        return [[(f.q, f.sample)] for f in flights if f.sample]
    by_wave: dict[tuple[int, int], list[tuple[int, Sample]]] = {}
    for q, question in enumerate(run.questions):
        rank = Counter[int]()
        for sample in question.samples:
            wave = (sample.round, rank[sample.round])
            by_wave.setdefault(wave, []).append((q, sample))
            rank[sample.round] += 1
    return [by_wave[wave] for wave in sorted(by_wave)]


def over_time(run: GradedRun, flights: Sequence[Flight]) -> dict[str, Any]:
    """Tells what happened when, in a run without rounds.

    Args:
        run: its samples in the order of their ends.
        flights: of its samples.

    Returns:
        What timeline.timeline does, and curve: of some steps the accuracy,
        with low and high, of the majority of what had ended by then.
    """
    found = timeline.timeline(run, flights)
    ends = [flight.end for flight in flights if flight.end is not None]
    steps = [t for t in timeline.grid(found["steps"]) if ends and t >= ends[0]]
    number = [bisect.bisect_right(ends, step) for step in steps]
    kept = sorted({*number})
    curve = _curve(run, waves(run, flights), kept)
    at = [kept.index(n) for n in number]
    columns = {
        name: [curve[name][n] for n in at]
        for name in ("accuracy", "low", "high")
    }
    return {**found, "curve": {"steps": steps, **columns}}


def allocation(run: GradedRun) -> dict[str, Any]:
    """Tells who got how much in each round, and how uncertain it was before.

    Returns:
        ids [Q]; grants and uncertainty, each [R][Q]; rounds [R], of each the
        samples granted, the questions that got any, and the mean uncertainty
        of those and of the others (None where there are none).

    Raises:
        ValueError: a round that lacks a question.
    """
    ids = [question.id for question in run.questions]
    grants, uncertainty, rounds = [], [], []
    for number, row in enumerate(run.recorded.rounds):
        try:
            grant_Q = np.array([int(row["grants"][i]) for i in ids])
            unsure_Q = np.array([float(row["uncertainty"][i]) for i in ids])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{run.recorded.name}: round {number} of rounds.jsonl has "
                f"no grant or uncertainty of a question ({error!r})"
            ) from None
        got_Q = grant_Q > 0
        grants.append(grant_Q.tolist())
        uncertainty.append([_short(u) for u in unsure_Q])
        rounds.append(
            {
                "samples": int(grant_Q.sum()),
                "questions": int(got_Q.sum()),
                "uncertainty": _mean(unsure_Q[got_Q]),
                "uncertainty_of_others": _mean(unsure_Q[~got_Q]),
            }
        )
    return {
        "ids": ids,
        "grants": grants,
        "uncertainty": uncertainty,
        "rounds": rounds,
    }


def calibration(run: GradedRun) -> dict[str, Any]:
    """Tells how often votes are right that so many samples agreed on.

    Returns:
        confidence, right, low, high and count [B] of the vote share in ten
        bins, None in an empty one (low and high: Wilson's 95% interval); ece;
        auroc, that the share ranks right votes above wrong ones; and
        of_samples: of each measure of single samples, its AUROC.
    """
    share_Q, right_Q = majorities(run)
    bins = statistics.reliability(share_Q, right_Q)
    at_Q = np.minimum((share_Q * 10).astype(int), 9)
    ends = [
        statistics.wilson_interval(right_Q[at_Q == b])
        if (at_Q == b).any()
        else (math.nan, math.nan)
        for b in range(10)
    ]
    return {
        "confidence": [_short(x) for x in bins.confidence_B],
        "right": [_short(x) for x in bins.right_B],
        "low": [_short(low) for low, _ in ends],
        "high": [_short(high) for _, high in ends],
        "count": bins.count_B.tolist(),
        "ece": _short(bins.ece),
        "auroc": _short(statistics.auroc(share_Q, right_Q)),
        "of_samples": _of_samples(run),
    }


def _of_samples(run: GradedRun) -> dict[str, dict[str, Any]]:
    """What the confidence of a single sample says of its being right."""
    values: dict[str, list[tuple[float, bool]]] = {}
    for question in run.questions:
        for s, right in zip(question.samples, question.right_N, strict=True):
            measures = {
                "confidence": s.confidence,
                "log-probability": s.logprob,
                **s.signals,
            }
            for name, value in measures.items():
                if value is not None:
                    values.setdefault(name, []).append((value, right))
    return {
        name: {
            "auroc": _short(statistics.auroc(*np.array(pairs).T)),
            "samples": len(pairs),
        }
        for name, pairs in values.items()
    }


def _differences(runs: Sequence[GradedRun]) -> list[dict[str, Any] | None]:
    """How the votes of each run differ from the first run's; None of itself.

    Only questions that both were asked count.

    difference, low, high: share right, this run's less the first's, with the
    paired bootstrap's 95% interval; p is McNemar's exact one, p_holm the same
    corrected for how many runs there are.
    """
    first = dict(zip(_keys(runs[0]), runs[0].vote_right_Q, strict=True))
    found: list[dict[str, Any] | None] = [None]
    for run in runs[1:]:
        votes = dict(zip(_keys(run), run.vote_right_Q, strict=True))
        shared = [key for key in votes if key in first]
        row: dict[str, Any] = {"shared": len(shared)}
        if shared:
            a_Q = np.array([votes[key] for key in shared])
            b_Q = np.array([first[key] for key in shared])
            d = statistics.paired_bootstrap(a_Q, b_Q)
            row |= {
                "difference": _short(d.mean),
                "low": _short(d.low),
                "high": _short(d.high),
                "only_this": int((a_Q & ~b_Q).sum()),
                "only_first": int((~a_Q & b_Q).sum()),
                "p": statistics.mcnemar(a_Q, b_Q),
            }
        found.append(row)
    tested = [row for row in found if row and row["shared"]]
    adjusted = statistics.holm([row["p"] for row in tested])
    for row, p in zip(tested, adjusted, strict=True):
        row["p_holm"] = float(p)
    return found


Key = tuple[str, str, str]  # id, text and reference: two seeds share ids


def _keys(run: GradedRun) -> list[Key]:
    texts, right = run.recorded.questions, run.recorded.references
    return [(q.id, texts.get(q.id, ""), right[q.id]) for q in run.questions]


def _outcome(
    recorded: RecordedRun,
    question: GradedQuestion,
    flights: Sequence[Flight] | None,
) -> dict[str, Any]:
    vote = recorded.answers[question.id]
    number = question.number(vote["answer"])
    share = question.answer_N.count(number) / max(1, len(question.answer_N))
    return {
        "answer": vote["answer"],
        "right": bool(vote["right"]),
        "share": _short(share if number >= 0 else 0.0),
        "samples": len(question.samples),
        "right_samples": sum(question.right_N),
        "chains": sum(bool(sample.parents) for sample in question.samples),
        **(
            {}
            if flights is None
            else {"cancelled": sum(f.kind == "cancel" for f in flights)}
        ),
    }


def _details(
    question: GradedQuestion, limit: int, flights: Sequence[Flight] | None
) -> dict[str, Any]:
    """Columns are shorter than rows: names stand once.

    Without rounds they hold the cancelled samples too, and of each the steps
    at which it was granted and ended.
    """
    times = {}
    if flights is not None:
        question = timeline.with_cancelled(question, flights)
        over = [flight for flight in flights if flight.sample]
        times["granted"] = [flight.start for flight in over]
        times["ended"] = [flight.end for flight in over]
    samples = question.samples
    return {
        "answers": list(question.answers),
        "right": sorted(question.right),
        "ids": list(question.answer_N),
        "round": [s.round for s in samples],
        "index": [s.index for s in samples],
        "parents": [list(places) for places in question.parents],
        "answer": [s.answer for s in samples],
        "text": [_cut(s.text, limit) for s in samples],
        "finish": [s.finish_reason for s in samples],
        "prompt": [s.prompt_tokens for s in samples],
        "cached": [s.cached_tokens for s in samples],
        "new": [s.new_tokens for s in samples],
        "confidence": [_short(s.confidence) for s in samples],
        **times,
    }


def _fair_limit(lengths: Sequence[int], total: int) -> int:
    """The longest that a text may stay for all together to fit in total."""
    left = total
    ordered = sorted(lengths)
    for place, length in enumerate(ordered):
        share = left // (len(ordered) - place)
        if length > share:
            return share
        left -= length
    return max(ordered, default=0)


def _cut(text: str, limit: int) -> str:
    """Its two ends: how it began and what it concluded."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
    gone = len(text) - len(head) - len(tail)
    note = f"\n[{gone} characters are in samples.jsonl alone]\n"
    return head + note + tail


def _mean(values: np.ndarray) -> float | None:
    return _short(values.mean()) if values.size else None


def _short(value: float | None) -> float | None:
    """Six digits are plenty; JSON has no NaN and no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.6g}")
