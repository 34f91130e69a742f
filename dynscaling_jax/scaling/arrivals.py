"""The loop without rounds: one more sample is granted whenever one ends.

W samples are under way at once. Time is counted in decode steps, and looked at
every poll_steps of them: a sample that is granted at step t and has n tokens
ends at step t + n, or at the first multiple of poll_steps after it, whatever
the machine does. So grants, samples and votes are the same on a fast and a slow
machine, with more or fewer sequence slots than W, and after a kill. With two
queries, W = 2 and poll_steps = 16:

    step   0   grants a/0 and b/0
          32   a/0 ends, of 30 tokens; grants b/1
          48   b/0 ends, of 41 tokens; grants a/1
          64   b/1 ends, of 25 tokens, and a/1, of 9; grants ...

The engine may have finished b/1 long before. Nobody sees it before its time.
All that ends in one step ends before anything is granted there; what was
granted first comes first.

Polling at every step would stall the device: the next end is known only once
every sample, the newest too, has passed it.
"""

import dataclasses
import functools
import itertools
import operator
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.sampler import (
    CANCELLED,
    cancelled,
    reader_of,
    watch_of,
)
from dynscaling_jax.scaling.allocation import best
from dynscaling_jax.scaling.loop import (
    Event,
    Result,
    Stream,
    affordable,
    amounts,
    caps_of,
    check,
    check_decision,
    checked_grants,
    checked_requests,
    cost_of,
    decide,
    for_queries,
    reached,
    why_nothing,
    with_shared,
)
from dynscaling_jax.scaling.strategies import UNDER_WAY, unseen
from dynscaling_jax.scaling.table import Table
from dynscaling_jax.types import (
    Budget,
    Candidates,
    Flights,
    Ledger,
    Method,
    Policy,
    Query,
    Request,
    Sample,
    SampleKey,
    Sampler,
    Watch,
)


@dataclasses.dataclass(eq=False)
class _Flight:
    """A sample under way."""

    number: int  # of its grant
    q: int
    request: Request
    start: int  # step
    poll_steps: int
    samples: Stream
    sample: Sample | None = None  # as soon as the sampler has finished it
    lost: bool = False  # the sampler will not finish it
    least: int = 0  # tokens that it has for sure

    @property
    def key(self) -> SampleKey:
        return self.request.query.id, self.request.index

    @property
    def known(self) -> bool:
        """Whether it is known when it ends.

        A log may hold it as one that was cancelled: so it will be again, but
        not before that is decided.
        """
        sample = self.sample
        return sample is not None and sample.finish_reason != CANCELLED

    @property
    def soonest(self) -> tuple[int, int]:
        """When it ends, or may end, in the order of events.

        One that is not finished has one token more than it has now, at least.
        """
        tokens = self.sample.new_tokens if self.sample else self.least + 1
        polls = max(1, -(-tokens // self.poll_steps))
        return self.start + polls * self.poll_steps, self.number

    def took(self, now: int) -> int:
        """The tokens that it has by a step to which all have come."""
        since = now - self.start
        if self.sample is None:
            return since
        return min(since, self.sample.new_tokens)


def run_arrivals(
    queries: Sequence[Query],
    sampler: Sampler,
    method: Method,
    budget: Budget,
    key: jax.Array,
    *,
    same: Callable[[Query], Callable[[str, str], bool]] = lambda _: operator.eq,
    vote_sampler: Sampler | None = None,
    on_event: Callable[[Event], None] | None = None,
    earlier: Sequence[tuple[str, SampleKey]] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Spends a budget as loop.run_rounds does, without rounds.

    method.schedule.concurrent samples are under way while the budget lasts.
    A grant fits the caps even if all that is under way costs as much as
    sampler.max_cost says. method.cancel is asked as types.Cancel says;
    a cancelled one costs what it took by then, and has no answer.

    Of a sampler whose watch is not in steps, such as an endpoint, samples end
    in the order in which they arrive.

    Args:
      queries: as of run_rounds, and so are those that are not listed here.
      sampler: is asked for one sample at a time.
      method: its schedule has no rounds. One whose cancel.last is set needs
        a cap on samples.
      budget: caps for all queries together.
      key: decides where policies break ties and what chains hold.
      same: as of run_rounds.
      vote_sampler: as of run_rounds.
      on_event: called after each event.
      earlier: the events that earlier sessions of the run had, in their
        order: of each its kind and the sample's key. They are repeated: the
        cap on seconds ends nothing before that, and samples of a sampler
        without steps end in the order that they had.
      clock: the time in seconds, for the ledger and the cap on seconds.

    Raises:
      ValueError: as run_rounds.
    """
    if not method.schedule.concurrent:
        raise ValueError(
            "run_arrivals has no rounds, and this method's schedule has some; "
            "set schedule.concurrent, or use scaling.loop.run_rounds"
        )
    run = _Run(
        queries, sampler, method, budget, key, same, on_event, earlier, clock
    )
    stopped = run.spend()
    table, vote = run.table, method.vote
    answers, spent = decide(vote, queries, table, vote_sampler or sampler)
    samples = tuple(
        tuple(s for s in of_query if s.finish_reason != UNDER_WAY)
        for of_query in run.samples
    )
    events = tuple(run.events)
    return Result(answers, samples, run.ledger, (), stopped, spent, events)


class _Run:
    """A run under way."""

    def __init__(
        self,
        queries: Sequence[Query],
        sampler: Sampler,
        method: Method,
        budget: Budget,
        key: jax.Array,
        same: Callable[[Query], Callable[[str, str], bool]],
        on_event: Callable[[Event], None] | None,
        earlier: Sequence[tuple[str, SampleKey]],
        clock: Callable[[], float],
    ):
        slots = check(queries, method, budget)
        policy, vote, cancel = method.policy, method.vote, method.cancel
        reads = {policy.reads, vote.reads, cancel.reads if cancel else None}
        self.queries, self.sampler = queries, sampler
        self.method, self.key = method, key
        self.budget = for_queries(budget, len(queries))
        self.table = Table(queries, slots, same, {w for w in reads if w})
        decision = jax.eval_shape(
            vote.decide, self.table.candidates(vote.reads)
        )
        check_decision(decision, len(queries))
        self.ledger, self.events = Ledger(), list[Event]()
        self.samples: list[list[Sample]] = [[] for _ in queries]  # by index
        self._on_event, self._clock, self._begin = on_event, clock, clock()
        self._allocate = jax.jit(functools.partial(_one, policy))
        self._score = jax.jit(policy.score) if policy.score else None
        self._score_Q = np.zeros(len(queries), np.float32)
        self._changed = {*range(len(queries))}  # since their scores
        self._decided = jax.jit(cancel.decided) if cancel else None
        self._last = jax.jit(cancel.last) if cancel and cancel.last else None
        self._reader = reader_of(sampler)
        self._plan = method.strategy.plan
        self._keeps_texts = method.strategy.reads_texts or vote.weigh
        self._in_turn = method.schedule.first_round * len(queries)
        self._watch = watch_of(sampler) or _blind(sampler)
        self._arrived = (key for kind, key in earlier if kind == "end")
        self._earlier = len(earlier)
        self._dearest = amounts(Ledger(samples=1)) | caps_of(sampler.max_cost)
        self._flights: list[_Flight] = []
        self._pending_Q = np.zeros(len(queries), np.int32)
        self._read: list[set[int]] = [set() for _ in queries]  # with_shared
        self._waiting_Q = np.zeros(len(queries), bool)  # until one ends
        self._now = self._granted = 0

    def spend(self) -> str:
        """Grants and ends samples; returns what ended the run."""
        declined = False  # since a sample ended
        try:
            while True:
                stopped = reached(self.budget, self.ledger)
                if stopped and not (stopped == "seconds" and self._repeats):
                    return stopped
                if due := self._due():
                    self._end(due)
                    declined = False
                    continue
                fits = affordable(self.budget, self.ledger, self._dearest)
                most = min(fits, self.method.schedule.concurrent)
                if len(self._flights) < most and not declined:
                    declined = not self._grant()
                    continue
                self._cancel_last()
                if not self._flights:
                    if stopped := reached(self.budget, self.ledger):
                        return stopped
                    return why_nothing(self._waiting_Q, self.table.free_Q)
                flight = self._next()
                if flight is None:
                    seconds = self._clock() - self._begin
                    self.ledger = self.ledger._replace(seconds=seconds)
                    stopped = reached(self.budget, self.ledger)
                    return stopped or "the model ended early"
                self._end(flight)
                declined = False
        finally:
            for flight in self._flights:
                flight.samples.close()

    @property
    def _repeats(self) -> bool:
        """Whether earlier sessions of the run had come further."""
        return len(self.events) < self._earlier

    def _grant(self) -> bool:
        """Grants one sample; false where policy or strategy has none.

        A strategy may have to wait for samples of a query that are under way.
        The policy then chooses among the others.
        """
        if self._granted % len(self.queries) == 0:  # learning takes a while
            self._plan = self.method.strategy.after(self.samples)
            self._waiting_Q[:] = False  # by another plan they may not wait
        while True:
            pending_Q = np.where(
                self._waiting_Q, self.table.free_Q, self._pending_Q
            )
            q = self._chosen(pending_Q)
            if q is None:
                return False
            query, samples = self.queries[q], self.samples[q]
            planned = self._plan(query, samples, 1, self.key, self._reader)
            if requests := checked_requests(query, len(samples), 1, planned):
                break
            self._waiting_Q[q] = True
        (request,) = with_shared(requests, self._read[q])
        request = request._replace(round=int(self._granted >= self._in_turn))
        stream = Stream(self.sampler, [request])
        every = self.method.schedule.poll_steps
        flight = _Flight(self._granted, q, request, self._now, every, stream)
        self._flights.append(flight)
        samples.append(unseen(request, UNDER_WAY))
        self._pending_Q[q] += 1
        self._changed.add(q)
        self._granted += 1
        self._note("grant", flight)
        return True

    def _chosen(self, pending_Q: np.ndarray) -> int | None:
        """The query that the next sample goes to."""
        free_Q = self.table.free_Q - pending_Q
        q = self._granted % len(self.queries)
        if self._granted < self._in_turn and free_Q[q]:
            return q
        if self._score:
            q = self._best_score(free_Q)
            return q if q >= 0 else None
        seen = self._seen(self.method.policy.reads, pending_Q)
        grants_Q = self._allocate(self.key, np.int32(self._granted), seen)
        grants_Q = checked_grants(grants_Q, free_Q, 1)
        return int(grants_Q.argmax()) if grants_Q.any() else None

    def _best_score(self, free_Q: np.ndarray) -> int:
        """What the policy chooses, which scores each query by itself.

        Only queries that changed since the last grant are scored again.
        """
        assert self._score
        for q in self._changed:
            one = self.table.of(q, self.method.policy.reads)
            pending = self._pending_Q[q : q + 1].copy()
            one = one._replace(pending_Q=pending)
            self._score_Q[q : q + 1] = self._score(one, pending)
        self._changed.clear()
        number, score_Q = np.int32(self._granted), self._score_Q.copy()
        return int(_best(self.key, number, score_Q, free_Q))

    def _due(self) -> _Flight | None:
        """A sample that ends in the same step as the last one."""
        if not self._watch.in_steps:
            return None
        ended = (f for f in self._flights if f.known)
        return next((f for f in ended if f.soonest[0] <= self._now), None)

    def _next(self) -> _Flight | None:
        """Waits until it is known which sample ends next.

        None where the sampler ended early. A run that goes on after its time
        was up gets nothing that its log lacks: there the events that it had
        are those of the samples that the log holds.
        """
        order = next(self._arrived, None)
        while True:
            under_way = self._watch.under_way()
            for flight in self._flights:
                if flight.key in under_way:
                    least = under_way[flight.key]  # less where it began again
                    flight.least = max(flight.least, least)
                elif flight.sample is None and not flight.lost:
                    flight.sample = next(flight.samples, None)
                    flight.lost = flight.sample is None
            if any(f.lost for f in self._flights) and not self._repeats:
                return None
            known = [f for f in self._flights if f.known]
            if not self._watch.in_steps:
                known = [f for f in known if order in (None, f.key)]
                if known:
                    return known[0]
            elif known:
                first = min(known, key=lambda flight: flight.soonest)
                if not any(_before(f, first) for f in self._flights):
                    return first
            if not under_way and any(f.lost for f in self._flights):
                return None
            if not under_way:
                raise ValueError(
                    "the log holds samples that were cancelled when the run "
                    "began, and are not now; a run goes on only as it began. "
                    "Use a new workdir"
                )
            self._watch.step()

    def _end(self, flight: _Flight) -> None:
        """The sample ends, and others of its query if that is decided."""
        assert flight.sample
        in_steps = self._watch.in_steps
        self._now = flight.soonest[0] if in_steps else self._now + 1
        self._take("end", flight, flight.sample)
        if self._decided and self.method.cancel:
            seen = self._seen(self.method.cancel.reads, self._pending_Q)
            if self._decided(seen)[flight.q]:
                self._cancel([f for f in self._flights if f.q == flight.q])

    def _cancel_last(self) -> None:
        """Cancels what is not worth waiting for, once all is granted."""
        cancel = self.method.cancel
        if not (cancel and self._last and self._granted == self.budget.samples):
            return
        width = self.method.schedule.concurrent
        query_W = np.full(width, -1, np.int32)
        tokens_W = np.zeros(width, np.int32)
        for w, flight in enumerate(self._flights):
            query_W[w], tokens_W[w] = flight.q, flight.took(self._now)
        seen = self._seen(cancel.reads, self._pending_Q)
        flights = Flights(jnp.array(query_W), jnp.array(tokens_W))
        gone_W = np.asarray(self._last(seen, flights))
        self._cancel(list(itertools.compress(self._flights, gone_W)))

    def _cancel(self, flights: Sequence[_Flight]) -> None:
        for flight in flights:  # they are in the order of their grants
            took = flight.took(self._now) if self._watch.in_steps else 0
            sample = self._watch.cancelled(flight.request, took)
            self._take("cancel", flight, sample)

    def _take(self, kind: str, flight: _Flight, sample: Sample) -> None:
        """Pays for a sample that is over, and frees its place."""
        flight.samples.close()
        self._flights.remove(flight)
        self._pending_Q[flight.q] -= 1
        self._waiting_Q[flight.q] = False
        self._changed.add(flight.q)
        cost = cost_of(sample, self.budget)
        dearest = self._dearest
        self._dearest = {axis: max(dearest[axis], cost[axis]) for axis in cost}
        seconds = self._clock() - self._begin
        self.ledger = self.ledger.add(sample)._replace(seconds=seconds)
        kept = sample if self._keeps_texts else sample._replace(text="")
        self.samples[flight.q][sample.index] = self.table.add([kept])[0]
        self._note(kind, flight, sample)

    def _note(
        self, kind: str, flight: _Flight, sample: Sample | None = None
    ) -> None:
        event = Event(
            kind, self._now, flight.number, flight.request, sample, self.ledger
        )
        if self._on_event:
            self._on_event(event)
        self.events.append(  # texts would add up
            event._replace(
                request=flight.request._replace(messages=()),
                sample=sample and sample._replace(text=""),
            )
        )

    def _seen(self, weight: str | None, pending_Q: np.ndarray) -> Candidates:
        candidates = self.table.candidates(weight)
        return candidates._replace(pending_Q=jax.device_put(pending_Q.copy()))


def _one(
    policy: Policy, key: jax.Array, number: jax.Array, seen: Candidates
) -> jax.Array:
    """The policy's choice for the grant of that number."""
    key = jax.random.fold_in(key, number)
    return policy.allocate(key, seen, jnp.int32(1))


@jax.jit
def _best(
    key: jax.Array, number: jax.Array, score_Q: jax.Array, free_Q: jax.Array
) -> jax.Array:
    """What `_one` chooses, by scores that are known."""
    return best(jax.random.fold_in(key, number), score_Q, free_Q)


def _before(flight: _Flight, first: _Flight) -> bool:
    """Whether a sample may end before the first of those that are known.

    It may not even end in the same step, so that how many tokens it has by
    then is known. One that a log holds as cancelled goes on until it is.
    """
    if flight.lost:
        return False
    if flight.sample:
        return flight.soonest[0] < first.soonest[0]
    return flight.soonest[0] <= first.soonest[0]


def _blind(sampler: Sampler) -> Watch:
    """Watches a sampler that generates each sample when it is taken."""

    def cancelled_one(request: Request, new: int) -> Sample:
        read = sampler.count_tokens(request.messages)
        return cancelled(request, read, read if request.shared else 0, new)

    return Watch(dict, lambda: None, cancelled_one)
