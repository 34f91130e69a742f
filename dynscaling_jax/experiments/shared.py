"""One run drawn by several processes, each its share of the queries.

All of them run the same loop over all queries. What a round asks for is dealt
among them by query, evenly; each process draws its share, keeps it in a log of
its own, and at the end of the round they exchange what they drew; who waits for
others goes on with the next round, where that is granted. So every process goes
on with the same samples as if it had drawn them all, and no policy, strategy or
vote knows of the others.
"""

import contextlib
import heapq
import json
import shutil
from collections import Counter
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dynscaling_jax.experiments.log import (
    Log,
    of_request,
    read_samples,
    recorded,
    row_of,
    sample_of,
)
from dynscaling_jax.lines import dumps
from dynscaling_jax.types import Request, Sample, SampleFn

Held = dict[tuple[str, int], Sample]  # by query id and index
Id = TypeVar("Id")  # of a query


class Drawn(NamedTuple):
    """Of one query, or of all."""

    tokens: float = 0.0
    samples: int = 0

    @property
    def mean(self) -> float:
        """Tokens of a sample; 1 where none was drawn."""
        return self.tokens / self.samples if self.tokens else 1.0

    def add(self, tokens: float, samples: int) -> "Drawn":
        return Drawn(self.tokens + tokens, self.samples + samples)


class Processes(NamedTuple):
    """This process among those that draw a run together.

    exchange(own, meanwhile) gives each of them what all brought, in the order
    of their numbers; all call it, the same number of times. While it waits
    for others it calls meanwhile, as long as that says that it did something.
    """

    number: int
    count: int
    exchange: Callable[[bytes, Callable[[], bool]], Sequence[bytes]]


ALONE = Processes(0, 1, lambda own, meanwhile: [own])


def nothing() -> bool:
    """What is to be done meanwhile."""
    return False


class Opened(NamedTuple):
    """An open log: remembered makes of a SampleFn one that draws only what
    the log does not hold, together with the other processes; round writes the
    row of a round; clock tells all processes the same time."""

    remembered: Callable[[SampleFn], SampleFn]
    round: Callable[[Mapping[str, Any]], None]
    clock: Callable[[], float]


@contextlib.contextmanager
def open_log(
    workdir: Path,
    log: Callable[[Path], Log],
    processes: Processes = ALONE,
    name: str = "",
    clock: Callable[[], float] = lambda: 0.0,
) -> Iterator[Opened]:
    """Opens the log of a run, or one beside it that has a name.

    Until the end of a round a process keeps what it drew in
    WORKDIR/process-NUMBER. Raises what Log and held raise.

    Args:
        log: opens the one of a directory.
        clock: the time of this process, in seconds.
    """
    if processes.count == 1 and not any(workdir.glob("process-*")):
        with log(workdir / name) as own:
            yield Opened(lambda draw: recorded(draw, own), own.round, clock)
        return
    before = held(workdir, processes, name)
    told, now = 0.0, 0.0  # the time of who is furthest

    def exchange(
        own: bytes, meanwhile: Callable[[], bool]
    ) -> tuple[bytes, ...]:
        nonlocal told
        parts = processes.exchange(dumps(clock()) + own, meanwhile)
        times, parts = zip(*(p.split(b"\n", 1) for p in parts), strict=True)
        told = max(map(float, times))
        return parts

    def handed_on(samples: Iterator[Sample]) -> Iterator[Sample]:
        nonlocal now
        yield from samples
        now = told  # no sooner: all take the whole round, or none

    with contextlib.ExitStack() as stack:
        home = workdir / f"process-{processes.number}" / name
        own = stack.enter_context(log(home))
        whole = None
        if not processes.number:
            whole = stack.enter_context(log(workdir / name))

        def remembered(sample_fn: SampleFn) -> SampleFn:
            timed = processes._replace(exchange=exchange)
            draw = shared(recorded(sample_fn, own), timed, before)
            if whole is not None:
                draw = merged(draw, whole)
            return lambda requests: handed_on(draw(requests))

        write = (lambda row: None) if whole is None else whole.round
        yield Opened(remembered, write, lambda: now)


def finish(workdir: Path, processes: Processes = ALONE) -> None:
    """Removes what each process kept; the log of the run holds it all."""
    if processes.count > 1:
        processes.exchange(b"", nothing)  # all have closed their logs
    for directory in _own(workdir, processes):
        shutil.rmtree(directory)


def held(workdir: Path, processes: Processes, name: str = "") -> Held:
    """What earlier processes of the run, however many, drew and kept.

    Each reads its own logs, and those of processes that are no more; the
    first reads the log of the run too. name is that of a log beside it.

    Raises:
        ValueError: a log with a malformed line.
    """
    log = [workdir] if processes.number == 0 else []
    own = [at / name for at in (*log, *_own(workdir, processes))]
    files = [
        directory / file
        for directory in own
        for file in ("samples.jsonl", "pending.jsonl")
    ]
    rows = [s for file in files if file.exists() for s in read_samples(file)]
    return _by_key(_exchanged(rows, processes, nothing))


def _own(workdir: Path, processes: Processes) -> list[Path]:
    """What this process kept, and some of those that are no more."""
    kept = sorted(workdir.glob("process-*"))
    numbers = [at.name.removeprefix("process-") for at in kept]
    return [
        at
        for at, number in zip(kept, numbers, strict=True)
        if number.isdigit()
        and int(number) % processes.count == processes.number
    ]


def shared(sample_fn: SampleFn, processes: Processes, before: Held) -> SampleFn:
    """A SampleFn that draws its share of what is asked for, and yields all of
    it, in the order of the requests, once all have drawn theirs.

    before holds what was drawn earlier; it is used up. Raises ValueError for
    a sample of it that is not of its request.
    """
    owners: dict[str, int] = {}
    drawn: dict[str, Drawn] = {}
    under_way: list[_Share] = []

    def draw(requests: Sequence[Request]) -> Iterator[Sample]:
        missing = [r for r in requests if (r.query.id, r.index) not in before]
        counts = Counter(r.query.id for r in missing)
        owners.update(dealt(counts, drawn, owners, processes.count))
        own = sample_fn(
            [r for r in missing if owners[r.query.id] == processes.number]
        )
        under_way.append(_Share(own, []))
        return handed_on(under_way[-1], requests)

    def handed_on(
        share: _Share, requests: Sequence[Request]
    ) -> Iterator[Sample]:
        share.drawn.extend(share.samples)
        under_way.remove(share)
        found = _by_key(_exchanged(share.drawn, processes, draw_ahead))
        for request in requests:
            key = request.query.id, request.index
            sample = before.pop(key, None) or found.get(key)
            if sample:
                own = drawn.get(request.query.id, Drawn())
                drawn[request.query.id] = own.add(sample.new_tokens, 1)
                yield of_request(sample, request, "the logs hold")

    def draw_ahead() -> bool:
        """A sample of a later round, while others end this one."""
        for share in under_way:
            sample = next(share.samples, None)
            if sample:
                share.drawn.append(sample)
                return True
        return False

    return draw


def dealt(
    counts: Mapping[Id, int],
    drawn: Mapping[Id, Drawn],
    owners: Mapping[Id, int],
    processes: int,
) -> dict[Id, int]:
    """Query -> which of so many processes draws its samples of a round.

    A sample is expected to take as many tokens as those of its query so far,
    or, where there is none, as those of all. A query stays with its owner,
    which has read its prompt, as long as that has no more than an equal share
    of the tokens; what is left goes to who has least.

    Args:
        counts: samples of each query in this round.
        drawn: what was drawn before.
        owners: who drew a query last, where any did.
    """
    all_drawn = Drawn(*map(sum, zip(*drawn.values(), strict=True)))
    work = {
        query: count * drawn.get(query, all_drawn).mean
        for query, count in counts.items()
    }
    share = sum(work.values()) / processes
    load = [0.0] * processes
    found: dict[Id, int] = {}
    for query, tokens in work.items():
        owner = owners.get(query)
        if owner is not None and load[owner] + tokens <= share:
            found[query] = owner
            load[owner] += tokens
    rest = [query for query in work if query not in found]
    least = [(load[process], process) for process in range(processes)]
    heapq.heapify(least)
    for query in sorted(rest, key=lambda query: -work[query]):
        has, found[query] = least[0]
        heapq.heapreplace(least, (has + work[query], found[query]))
    return found


class _Share(NamedTuple):
    """What this process draws of a round, and has drawn."""

    samples: Iterator[Sample]
    drawn: list[Sample]


def merged(sample_fn: SampleFn, log: Log) -> SampleFn:
    """Writes what all drew into the log of the run, as `recorded` does what
    one process draws; asks sample_fn for all, whatever the log holds."""

    def draw(requests: Sequence[Request]) -> Iterator[Sample]:
        return handed_on(requests, sample_fn(requests))

    def handed_on(
        requests: Sequence[Request], samples: Iterator[Sample]
    ) -> Iterator[Sample]:
        found = _by_key(samples)

        def drawn(missing: Sequence[Request]) -> Iterator[Sample]:
            keys = ((r.query.id, r.index) for r in missing)
            return (found[key] for key in keys if key in found)

        yield from recorded(drawn, log)(requests)

    return draw


def _exchanged(
    samples: Iterable[Sample],
    processes: Processes,
    meanwhile: Callable[[], bool],
) -> Iterator[Sample]:
    own = b"".join(dumps(row_of(sample)) for sample in samples)
    for part in processes.exchange(own, meanwhile):
        for line in part.splitlines():
            yield sample_of(json.loads(line))


def _by_key(samples: Iterable[Sample]) -> Held:
    return {(sample.query_id, sample.index): sample for sample in samples}
