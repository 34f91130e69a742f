"""What recorded runs say: rows -> the numbers and series of a report.

Everything returned is plain JSON (dict, list, str, finite number, None), so
that a page, a notebook or a test can read it.

Letters: Q questions, M budgets, R rounds, B bins.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynscaling_jax.analysis import statistics
from dynscaling_jax.analysis.coherence import RELATIONS, coherence
from dynscaling_jax.analysis.judged import (
    Asked,
    Judged,
    Recorded,
    judge,
    leader,
    planted,
    shares,
    support,
    votes_right,
    waves,
)
from dynscaling_jax.analysis.signs import DRAWS, signs
from dynscaling_jax.tasks import Compare

POINTS = 32  # of a curve, at most
TEXT = 30_000_000  # characters of samples' texts that a report holds


def report(runs: Sequence[Recorded], compare: Compare) -> dict[str, Any]:
    """The report of one or several runs; the first is what the others are
    compared with.

    Returns:
        `runs`: of each its summary, curve, allocation, calibration,
        coherence of its chains, signs and difference from the first.
        `questions`: every question of any run, and what each run made of it
        (None where it was not asked).
        `details`: of each run and question, the samples as columns.

    Raises:
        ValueError: no runs; rows that do not belong together.
    """
    if not runs:
        raise ValueError("there are no runs to report on")
    judged = [judge(one, compare) for one in runs]
    found = [_run(one) for one in judged]
    for one, other in zip(found, _differences(judged), strict=True):
        one["difference"] = other
    rows = _rows(judged)
    limit = _fair_limit(
        [len(s.text) for one in runs for s in one.samples], TEXT
    )
    return {
        "runs": found,
        "questions": [_question(judged, key, row) for key, row in rows.items()],
        "details": [
            [
                None if asked is None else _details(asked, limit)
                for asked in (row[r] for row in rows.values())
            ]
            for r in range(len(judged))
        ],
        "text_limit": limit,
        "draws": DRAWS,
    }


def _run(judged: Judged) -> dict[str, Any]:
    recorded = judged.recorded
    return {
        "name": recorded.name,
        "summary": _plain(dict(recorded.summary)),
        "curve": curve(judged),
        "allocation": allocation(judged),
        "calibration": calibration(judged),
        "coherence": [
            {**one._asdict(), "meaning": RELATIONS[one.relation]}
            for one in coherence(judged)
        ],
        "planted": planted(judged),
        "signs": [
            {**_plain(one._asdict()), "occurs": bool(one.occurs)}
            for one in signs(judged)
        ],
    }


def curve(judged: Judged) -> dict[str, list[float | None]]:
    """Accuracy of the majority of growing prefixes of the samples.

    Samples count in the order of `waves`. A question without a sample so far
    counts as wrong. low and high are the 95% percentile bootstrap over
    questions.

    Returns:
        samples, tokens (read, less what the cache held, and new) and flops,
        each a question; accuracy, low, high; all [M]. A wave ends at each.
    """
    bought = waves(judged)
    kept = np.geomspace(1, max(len(bought), 1), POINTS)
    kept = set(kept.round().astype(int).tolist())
    count = [0] * len(judged.asked)
    changed: set[int] = set()
    right_Q = np.zeros(len(judged.asked), bool)
    spent_3 = np.zeros(3)
    names = ("samples", "tokens", "flops", "accuracy", "low", "high")
    points: list[tuple[float, ...]] = []
    for number, wave in enumerate(bought, 1):
        for q, sample in wave:
            count[q] += 1
            read = sample.prompt_tokens - sample.cached_tokens
            spent_3 += 1, read + sample.new_tokens, sample.flops
            changed.add(q)
        if number in kept:
            for q in changed:
                right_Q[q] = leader(judged.asked[q], count[q]).right
            changed.clear()
            interval = statistics.bootstrap_interval(right_Q, draws=DRAWS)
            spent = spent_3 / len(right_Q)
            points.append((*spent, float(right_Q.mean()), *interval))
    columns = zip(*points, strict=True) if points else [()] * len(names)
    return {
        name: [_short(value) for value in column]
        for name, column in zip(names, columns, strict=True)
    }


def allocation(judged: Judged) -> dict[str, Any]:
    """Who got how much in each round, and how uncertain it was before.

    Returns:
        ids [Q]; grants and uncertainty, each [R][Q]; rounds [R], of each the
        samples granted, the questions that got any, and the mean uncertainty
        of those and of the others (None where there are none).

    Raises:
        ValueError: a round that lacks a question.
    """
    ids = [asked.id for asked in judged.asked]
    grants, uncertainty, rounds = [], [], []
    for number, row in enumerate(judged.recorded.rounds):
        try:
            grant_Q = np.array([int(row["grants"][i]) for i in ids])
            unsure_Q = np.array([float(row["uncertainty"][i]) for i in ids])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{judged.recorded.name}: round {number} of rounds.jsonl has "
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


def calibration(judged: Judged) -> dict[str, Any]:
    """How often votes are right that so many samples agreed on.

    Returns:
        said, right, low, high and count [B] of the vote share in ten bins,
        None in an empty one (low and high: Wilson's 95% interval); ece;
        auroc, that the share ranks right votes above wrong ones; and
        of_samples: of each measure of single samples, its AUROC.
    """
    share_Q, right_Q = shares(judged)
    bins = statistics.reliability(share_Q, right_Q)
    at_Q = np.minimum((share_Q * 10).astype(int), 9)
    ends = [
        statistics.wilson_interval(right_Q[at_Q == b])
        if (at_Q == b).any()
        else (math.nan, math.nan)
        for b in range(10)
    ]
    return {
        "said": [_short(x) for x in bins.said_B],
        "right": [_short(x) for x in bins.right_B],
        "low": [_short(low) for low, _ in ends],
        "high": [_short(high) for _, high in ends],
        "count": bins.count_B.tolist(),
        "ece": _short(bins.ece),
        "auroc": _short(statistics.auroc(share_Q, right_Q)),
        "of_samples": _of_samples(judged),
    }


def _of_samples(judged: Judged) -> dict[str, dict[str, Any]]:
    """What the confidence of a single sample says of its being right."""
    values: dict[str, tuple[list[float], list[bool]]] = {}
    for asked in judged.asked:
        for sample, own in zip(asked.samples, asked.class_N, strict=True):
            told = {
                "confidence": sample.confidence,
                "log-probability": sample.logprob,
                **sample.signals,
            }
            for name, value in told.items():
                if value is not None:
                    scores, right = values.setdefault(name, ([], []))
                    scores.append(value)
                    right.append(own in asked.right)
    return {
        name: {
            "auroc": _short(statistics.auroc(np.array(s), np.array(right))),
            "samples": len(s),
        }
        for name, (s, right) in values.items()
    }


def _differences(judged: Sequence[Judged]) -> list[dict[str, Any] | None]:
    """Of each run, how its votes differ from the first run's on the questions
    that both were asked; None of the first itself.

    difference, low, high: share right, this run's less the first's, with the
    paired bootstrap's 95% interval; p is McNemar's exact one, p_holm the same
    corrected for how many runs there are.
    """
    first = dict(zip(_keys(judged[0]), votes_right(judged[0]), strict=True))
    found: list[dict[str, Any] | None] = [None]
    for one in judged[1:]:
        own = dict(zip(_keys(one), votes_right(one), strict=True))
        shared = [key for key in own if key in first]
        row: dict[str, Any] = {"shared": len(shared)}
        if shared:
            a_Q = np.array([own[key] for key in shared])
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


def _keys(judged: Judged) -> list[Key]:
    recorded = judged.recorded
    return [
        (a.id, recorded.questions.get(a.id, ""), recorded.references[a.id])
        for a in judged.asked
    ]


def _rows(judged: Sequence[Judged]) -> dict[Key, list[Asked | None]]:
    rows: dict[Key, list[Asked | None]] = {}
    for r, one in enumerate(judged):
        for key, asked in zip(_keys(one), one.asked, strict=True):
            rows.setdefault(key, [None] * len(judged))[r] = asked
    return rows


def _question(
    judged: Sequence[Judged], key: Key, row: Sequence[Asked | None]
) -> dict[str, Any]:
    id, text, reference = key
    return {
        "id": id,
        "text": text,
        "reference": reference,
        "runs": [
            None if asked is None else _outcome(one.recorded, asked)
            for one, asked in zip(judged, row, strict=True)
        ],
    }


def _outcome(recorded: Recorded, asked: Asked) -> dict[str, Any]:
    voted = recorded.answers[asked.id]
    return {
        "answer": voted["answer"],
        "right": bool(voted["right"]),
        "share": _short(support(asked, voted["answer"])),
        "samples": len(asked.samples),
        "chains": sum(bool(sample.parents) for sample in asked.samples),
    }


def _details(asked: Asked, limit: int) -> dict[str, Any]:
    """Columns are shorter than rows: names stand once."""
    samples = asked.samples
    return {
        "answers": list(asked.firsts),
        "right": sorted(asked.right),
        "class": list(asked.class_N),
        "round": [s.round for s in samples],
        "index": [s.index for s in samples],
        "parents": [list(places) for places in asked.parents],
        "answer": [s.answer for s in samples],
        "text": [_cut(s.text, limit) for s in samples],
        "finish": [s.finish_reason for s in samples],
        "read": [s.prompt_tokens for s in samples],
        "cached": [s.cached_tokens for s in samples],
        "new": [s.new_tokens for s in samples],
        "confidence": [_short(s.confidence) for s in samples],
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


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
