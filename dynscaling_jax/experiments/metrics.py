"""How far a run has come: on the terminal, and in metrics.jsonl."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from dynscaling_jax.experiments.board import Draw
from dynscaling_jax.lines import Lines, dumps, is_sound
from dynscaling_jax.scaling.loop import Round, amounts
from dynscaling_jax.types import Budget, Ledger, Request, Sample, SampleFn

METRICS_SECONDS = 5.0  # between two lines of metrics.jsonl
# what a bar counts, and its unit: the first of these that has a cap, else
# samples; a cap on samples comes last, since a config has one by default
UNITS = {
    "new_tokens": "token",
    "total_tokens": "token",
    "flops": "FLOP",
    "samples": "sample",
}


class Metrics:
    """Progress on the terminal, and metrics.jsonl.

    A line of the file says how far a session of the run had come: seconds
    from its begin to the last sample that it drew, samples and tokens, not
    counting what the log held already.
    """

    def __init__(
        self,
        workdir: Path,
        budget: Budget,
        process: int = 0,
        draw: Draw = lambda step, values: None,
        questions: int = 0,
    ):
        """draw takes the points of curves, by samples drawn so far; the bar
        names the workdir and how many questions there are."""
        self._draw = draw
        name = f"metrics-{process}.jsonl" if process else "metrics.jsonl"
        path = workdir / name
        sessions = _sessions(path)
        self.before, self._loop_before = map(
            sum, zip(*sessions.values(), strict=True) if sessions else ((), ())
        )
        self._session = max(sessions, default=-1) + 1
        self._file = Lines(path)
        self._begin = self._last = self._written = time.monotonic()
        self._drawn = self._tokens = 0
        self._outside, self._at = 0.0, self._begin  # of the model, seconds
        self._seen = 0
        capped = (n for n in UNITS if getattr(budget, n) is not None)
        self._cap = cap = next(capped, "samples")
        plural = "s" * (questions != 1)
        self._bar = tqdm(
            desc=f"{workdir.resolve().name}, {questions} question{plural}",
            total=getattr(budget, cap),
            unit=UNITS[cap],
            unit_scale=cap != "samples",
            # quiet when not a terminal; the first shows what all draw
            disable=True if process else None,
            dynamic_ncols=True,
        )

    def seconds(self) -> float:
        """Of all sessions of the run together, each to its last sample."""
        return round(self.before + self._own_seconds(), 3)

    def _own_seconds(self) -> float:
        # never less than it took, or a cap that was reached would not be so
        # when the run is started again
        return math.ceil((self._last - self._begin) * 1000) / 1000

    def watched(self, sample_fn: SampleFn) -> SampleFn:
        """Shows each sample, drawn now or read from the log, and notes what
        time passes between two of them."""

        def draw(requests: Sequence[Request]) -> Iterator[Sample]:
            self._enter()
            samples = iter(sample_fn(requests))
            self._leave()
            return shown(samples)

        def shown(samples: Iterator[Sample]) -> Iterator[Sample]:
            while True:
                self._enter()
                sample = next(samples, None)
                self._leave()
                if sample is None:
                    return
                self._bar.update(amounts(Ledger().add(sample))[self._cap])
                self._seen += 1
                yield sample

        return draw

    def loop_share(self) -> float | None:
        """The part of the time, of all sessions that drew, that the loop took
        for itself: policy, strategy, tables and their compilation."""
        # as metrics.jsonl has them, so that a run started again says the same
        own = round(self._outside, 3) if self._drawn else 0.0
        seconds = self.seconds()
        return (
            round((self._loop_before + own) / seconds, 4) if seconds else None
        )

    def _enter(self) -> None:
        self._outside += time.monotonic() - self._at

    def _leave(self) -> None:
        self._at = time.monotonic()

    def counted(self, sample_fn: SampleFn) -> SampleFn:
        """Counts what is drawn now."""

        def draw(requests: Sequence[Request]) -> Iterator[Sample]:
            return counting(sample_fn(requests))

        def counting(samples: Iterator[Sample]) -> Iterator[Sample]:
            for sample in samples:
                self._last = time.monotonic()
                self._drawn += 1
                self._tokens += sample.new_tokens
                self._tick()
                yield sample

        return draw

    def round(self, done: Round) -> None:
        """The end of a round: how uncertain the answers were before it."""
        uncertainty = float(done.uncertainty_Q.mean())
        self._draw(done.ledger.samples, {"uncertainty": uncertainty})

    def _tick(self, last: bool = False) -> None:
        seconds = self._own_seconds()
        rate = self._tokens / max(seconds, 1e-9)
        self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        if self._last - self._written < METRICS_SECONDS and not last:
            return
        self._written = self._last
        line = {
            "session": self._session,
            "seconds": seconds,
            "samples": self._drawn,
            "new_tokens": self._tokens,
            "new_tokens_per_second": round(rate, 1),
            "loop_seconds": round(self._outside, 3),
        }
        self._file.append(dumps(line))
        self._draw(self._seen, {"new_tokens_per_second": rate})

    def close(self) -> None:
        self._bar.close()
        with contextlib.closing(self._file):
            if self._drawn:
                self._tick(last=True)


def _sessions(path: Path) -> dict[int, tuple[float, float]]:
    """Seconds of the earlier sessions, and of these the loop's own: the last
    line of each counts."""
    sessions: dict[int, tuple[float, float]] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                times = row["seconds"], row.get("loop_seconds", 0)
                if is_sound(row["session"]) and all(map(is_sound, times)):
                    sessions[int(row["session"])] = times
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # torn by a kill
    return sessions
