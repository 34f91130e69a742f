"""The round loop: queries, a model and a budget -> one answer for each query.

Each round asks the policy where the next samples go and the strategy what to
ask the model; the vote has the last word. Everything comes in as a function,
so that an engine, an endpoint, a replay or a test's stub can be the model.
"""

import collections
import functools
import math
import operator
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.scaling.strategies import reads_texts, unseen
from dynscaling_jax.scaling.table import Table
from dynscaling_jax.scaling.uncertainty import measure_by_name
from dynscaling_jax.scaling.votes import Vote
from dynscaling_jax.types import (
    Budget,
    Candidates,
    Ledger,
    Policy,
    Query,
    Request,
    Sample,
    SampleFn,
    Strategy,
)

ENTROPY = measure_by_name("entropy")
LARGEST = {"samples": 2**31, "new_tokens": 2**63, "total_tokens": 2**63}
MOST_SLOTS = 2**30  # of all queries together: 12 GB of tables


class Round(NamedTuple):
    """What one round did. grants_Q, int32, are the samples asked for;
    uncertainty_Q, float32, is from before the round, ledger from its end."""

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
    model; it comes on top of the budget.
    """

    answers: tuple[str | None, ...]
    samples: tuple[tuple[Sample, ...], ...]
    ledger: Ledger
    rounds: tuple[Round, ...]
    stopped: str
    vote_ledger: Ledger


class _Drawing(NamedTuple):
    """A round that is being drawn."""

    requests: list[Request]
    uncertainty_Q: np.ndarray
    samples: "_Stream"


def scale(
    queries: Sequence[Query],
    sample_fn: SampleFn,
    strategy: Strategy,
    policy: Policy,
    vote: Vote,
    budget: Budget,
    key: jax.Array,
    *,
    capacity: int | None = None,
    round_size: int | None = None,
    first_round: int | None = None,
    stale: int = 0,
    vote_fn: SampleFn | None = None,
    max_cost: Budget = Budget(),  # noqa: B008, immutable
    same: Callable[[], Callable[[str, str], bool]] = lambda: operator.eq,
    measure: Callable[[jax.Array, jax.Array], jax.Array] = ENTROPY,
    observe: Callable[[Round], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Spends a budget on samples of the queries, and votes on the answers.

    No cap is passed by more than one sample. A round grants what fits the
    caps even if each of its samples costs what max_cost says, or the costliest
    so far; when not even one surely fits, samples are drawn one at a time.
    Should a cap be reached within a round all the same, for which max_cost
    must have been unknown or wrong, no more is drawn. So,
    with a true max_cost, what is drawn does not depend on the order in which
    samples arrive; the cap on seconds alone depends on the machine.

    Args:
      capacity: N, the most samples of one query; by default four times the
        even share of budget.samples, and at least 64.
      round_size: samples in a round; by default one for each query.
      first_round: samples in the first round; by default round_size.
      stale: rounds, of those before it, whose samples a grant does without,
        because they are still being drawn: what ends early need not wait for
        the end of a round. The first round is whole before the second.
      vote_fn: the model that a vote asks; by default sample_fn.
      max_cost: the most that one sample can cost.
      same: makes, for each query, what tells whether two canonical answers
        are one answer to the vote.
      measure: (answer ids [N], count []) of a query -> the uncertainty [] that
        rounds report.
      observe: called after each round.
      clock: the time in seconds, for the ledger and the cap on seconds.

    Raises:
      ValueError: no queries, or two of one id; a budget without any cap, with
        a cap not above 0, or of fewer samples than queries; a capacity or
        round of no samples; a policy or vote that reads a measure which the
        samples lack; grants, requests or samples that break the contract of
        their function.
    """
    slots = check(queries, budget, capacity, round_size, first_round, stale)
    begin = clock()
    weights = {w for w in (policy.reads, vote.reads) if w}
    texts = reads_texts(strategy) or vote.weigh is not None
    table = Table(queries, slots, same, weights)
    allocate = jax.jit(policy.allocate)
    ledger, rounds = Ledger(), []
    dearest = amounts(Ledger(samples=1)) | _caps(max_cost)
    size = first_round or round_size or len(queries)
    seen = table.candidates(policy.reads)
    under_way: collections.deque[_Drawing] = collections.deque()
    stopped = ""
    while True:
        while len(under_way) <= (stale if rounds else 0):
            stopped = _reached(budget, ledger)
            fits = _affordable(budget, ledger, dearest)
            fits -= sum(len(d.requests) for d in under_way)
            if stopped or fits < 1:
                break
            asked, index = min(fits, size), len(rounds) + len(under_way)
            grants_Q = allocate(
                jax.random.fold_in(key, index), seen, jnp.int32(asked)
            )
            grants_Q = _checked_grants(grants_Q, table.free_Q, asked)
            ahead = [r for d in under_way for r in d.requests]
            requests = _requests(
                queries, table, strategy, grants_Q, index, key, ahead
            )
            if not requests:
                stopped = _why_nothing(grants_Q, table.free_Q)
                break
            under_way.append(
                _Drawing(
                    requests,
                    np.asarray(_per_query(measure, seen)),
                    _Stream(sample_fn, requests),
                )
            )
            size = round_size or len(queries)
        if not under_way:
            break
        requests, uncertainty_Q, samples = under_way.popleft()
        drawn = []
        for sample in samples:
            drawn.append(sample if texts else sample._replace(text=""))
            cost = _cost(sample, budget)
            dearest = {axis: max(dearest[axis], cost[axis]) for axis in cost}
            ledger = ledger.add(sample)._replace(seconds=clock() - begin)
            if len(drawn) < len(requests) and _reached(budget, ledger):
                break
        ledger = ledger._replace(seconds=clock() - begin)
        if not drawn:  # no round: nothing came of it
            samples.close()
            stopped = _reached(budget, ledger) or "the model ended early"
            break
        taken_Q = _requested(queries, requests)
        rounds.append(Round(len(rounds), taken_Q, uncertainty_Q, ledger))
        table.add(drawn)
        seen = table.candidates(policy.reads)
        if observe:
            observe(rounds[-1])
        samples.close()
        stopped = _reached(budget, ledger)
        if stopped or len(drawn) < len(requests):
            stopped = stopped or "the model ended early"
            break
    for drawing in under_way:
        drawing.samples.close()

    answers, vote_ledger = _vote(vote, queries, table, vote_fn or sample_fn)
    samples = tuple(map(tuple, table.samples))
    return Result(answers, samples, ledger, tuple(rounds), stopped, vote_ledger)


def check(
    queries: Sequence[Query],
    budget: Budget,
    capacity: int | None = None,
    round_size: int | None = None,
    first_round: int | None = None,
    stale: int = 0,
) -> int:
    """Returns N, the slots of each query. Raises ValueError, as scale does,
    for queries, caps, or a capacity and sizes of rounds that cannot be."""
    if not queries:
        raise ValueError("there are no queries")
    if len({query.id for query in queries}) < len(queries):
        ids = [query.id for query in queries]
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"two queries have the id {twice!r}; make ids unique")
    sizes = {
        "capacity": capacity,
        "round_size": round_size,
        "first_round": first_round,
    }
    for name, size in sizes.items():
        if size is not None and not 1 <= size < 2**31:
            raise ValueError(
                f"{name} must be a whole number from 1 on, below 2^31, not "
                f"{size}"
            )
    if stale < 0:
        raise ValueError(f"stale must be at least 0, got {stale}")
    caps = _caps(budget)
    if not caps:
        raise ValueError(f"the budget has no cap; set one of {Budget._fields}")
    for name, cap in caps.items():
        if not 0 < cap < LARGEST.get(name, math.inf):
            most = LARGEST.get(name, "infinity")
            raise ValueError(
                f"budget.{name}={cap} is not above 0 and below {most}"
            )
    if caps.get("samples", len(queries)) < len(queries):
        raise ValueError(
            f"budget.samples={budget.samples} is less than one for each of "
            f"{len(queries)} queries; raise it or ask fewer queries"
        )
    share = -(-(budget.samples or 0) // len(queries))
    slots = capacity or max(64, 4 * share)
    if slots * len(queries) > MOST_SLOTS:
        raise ValueError(
            f"{len(queries)} queries of {slots} slots each are more than the "
            f"{MOST_SLOTS} that the samples may take; lower capacity"
            + ("" if capacity else " or budget.samples")
        )
    return slots


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


def _cost(sample: Sample, budget: Budget) -> dict[str, float]:
    if budget.flops is not None and sample.new_tokens and not sample.flops:
        raise ValueError(
            "the budget has a cap on FLOPs, but the model reports no FLOPs; "
            "set a cap on tokens instead"
        )
    return amounts(Ledger().add(sample))


def _caps(budget: Budget) -> dict[str, float]:
    return {n: cap for n, cap in budget._asdict().items() if cap is not None}


def _affordable(
    budget: Budget, ledger: Ledger, dearest: dict[str, float]
) -> int:
    """Samples that fit each cap for sure, at least 1."""
    most, spent = sys.maxsize, amounts(ledger)
    for name, cap in _caps(budget).items():
        if name != "seconds":  # watched as samples arrive
            one = dearest[name]
            most = min(most, int((cap - spent[name]) // one) if one else 1)
    return max(1, most)


def _reached(budget: Budget, ledger: Ledger) -> str:
    """The name of a cap that is reached, or nothing."""
    spent = amounts(ledger)
    return next((n for n, cap in _caps(budget).items() if spent[n] >= cap), "")


def _checked_grants(
    grants: jax.Array, free_Q: np.ndarray, asked: int
) -> np.ndarray:
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
            f"{free_Q[q]} free slots"
        )
    if grants_Q.sum() > asked:
        raise ValueError(
            f"the policy grants {grants_Q.sum()} samples of {asked}"
        )
    return grants_Q


def _requests(
    queries: Sequence[Query],
    table: Table,
    strategy: Strategy,
    grants_Q: np.ndarray,
    round: int,
    key: jax.Array,
    ahead: Sequence[Request],
) -> list[Request]:
    """What the strategy asks for, with `shared` set, behind what is being
    drawn already."""
    requests: list[Request] = []
    pending: dict[str, list[Sample]] = {}
    for request in ahead:
        pending.setdefault(request.query.id, []).append(unseen(request))
    for q in np.flatnonzero(grants_Q).tolist():
        later = pending.get(queries[q].id, [])
        samples = [*table.samples[q], *later]
        # a policy knows nothing of what is being drawn
        granted = min(int(grants_Q[q]), int(table.free_Q[q]) - len(later))
        if granted < 1:
            continue
        asked = list(strategy(queries[q], samples, granted, round, key))
        first = len(samples)
        indices = [request.index for request in asked]
        if len(asked) > granted or indices != list(
            range(first, first + len(asked))
        ):
            raise ValueError(
                f"the strategy asks for samples {indices} of query "
                f"{queries[q].id!r}; expected up to {granted} from {first} on"
            )
        read = set()
        for request in asked:
            shared = request.messages in read
            read.add(request.messages)
            requests.append(request._replace(shared=shared))
    return requests


@functools.partial(jax.jit, static_argnums=0)
def _per_query(
    measure: Callable[[jax.Array, jax.Array], jax.Array], seen: Candidates
) -> jax.Array:
    return jax.vmap(measure)(seen.answer_QN, seen.count_Q)


def _why_nothing(grants_Q: np.ndarray, free_Q: np.ndarray) -> str:
    if not free_Q.any():
        return "every query is full"
    if not grants_Q.any():
        return "the policy stopped"
    return "the strategy stopped"


class _Stream:
    """The samples asked for as they come, each checked."""

    def __init__(self, sample_fn: SampleFn, requests: Sequence[Request]):
        self._missing = {(r.query.id, r.index) for r in requests}
        self._samples = iter(sample_fn(requests))

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
        """Draws no more, and lets go of what draws."""
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


def _vote(
    vote: Vote, queries: Sequence[Query], table: Table, sample_fn: SampleFn
) -> tuple[tuple[str | None, ...], Ledger]:
    """The answers, and what it cost to decide on them."""
    ledger = Ledger()

    def metered(requests: Sequence[Request]):
        nonlocal ledger
        for sample in _Stream(sample_fn, requests):
            ledger = ledger.add(sample)
            yield sample

    weight = vote.reads
    if vote.weigh is not None:
        weight = vote.weigh(queries, table.samples, metered)
    answer_Q = jax.jit(vote.decide)(table.candidates(weight))
    return table.texts(answer_Q), ledger
