"""The time of a run that may have been begun before."""

import time
from collections.abc import Callable, Iterator, Sequence

from dynscaling_jax.types import Request, Sample, SampleFn


class Timer:
    """Seconds of sampling in all sessions of a run, each to its last sample.

    As the clock of the loop it stands at 0 while everything comes from the
    log, which takes no time: a run that had reached its cap takes all that it
    drew, and then stops.
    """

    def __init__(
        self,
        cap: float | None = None,
        before: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """before: seconds of the earlier sessions."""
        self._cap, self._clock = cap, clock
        self._begin, self._last = clock() - before, before
        self._drawing = False

    def __call__(self) -> float:
        """Returns the seconds so far."""
        return self._last if self._drawing else 0.0

    def within(self, sample_fn: SampleFn) -> SampleFn:
        """Takes no more samples once the cap is reached.

        The loop ends a round then, but where several processes share one it
        sees their samples at its end alone.
        """

        def draw(requests: Sequence[Request]) -> Iterator[Sample]:
            return drawn(iter(()) if self._late() else sample_fn(requests))

        def drawn(samples: Iterator[Sample]) -> Iterator[Sample]:
            self._drawing = True
            try:
                for sample in samples:
                    self._last = self._clock() - self._begin
                    yield sample
                    if self._late():
                        return
            finally:
                close = getattr(samples, "close", None)
                if close:
                    close()

        return draw

    def _late(self) -> bool:
        return self._cap is not None and self._last >= self._cap
