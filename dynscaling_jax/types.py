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

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    request of the same round has the same messages, so that reading them was
    paid for already; the loop sets it. least_confidence ends the sample as
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
    finish_reason: str  # stop, length, confidence, or error: what failed
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
    sample without a readable answer: it costs budget and has no vote. Answer
    ids are numbered within their query in the order first seen, from 0.
    """

    answer_QN: jax.Array  # int32
    weight_QN: jax.Array  # float32; what it measures is the reader's choice
    tokens_QN: jax.Array  # int32, new tokens of each sample
    count_Q: jax.Array  # int32


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
    free slots N - count_Q. They sum to the budget, unless every query is full
    or the policy stops by its own rule.

    reads names the field or signal of Sample that the policy finds in
    weight_QN; None where it reads none. name is how a flag writes it.
    """

    allocate: Callable[[jax.Array, Candidates, jax.Array], jax.Array]
    reads: str | None = None
    name: str = ""


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


class Strategy(NamedTuple):
    """What a model is asked for.

    plan takes a query, its samples so far, the number n granted, a key and
    the reader of the requests. It gives requests for up to n samples whose
    indices go on from those there are. reads_texts says whether plan reads
    the texts of samples; where nothing does, the loop drops them. name is how
    a flag writes it.
    """

    plan: Callable[
        [Query, Sequence[Sample], int, jax.Array, Reader], Iterable[Request]
    ]
    reads_texts: bool = True
    name: str = ""


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
    inf is all that the budget has, in one round. stale is the number of
    earlier rounds whose samples a grant does without, because they are still
    being generated; the first round is finished before the second begins.
    capacity is N, the most samples of one query: by default four times the
    even share of the budget's samples, and at least 64.
    """

    first_round: float = 1
    later_rounds: float = 1
    stale: int = 0
    capacity: int | None = None


class Method(NamedTuple):
    """A way to scale: a strategy, a policy, a vote and a schedule."""

    strategy: Strategy
    policy: Policy
    vote: Vote
    schedule: Schedule = Schedule()
    name: str = ""
