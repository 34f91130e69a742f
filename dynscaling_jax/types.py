"""The types that all parts share, and the key of dimension letters.

A suffix names the axes of an array: answer_QN is [Q, N]; annotations of
jaxtyping have the same letters. They keep their meaning in the whole library;
a module that has others opens with them.

    Q queries                        N sample slots of a query
    A distinct answers of a query    V vocabulary
    G groups                         R sequence slots of a group
    GR sequence slots, as one axis   C steps of a chunk
    P positions of a prefix          S positions of a suffix, or keys
    T tokens of one sequence         L sequence
    B blocks of keys or logits,      W keys of a block
      or sequences of a batch        E experts
    H attention heads                K key/value heads
    D features of a head             M queries of a product
    F features of the residual stream
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dynscaling_jax.thinking import Thinking

if TYPE_CHECKING:  # flags are read before JAX is imported
    import jax


class Message(NamedTuple):
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


class Query(NamedTuple):
    """A question to be answered. It holds no reference answer."""

    id: str
    messages: tuple[Message, ...]


class Request(NamedTuple):
    """One sample that a strategy asks a model for.

    messages is what the model reads; where its last turn is the assistant's,
    the model goes on with that turn. parents are the indices of the earlier
    samples of the query that the messages hold. shared says that an earlier
    request of the query has the same messages, so that reading them was paid
    for already; the loop sets it. least_confidence ends the sample as
    soon as its group confidence is lower: the mean confidence over its last
    2048 tokens, from the first whole window on (DeepConf online, arXiv
    2508.15260). An Endpoint does not know it.
    """

    query: Query
    messages: tuple[Message, ...]
    index: int
    round: int = 0
    parents: tuple[int, ...] = ()
    shared: bool = False
    least_confidence: float | None = None


class Sample(NamedTuple):
    """One generated candidate: one row of the sample log, never changed.

    text is all that the model wrote, its thoughts with their marks too.
    answer is canonical text, None where none could be read. prompt_tokens
    counts all that the model read, cached_tokens the part of it that an
    earlier sample of the same query had already paid for. logprob is the mean
    log-probability of the new tokens under the sampled distribution at
    temperature 1, confidence the mean over tokens of minus the mean
    log-probability of the 20 likeliest tokens (DeepConf, arXiv 2508.15260);
    both None where the source offers none. signals holds further measures
    of confidence by name: tail, bottom, lowest (DeepConf), certainty
    (self-certainty, arXiv 2502.18581). One that ends for its confidence
    (Request.least_confidence) has no answer.
    """

    query_id: str
    index: int
    round: int
    parents: tuple[int, ...]
    text: str
    answer: str | None
    # stop, length, confidence, cancelled, or error: what failed
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    flops: float
    logprob: float | None = None
    confidence: float | None = None
    signals: dict[str, float] = {}


class Candidates(NamedTuple):
    """The packed samples of all queries: what policies and votes see.

    Slots at or past count_Q are padding. An answer of -1 before it is a
    sample without a readable answer, or one that was cancelled: it costs
    budget and has no vote. Answer ids are numbered within their query in the
    order first seen, from 0. pending_Q counts the samples that are still
    being generated, where there are no rounds.
    """

    answer_QN: jax.Array  # int32
    weight_QN: jax.Array  # float32; what it measures is the reader's choice
    tokens_QN: jax.Array  # int32, new tokens of each sample
    count_Q: jax.Array  # int32
    pending_Q: jax.Array | None = None  # int32, under way; None in rounds


class Budget(NamedTuple):
    """Caps on what a run may spend; None is no cap.

    samples_per_query is a cap on samples too, as their mean over the queries:
    it is rounded up to a whole number of samples for all of them.
    """

    samples: int | None = None
    new_tokens: int | None = None
    total_tokens: int | None = None  # prompt (less cached) + new
    flops: float | None = None
    seconds: float | None = None
    samples_per_query: float | None = None


class Ledger(NamedTuple):
    """What has been spent."""

    samples: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, sample: Sample, seconds: float = 0.0) -> Ledger:
        """Returns what has been spent when a sample is added."""
        return Ledger(
            self.samples + 1,
            self.prompt_tokens + sample.prompt_tokens,
            self.cached_tokens + sample.cached_tokens,
            self.new_tokens + sample.new_tokens,
            self.flops + sample.flops,
            self.seconds + seconds,
        )


class Policy(NamedTuple):
    """Where the next samples go.

    allocate takes a key, the candidates and a budget, a traced int32 scalar,
    and gives grants, int32 [Q]. It is pure and jittable, and the same object
    serves live runs and replay. Grants are whole, not negative and within the
    free slots N - count_Q - pending_Q. They sum to the budget, unless every
    query is full or the policy stops by its own rule.

    reads names the field or signal of Sample that the policy finds in
    weight_QN; None where it reads none. name is how a flag writes it.

    score is set where each pull goes to the highest score, ties at random,
    and the score of a query reads nothing of the other ones: (candidates,
    virtual pulls, int32 [Q]) -> float32 [Q]. Without rounds, live and in
    replay, only the score of a query that changed is then computed again, and
    allocate is not called.
    """

    allocate: Callable[[jax.Array, Candidates, jax.Array], jax.Array]
    reads: str | None = None
    name: str = ""
    score: Callable[[Candidates, jax.Array], jax.Array] | None = None


class Flights(NamedTuple):
    """The samples that are being generated, at most W of them."""

    query_W: jax.Array  # int32, -1 where there is none
    tokens_W: jax.Array  # int32, so far


class Cancel(NamedTuple):
    """Which samples are ended before they are finished.

    decided is asked whenever a sample ends, and tells of each query by itself
    whether its samples under way are cancelled, bool [Q]. last tells of the
    samples under way which are, bool [W]: it is asked once a cap on samples
    allows no further grant, whenever all that ended in a step is known. None
    is a rule that has no such part. Both are pure and jittable. reads names
    the field or signal of Sample that they find in weight_QN. name is how a
    flag writes it.
    """

    decided: Callable[[Candidates], jax.Array]
    last: Callable[[Candidates, Flights], jax.Array] | None = None
    reads: str | None = None
    name: str = ""


SampleKey = tuple[str, int]
"""Query id and index: the name of a sample in its run."""


class Watch(NamedTuple):
    """How the samples of a sampler are watched while they are generated.

    under_way gives the tokens so far of each sample that is unfinished; those
    that were requested and are not in it can be taken without waiting. step
    goes on with all of them, and returns when anything has changed. cancelled
    makes the sample of a request that is ended after so many tokens, without
    text and answer; it costs what it took.

    Where in_steps is not set, as of an endpoint, nothing is known of tokens so
    far, and samples count as ended when they arrive.
    """

    under_way: Callable[[], Mapping[SampleKey, int]]
    step: Callable[[], None]
    cancelled: Callable[[Request, int], Sample]
    in_steps: bool = True


SampleFn = Callable[[Sequence[Request]], Iterator[Sample]]
"""Answers requests: yields each sample as soon as it is finished, in any
order. What ends early yields fewer samples. Work may begin with the call, and
calls may overlap: a later one may come before the samples of an earlier one
are all taken."""


class Sampler(Protocol):
    """What answers requests with samples.

    It is an Engine, an Endpoint, or a stub (sampler.FunctionSampler).
    """

    def sample(self, requests: Sequence[Request], /) -> Iterator[Sample]:
        """Answers requests, as a SampleFn does."""
        ...

    def count_tokens(self, messages: Sequence[Message], /) -> int:
        """Returns the length of messages as the model reads them."""
        ...

    @property
    def name(self) -> str:
        """What summaries call it."""
        ...

    @property
    def max_prompt_tokens(self) -> int | None:
        """The longest prompt that leaves room for a whole sample."""
        ...

    @property
    def max_cost(self) -> Budget:
        """The most that one sample can cost."""
        ...

    @property
    def thinking(self) -> Thinking:
        """How the thoughts of the model are told from its answers."""
        ...

    # and, where its samples can be watched:
    # watch: Watch


def count_words(messages: Sequence[Message]) -> int:
    """Stands in for a tokenizer: words, and three more for each turn."""
    return sum(len(m.content.split()) + 3 for m in messages)


class Reader(NamedTuple):
    """What a strategy knows of the model that will read its requests.

    count_tokens gives the length of messages as the model reads them, and
    max_prompt_tokens the most that it can read (None: no limit). thinking
    tells the thoughts of a sample, which no request shows.
    """

    count_tokens: Callable[[Sequence[Message]], int] = count_words
    max_prompt_tokens: int | None = None
    thinking: Thinking = Thinking()


Plan = Callable[
    [Query, Sequence[Sample], int, "jax.Array", Reader], Iterable[Request]
]
"""A query, its samples so far, the number n granted, a key and the reader of
the requests -> requests for up to n samples whose indices go on from those
there are."""


class Strategy(NamedTuple):
    """What a model is asked for.

    plan turns a grant into requests. reads_texts says whether it reads the
    texts of samples; where nothing does, the loop drops them. name is how a
    flag writes it.

    learn is for what one query cannot tell: from the samples so far of all
    queries it makes the plan of the grants that follow, in place of `plan`.
    It is pure, and its plan knows nothing else of the run.
    """

    plan: Plan
    reads_texts: bool = True
    name: str = ""
    learn: Callable[[Sequence[Sequence[Sample]]], Plan] | None = None

    def after(self, samples: Sequence[Sequence[Sample]]) -> Plan:
        """Returns the plan of the grants that follow these samples."""
        return self.learn(samples) if self.learn else self.plan


class Vote(NamedTuple):
    """What turns candidates into one answer for each query.

    decide gives answer_Q, int32, -1 where a query has no readable answer; it
    is pure and jittable. reads names the field or signal of Sample that
    decide finds in weight_QN (of `parents`, their number). weigh computes
    weight_QN from texts, on the host, once, when all samples are there: from
    the queries, the samples of each and the sampler, a weight for each
    sample. Where both are None, decide reads no weights. name is how a flag
    writes it.
    """

    decide: Callable[[Candidates], jax.Array]
    reads: str | None = None
    weigh: (
        Callable[
            [Sequence[Query], Sequence[Sequence[Sample]], Sampler],
            list[list[float]],
        ]
        | None
    ) = None
    name: str = ""


class Schedule(NamedTuple):
    """How many samples are granted at a time.

    first_round and later_rounds are sizes in samples per query, on average;
    inf is all that the budget has, in one round (without a cap on samples,
    one sample of each query). stale is the number of
    earlier rounds whose samples a grant does without, because they are still
    being generated; the first round is finished before the second begins.
    capacity is N, the most samples of one query: by default four times the
    even share of the budget's samples, and at least 64.

    concurrent, where it is not 0, is W: there are no rounds. W samples are
    generated at once, and whenever one ends, one more is granted. The first
    first_round samples of each query are then granted in turn, before the
    policy is asked. What happens is noticed every poll_steps decode steps, as
    devices take many steps at a time. A sampler that has no watch is asked in
    rounds all the same.
    """

    first_round: float = 1
    later_rounds: float = 1
    stale: int = 0
    capacity: int | None = None
    concurrent: int = 0
    poll_steps: int = 16


class Method(NamedTuple):
    """A way to scale: a strategy, a policy, a vote and a schedule.

    cancel ends samples early, where the schedule has no rounds.
    """

    strategy: Strategy
    policy: Policy
    vote: Vote
    schedule: Schedule = Schedule()
    name: str = ""
    cancel: Cancel | None = None
