"""The log of a run: what was drawn, kept so that a kill costs nothing.

    WORKDIR/config.json     what the run is
    WORKDIR/samples.jsonl   one row a sample, in the order of the requests
    WORKDIR/pending.jsonl   rows that were finished before their turn
    WORKDIR/rounds.jsonl    one row a round

`recorded` makes of any SampleFn one that remembers: what the log holds is not
drawn again. Rows reach samples.jsonl in the order of the requests, whatever
order they are finished in, and hold no time of day. So a run that is killed
at any moment and started again ends with the same bytes as one that was not,
as long as its model draws the same sample for the same request.
"""

import collections
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from dynscaling_jax.records.lines import Lines, cannot_write, dumps, rows
from dynscaling_jax.types import Request, Sample, SampleFn

Key = tuple[str, int]  # query id, sample index


class Log:
    """The open log of one run, and the lock on its directory.

    Use it in a `with` block. On leaving it without an exception, rows that
    still wait for an earlier one, which the run ended without, move to
    samples.jsonl.

    Raises:
      RuntimeError: another run holds the directory.
      ValueError: the directory is of another config; a file has a malformed
        line; a row is not what this run asks for or already wrote.
      OSError: a file cannot be written, the disk being full for instance.
        What was written before stays whole, and the run can go on from it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ):
        """config is what has to be the same for a run to go on; about
        (versions, commit, device) is written beside it as the run begins."""
        self.workdir = Path(workdir)
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"{self.workdir} cannot be a workdir: {error.strerror}"
            ) from error
        self._lock = filelock.FileLock(self.workdir / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RuntimeError(
                f"{self.workdir} is in use by another run; wait for it to "
                "end, or choose another workdir"
            ) from None
        self._order: collections.deque[Key] = collections.deque()
        self._round = 0
        self._files: list[Lines] = []
        try:
            claim(self.workdir, config, about or {})
            self._samples, self._pending, self._rounds = (
                self._open(f"{name}.jsonl")
                for name in ("samples", "pending", "rounds")
            )
            self._at = _places(self._samples)
            # A kill can leave a pending row that has had its turn.
            self._waiting = {
                key: at
                for key, at in _places(self._pending).items()
                if key not in self._at
            }
            self._old_rounds = [at for at, _ in self._rounds.read_all()]
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                ordered = [k for k in self._order if k in self._waiting]
                self._order.clear()
                self._begin(dict.fromkeys([*ordered, *self._waiting]))
        finally:
            self._close()

    def __contains__(self, key: Key) -> bool:
        return key in self._at or key in self._waiting

    def __len__(self) -> int:
        return len(self._at) + len(self._waiting)

    def read(self, key: Key) -> Sample:
        """The sample of a (query id, index) that the log holds."""
        if key in self._at:
            line = self._samples.read(self._at[key])
        else:
            line = self._pending.read(self._waiting[key])
        return sample_of(json.loads(line))

    def round(self, row: Mapping[str, Any]) -> None:
        """Writes the row of a round, which must hold no times. When a run
        goes on, the rounds that it has already are checked, not doubled."""
        number, self._round = self._round, self._round + 1
        line = dumps(row)
        if number >= len(self._old_rounds):
            self._rounds.append(line)
            self._rounds.sync()
        elif line != self._rounds.read(self._old_rounds[number]):
            raise ValueError(
                f"{self._rounds.path}:{number + 1}: this round went another "
                "way when the run began; a run goes on only as it began. Use "
                "a new workdir"
            )

    def _open(self, name: str) -> Lines:
        self._files.append(Lines(self.workdir / name))
        return self._files[-1]

    def _close(self) -> None:
        for lines in self._files:
            lines.close()
        self._lock.release()

    def _begin(self, keys: Iterable[Key]) -> None:
        """Rows have their turns in the order of keys, after those of batches
        that have begun already."""
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
            self._pending.clear()
        if not self._order:
            self._samples.sync()


def recorded(sample_fn: SampleFn, log: Log) -> SampleFn:
    """A SampleFn that draws only what the log does not hold, and writes every
    sample before it hands it on.

    Samples that the log holds come first, the others as they are drawn; all
    are handed on as the log holds them. Raises ValueError for a sample, drawn
    now or before, that is not of its request: not asked for, given twice, or
    of another round or other parents.
    """

    def draw(requests: Sequence[Request]) -> Iterator[Sample]:
        asked = {(r.query.id, r.index): r for r in requests}
        missing = {k: r for k, r in asked.items() if k not in log}
        log._begin(asked)
        samples = sample_fn([*missing.values()]) if missing else iter(())
        return handed_on(asked, missing, samples)

    def handed_on(
        asked: dict[Key, Request],
        missing: dict[Key, Request],
        samples: Iterator[Sample],
    ) -> Iterator[Sample]:
        try:
            for key in [k for k in asked if k not in missing]:
                yield of_request(log.read(key), asked[key], "the log holds")
            for sample in samples:
                request = missing.pop(_key(sample), None)
                log._write(of_request(sample, request, "the model gave"))
                yield log.read(_key(sample))
        finally:
            close = getattr(samples, "close", None)
            if close:
                close()

    return draw


def runs_below(directory: Path) -> str:
    """For a message about a directory that is not of a run but holds some, as
    launch.compare's: where one of them is, and how many there are."""
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
    """The rows of a samples.jsonl, one after the other; a last line that a
    kill has torn is left out. Raises ValueError, with file and line, at one
    that is malformed."""
    for _, _, sample in rows(Path(path), sample_of):
        yield sample


def claim(
    workdir: Path, config: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Writes config.json, or checks that it says the same config.

    Raises ValueError, with the fields that differ, where it does not.
    """
    path = workdir / "config.json"
    ours = json.loads(dumps(config))
    if path.exists():
        try:
            theirs = json.loads(path.read_bytes())["config"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(
                f"{path} is no config of a run; choose another workdir"
            ) from None
        differing = list(_differences(theirs, ours))
        if differing:
            raise ValueError(
                f"{workdir} belongs to a run of another config: "
                f"{'; '.join(differing)}. Choose another workdir, or the "
                "config that it was begun with"
            )
        return
    if (workdir / "samples.jsonl").exists():
        raise ValueError(
            f"{workdir} holds samples and no config.json, so that nobody can "
            "tell what they are of; choose another workdir"
        )
    text = json.dumps({"config": ours, "about": about}, indent=1)
    new = path.with_suffix(".new")
    try:
        with open(new, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def row_of(sample: Sample) -> dict[str, Any]:
    """A sample as a row of JSON. Raises ValueError for a measure that is not
    finite."""
    row = sample._asdict()
    sample_of(row | {"parents": list(sample.parents)})
    return row


def sample_of(row: Any) -> Sample:
    """A row of JSON as a sample. Raises ValueError for anything else."""
    if not isinstance(row, dict) or set(row) != set(Sample._fields):
        raise ValueError(f"expected an object of {', '.join(Sample._fields)}")
    for name, (expected, right) in _FIELDS.items():
        if not right(row[name]):
            raise ValueError(f"{name}={row[name]!r} is not {expected}")
    return Sample(**row)._replace(parents=tuple(row["parents"]))


def _key(sample: Sample) -> Key:
    return sample.query_id, sample.index


def of_request(sample: Sample, request: Request | None, source: str) -> Sample:
    """The sample. Raises ValueError where it is not of the request."""
    what = f"{source} sample {sample.index} of query {sample.query_id!r}"
    if request is None:
        raise ValueError(f"{what}, which was not asked for, or twice")
    drawn = (sample.round, sample.parents)
    if drawn != (request.round, request.parents):
        raise ValueError(
            f"{what} with (round, parents) {drawn}, but this run asks for "
            f"{(request.round, request.parents)}; a run goes on only as it "
            "began. Use a new workdir"
        )
    return sample


def _places(lines: Lines) -> dict[Key, int]:
    """Where each sample of a file stands."""
    places: dict[Key, int] = {}
    for at, sample in lines.read_all(sample_of):
        key = _key(sample)
        if key in places:
            raise ValueError(
                f"{lines.path}: sample {key[1]} of query {key[0]!r} stands "
                "there twice"
            )
        places[key] = at
    return places


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{name}.{key}" if name else key
            if key not in old:
                yield f"{inner} was not set, is {new[key]!r}"
            elif key not in new:
                yield f"{inner} was {old[key]!r}, is not set"
            else:
                yield from _differences(old[key], new[key], inner)
    elif old != new:
        yield f"{name} was {old!r}, is {new!r}"


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


_WHOLE = ("a whole number from 0 on", _whole)
_MEASURE = ("a finite number or null", lambda v: v is None or _number(v))
_FIELDS = {
    "query_id": ("a text", _text),
    "index": _WHOLE,
    "round": _WHOLE,
    "parents": (
        "a list of whole numbers",
        lambda v: isinstance(v, list) and all(map(_whole, v)),
    ),
    "text": ("a text", _text),
    "answer": ("a text or null", lambda v: v is None or _text(v)),
    "finish_reason": ("a text", _text),
    "prompt_tokens": _WHOLE,
    "cached_tokens": _WHOLE,
    "new_tokens": _WHOLE,
    "flops": ("a finite number", _number),
    "logprob": _MEASURE,
    "confidence": _MEASURE,
    "signals": (
        "an object of finite numbers",
        lambda v: isinstance(v, dict) and all(map(_number, v.values())),
    ),
}
