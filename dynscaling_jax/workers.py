"""Programs in processes of their own, which answer requests within limits.

A worker runs what cannot be trusted to end, or not to take all memory. No
list of what is forbidden is ever complete; the operating system bounds memory
and processor time, whatever the interpreter or a library in C or Rust is
doing. The program answers each line of standard input by one line (`serve`),
and ends with its input, so that it does not outlive its parent. What a limit
ends is started again by the next request.

pebble, whose pools bound wall time alone, would leave memory and processor
time to us, and its processes inherit what the parent has imported.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STARTUP = 120.0  # wall seconds until a program is ready
SLACK = 10.0  # wall seconds for each second of processor time


class WorkerError(Exception):
    """A worker that ended, or was ended, before it answered; says how."""


class StartError(WorkerError):
    """A worker that never was ready."""


class Worker:
    """Runs a program that answers lines.

    It starts at the first request; threads take turns.
    """

    def __init__(
        self,
        program: Path,
        first: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ):
        """Names the program; nothing is started yet.

        Args:
            program: a file of Python, which calls `serve`.
            first: the request that it answers before all others.
            environment: variables beside those of this process.
        """
        self._program, self._first = program, first
        self._environment = environment or {}
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        weakref.finalize(self, _stop, self._running)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process that answers, where one was started."""
        return self._running[0] if self._running else None

    def ask(self, line: bytes, seconds: float, most: int) -> bytes:
        """Returns the answer to a line.

        Args:
            line: a request.
            seconds: of processor time, which the program keeps to; ten times
                that may pass.
            most: bytes of an answer.

        Raises:
            WorkerError: it ended, was late or wrote more; a StartError where
                it did so before it was ready.
        """
        with self._lock:
            try:
                if not self._running:
                    self._start(seconds, most)
                return self._answer(line, seconds * SLACK, most)
            except BaseException:  # an interrupted worker still owes an answer
                _stop(self._running)
                raise

    def _start(self, seconds: float, most: int) -> None:
        # A plain program over pipes: unlike a spawned multiprocessing child
        # it neither runs the caller's main module again nor imports JAX.
        self._running.append(
            subprocess.Popen(
                [sys.executable, "-P", str(self._program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, **self._environment},
            )
        )
        try:
            self._answer(b"", STARTUP, most)
        except WorkerError as error:
            raise StartError(*error.args) from error
        if self._first:
            self._answer(self._first, seconds * SLACK, most)

    def _answer(self, line: bytes, seconds: float, most: int) -> bytes:
        (process,) = self._running
        assert process.stdin and process.stdout
        deadline = time.monotonic() + seconds
        parts: list[bytes] = []
        size = 0
        with contextlib.suppress(BrokenPipeError):
            view = memoryview(line)
            while view:
                view = view[process.stdin.write(view) :]
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not parts or not parts[-1].endswith(b"\n"):
                if not selector.select(deadline - time.monotonic()):
                    raise WorkerError(f"it took more than {seconds:g} s")
                part = os.read(process.stdout.fileno(), 2**16)
                size += len(part)
                if not part:
                    raise WorkerError(_ended(process.wait()))
                if size > most:
                    raise WorkerError(f"it wrote more than {most} bytes")
                parts.append(part)
        return b"".join(parts)

    def kill(self) -> None:
        """Ends the process at once, whoever waits for its answer."""
        for process in self._running:
            process.kill()

    def stop(self) -> None:
        """Ends the process, once it has answered."""
        with self._lock:
            _stop(self._running)


def serve(answer: Callable[..., Any], memory: int) -> None:
    """Answers the requests of a Worker: the program's side.

    Each request is a JSON line [seconds, *arguments]. The kernel ends the
    process once answer(*arguments) has used so much processor time.

    Args:
        answer: returns what json.dumps takes.
        memory: bytes of address space.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # not on every platform
            resource.setrlimit(kind, (most, most))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print, when they panic too, is no answer.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    answers.write("ready\n")
    for line in sys.stdin.buffer:
        seconds, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        value = json.dumps(answer(*arguments))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(value + "\n")


def _ended(code: int) -> str:
    if code == -signal.SIGPROF:
        return "it took more than its limit of processor time"
    if code == -signal.SIGABRT:
        return "it aborted, as where it needs more than its limit of memory"
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with {code}; its own message stands above"


def _stop(running: list[subprocess.Popen[bytes]]) -> None:
    while running:
        process = running.pop()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
