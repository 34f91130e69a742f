"""One run sampled by several processes, each its share of the queries.

All of them run the same loop over all queries. The requests of a round are
partitioned by query, evenly; each process samples its share, keeps it in a log
of its own, and at the end of the round they exchange their samples; who waits
for others goes on with the next round, where that is granted. So every process
goes on with the same samples as if all were its own, and no policy, strategy
or vote knows of the others.
"""

import contextlib
import heapq
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from dynscaling_jax.lines import dumps, loads
from dynscaling_jax.types import Request, Sample, SampleFn

Held = dict[tuple[str, int], Sample]  # by query id and index
Id = TypeVar("Id")  # of a query


class Usage(NamedTuple):
    """Completion tokens and samples of one query, or of all."""

    tokens: float = 0.0
    samples: int = 0

    @property
    def mean(self) -> float:
        """Tokens of a sample; 1 where there is none."""
        return self.tokens / self.samples if self.tokens else 1.0

    def add(self, tokens: float, samples: int) -> "Usage":
        """Adds so many of both."""
        return Usage(self.tokens + tokens, self.samples + samples)


class Processes(NamedTuple):
    """This process among those that sample a run together.

    exchange(part, meanwhile) gives each of them what all brought, in the
    order of their numbers; all call it, the same number of times. While it
    waits for others it calls meanwhile, as long as that returns true: it did
    something.
    """

    number: int
    count: int
    exchange: Callable[[bytes, Callable[[], bool]], Sequence[bytes]]


ALONE = Processes(0, 1, lambda part, meanwhile: [part])


def nothing() -> bool:
    """What is to be done meanwhile."""
    return False


class Opened(NamedTuple):
    """An open log.

    cached makes of a SampleFn one that samples only what the log does not
    hold, together with the other processes; round writes the row of a round;
    clock is the same in all processes.
    """

    cached: Callable[[SampleFn], SampleFn]
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

    Until the end of a round a process keeps its samples in
    WORKDIR/process-NUMBER. log opens the one of a directory; clock is the time
    of this process, in seconds. Raises what Log and held raise.
    """
    if processes.count == 1 and not any(workdir.glob("process-*")):
        with log(workdir / name) as single:
            cached = lambda sample_fn: recorded(sample_fn, single)
            yield Opened(cached, single.round, clock)
        return
    latest, now = 0.0, 0.0  # the time of who is furthest

    def exchange(
        part: bytes, meanwhile: Callable[[], bool]
    ) -> tuple[bytes, ...]:
        nonlocal latest
        parts = processes.exchange(dumps(clock()) + part, meanwhile)
        times, parts = zip(*(p.split(b"\n", 1) for p in parts), strict=True)
        latest = max(map(float, times))
        return parts

    def timed(samples: Iterator[Sample]) -> Iterator[Sample]:
        nonlocal now
        yield from samples
        now = latest  # no sooner: all take the whole round, or none

    with contextlib.ExitStack() as stack:
        whole = None
        if not processes.number:  # before another, which waits, has samples
            whole = stack.enter_context(log(workdir / name))
        before = held(workdir, processes, name)
        home = workdir / f"process-{processes.number}" / name
        share = stack.enter_context(log(home))

        def cached(sample_fn: SampleFn) -> SampleFn:
            among = processes._replace(exchange=exchange)
            sample = shared(recorded(sample_fn, share), among, before)
            if whole is not None:
                sample = merged(sample, whole)
            return lambda requests: timed(sample(requests))

        write = (lambda row: None) if whole is None else whole.round
        yield Opened(cached, write, lambda: now)


def finish(workdir: Path, processes: Processes = ALONE) -> None:
    """Removes what each process kept; the log of the run holds it all."""
    if processes.count > 1:
        processes.exchange(b"", nothing)  # all have closed their logs
    for directory in _kept(workdir, processes):
        shutil.rmtree(directory)


def held(workdir: Path, processes: Processes, name: str = "") -> Held:
    """Collects the samples that earlier processes of the run kept.

    Each reads its own logs, and those of processes that are no more; the
    first reads the log of the run too. name is that of a log beside it.

    Raises:
        ValueError: a log with a malformed line.
    """
    homes = _kept(workdir, processes)
    if processes.number == 0:
        homes.insert(0, workdir)
    files = [
        home / name / file
        for home in homes
        for file in ("samples.jsonl", "pending.jsonl")
    ]
    rows = [s for file in files if file.exists() for s in read_samples(file)]
    return _by_key(_exchanged(rows, processes, nothing))


def _kept(workdir: Path, processes: Processes) -> list[Path]:
    """What this process kept, and some of those that are no more."""
    found = []
    for home in sorted(workdir.glob("process-*")):
        number = home.name.removeprefix("process-")
        if number.isdigit():
            if int(number) % processes.count == processes.number:
                found.append(home)
    return found


class _Share(NamedTuple):
    """This process's share of a round: what is left, and what is done."""

    samples: Iterator[Sample]
    done: list[Sample]


def shared(sample_fn: SampleFn, processes: Processes, before: Held) -> SampleFn:
    """Makes a SampleFn that samples its share, and yields the samples of all.

    They come in the order of the requests, once all processes have sampled
    theirs.

    before holds earlier samples; it is used up. Raises ValueError for one of
    them that is not of its request.
    """
    owners: dict[str, int] = {}
    usage: dict[str, Usage] = {}
    under_way: list[_Share] = []

    def sample(requests: Sequence[Request]) -> Iterator[Sample]:
        missing = [r for r in requests if (r.query.id, r.index) not in before]
        counts = Counter(r.query.id for r in missing)
        owners.update(partition(counts, usage, owners, processes.count))
        mine = [r for r in missing if owners[r.query.id] == processes.number]
        under_way.append(_Share(sample_fn(mine), []))
        return exchanged(under_way[-1], requests)

    def exchanged(
        share: _Share, requests: Sequence[Request]
    ) -> Iterator[Sample]:
        share.done.extend(share.samples)
        under_way.remove(share)
        found = _by_key(_exchanged(share.done, processes, sample_ahead))
        for request in requests:
            key = request.query.id, request.index
            sample = before.pop(key, None) or found.get(key)
            if sample:
                so_far = usage.get(request.query.id, Usage())
                usage[request.query.id] = so_far.add(sample.new_tokens, 1)
                yield of_request(sample, request, "the logs hold")

    def sample_ahead() -> bool:
        """Takes a sample of a later round, while others end this one."""
        for share in under_way:
            if sample := next(share.samples, None):
                share.done.append(sample)
                return True
        return False

    return sample


def partition(
    counts: Mapping[Id, int],
    usage: Mapping[Id, Usage],
    owners: Mapping[Id, int],
    processes: int,
) -> dict[Id, int]:
    """Divides the queries of a round among so many processes.

    A sample is expected to take as many tokens as those of its query so far,
    or, where there is none, as those of all. A query stays with its owner,
    which has read its prompt, as long as that has no more than an equal share
    of the tokens; what is left goes to who has least.

    Args:
        counts: samples of each query in this round.
        usage: of the samples before.
        owners: who sampled a query last, where any did.
        processes: how many there are.

    Returns:
        Query -> the process that samples it.
    """
    overall = Usage(*map(sum, zip(*usage.values(), strict=True)))
    work = {
        query: count * usage.get(query, overall).mean
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


def merged(sample_fn: SampleFn, log: Log) -> SampleFn:
    """Writes the samples of all into the log of the run, as `recorded` does.

    It passes on all requests, whatever the log holds.
    """

    def sample(requests: Sequence[Request]) -> Iterator[Sample]:
        return written(requests, sample_fn(requests))

    def written(
        requests: Sequence[Request], samples: Iterator[Sample]
    ) -> Iterator[Sample]:
        found = _by_key(samples)

        def known(missing: Sequence[Request]) -> Iterator[Sample]:
            keys = ((r.query.id, r.index) for r in missing)
            return (found[key] for key in keys if key in found)

        yield from recorded(known, log)(requests)

    return sample


def _exchanged(
    samples: Iterable[Sample],
    processes: Processes,
    meanwhile: Callable[[], bool],
) -> Iterator[Sample]:
    mine = b"".join(dumps(row_of(sample)) for sample in samples)
    for part in processes.exchange(mine, meanwhile):
        for line in part.splitlines():
            yield sample_of(loads(line))


def _by_key(samples: Iterable[Sample]) -> Held:
    return {(sample.query_id, sample.index): sample for sample in samples}
