"""What pages hold and what rows do in whole runs: a simulation, no model.

The real scheduler plans every turn; in place of a device, each sample has the
length that was recorded of it. What pages hold is compared with keys that lie
together, row by row, and double: 1,024 positions, 2,048, 4,096 and so on.
"""

import glob
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import Config, Lines
from dynscaling_jax.inference.paged.scheduler import Limits, Scheduler
from dynscaling_jax.inference.slot import Numbered, Prompt
from dynscaling_jax.types import Query, Request

# The share taken of the rows that would fill the pool if each had the mean of
# live tokens. With more rows more samples give way.
ROWS = 0.86


class Work(NamedTuple):
    """Prompts and the lengths of their samples, in the order of a run."""

    prompts: tuple[Prompt, ...]  # Q
    length_QN: np.ndarray  # completion tokens


class Outcome(NamedTuple):
    """Of a run until no request waits any more.

    The tail after that is left out: rows are idle in it however they are
    scheduled.
    """

    steps: int  # until then
    running: float  # mean rows that run
    live: float  # mean positions with keys of a running row
    held: float  # positions held over those with keys, mean over steps
    held_at_peak: float  # the same when most are held
    filled: float  # positions held, as a share of the pool
    idle: float  # share of row-steps
    lost: float  # of all tokens of the run, those of samples that gave way
    preempted: int  # how often a sample gave way
    chunks: int  # of prefill
    turns: int


def lines(config: Config) -> Lines:
    """Whole runs for each bank and target; goals are upper bounds."""
    size = config.pages
    paths = [
        Path(path)
        for pattern in size.banks.split(",")
        for path in sorted(glob.glob(pattern))
    ]
    if size.banks and not paths:
        raise ValueError(f"no bank is found at {size.banks!r}")
    works = [
        (path.stem, read(path, size.samples, size.new_tokens)) for path in paths
    ] or [("made-up", made_up(size.questions, size.samples, size.new_tokens))]
    for name, work in works:
        for target, parts, memory in size.targets:
            pages = int(memory / size.token_bytes) // size.page
            rows = rows_of(live_tokens(work), pages * size.page, parts)
            limits = Limits(
                parts,
                rows,
                pages,
                size.page,
                size.chunk,
                size.steps,
                size.rows_of_logits,
                size.context,
                size.new_tokens,
            )
            outcome = simulate(work, limits)
            yield {
                "bench": "pages",
                "bank": name,
                "target": target,
                "questions": len(work.prompts),
                "parts": parts,
                "rows": rows,
                "pool_tokens": parts * pages * size.page,
                "live_tokens": round(live_tokens(work)),
                **{
                    key: round(value, 3) if isinstance(value, float) else value
                    for key, value in outcome._asdict().items()
                },
                "goal_held": 1.1,
                "goal_idle": 0.05,
            }
            held, at_peak = classes(work, rows, size.first_class)
            yield {
                "bench": "length classes",
                "bank": name,
                "target": target,
                "rows": rows,
                "held": round(held, 3),
                "held_at_peak": round(at_peak, 3),
                # as many as hold no more than pages do
                "rows_in_memory": int(rows * outcome.held / held),
                "goal_held": 1.4,
            }


def live_tokens(work: Work) -> float:
    """Mean tokens of a row: a sample that grows has each length once."""
    size_Q1 = np.array([len(prompt.ids) for prompt in work.prompts])[:, None]
    live_QN = size_Q1 + work.length_QN / 2
    return float(np.average(live_QN, weights=work.length_QN))


def rows_of(live: float, pool: int, parts: int) -> int:
    """The rows of all parts, which have pools of so many tokens each."""
    return parts * max(1, int(ROWS * pool / live))


def simulate(work: Work, limits: Limits) -> Outcome:
    """Plays a run with the real scheduler and recorded lengths."""
    scheduler = Scheduler(limits)
    count, goal = np.zeros((2, limits.slots), int)
    queries = range(len(work.prompts))
    numbers = np.arange(work.length_QN.size).reshape(work.length_QN.shape)
    request = Request(Query("", ()), (), 0)
    scheduler.add(
        (work.prompts[q], Numbered(number, request))
        for q in queries
        for number in numbers[q].tolist()
    )
    whole_Q = [len(p.ids) - len(p.ids) % limits.page for p in work.prompts]
    length = work.length_QN.ravel().tolist()
    each = work.length_QN.shape[1]
    question = np.zeros(limits.slots, int)
    rest = np.zeros(limits.slots, int)  # of a prompt, behind its full pages
    sums = dict.fromkeys(
        ("steps", "live", "running", "ratio", "held", "active"), 0.0
    )
    lost = preempted = chunks = turns = 0
    peak = peak_ratio = 0.0
    drawn = 0
    while scheduler.busy:
        before = count.copy()
        turn = scheduler.turn()
        waits = scheduler.waiting > 0
        turns += 1
        chunks += len(turn.chunks)
        preempted += len(turn.preempted)
        for slot in turn.preempted:
            lost += int(before[slot])
        for start in turn.starts:
            number = start.request.number
            count[start.slot], goal[start.slot] = 1, length[number]
            q = question[start.slot] = number // each
            rest[start.slot] = len(start.prompt.ids) - whole_Q[q]
            drawn += 1
        active = np.array([bool(table) for table in turn.tables])
        left = (goal - count)[active]
        steps = turn.steps
        if len(left) > turn.enough:
            ends = np.sort(left)[len(left) - turn.enough - 1]
            steps = min(steps, int(ends))
        else:
            steps = 0
        worked = int(np.minimum(left, steps).sum())
        if waits and steps:
            # a prompt's full pages count once, however many rows share them
            shared = sum(whole_Q[q] for q in {*question[active].tolist()})
            live = shared + int((count - 1 + rest)[active].sum())
            held = sum(scheduler.held) * limits.page
            sums["steps"] += steps
            sums["live"] += steps * live
            sums["running"] += steps * len(left)
            sums["ratio"] += steps * held / max(1, live)
            sums["held"] += steps * held
            sums["active"] += worked
            if held > peak:
                peak, peak_ratio = held, held / max(1, live)
        drawn += worked
        count[active] = np.minimum(count[active] + steps, goal[active])
        finished = np.flatnonzero(active & (count == goal)).tolist()
        scheduler.record(count.tolist(), finished)
    steps = max(1.0, sums["steps"])
    pool = limits.parts * limits.pages * limits.page
    return Outcome(
        steps=int(sums["steps"]),
        live=sums["live"] / max(1.0, sums["running"]),
        running=sums["running"] / steps,
        held=sums["ratio"] / steps,
        held_at_peak=peak_ratio,
        filled=sums["held"] / steps / pool,
        idle=1 - sums["active"] / (steps * limits.slots),
        lost=lost / max(1, drawn),
        preempted=preempted,
        chunks=chunks,
        turns=turns,
    )


def classes(work: Work, rows: int, first: int) -> tuple[float, float]:
    """Positions held over those with keys, if each row has keys of its own.

    They double from `first` positions on as the row grows, up to the longest
    sample, and hold the prompt too. Rows take sample after sample, of all
    questions in turn.

    Returns:
        The mean over time until no sample waits, and the ratio when most are
        held.
    """
    size_Q1 = np.array([len(prompt.ids) for prompt in work.prompts])[:, None]
    start_M = np.broadcast_to(size_Q1, work.length_QN.shape).T.ravel()
    length_M = work.length_QN.T.ravel()
    longest = (start_M + length_M).max()
    free_R = np.zeros(rows, int)
    begin_M = np.zeros_like(length_M)
    for m, length in enumerate(length_M):
        row = free_R.argmin()
        begin_M[m] = free_R[row]
        free_R[row] += length
    ratios, peak, at_peak = [], 0, 0.0
    for now in np.linspace(0, begin_M.max(), 4000, endpoint=False):
        age_M = now - begin_M
        runs_M = (age_M >= 0) & (age_M < length_M)
        live_M = (start_M + age_M)[runs_M]
        doublings_M = np.ceil(np.log2(np.maximum(live_M / first, 1)))
        held = np.minimum(first * 2**doublings_M, longest).sum()
        ratios.append(held / live_M.sum())
        if held > peak:
            peak, at_peak = held, ratios[-1]
    return float(np.mean(ratios)), float(at_peak)


def read(path: Path, samples: int, cap: int) -> Work:
    """Recorded lengths of a bank file, cut at the cap."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    length_QN = np.array([row["new_tokens"][:samples] for row in rows])
    return Work(_prompts(len(rows)), np.clip(length_QN, 1, cap))


def made_up(questions: int, samples: int, cap: int) -> Work:
    """Easy and hard questions: lengths vary more between them than within."""
    rng = np.random.default_rng(0)
    mean_Q1 = rng.lognormal(np.log(cap / 3), 0.6, (questions, 1))
    length_QN = mean_Q1 * rng.lognormal(0, 0.4, (questions, samples))
    return Work(_prompts(questions), np.clip(length_QN, 1, cap).astype(int))


def _prompts(count: int) -> tuple[Prompt, ...]:
    """Of 200 to 600 tokens; they share no beginning."""
    sizes = np.random.default_rng(0).integers(200, 601, count)
    every = [(q, *range(size - 1)) for q, size in enumerate(sizes.tolist())]
    return tuple(Prompt(ids, ids, 0) for ids in every)
