"""The log of a run: its samples, kept so that a kill costs nothing.

    WORKDIR/config.json     what the run is, and the version of its files
    WORKDIR/samples.jsonl   one row a sample, in the order of the requests
    WORKDIR/pending.jsonl   rows that were finished before their turn
    WORKDIR/rounds.jsonl    one row a round
    WORKDIR/events.jsonl    where there are no rounds, one row an event

`recorded` puts the log before any SampleFn: what it holds is not generated
again. Rows reach samples.jsonl in the order of the requests, whatever
order they are finished in, and hold no time of day. Without rounds their order
is that in which samples end for the run. So a run that is killed
at any moment and started again ends with the same bytes as one that was not,
as long as its model gives the same sample for the same request.
"""

import collections
import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynscaling_jax.experiments.workdir import claim, locked, read_config
from dynscaling_jax.files import read_json
from dynscaling_jax.lines import (
    Lines,
    dumps,
    is_number,
    is_sound,
    loads,
    rows,
    shown,
)
from dynscaling_jax.types import Request, Sample, SampleFn, SampleKey

MOST_PENDING = 2**20  # bytes of rows that are all in samples.jsonl


class Log:
    """The open log of one run, and the lock on its directory.

    Use it in a `with` block. On leaving it without an exception, rows that
    still wait for an earlier one, which the run ended without, move to
    samples.jsonl. Without rounds they are no part of the run, and go.

    Raises:
      RuntimeError: another run holds the directory, or another program
        changed its files.
      ValueError: the directory is of another config; a file has a malformed
        line; a row is not what this run asks for or already wrote.
      OSError: a file cannot be written, the disk being full for instance.
        What was written before stays, and the run can go on from it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        in_rounds: bool = True,
        **origin: Any,
    ):
        """Opens the log of a config; origin is of workdir.claim."""
        self.workdir = Path(workdir)
        self.in_rounds = in_rounds
        self._order: collections.deque[SampleKey] = collections.deque()
        self._step = 0
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.workdir))
            claim(
                self.workdir,
                "run",
                config,
                begun=begun(self.workdir),
                unversioned=(self.workdir / "samples.jsonl").exists(),
                **origin,
            )
            steps = "rounds" if in_rounds else "events"
            self._samples, self._pending, self._steps = (
                stack.enter_context(
                    contextlib.closing(Lines(self.workdir / f"{name}.jsonl"))
                )
                for name in ("samples", "pending", steps)
            )
            self._at = _places(self._samples)
            # A kill can leave a pending row that has had its turn.
            self._waiting = {
                key: at
                for key, at in _places(self._pending).items()
                if key not in self._at
            }
            self._old_steps = [at for at, _ in self._steps.read_all()]
            self._close = stack.pop_all().close

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None and not self.in_rounds:
                self._samples.sync()
                self._pending.truncate(0)
            elif kind is None:
                ordered = [k for k in self._order if k in self._waiting]
                self._order.clear()
                self._begin(dict.fromkeys([*ordered, *self._waiting]))
        finally:
            self._close()

    def __contains__(self, key: SampleKey) -> bool:
        return key in self._at or key in self._waiting

    def __len__(self) -> int:
        return len(self._at) + len(self._waiting)

    def read(self, key: SampleKey) -> Sample:
        """The sample of a (query id, index) that the log holds."""
        if key in self._at:
            line = self._samples.read(self._at[key])
        else:
            line = self._pending.read(self._waiting[key])
        return sample_of(loads(line))

    def step(self, row: Mapping[str, Any]) -> None:
        """Writes the row of a round or an event, which must hold no times.

        Those that a run which goes on has already are checked, not doubled.
        """
        number, self._step = self._step, self._step + 1
        line = dumps(row)
        if number >= len(self._old_steps):
            self._steps.append(line)
            if self.in_rounds:
                self._steps.sync()
        elif line != self._steps.read(self._old_steps[number]):
            raise ValueError(
                f"{self._steps.path}:{number + 1}: this went another way when "
                "the run began; a run goes on only as it began. Use a new "
                "workdir"
            )

    def steps(self) -> list[Any]:
        """The rows of rounds or events that earlier sessions wrote."""
        return [loads(self._steps.read(at)) for at in self._old_steps]

    def end(self, sample: Sample) -> None:
        """Gives a sample its turn, where there are no rounds.

        One that was cancelled takes the place of what the model may have
        finished of it.
        """
        key, line = _key(sample), dumps(row_of(sample))
        if key not in self._at:
            self._waiting.pop(key, None)
            self._at[key] = self._samples.append(line)
        elif line != self._samples.read(self._at[key]):
            raise ValueError(
                f"{self._samples.path}: sample {key[1]} of query {key[0]!r} "
                "ended another way when the run began; a run goes on only as "
                "it began. Use a new workdir"
            )
        if not self._waiting and self._pending.size > MOST_PENDING:
            self._samples.sync()
            self._pending.truncate(0)

    def _begin(self, keys: Iterable[SampleKey]) -> None:
        """Gives rows their turns, after those of batches that have begun."""
        self._order.extend(k for k in keys if k not in self._at)
        self._drain()

    def _write(self, sample: Sample) -> None:
        """Writes a sample of the batch, at once or to wait for its turn."""
        key = _key(sample)
        line = dumps(row_of(sample))
        if self._order and self._order[0] == key:
            self._order.popleft()
            self._at[key] = self._samples.append(line)
            self._drain()
        else:
            self._waiting[key] = self._pending.append(line)

    def _drain(self) -> None:
        while self._order and self._order[0] in self._waiting:
            key = self._order.popleft()
            line = self._pending.read(self._waiting[key])
            self._at[key] = self._samples.append(line)
            del self._waiting[key]
        if not self._waiting and self._pending.size:
            self._samples.sync()
            self._pending.truncate(0)
        if not self._order:
            self._samples.sync()


def recorded(sample_fn: SampleFn, log: Log) -> SampleFn:
    """Makes a SampleFn that samples only what the log does not hold.

    Every sample is written before it is handed on.

    Samples that the log holds come first, the others as they are finished;
    all come as the log holds them. Raises ValueError for a sample, new or
    held, that is not of its request: not requested, given twice, or of
    another round or other parents.
    """

    def answer(requests: Sequence[Request]) -> Iterator[Sample]:
        by_key = {(r.query.id, r.index): r for r in requests}
        missing = {k: r for k, r in by_key.items() if k not in log}
        if log.in_rounds:
            log._begin(by_key)
        samples = sample_fn([*missing.values()]) if missing else iter(())
        return written(by_key, missing, samples)

    def written(
        by_key: dict[SampleKey, Request],
        missing: dict[SampleKey, Request],
        samples: Iterator[Sample],
    ) -> Iterator[Sample]:
        try:
            for key in [k for k in by_key if k not in missing]:
                yield of_request(log.read(key), by_key[key], "the log holds")
            for sample in samples:
                request = missing.pop(_key(sample), None)
                log._write(of_request(sample, request, "the model gave"))
                yield log.read(_key(sample))
        finally:
            close = getattr(samples, "close", None)
            if close:
                close()

    return answer


def sound(sample_fn: SampleFn) -> SampleFn:
    """Makes sure that what a sampler gives are samples, which a log can hold.

    Raises ValueError where they are not.
    """

    def answer(requests: Sequence[Request]) -> Iterator[Sample]:
        samples = sample_fn(requests)
        if not isinstance(samples, Iterable):
            raise ValueError(
                f"the sampler gave {shown(samples)}; expected an iterator of "
                "samples, and no coroutine"
            )
        return map(checked, samples)

    def checked(sample: Sample) -> Sample:
        try:
            return sample_of(sample._asdict() | {"parents": [*sample.parents]})
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the sampler gave {shown(sample)}; expected a Sample ({error})"
            ) from None

    return answer


def runs_below(directory: Path) -> str:
    """Tells where a directory that is of no run holds some, for a message."""
    found = [
        file.parent.relative_to(directory)
        for depth in ("*", "*/*")
        for file in sorted(directory.glob(f"{depth}/samples.jsonl"))
    ]
    if not found:
        return ""
    count = f", one of {len(found)}" if len(found) > 1 else ""
    return f"; it holds a run in {found[0]}{count}"


def read_samples(path: str | os.PathLike) -> Iterator[Sample]:
    """Reads a samples.jsonl, less a last line that a kill has torn.

    Raises ValueError, with file and line, at a malformed one, and for a
    directory of a later version.
    """
    read_config(Path(path).parent)
    for _, _, sample in rows(Path(path), sample_of):
        yield sample


def checksum(workdir: Path, size: int | None = None) -> dict[str, Any] | None:
    """Hashes the first `size` bytes of the samples; None if there are fewer."""
    path = workdir / "samples.jsonl"
    rest = path.stat().st_size if size is None else size
    digest, found = hashlib.sha256(), {"bytes": rest}
    with open(path, "rb") as file:
        while rest and (piece := file.read(min(rest, 1 << 20))):
            digest.update(piece)
            rest -= len(piece)
    return None if rest else {**found, "sha256": digest.hexdigest()}


def refuse_changed(workdir: Path) -> None:
    """Raises ValueError where a run's log is not what it ended with.

    Rows that came later, of a run that goes on, are none of it.
    """
    try:
        known = read_json(workdir / "summary.json")["log"]
        size = known["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # it did not end, or by a version that kept no checksum
    if not _whole(size) or checksum(workdir, size) != known:
        raise ValueError(
            f"{workdir / 'samples.jsonl'} is not what the run ended with, "
            "whose sha256 is in summary.json: it was changed since. Put it "
            "back; or remove summary.json, and it is taken as it is"
        )


def begun(workdir: Path) -> bool:
    """Whether a run, its vote or a process of it has any sample."""
    return any(
        file.stat().st_size
        for depth in ("", "*/", "*/*/")
        for name in ("samples", "pending")
        for file in workdir.glob(f"{depth}{name}.jsonl")
    )


def row_of(sample: Sample) -> dict[str, Any]:
    """Makes a row of a sample, as sample_of reads it back.

    Raises ValueError for a measure that is not finite.
    """
    row = sample._asdict() | {"parents": list(sample.parents)}
    return sample_of(row)._asdict()


def sample_of(row: Any) -> Sample:
    """A row of JSON as a sample; what a later version added is read over.

    A sample with a count or a measure so large that nothing can calculate
    with it is one that failed: a server said it, and a log of version 0.1 may
    hold it.

    Raises ValueError for anything else.
    """
    needed = Sample._fields[: -len(Sample._field_defaults)]
    if not isinstance(row, dict) or not row.keys() >= set(needed):
        raise ValueError(f"expected an object of {', '.join(Sample._fields)}")
    row = {
        name: row.get(name, Sample._field_defaults.get(name))
        for name in Sample._fields
    }
    for name, (expected, right) in _FIELDS.items():
        if not right(row[name]):
            raise ValueError(f"{name}={shown(row[name])} is not {expected}")
    absurd = [name for name, most in _MOST.items() if not most(row[name])]
    if absurd:
        row |= {
            "answer": None,
            "finish_reason": f"error: {absurd[0]} is too large a number",
            **dict.fromkeys(("prompt_tokens", "cached_tokens"), 0),
            "new_tokens": 0,
            "flops": 0.0,
            "signals": {},
            "logprob": None,
            "confidence": None,
        }
    return Sample(**row)._replace(parents=tuple(row["parents"]))


def _key(sample: Sample) -> SampleKey:
    return sample.query_id, sample.index


def of_request(sample: Sample, request: Request | None, source: str) -> Sample:
    """The sample. Raises ValueError where it is not of the request."""
    what = f"{source} sample {sample.index} of query {sample.query_id!r}"
    if request is None:
        raise ValueError(f"{what}, which was not asked for, or twice")
    found = (sample.round, sample.parents)
    if found != (request.round, request.parents):
        raise ValueError(
            f"{what} with (round, parents) {found}, but this run asks for "
            f"{(request.round, request.parents)}; a run goes on only as it "
            "began. Use a new workdir"
        )
    return sample


def _places(lines: Lines) -> dict[SampleKey, int]:
    """Where each sample of a file stands."""
    places: dict[SampleKey, int] = {}
    for at, sample in lines.read_all(sample_of):
        key = _key(sample)
        if key in places:
            raise ValueError(
                f"{lines.path}: sample {key[1]} of query {key[0]!r} stands "
                "there twice"
            )
        places[key] = at
    return places


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _place(value: Any) -> bool:
    return _whole(value) and value < 2**31


def _text(value: Any) -> bool:
    return isinstance(value, str)


_WHOLE = ("a whole number from 0 on", _whole)
_PLACE = ("a whole number from 0 on, below 2^31", _place)
_MEASURE = ("a finite number or null", lambda v: v is None or is_number(v))
_FIELDS = {
    "query_id": ("a text", _text),
    "index": _PLACE,
    "round": _PLACE,
    "parents": (
        "a list of whole numbers",
        lambda v: isinstance(v, list) and all(map(_place, v)),
    ),
    "text": ("a text", _text),
    "answer": ("a text or null", lambda v: v is None or _text(v)),
    "finish_reason": ("a text", _text),
    "prompt_tokens": _WHOLE,
    "cached_tokens": _WHOLE,
    "new_tokens": _WHOLE,
    "flops": ("a finite number", is_number),
    "logprob": _MEASURE,
    "confidence": _MEASURE,
    "signals": (
        "an object of finite numbers",
        lambda v: isinstance(v, dict) and all(map(is_number, v.values())),
    ),
}
_MOST = {  # what tables and sums can hold
    **dict.fromkeys(("prompt_tokens", "cached_tokens", "new_tokens"), _place),
    **dict.fromkeys(
        ("logprob", "confidence"), lambda v: v is None or is_sound(v)
    ),
    "flops": is_sound,
    "signals": lambda v: all(map(is_sound, v.values())),
}
