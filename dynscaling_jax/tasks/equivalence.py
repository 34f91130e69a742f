"""When two answers are the same: one relation, for votes and for grading.

Answers are compared in canonical form. Where that leaves two formulas which
differ as text, math-verify decides, in a worker process with a hard limit.
The relation is symmetric and reflexive. It is transitive up to three
conventions of mathematical writing: a list without brackets equals the tuple
and the set of the same items; 1 and x = 1 are the same answer; a numeral in
a stated base equals the one that leaves the base to the question. Lists
that differ as text in more than 16 items are different.
"""

import json
import os
import queue
import re
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from dynscaling_jax.tasks.forms import canonical
from dynscaling_jax.tasks.formulas import Listing, is_word, listing
from dynscaling_jax.tasks.numbers import rational

Outcome = Literal["equal", "different", "timeout"]
Compare = Callable[[str, str, str], Outcome]  # (answer, answer, kind)

_PROGRAM = Path(__file__).with_name("symbolic.py")
_STARTUP = 120.0  # seconds that a worker may take to import sympy
_SLACK = 10.0  # wall seconds allowed for each second of processor time
_MOST_FORMULAS = 16  # items of two lists that are compared as formulas


def classify(
    answers: Iterable[str | None], kind: str, compare: Compare
) -> tuple[int, ...]:
    """The class of every answer of one query, numbered from 0 in the order
    first seen: what votes count.

    An answer joins the first class whose first member it equals. One that is
    None, or cannot be read as `kind`, is -1. A comparison that times out does
    not join.
    """
    ids: list[int] = []
    firsts: list[str] = []
    known: dict[str | None, int] = {None: -1}
    for answer in answers:
        form = None if answer is None else canonical(answer, kind)
        if form is not None and form not in known:
            same = (compare(first, form, kind) == "equal" for first in firsts)
            known[form] = next((i for i, yes in enumerate(same) if yes), -1)
            if known[form] < 0:
                known[form] = len(firsts)
                firsts.append(form)
        ids.append(known[form])
    return tuple(ids)


class Comparer:
    """Compares answers: `comparer(a, b, kind)` is equal, different, timeout.

    Cheap to make: a worker starts when the first pair needs one. Safe to call
    from several threads; with `workers` of them, that many comparisons run at
    once. Close it, or use it as a context manager; it also closes when it is
    collected.

    Args:
      time_limit: processor seconds of one symbolic comparison. What exceeds
        them, or 2 GiB, is a timeout. Wall time is bounded by ten times that.
      workers: the number of worker processes.
      cache_size: outcomes of symbolic comparisons kept, timeouts included.

    Raises:
      ValueError: a limit that is not positive; when called, an unknown kind.
      RuntimeError: when called, a worker that cannot start; a closed comparer.
    """

    def __init__(
        self,
        time_limit: float = 5.0,
        workers: int = 1,
        cache_size: int = 100_000,
    ):
        if min(time_limit, workers, cache_size) <= 0:
            raise ValueError(
                "time_limit, workers and cache_size must be positive, got "
                f"{time_limit}, {workers} and {cache_size}"
            )
        self._time_limit = time_limit
        self._cache_size = cache_size
        self._cache: dict[tuple[str, str], Outcome] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._workers = [_Worker() for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        weakref.finalize(self, _stop, self._workers)

    def __call__(self, a: str, b: str, kind: str) -> Outcome:
        first, second = canonical(a, kind), canonical(b, kind)
        if first is None or second is None:
            return "different"
        if first == second:
            return "equal"
        return self._formulas(first, second) if kind == "math" else "different"

    def _formulas(self, a: str, b: str) -> Outcome:
        """Two canonical answers of kind math, or two items of them."""
        if a == b:
            return "equal"
        if is_word(a) or is_word(b):
            return "different"
        x, y = rational(a), rational(b)
        if x is not None and y is not None:  # an item of \pm 2 is "+2"
            return "equal" if x == y else "different"
        bases = _BASE.fullmatch(a), _BASE.fullmatch(b)
        if any(bases):
            bare = [
                match[1] if match else text
                for match, text in zip(bases, (a, b), strict=True)
            ]
            return "different" if all(bases) or bare[0] != bare[1] else "equal"
        left, right = _expand(listing(a)), _expand(listing(b))
        if len(left.items) > 1 and len(right.items) > 1:
            return self._lists(left, right)
        return self._symbolic(a, b)

    def _lists(self, a: Listing, b: Listing) -> Outcome:
        brackets = {a.opening + a.closing, b.opening + b.closing}
        if len(a.items) != len(b.items) or not (
            len(brackets) == 1 or brackets in ({"", "()"}, {"", r"\{\}"})
        ):
            return "different"
        if brackets <= {"", r"\{\}"}:
            return self._sets(a.items, b.items)
        return self._tuples(a.items, b.items)

    def _tuples(self, a: Sequence[str], b: Sequence[str]) -> Outcome:
        pairs = [pair for pair in zip(a, b, strict=True) if pair[0] != pair[1]]
        if len(pairs) > _MOST_FORMULAS:
            return "different"
        for pair in pairs:
            outcome = self._formulas(*pair)
            if outcome != "equal":
                return outcome
        return "equal"

    def _sets(self, a: Sequence[str], b: Sequence[str]) -> Outcome:
        """Every item of one list finds its own match in the other."""
        left = list((Counter(a) - Counter(b)).elements())
        right = list((Counter(b) - Counter(a)).elements())
        if len(left) > _MOST_FORMULAS:
            return "different"
        for item in left:
            for other in right:
                outcome = self._formulas(item, other)
                if outcome == "equal":
                    right.remove(other)
                    break
                if outcome == "timeout":
                    return outcome
            else:
                return "different"
        return "equal"

    def _symbolic(self, a: str, b: str) -> Outcome:
        pair = (a, b) if a < b else (b, a)
        with self._lock:
            if pair in self._cache:
                return self._cache[pair]
        worker = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("this Comparer has been closed")
            outcome = worker.compare(*pair, self._time_limit)
        finally:
            self._idle.put(worker)
        with self._lock:
            if len(self._cache) >= self._cache_size:
                del self._cache[next(iter(self._cache))]  # the oldest
            self._cache[pair] = outcome
        return outcome

    def close(self) -> None:
        """Ends the workers; a comparison under way becomes a timeout."""
        self._closed = True
        for worker in self._workers:
            worker.kill()
        idle = [self._idle.get() for _ in self._workers]
        for worker in idle:
            worker.stop()
            self._idle.put(worker)

    def __enter__(self) -> "Comparer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_BASE = re.compile(r"(-?[0-9][0-9A-F.]*)_(?:\d|\{\d+\})")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")


def _expand(parts: Listing) -> Listing:
    """a \\pm b is the two items a + b and a - b."""
    items: list[str] = []
    for item in parts.items:
        both = (_PLUS_MINUS.sub(sign, item) for sign in "+-")
        items += dict.fromkeys(both)  # without the sign both are the same
    return parts._replace(items=tuple(items))


class _Worker:
    """A process of symbolic.py, started when needed, replaced when it ends."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def compare(self, a: str, b: str, seconds: float) -> Outcome:
        request = json.dumps([a, b, seconds]).encode() + b"\n"
        try:
            if self.process is None:
                self.start()
            reply = self._ask(request, seconds * _SLACK)
        except BaseException:  # an interrupted worker still owes a reply
            self.stop()
            raise
        if reply in ("equal", "different", "timeout"):
            return reply
        self.stop()
        return "timeout"

    def start(self) -> None:
        # A plain program over pipes: unlike a spawned multiprocessing child
        # it neither runs the caller's main module again nor imports JAX.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        if self._ask(b"", _STARTUP) != "ready":
            raise RuntimeError(
                "the process that compares formulas did not start; is "
                "math-verify installed? Its own message stands above."
            )

    def _ask(self, request: bytes, seconds: float) -> str | None:
        """The line that answers, None where the process ended or was late."""
        process = self.process
        assert process and process.stdin and process.stdout
        deadline = time.monotonic() + seconds
        reply = b""
        try:
            process.stdin.write(request)
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(deadline - time.monotonic()):
                    return None
                chunk = os.read(process.stdout.fileno(), 64)
                if not chunk:
                    return None
                reply += chunk
        return reply.decode().strip()

    def kill(self) -> None:
        if (process := self.process) is not None:
            process.kill()

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()
