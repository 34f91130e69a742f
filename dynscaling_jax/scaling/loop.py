"""The round loop: queries, a sampler and a budget -> one answer for each query.

Each round asks the policy where the next samples go and the strategy what to
ask the sampler; the vote has the last word. The loop alone enforces the
budget.
"""

import collections
import functools
import math
import numbers
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.lines import shown
from dynscaling_jax.sampler import CANCELLED, each, reader_of, tap
from dynscaling_jax.scaling.strategies import unseen
from dynscaling_jax.scaling.table import Table
from dynscaling_jax.scaling.uncertainty import measure_by_name
from dynscaling_jax.types import (
    Budget,
    Cancel,
    Candidates,
    Ledger,
    Message,
    Method,
    Plan,
    Policy,
    Query,
    Reader,
    Request,
    Sample,
    Sampler,
    Schedule,
    Strategy,
    Vote,
)

ENTROPY = measure_by_name("entropy")
LARGEST = {"samples": 2**31, "new_tokens": 2**63, "total_tokens": 2**63}
# fields of a schedule that are whole numbers: from, below 2 to the power, what
WHOLE = {
    "stale": (0, 31, "earlier rounds that a grant does without"),
    "capacity": (1, 31, "samples of a query"),
    "concurrent": (0, 20, "samples under way at once, or 0 for rounds"),
    "poll_steps": (1, 20, "decode steps"),
}
MOST_SLOTS = 2**30  # of all queries together: 12 GB of tables


class Round(NamedTuple):
    """What one round did.

    grants_Q, int32, are the samples requested. uncertainty_Q, float32, is
    from before the round, ledger from its end.
    """

    number: int
    grants_Q: np.ndarray
    uncertainty_Q: np.ndarray
    ledger: Ledger


class Result(NamedTuple):
    """What came of a run; answers and samples in the order of the queries.

    answers are canonical, None where nothing was readable. samples have the
    first text of their class as answer, and no text where neither strategy
    nor vote reads any. stopped names the cap that was reached, or says what
    else ended the run. vote_ledger is what the vote itself asked of the
    model; it comes on top of the budget. events is empty for a run in rounds,
    and rounds for one without.
    """

    answers: tuple[str | None, ...]
    samples: tuple[tuple[Sample, ...], ...]
    ledger: Ledger
    rounds: tuple[Round, ...]
    stopped: str
    vote_ledger: Ledger
    events: tuple["Event", ...] = ()


class Event(NamedTuple):
    """What happened at a step: a sample was granted, ended or was cancelled.

    step counts decode steps of the run, or, where the sampler tells none,
    samples that ended. number is that of the grant. sample is None for a
    grant; that of a cancelled one has the tokens that it took. ledger is from
    after the event. Those of a Result have no texts.
    """

    kind: str  # grant, end or cancel
    step: int
    number: int
    request: Request
    sample: Sample | None
    ledger: Ledger


class _Pending(NamedTuple):
    """A round whose samples are still being generated."""

    requests: list[Request]
    uncertainty_Q: np.ndarray
    samples: "Stream"


def run_rounds(
    queries: Sequence[Query],
    sampler: Sampler,
    method: Method,
    budget: Budget,
    key: jax.Array,
    *,
    same: Callable[[Query], Callable[[str, str], bool]] = lambda _: operator.eq,
    vote_sampler: Sampler | None = None,
    on_round: Callable[[Round], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Spends a budget on samples of the queries, and votes on the answers.

    The samples must come with their answers read. No cap is passed by more
    than one sample. A round grants what fits the caps even if each of its
    samples costs what sampler.max_cost says, or the costliest so far; when
    not even one surely fits, samples are generated one at a time. Should a
    cap be reached within a round all the same, for which max_cost must have
    been unknown or wrong, no more samples are taken. So, with a true
    max_cost, which samples there are does not depend on the order in which
    they arrive; the cap on seconds alone depends on the machine.

    Args:
      queries: with ids of their own.
      sampler: what answers.
      method: strategy, policy, vote and schedule.
      budget: caps for all queries together.
      key: decides where policies break ties and what chains hold.
      same: of a query, the test of whether two canonical answers are one
        answer to the vote.
      vote_sampler: the model that a vote asks; by default sampler.
      on_round: called after each round.
      clock: the time in seconds, for the ledger and the cap on seconds.

    Raises:
      ValueError: no queries, or two of one id; a budget without any cap, with
        a cap not above 0, or of fewer samples than queries; a method or a
        schedule that cannot be; a policy or vote that reads a measure which
        the samples lack; grants, requests, samples or decisions that break
        the contract of their function.
    """
    slots = check(queries, method, budget)
    if method.schedule.concurrent:
        raise ValueError(
            "run_rounds plays rounds, and this method's schedule has none; use "
            "methods.in_rounds(method), or scaling.arrivals.run_arrivals"
        )
    strategy, policy, vote, schedule = method[:4]
    budget = for_queries(budget, len(queries))
    first_round, later_rounds = (
        _round_size(share, budget, len(queries)) for share in schedule[:2]
    )
    begin = clock()
    weights = {w for w in (policy.reads, vote.reads) if w}
    keeps_texts = strategy.reads_texts or vote.weigh is not None
    table = Table(queries, slots, same, weights)
    allocate = jax.jit(policy.allocate)
    reader = reader_of(sampler)

    ledger, rounds = Ledger(), []
    dearest = amounts(Ledger(samples=1)) | caps_of(sampler.max_cost)
    seen = table.candidates(policy.reads)
    # of a vote that can decide nothing, before there are samples to lose
    check_decision(jax.eval_shape(vote.decide, seen), len(queries))
    pending: collections.deque[_Pending] = collections.deque()
    read: list[set[int]] = [set() for _ in queries]  # prompts, as hashes
    stopped = ""
    while True:
        while len(pending) <= (schedule.stale if rounds else 0):
            stopped = reached(budget, ledger)
            fits = affordable(budget, ledger, dearest)
            fits -= sum(len(p.requests) for p in pending)
            if stopped or fits < 1:
                break
            number = len(rounds) + len(pending)
            grant = min(fits, later_rounds if number else first_round)
            grants_Q = allocate(
                jax.random.fold_in(key, number), seen, jnp.int32(grant)
            )
            grants_Q = checked_grants(grants_Q, table.free_Q, grant)
            ahead = [r for p in pending for r in p.requests]
            requests = _requests(
                queries,
                table,
                strategy.after(table.samples),
                key,
                reader,
                grants_Q,
                number,
                ahead,
                read,
            )
            if not requests:
                stopped = why_nothing(grants_Q, table.free_Q)
                break
            pending.append(
                _Pending(
                    requests,
                    np.asarray(_per_query(ENTROPY, seen)),
                    Stream(sampler, requests),
                )
            )
        if not pending:
            break
        requests, uncertainty_Q, samples = pending.popleft()
        arrived = []
        for sample in samples:
            arrived.append(sample if keeps_texts else sample._replace(text=""))
            cost = cost_of(sample, budget)
            dearest = {axis: max(dearest[axis], cost[axis]) for axis in cost}
            ledger = ledger.add(sample)._replace(seconds=clock() - begin)
            if len(arrived) < len(requests) and reached(budget, ledger):
                break
        ledger = ledger._replace(seconds=clock() - begin)
        if not arrived:  # no round: nothing came of it
            samples.close()
            stopped = reached(budget, ledger) or "the model ended early"
            break
        taken_Q = _requested(queries, requests)
        rounds.append(Round(len(rounds), taken_Q, uncertainty_Q, ledger))
        table.add(arrived)
        seen = table.candidates(policy.reads)
        if on_round:
            on_round(rounds[-1])
        samples.close()
        stopped = reached(budget, ledger)
        if stopped or len(arrived) < len(requests):
            stopped = stopped or "the model ended early"
            break
    for round in pending:
        round.samples.close()

    answers, spent = decide(vote, queries, table, vote_sampler or sampler)
    samples = tuple(map(tuple, table.samples))
    return Result(answers, samples, ledger, tuple(rounds), stopped, spent)


def check(
    queries: Sequence[Query],
    method: Method,
    budget: Budget,
) -> int:
    """Returns N, the slots of each query.

    Raises:
      ValueError: as run_rounds, for queries, a method or caps that cannot be.
    """
    for query in queries:
        if not (isinstance(query.id, str) and _is_chat(query.messages)):
            raise ValueError(
                f"{shown(query)}: expected an id, a text, and messages, a "
                "tuple of Message"
            )
    _check_type("the method", method, Method, "methods.dynscaling()")
    for name, kind, example in (
        ("strategy", Strategy, "strategies.integrated()"),
        ("policy", Policy, "policies.ucb()"),
        ("vote", Vote, "votes.majority()"),
        ("schedule", Schedule, "Schedule(first_round=4)"),
    ):
        _check_type(f"method.{name}", getattr(method, name), kind, example)
    _check_type("the budget", budget, Budget, "Budget(samples_per_query=8)")
    for name, given in (("schedule", method.schedule), ("budget", budget)):
        for field, value in given._asdict().items():
            whole = field in WHOLE
            kind = numbers.Integral if whole else numbers.Real
            if value is not None and not isinstance(value, kind):
                raise ValueError(
                    f"{name}.{field}={shown(value)}: expected a "
                    f"{'whole ' * whole}number"
                )
    if not queries:
        raise ValueError("there are no queries")
    if len({query.id for query in queries}) < len(queries):
        ids = [query.id for query in queries]
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"two queries have the id {twice!r}; make ids unique")
    schedule = method.schedule
    for name in ("first_round", "later_rounds"):
        size = getattr(schedule, name)
        if not size > 0 or 2**31 <= size * len(queries) < math.inf:
            raise ValueError(
                f"schedule.{name}={size}: expected samples per query, above "
                f"0, of which {len(queries)} queries have fewer than 2^31"
            )
    for name, (least, power, what) in WHOLE.items():
        value = getattr(schedule, name)
        if value is not None and not least <= value < 2**power:
            raise ValueError(
                f"schedule.{name}={value}: expected {what}, from {least} on "
                f"and below 2^{power}"
            )
    if method.cancel and not isinstance(method.cancel, Cancel):
        raise ValueError(
            f"method.cancel is {shown(method.cancel)}: expected a Cancel, such "
            "as cancelling.tail()"
        )
    if method.cancel and not schedule.concurrent:
        raise ValueError(
            "method.cancel ends samples in a schedule without rounds; set "
            "schedule.concurrent, or leave cancel out"
        )
    per_query = budget.samples_per_query
    if per_query is not None and not 0 < per_query * len(queries) < 2**31:
        raise ValueError(
            f"budget.samples_per_query={per_query}: expected a number above "
            f"0, of which {len(queries)} queries have fewer than 2^31"
        )
    budget = for_queries(budget, len(queries))
    if method.cancel and method.cancel.last and budget.samples is None:
        raise ValueError(
            f"method.cancel={method.cancel.name or 'mine'} ends samples after "
            "the last grant that a cap on samples allows; give the budget one, "
            "such as samples_per_query"
        )
    caps = caps_of(budget)
    if not caps:
        raise ValueError(f"the budget has no cap; set one of {Budget._fields}")
    for name, cap in caps.items():
        if not 0 < cap < LARGEST.get(name, math.inf):
            most = LARGEST.get(name, "infinity")
            raise ValueError(
                f"budget.{name}={cap} is not above 0 and below {most}"
            )
    if not isinstance(budget.samples or 0, numbers.Integral):
        raise ValueError(
            f"budget.samples={budget.samples}: expected a whole number"
        )
    if caps.get("samples", len(queries)) < len(queries):
        raise ValueError(
            f"budget.samples={budget.samples} is less than one for each of "
            f"{len(queries)} queries; raise it or ask fewer queries"
        )
    share = -(-(budget.samples or 0) // len(queries))
    slots = schedule.capacity or max(64, 4 * share)
    if slots * len(queries) > MOST_SLOTS:
        raise ValueError(
            f"{len(queries)} queries of {slots} slots each are more than the "
            f"{MOST_SLOTS} that the samples may take; lower capacity"
            + ("" if schedule.capacity else " or budget.samples")
        )
    return slots


def _check_type(what: str, value: object, kind: type, example: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(
            f"{what} is {shown(value)}: expected a {kind.__name__}, such as "
            f"{example}"
        )


def _is_chat(messages: object) -> bool:
    """Whether these are the messages of a query or a request."""
    turns = isinstance(messages, tuple)
    return turns and all(isinstance(m, Message) for m in messages)


def for_queries(budget: Budget, queries: int) -> Budget:
    """Returns a budget with samples_per_query made a cap on samples.

    A lower cap on samples that the budget has itself stays.
    """
    if budget.samples_per_query is None:
        return budget
    share = math.ceil(budget.samples_per_query * queries)
    samples = min(share, budget.samples or share)
    return budget._replace(samples=samples, samples_per_query=None)


def _round_size(share: float, budget: Budget, queries: int) -> int:
    """Samples in a round, from samples per query."""
    if share == math.inf:
        return budget.samples or queries
    return math.ceil(share * queries)


def amounts(ledger: Ledger) -> dict[str, float]:
    """A ledger along the axes of a budget."""
    return {
        "samples": ledger.samples,
        "new_tokens": ledger.new_tokens,
        "total_tokens": (
            ledger.prompt_tokens - ledger.cached_tokens + ledger.new_tokens
        ),
        "flops": ledger.flops,
        "seconds": ledger.seconds,
    }


def cost_of(sample: Sample, budget: Budget) -> dict[str, float]:
    """A sample along the axes of a budget.

    Raises:
        ValueError: the budget has a cap on FLOPs, and the sample tells none.
    """
    told = sample.flops or sample.finish_reason == CANCELLED
    if budget.flops is not None and sample.new_tokens and not told:
        raise ValueError(
            "the budget has a cap on FLOPs, but the model reports no FLOPs; "
            "set a cap on tokens instead"
        )
    return amounts(Ledger().add(sample))


def caps_of(budget: Budget) -> dict[str, float]:
    """The caps that a budget has, by name."""
    return {n: cap for n, cap in budget._asdict().items() if cap is not None}


def affordable(
    budget: Budget, ledger: Ledger, dearest: dict[str, float]
) -> int:
    """Samples that fit each cap for sure, at least 1."""
    most, spent = sys.maxsize, amounts(ledger)
    for name, cap in caps_of(budget).items():
        if name != "seconds":  # watched as samples arrive
            one = dearest[name]
            most = min(most, int((cap - spent[name]) // one) if one else 1)
    return max(1, most)


def reached(budget: Budget, ledger: Ledger) -> str:
    """The name of a cap that is reached, or nothing."""
    spent = amounts(ledger)
    return next(
        (n for n, cap in caps_of(budget).items() if spent[n] >= cap), ""
    )


def checked_grants(
    grants: jax.Array, free_Q: np.ndarray, grant: int
) -> np.ndarray:
    """The grants of a policy.

    Raises:
        ValueError: they break the contract of Policy.allocate.
    """
    grants_Q = np.asarray(grants)
    if grants_Q.shape != free_Q.shape or grants_Q.dtype.kind != "i":
        raise ValueError(
            f"the policy's grants are {grants_Q.dtype}{grants_Q.shape}; "
            f"expected int32{free_Q.shape}"
        )
    wrong = (grants_Q < 0) | (grants_Q > free_Q)
    if wrong.any():
        q = int(wrong.argmax())
        raise ValueError(
            f"the policy grants {grants_Q[q]} samples to query {q}, which has "
            f"{free_Q[q]} free slots; allocation.free_slots counts them, less "
            "what is under way"
        )
    if grants_Q.sum() > grant:
        raise ValueError(
            f"the policy grants {grants_Q.sum()} samples of {grant}"
        )
    return grants_Q


def _requests(
    queries: Sequence[Query],
    table: Table,
    plan: Plan,
    key: jax.Array,
    reader: Reader,
    grants_Q: np.ndarray,
    round: int,
    ahead: Sequence[Request],
    read: Sequence[set[int]],
) -> list[Request]:
    """Returns what the strategy asks for, with `round` and `shared` set.

    ahead are the requests that are pending already; read is that of
    with_shared, by query.
    """
    requests: list[Request] = []
    pending: dict[str, list[Sample]] = {}
    for request in ahead:
        pending.setdefault(request.query.id, []).append(unseen(request))
    for q in np.flatnonzero(grants_Q).tolist():
        later = pending.get(queries[q].id, [])
        samples = [*table.samples[q], *later]
        # a policy knows nothing of what is pending
        granted = min(int(grants_Q[q]), int(table.free_Q[q]) - len(later))
        if granted < 1:
            continue
        planned = plan(queries[q], samples, granted, key, reader)
        planned = checked_requests(queries[q], len(samples), granted, planned)
        requests += [
            request._replace(round=round)
            for request in with_shared(planned, read[q])
        ]
    return requests


def with_shared(requests: Iterable[Request], read: set[int]) -> list[Request]:
    """Sets `shared` of the requests of a query.

    read has a hash of all that the query's requests had to read so far. It is
    added to: texts would add up.
    """
    marked = []
    for request in requests:
        prompt = hash(request.messages)
        marked.append(request._replace(shared=prompt in read))
        read.add(prompt)
    return marked


def checked_requests(
    query: Query, first: int, granted: int, planned: Iterable[Request]
) -> list[Request]:
    """Checks what a strategy asks for.

    Args:
        query: that the samples are of.
        first: their first index.
        granted: how many there may be.
        planned: the requests.

    Raises:
        ValueError: they break the contract of Strategy.plan.
    """
    requests = list(planned)
    for request in requests:
        if (
            not isinstance(request, Request)
            or request.query != query
            or not _is_chat(request.messages)
            or not all(0 <= p < first for p in request.parents)
        ):
            raise ValueError(
                f"the strategy gives {shown(request)} for query "
                f"{query.id!r}; expected a Request of that query, whose "
                "messages are a tuple of Message, and whose parents are "
                "indices of its samples"
            )
    indices = [request.index for request in requests]
    if len(requests) > granted or indices != list(
        range(first, first + len(requests))
    ):
        raise ValueError(
            f"the strategy asks for samples {indices} of query "
            f"{query.id!r}; expected up to {granted} from {first} on"
        )
    return [r._replace(parents=tuple(r.parents)) for r in requests]


@functools.partial(jax.jit, static_argnums=0)
def _per_query(
    measure: Callable[[jax.Array, jax.Array], jax.Array], seen: Candidates
) -> jax.Array:
    return jax.vmap(measure)(seen.answer_QN, seen.count_Q)


def why_nothing(grants_Q: np.ndarray, free_Q: np.ndarray) -> str:
    """Says why nothing is asked for, by what was granted and still fits."""
    if not free_Q.any():
        return "every query is full"
    if not grants_Q.any():
        return "the policy stopped"
    return "the strategy stopped"


class Stream:
    """The samples of some requests as they come, each checked."""

    def __init__(self, sampler: Sampler, requests: Sequence[Request]):
        self._missing = {(r.query.id, r.index) for r in requests}
        self._samples = iter(sampler.sample(requests))

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        sample = next(self._samples)
        try:
            self._missing.remove((sample.query_id, sample.index))
        except KeyError:
            raise ValueError(
                f"the model gave sample {sample.index} of query "
                f"{sample.query_id!r}, which was not asked for, or twice"
            ) from None
        return sample

    def close(self) -> None:
        """Takes no more samples, and lets go of the sampler."""
        close = getattr(self._samples, "close", None)
        if close:
            close()
        self._samples = iter(())


def _requested(
    queries: Sequence[Query], requests: Sequence[Request]
) -> np.ndarray:
    count = dict.fromkeys((query.id for query in queries), 0)
    for request in requests:
        count[request.query.id] += 1
    return np.fromiter(count.values(), np.int32, len(count))


def check_decision(answer_Q: jax.ShapeDtypeStruct, queries: int) -> None:
    """Raises ValueError unless a vote decides on one id for each query."""
    found = (getattr(answer_Q, "dtype", None), getattr(answer_Q, "shape", ()))
    if found != (jnp.int32, (queries,)):
        raise ValueError(
            f"the vote decides on {shown(answer_Q)}; expected "
            f"int32({queries},), the id of an answer for each query"
        )


def decide(
    vote: Vote, queries: Sequence[Query], table: Table, sampler: Sampler
) -> tuple[tuple[str | None, ...], Ledger]:
    """Returns the answers, and what it cost to decide on them."""
    spent: list[Sample] = []
    weight = vote.reads
    if vote.weigh is not None:
        weight = vote.weigh(
            queries, table.samples, tap(sampler, each(spent.append))
        )
        if [*map(len, weight)] != [*map(len, table.samples)]:
            raise ValueError(
                f"the vote weighs {[*map(len, weight)]} samples of the "
                f"queries; expected {[*map(len, table.samples)]}"
            )
    answer_Q = jax.jit(vote.decide)(table.candidates(weight))
    ledger = functools.reduce(Ledger.add, spent, Ledger())
    try:
        return table.texts(answer_Q), ledger
    except IndexError:
        raise ValueError(
            f"the vote decides on {np.asarray(answer_Q)}; expected the ids of "
            "answers that the samples have, or -1"
        ) from None
