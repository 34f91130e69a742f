"""What the benchmarks share: a line, a median, calls that are timed."""

import contextlib
import functools
import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

ROOT = Path(__file__).parents[1]  # where `launch` is found
Lines = Iterator[dict[str, Any]]
Config = Any  # ml_collections.ConfigDict, as benchmarks/config.py


def median_seconds(once: Callable[[], Any], repeats: int) -> float:
    """Of one call, which blocks until its result is there."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        once()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@contextlib.contextmanager
def timed_calls(
    functions: Mapping[ModuleType, Sequence[str]],
) -> Iterator[dict[str, list[float]]]:
    """Seconds of each call of some functions of modules, by name.

    None of them may call another: its time would count twice.

    Each call then waits for its result, so that what is left of the wall
    clock is the host's own time. What a module hands out once to others that
    keep it is not seen.
    """
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            begin = time.perf_counter()
            result = jax.block_until_ready(function(*args, **kwargs))
            times[name].append(time.perf_counter() - begin)
            return result

        return call

    originals = [
        (module, name, getattr(module, name))
        for module, names in functions.items()
        for name in names
    ]
    try:
        for module, name, value in originals:
            setattr(module, name, timed(name, value))
        yield times
    finally:
        for module, name, value in originals:
            setattr(module, name, value)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Seconds of each compilation that happens meanwhile."""
    seconds: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def last_line(command: Sequence[str], name: str, **settings: Any) -> Any:
    """The JSON that a process prints last.

    Raises:
        RuntimeError: it failed or printed nothing; with what it said last.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, **settings
    )
    if done.returncode or not done.stdout.strip():
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"{name} failed and said: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rate(amount: float, seconds: float) -> float:
    return round(amount / max(seconds, 1e-9), 1)
