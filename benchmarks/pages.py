"""What pages hold and what rows do in whole runs: a simulation, no model.

The real scheduler plans every turn; in place of a device, each sample has the
length that was recorded of it. What pages hold is compared with keys that lie
together and double: 1,024 positions, 2,048, 4,096 and so on.
"""

import heapq
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import Config, Lines
from dynscaling_jax.inference.paged.scheduler import Limits, Scheduler
from dynscaling_jax.inference.slot import Numbered, Prompt
from dynscaling_jax.types import Query, Request


class Work(NamedTuple):
    """Prompts and the lengths of their samples, in the order of a run."""

    prompts: tuple[Prompt, ...]  # Q
    length_QN: np.ndarray  # completion tokens


class Outcome(NamedTuple):
    """Of a run until no request waits any more; ratios.

    The tail after that is left out: rows are idle in it however they are
    scheduled.
    """

    steps: int  # until then
    live: float  # mean positions with keys of a running row
    running: float  # mean rows that run
    held: float  # positions held over those with keys, mean over steps
    held_at_peak: float  # the same when most are held
    filled: float  # positions held of the pool, mean over steps
    idle: float  # of row-steps
    lost: float  # of all tokens drawn, those of samples that gave way
    preempted: int  # how often a sample gave way
    chunks: int  # of prefill
    turns: int


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
        ("steps", "live", "rows", "running", "ratio", "held", "active"), 0.0
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
    return Outcome(
        steps=int(sums["steps"]),
        live=sums["live"] / max(1.0, sums["running"]),
        running=sums["running"] / steps,
        held=sums["ratio"] / steps,
        held_at_peak=peak_ratio,
        filled=sums["held"] / steps / (limits.pages * limits.parts)
        / limits.page,
        idle=1 - sums["active"] / (steps * limits.slots),
        lost=lost / max(1, drawn),
        preempted=preempted,
        chunks=chunks,
        turns=turns,
    )


def read(path: Path, samples: int, cap: int, seed: int) -> Work:
    """Recorded lengths, cut at the cap, with prompts of 200 to 600 tokens."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    length_QN = np.array([row["new_tokens"][:samples] for row in rows])
    rng = np.random.default_rng(seed)
    prompts = []
    for q, size in enumerate(rng.integers(200, 601, len(rows)).tolist()):
        ids = (q, *range(size - 1))  # they share no beginning
        prompts.append(Prompt(ids, ids, 0))
    return Work(tuple(prompts), np.clip(length_QN, 1, cap))
