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
import itertools
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
from dynscaling_jax.types import Request, Sample, SampleFn, SampleKey, Watch

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
    hold, together with the other processes; step writes the row of a round or
    an event, and begun has those of earlier sessions; clock is the same in all
    processes. Without rounds, end gives a sample its turn in the log, and
    watch makes of the watch of this process that of all.
    """

    cached: Callable[[SampleFn], SampleFn]
    step: Callable[[Mapping[str, Any]], None]
    begun: Sequence[Any]
    clock: Callable[[], float]
    end: Callable[[Sample], None]
    watch: Callable[[Watch | None], Watch | None]


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
            yield Opened(
                cached, single.step, single.steps(), clock, single.end,
                lambda watch: watch,
            )  # fmt: skip
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
        among = processes._replace(exchange=exchange)
        begun = dumps(whole.steps() if whole else [])
        begun = loads(processes.exchange(begun, nothing)[0])

        def cached(sample_fn: SampleFn) -> SampleFn:
            sample = shared(recorded(sample_fn, share), among, before)
            if whole is not None:
                sample = merged(sample, whole)
            return lambda requests: timed(sample(requests))

        write = (lambda row: None) if whole is None else whole.step
        if share.in_rounds:
            yield Opened(
                cached, write, begun, lambda: now, lambda sample: None,
                lambda watch: watch,
            )  # fmt: skip
            return
        together = Together(among, before)
        yield Opened(
            lambda sample_fn: together.sample(recorded(sample_fn, share)),
            write,
            begun,
            lambda: latest,
            (lambda sample: None) if whole is None else whole.end,
            together.watch,
        )


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


class Together:
    """Samples that several processes generate side by side, without rounds.

    All of them ask for the same samples in the same order. A sample goes to
    the process that has the fewest under way, or to that which sampled its
    query last where that has no more than an equal share. With each step they
    tell each other what is finished and how far the rest is.
    """

    def __init__(self, processes: Processes, before: Held):
        """Starts with earlier samples; they are used up."""
        self._processes, self._before = processes, before
        self._mine: dict[SampleKey, Iterator[Sample]] = {}
        self._lengths: dict[SampleKey, int] = {}  # of all under way
        self._owner: dict[SampleKey, int] = {}
        self._last: dict[str, int] = {}  # process that sampled a query
        self._done: dict[SampleKey, Sample | None] = {}
        self._own: Watch | None = None

    def sample(self, sample_fn: SampleFn) -> SampleFn:
        """Makes a SampleFn that samples what is this process's."""

        def sample(requests: Sequence[Request]) -> Iterator[Sample]:
            (request,) = requests  # as they are granted
            key = request.query.id, request.index
            if key in self._before:
                self._done[key] = self._before.pop(key)
            else:
                owner = self._owner[key] = self._choose(request.query.id)
                self._lengths[key] = 0
                if owner == self._processes.number:
                    self._mine[key] = sample_fn([request])
            return _Awaited(self, request)

        return sample

    def watch(self, own: Watch | None) -> Watch:
        """Makes the watch of all from that of this process."""
        if own is None:
            raise ValueError(
                "several processes without rounds need a sampler that can be "
                "watched: an Engine or an Endpoint"
            )
        self._own = own
        return own._replace(under_way=self._under_way, step=self._step)

    def take(self, request: Request) -> Sample | None:
        """The sample of a request that is not under way any more."""
        sample = self._done.pop((request.query.id, request.index), None)
        return sample and of_request(sample, request, "the logs hold")

    def drop(self, key: SampleKey) -> None:
        """Ends a sample that is under way."""
        for of_all in (self._lengths, self._owner, self._done):
            of_all.pop(key, None)
        if close := getattr(self._mine.pop(key, None), "close", None):
            close()

    def _choose(self, query: str) -> int:
        count = self._processes.count
        load = Counter(self._owner.values())
        fewest = min(range(count), key=lambda process: (load[process], process))
        last = self._last.get(query, fewest)
        share = (len(self._owner) + count) // count
        self._last[query] = last if load[last] < share else fewest
        return self._last[query]

    def _under_way(self) -> dict[SampleKey, int]:
        return dict(self._lengths)

    def _step(self) -> None:
        """Goes on with what is this process's, and hears of the others."""
        assert self._own
        if self._mine.keys() & self._own.under_way().keys():
            self._own.step()
        under_way = self._own.under_way()
        rows = []
        for key, samples in [*self._mine.items()]:
            if key in under_way:
                rows.append([*key, under_way[key]])
                continue
            sample = next(samples, None)  # None: the time is over
            del self._mine[key]
            rows.append([*key, sample and row_of(sample)])
        parts = self._processes.exchange(dumps(rows), nothing)
        for query, index, found in itertools.chain(*map(loads, parts)):
            key = query, index
            if isinstance(found, int):
                self._lengths[key] = found
                continue
            del self._lengths[key], self._owner[key]
            self._done[key] = found and sample_of(found)


class _Awaited(Iterator[Sample]):
    """The sample of one request, by whichever process."""

    def __init__(self, together: Together, request: Request):
        self._together, self._request = together, request

    def __next__(self) -> Sample:
        if sample := self._together.take(self._request):
            return sample
        raise StopIteration

    def close(self) -> None:
        """Ends the sample, if it is under way."""
        self._together.drop((self._request.query.id, self._request.index))

    __del__ = close


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
