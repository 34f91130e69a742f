"""When samples were under way, in a run without rounds: events -> a page.

Letters: Q questions, N samples of one, S samples of all, B bins of time, P
parts of it.
"""

import functools
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.analysis.graded import (
    GradedQuestion,
    GradedRun,
    RecordedRun,
)
from dynscaling_jax.lines import shown
from dynscaling_jax.sampler import CANCELLED
from dynscaling_jax.scaling.uncertainty import measure_by_name
from dynscaling_jax.types import Sample

BINS = 40  # of the time of a run, at most
PARTS = 240  # of the curve of samples under way, at most
LANES = 120  # of bars, above which a page shows bins alone
LARGEST = 2**40  # steps: the sum over all samples stays exact


class Flight(NamedTuple):
    """A sample that was granted, and when it was over."""

    q: int  # of its question
    index: int
    chain: bool  # whether it read one
    start: int  # the step of its grant
    end: int | None = None  # None: it was under way when the run ended
    sample: Sample | None = None  # as it ended, or was cancelled

    @property
    def kind(self) -> str:
        """How it was over: end, cancel, or left under way."""
        if self.sample is None:
            return "left"
        return "cancel" if self.sample.finish_reason == CANCELLED else "end"


def flights(run: RecordedRun) -> list[Flight]:
    """Reads the events of a run: a flight for each grant.

    They come in the order in which they were over; then those that were left.
    A run in rounds has none.

    Raises:
        ValueError: a row that is no event, or not of this run's samples; a
            sample that no event ends.
    """
    if not run.events:
        return []
    places = {id: q for q, id in enumerate(run.references)}
    samples = {(places[s.query_id], s.index): s for s in run.samples}
    under_way: dict[tuple[int, int], Flight] = {}
    over: dict[tuple[int, int], Flight] = {}
    now = 0
    for number, row in enumerate(run.events):
        try:
            kind, key = row["event"], (places[row["query"]], row["index"])
            _check(_is_step(row["step"], now), f"it is no step from {now} on")
            now = row["step"]
            if kind == "grant":
                _check(type(key[1]) is int, "its index is no whole number")
                new = key not in under_way and key not in over
                _check(new, "it is granted twice")
                under_way[key] = Flight(*key, bool(row["parents"]), now)
                continue
            _check(kind in ("end", "cancel"), f"there is no {shown(kind)}")
            _check(key in under_way, "its sample is not under way")
            _check(key in samples, "samples.jsonl has no such sample")
            own = Flight(*under_way.pop(key)[:4], now, samples[key])
            _check(own.kind == kind, f"samples.jsonl says {own.kind}")
            over[key] = own
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{run.name}: row {number} of events.jsonl is no event of a "
                f"sample of this run ({error!r})"
            ) from None
    if missing := samples.keys() - over.keys():
        q, index = min(missing)
        raise ValueError(
            f"{run.name}: events.jsonl has no end of sample {index} of "
            f"question {[*places][q]!r}"
        )
    return [*over.values(), *under_way.values()]


def _is_step(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < LARGEST


def _check(right: bool, error: str) -> None:
    if not right:
        raise ValueError(error)


def by_question(
    run: RecordedRun, found: Sequence[Flight]
) -> dict[str, list[Flight]]:
    """The flights of each question by index; {} of a run in rounds."""
    if not run.events:
        return {}
    ids = [*run.references]
    own: dict[str, list[Flight]] = {id: [] for id in ids}
    for flight in sorted(found, key=operator.attrgetter("index")):
        own[ids[flight.q]].append(flight)
    return own


def in_order_of_ends(run: GradedRun, found: Sequence[Flight]) -> GradedRun:
    """Orders the samples of each question as they ended, without rounds.

    Answers are numbered anew, as first seen. So prefixes of the samples, and
    ties of a majority, are those that the run itself saw.
    """
    if not run.recorded.events:
        return run
    rank = {(f.q, f.index): n for n, f in enumerate(found)}
    questions = []
    for q, question in enumerate(run.questions):
        rank_N = [rank[q, sample.index] for sample in question.samples]
        questions.append(_reordered(question, np.argsort(rank_N).tolist()))
    return run._replace(questions=tuple(questions))


def _reordered(question: GradedQuestion, order: Sequence[int]):
    """The question with samples[order[0]] first."""
    answers = [question.answer_N[n] for n in order]
    seen = [*dict.fromkeys(answer for answer in answers if answer >= 0)]
    number = {-1: -1, **{answer: n for n, answer in enumerate(seen)}}
    place = {n: place for place, n in enumerate(order)}
    return question._replace(
        samples=tuple(question.samples[n] for n in order),
        parents=tuple(
            tuple(place[p] for p in question.parents[n]) for n in order
        ),
        answer_N=tuple(number[answer] for answer in answers),
        answers=tuple(question.answers[answer] for answer in seen),
        right=frozenset(number[answer] for answer in question.right),
    )


def with_cancelled(
    question: GradedQuestion, own: Sequence[Flight]
) -> GradedQuestion:
    """Puts cancelled samples among the others, as ones without an answer."""
    cancelled = [f.sample for f in own if f.sample and f.kind == "cancel"]
    answers = {
        sample.index: answer
        for sample, answer in zip(
            question.samples, question.answer_N, strict=True
        )
    }
    samples = sorted(
        (*question.samples, *cancelled), key=operator.attrgetter("index")
    )
    place = {sample.index: n for n, sample in enumerate(samples)}
    return question._replace(
        samples=tuple(samples),
        parents=tuple(
            tuple(place[p] for p in s.parents if p in place) for s in samples
        ),
        answer_N=tuple(answers.get(s.index, -1) for s in samples),
    )


def timeline(run: GradedRun, found: Sequence[Flight]) -> dict[str, Any]:
    """Tells who got how much when, and how uncertain it was then.

    Args:
        run: without rounds, its samples in the order of their ends.
        found: its flights.

    Returns:
        unit, of which steps are; steps, the last one of the run; last_grant,
        the step of that; most, samples under way at once; mean, of them over
        the run; left, those that were under way when it ended; cancelled.
        under_way [P], their mean over parts of so many steps as part says.
        width, the steps of a bin; grants, chains (of these), ends, cancels
        and uncertainty, from before the bin, each [B][Q]; bins [B], of each
        the questions that got any, and the mean uncertainty of those and of
        the others (None where there are none). bars: of each sample its
        question, index, start, end, kind, whether it read a chain, and the
        lane that it lies in, one by one; lanes [Q]; None where they are many.
    """
    steps = run.recorded.events[-1]["step"]
    start_S = np.array([f.start for f in found], np.int64)
    end_S = np.array([steps if f.end is None else f.end for f in found])
    part, under_way = _under_way(start_S, end_S, steps)
    width = steps // BINS + 1
    binned = functools.partial(_binned, steps // width + 1, len(run.questions))
    grant_BQ = binned((f.start // width, f.q) for f in found)
    over = [(f.end // width, f.q, f.kind) for f in found if f.end is not None]
    end_BQ = binned((b, q) for b, q, kind in over if kind == "end")
    unsure_BQ = _uncertainty(run, np.cumsum(end_BQ, 0) - end_BQ)
    kinds = Counter(f.kind for f in found)
    return {
        "unit": "decode steps" if _in_steps(found) else "samples that ended",
        "steps": steps,
        "last_grant": int(start_S.max(initial=0)),
        "most": _most(run.recorded.events),
        "mean": float((end_S - start_S).sum() / max(1, steps)),
        "left": kinds["left"],
        "cancelled": kinds["cancel"],
        "part": part,
        "under_way": under_way,
        "width": width,
        "grants": grant_BQ.tolist(),
        "chains": binned(
            (f.start // width, f.q) for f in found if f.chain
        ).tolist(),
        "ends": end_BQ.tolist(),
        "cancels": binned(
            (b, q) for b, q, kind in over if kind == "cancel"
        ).tolist(),
        "uncertainty": unsure_BQ.round(4).tolist(),
        "bins": [
            {
                "questions": int(got_Q.sum()),
                "uncertainty": _mean(unsure_Q[got_Q]),
                "uncertainty_of_others": _mean(unsure_Q[~got_Q]),
            }
            for got_Q, unsure_Q in zip(grant_BQ > 0, unsure_BQ, strict=True)
        ],
        **_bars(found, len(run.questions), steps),
    }


def grid(steps: int) -> list[int]:
    """Lists at most BINS steps in equal distances, the last one of a run."""
    ends = np.linspace(0, steps, BINS + 1)[1:].round().astype(int)
    return sorted({*ends.tolist()})


def _in_steps(found: Sequence[Flight]) -> bool:
    """Whether steps are of decoding: a sample takes one for a token, or more.

    Its end is noticed at the next look.
    """
    return all(
        f.end - f.start >= f.sample.new_tokens
        for f in found
        if f.sample and f.end is not None and f.kind == "end"
    )


def _most(events: Sequence[Mapping[str, Any]]) -> int:
    ups = [1 if row["event"] == "grant" else -1 for row in events]
    return int(np.cumsum(ups).max(initial=0))


def _under_way(
    start_S: np.ndarray, end_S: np.ndarray, steps: int
) -> tuple[int, list[float]]:
    """Steps of a part, and the mean of samples under way in each, [P]."""
    part = max(1, -(-steps // PARTS))
    edges = [*range(0, steps, part), steps]
    so_far = [
        int((np.minimum(end_S, edge) - np.minimum(start_S, edge)).sum())
        for edge in edges
    ]
    return part, (np.diff(so_far) / np.diff(edges)).round(2).tolist()


def _binned(bins: int, questions: int, places: Any) -> np.ndarray:
    """Counts (bin, question) pairs, int [B, Q]."""
    count_BQ = np.zeros((bins, questions), int)
    for place in places:
        count_BQ[place] += 1
    return count_BQ


def _uncertainty(run: GradedRun, count_BQ: np.ndarray) -> np.ndarray:
    """Entropy of the first so many answers of each question, [B, Q]."""
    slots = max([1, *(len(question.samples) for question in run.questions)])
    answer_QN = np.full((len(run.questions), slots), -1, np.int32)
    for q, question in enumerate(run.questions):
        answer_QN[q, : len(question.samples)] = question.answer_N
    return np.asarray(_entropies(jnp.asarray(answer_QN), jnp.asarray(count_BQ)))


@jax.jit
def _entropies(answer_QN: jax.Array, count_BQ: jax.Array) -> jax.Array:
    """Bin by bin: all of them at once would fill the memory."""
    of_all = jax.vmap(measure_by_name("entropy"))
    return jax.lax.map(lambda count_Q: of_all(answer_QN, count_Q), count_BQ)


def _bars(
    found: Sequence[Flight], questions: int, steps: int
) -> dict[str, Any]:
    """Lays the samples of each question into lanes, so that none overlap."""
    ends: list[list[int]] = [[] for _ in range(questions)]  # of each lane
    bars = []
    for flight in sorted(found, key=operator.attrgetter("start", "index")):
        own = ends[flight.q]
        end = steps if flight.end is None else flight.end
        free = (n for n, taken in enumerate(own) if taken <= flight.start)
        lane = next(free, len(own))
        own[lane : lane + 1] = [end]  # or one lane more
        bars.append(
            {
                "question": flight.q,
                "index": flight.index,
                "start": flight.start,
                "end": end,
                "kind": flight.kind,
                "chain": flight.chain,
                "lane": lane,
            }
        )
    lanes = [max(1, len(own)) for own in ends]
    few = sum(lanes) <= LANES
    return {"bars": bars if few else None, "lanes": lanes if few else None}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean().round(6)) if values.size else None
