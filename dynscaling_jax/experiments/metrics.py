"""How far a run has come: on the terminal, in metrics.jsonl, and in curves."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from dynscaling_jax import lines
from dynscaling_jax.sampler import each
from dynscaling_jax.scaling.loop import Event, Round, amounts
from dynscaling_jax.types import (
    Budget,
    Ledger,
    Request,
    Sample,
    SampleFn,
    SampleKey,
    Watch,
)

METRICS_SECONDS = 5.0  # between two lines of metrics.jsonl
# what a bar counts, and its unit: the first of these that has a cap, else
# samples; a cap on samples comes last, since a config has one by default
UNITS = {
    "new_tokens": "token",
    "total_tokens": "token",
    "flops": "FLOP",
    "samples": "sample",
}

AddPoint = Callable[[int, Mapping[str, float]], None]
"""(step, value by name) -> a point of each curve."""


@contextlib.contextmanager
def board(directory: Path, wanted: bool) -> Iterator[AddPoint]:
    """Writes points for TensorBoard into a directory, or nothing at all.

    Raises:
        ValueError: tensorboardX is not installed.
    """
    if not wanted:
        yield lambda step, values: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs tensorboardX: "
            "pip install 'dynscaling-jax[tensorboard]'"
        ) from None

    with contextlib.ExitStack() as stack:
        # no file before there is a point
        opened = functools.cache(
            lambda: stack.enter_context(SummaryWriter(str(directory)))
        )

        def add(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                opened().add_scalar(name, value, step)
            opened().flush()

        yield add


class Metrics:
    """Progress on the terminal, and metrics.jsonl.

    A line of the file says how far a session of the run had come: seconds
    from its begin to the last sample that it generated, samples and tokens,
    not counting what the log held already.
    """

    def __init__(
        self,
        workdir: Path,
        budget: Budget,
        process: int = 0,
        add_point: AddPoint = lambda step, values: None,
        questions: int = 0,
    ):
        """Opens the file. Curves have points by samples so far."""
        self._add_point = add_point
        name = f"metrics-{process}.jsonl" if process else "metrics.jsonl"
        path = workdir / name
        sessions = _sessions(path)
        self.before, self._loop_before = map(
            sum, zip(*sessions.values(), strict=True) if sessions else ((), ())
        )
        self._session = max(sessions, default=-1) + 1
        self._file = lines.Lines(path)
        self._begin = self._last = self._written = time.monotonic()
        self._samples = self._tokens = 0  # generated in this session
        self._outside, self._at = 0.0, self._begin  # of the model, seconds
        self._seen = 0
        self._shown: set[SampleKey] = set()
        capped = (n for n in UNITS if getattr(budget, n) is not None)
        self._cap = cap = next(capped, "samples")
        plural = "s" * (questions != 1)
        self._bar = tqdm(
            desc=f"{workdir.resolve().name}, {questions} question{plural}",
            total=getattr(budget, cap),
            unit=UNITS[cap],
            unit_scale=cap != "samples",
            # quiet when not a terminal; the first shows what all generate
            disable=True if process else None,
            dynamic_ncols=True,
        )

    def seconds(self) -> float:
        """Sums all sessions of the run, each to its last sample."""
        return round(self.before + self._session_seconds(), 3)

    def _session_seconds(self) -> float:
        # never less than it took, or a cap that was reached would not be so
        # when the run is started again
        return math.ceil((self._last - self._begin) * 1000) / 1000

    def with_progress(self, sample_fn: SampleFn) -> SampleFn:
        """Shows each sample, and notes what time passes between two of them."""

        def sample(requests: Sequence[Request]) -> Iterator[Sample]:
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
                self._shown.add((sample.query_id, sample.index))
                yield sample

        return sample

    def with_steps(self, watch: Watch | None) -> Watch | None:
        """Counts the steps of a sampler that is watched as the model's time."""
        if watch is None:
            return None

        def step() -> None:
            self._enter()
            watch.step()
            self._leave()

        return watch._replace(step=step)

    def loop_share(self) -> float | None:
        """Gives the part of the time that the loop took for itself.

        That is policy, strategy, tables and their compilation, in all sessions
        that sampled.
        """
        # as metrics.jsonl has them, so that a run started again says the same
        outside = round(self._outside, 3) if self._samples else 0.0
        seconds = self.seconds()
        if not seconds:
            return None
        return round((self._loop_before + outside) / seconds, 4)

    def _enter(self) -> None:
        self._outside += time.monotonic() - self._at

    def _leave(self) -> None:
        self._at = time.monotonic()

    def metered(self, sample_fn: SampleFn) -> SampleFn:
        """Counts what is generated now."""

        def count(sample: Sample) -> None:
            self._last = time.monotonic()
            self._samples += 1
            self._tokens += sample.new_tokens
            self._tick()

        return each(count)(sample_fn)

    def round(self, done: Round) -> None:
        """Notes at the end of a round how uncertain answers were before it."""
        uncertainty = float(done.uncertainty_Q.mean())
        self._add_point(done.ledger.samples, {"uncertainty": uncertainty})

    def event(self, event: Event) -> None:
        """Notes a cancelled sample, which no one generates to its end."""
        sample = event.sample
        if event.kind != "cancel" or sample is None:
            return
        if (sample.query_id, sample.index) not in self._shown:
            self._bar.update(amounts(Ledger().add(sample))[self._cap])

    def _tick(self, last: bool = False) -> None:
        seconds = self._session_seconds()
        rate = self._tokens / max(seconds, 1e-9)
        self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        if self._last - self._written < METRICS_SECONDS and not last:
            return
        self._written = self._last
        row = {
            "session": self._session,
            "seconds": seconds,
            "samples": self._samples,
            "new_tokens": self._tokens,
            "new_tokens_per_second": round(rate, 1),
            "loop_seconds": round(self._outside, 3),
        }
        self._file.append(lines.dumps(row))
        self._add_point(self._seen, {"new_tokens_per_second": rate})

    def close(self) -> None:
        """Writes the last line and ends the bar."""
        self._bar.close()
        with contextlib.closing(self._file):
            if self._samples:
                self._tick(last=True)


def _sessions(path: Path) -> dict[int, tuple[float, float]]:
    """Seconds of the earlier sessions, and of these the loop's own.

    The last line of each counts.
    """
    sessions: dict[int, tuple[float, float]] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            # a kill may have torn it
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = lines.loads(line)
                times = row["seconds"], row.get("loop_seconds", 0)
                if all(map(lines.is_sound, (row["session"], *times))):
                    sessions[int(row["session"])] = times
    return sessions
