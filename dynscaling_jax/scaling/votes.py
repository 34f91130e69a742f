"""Votes: the packed candidates of a query -> the id of one answer.

Every vote gives each readable sample a weight; the answer with the largest
sum of weights wins, and of equal sums the one that was seen first. So a vote
is the pure function `decide`, written for one query and vmapped over all, and
where its weights come from: a measure of each sample (`reads`), or texts
compared on the host (`weigh`).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from dynscaling_jax.sampler import reader_of
from dynscaling_jax.scaling import chains
from dynscaling_jax.scaling.chains import Chain
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.thinking import visible
from dynscaling_jax.types import (
    Candidates,
    Message,
    Query,
    Reader,
    Request,
    Sample,
    Sampler,
    Vote,
)


@named
def majority(over: Literal["all", "integrated", "weighted"] = "all") -> Vote:
    """Each sample has one voice (self-consistency, arXiv 2203.11171).

    Our options for integrated sampling: over="integrated" hears only samples
    that had read earlier ones, where the query has any that is readable;
    over="weighted" gives a sample a voice for itself and one for each parent
    that it had read.
    """
    if over == "all":
        return Vote(_over_queries(lambda answer, _: jnp.ones(answer.shape)))
    if over == "weighted":
        return Vote(_over_queries(lambda _, parents: 1 + parents), "parents")

    def integrated(answer_N: jax.Array, parents_N: jax.Array) -> jax.Array:
        chained_N = (answer_N >= 0) & (parents_N > 0)
        return jnp.where(chained_N.any(), chained_N, True).astype(jnp.float32)

    return Vote(_over_queries(integrated), "parents")


@named
def weighted(tau: float = 1.0) -> Vote:
    """Weights softmax(mean log-probability / tau), over the readable samples.

    A small tau trusts the likeliest sample, a large one is the majority.
    """
    _positive("weighted", "tau", tau)

    def soft(answer_N: jax.Array, logprob_N: jax.Array) -> jax.Array:
        return jax.nn.softmax(logprob_N / tau, where=answer_N >= 0)

    return Vote(_over_queries(soft), "logprob")


@named
def borda(power: float = 0.5) -> Vote:
    """Weights (n - r + 1)^power, for rank r by self-certainty.

    Of the n readable samples 1 is the most certain (arXiv 2502.18581).
    """
    if not power >= 0:
        raise ValueError(f"borda: power={power!r} is not at least 0")

    def ranked(answer_N: jax.Array, certainty_N: jax.Array) -> jax.Array:
        readable_N = answer_N >= 0
        rank_N = _rank(certainty_N, readable_N)
        place_N = readable_N.sum() - rank_N + 1
        return jnp.maximum(place_N, 1).astype(jnp.float32) ** power

    return Vote(_over_queries(ranked), "certainty")


@named
def deepconf(
    measure: Literal["confidence", "tail", "bottom", "lowest"] = "confidence",
    top_share: float = 1.0,
) -> Vote:
    """Weights by token confidence, after a filter (arXiv 2508.15260).

    measure is the confidence of a sample: its mean over all tokens, over the
    tail, over the bottom tenth of windows, or of the lowest window. Of the n
    readable samples only the ceil(top_share n) most confident are heard.
    """
    if not 0 < top_share <= 1:
        raise ValueError(
            f"deepconf: top_share={top_share!r} is not above 0 and up to 1"
        )

    def filtered(answer_N: jax.Array, confidence_N: jax.Array) -> jax.Array:
        readable_N = answer_N >= 0
        n = readable_N.sum().astype(jnp.float32)
        kept = jnp.ceil(top_share * n - 1e-4).astype(jnp.int32)
        heard_N = _rank(confidence_N, readable_N) <= kept
        return jnp.where(heard_N, confidence_N, 0.0)

    return Vote(_over_queries(filtered), measure)


@named
def medoid(n: int = 2) -> Vote:
    """The answer most like the others, for free text.

    Likeness is the Jaccard overlap of word n-grams, summed over the other
    readable answers of the query.
    """
    if n < 1:
        raise ValueError(f"medoid: n={n!r} is not at least 1")

    def weigh(
        queries: Sequence[Query],
        samples: Sequence[Sequence[Sample]],
        sampler: Sampler,
    ) -> list[list[float]]:
        return [_centrality([s.answer for s in row], n) for row in samples]

    return Vote(_heaviest, weigh=weigh)


@named
def universal() -> Vote:
    """The model itself names the most consistent response.

    This is universal self-consistency (arXiv 2311.17311); the prompt is ours.

    One further request for each query that has more than one distinct answer,
    to the query id + "#universal"; its parents are the samples that it shows,
    less the longest where they do not fit. Where the reply names none of
    them, the majority decides.
    """

    def weigh(
        queries: Sequence[Query],
        samples: Sequence[Sequence[Sample]],
        sampler: Sampler,
    ) -> list[list[float]]:
        reader = reader_of(sampler)
        asked = {
            query.id: _question(reader, query, row)
            for query, row in zip(queries, samples, strict=True)
            if len({s.answer for s in row} - {None}) > 1
        }
        replies = {
            s.query_id: s.text for s in sampler.sample([*asked.values()])
        }
        chosen = {
            id: _chosen(
                _said(reader, request, replies.get(request.query.id, "")),
                request.parents,
            )
            for id, request in asked.items()
        }
        return [
            _only(chosen.get(query.id), row)
            for query, row in zip(queries, samples, strict=True)
        ]

    return Vote(_heaviest, weigh=weigh)


VOTES: dict[str, Callable[..., Vote]] = {
    "majority": majority,
    "weighted": weighted,
    "borda": borda,
    "deepconf": deepconf,
    "medoid": medoid,
    "universal": universal,
}


def weight_of(sample: Sample, name: str) -> float:
    """What a reader of weight_QN asks of one sample, by its name.

    A sample without a readable answer has no vote, and 0 stands for its
    weight. Raises ValueError where a readable sample lacks the measure.
    """
    if sample.answer is None:
        return 0.0
    if name == "parents":
        return float(len(sample.parents))
    if name in ("logprob", "confidence"):
        value = getattr(sample, name)
    else:
        value = sample.signals.get(name)
    if value is None:
        there = ", ".join(sample.signals) or "none"
        raise ValueError(
            f"sample {sample.index} of query {sample.query_id!r} has no "
            f"{name!r}, which this vote or policy reads; its signals: {there}. "
            "Most need a model that offers log-probabilities; others, such as "
            "the vote majority, need none"
        )
    return value


def _over_queries(
    weigh_N: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[Candidates], jax.Array]:
    """decide, from the weights of one query: (answer_N, weight_N) -> [N].

    Padding reaches the function as unreadable samples.
    """

    def one(answer_N: jax.Array, weight_N: jax.Array, count: jax.Array):
        real_N = jnp.arange(answer_N.shape[0]) < count
        answer_N = jnp.where(real_N, answer_N, -1)
        weight_N = jnp.where(answer_N >= 0, weight_N, 0.0)
        return _tally(answer_N, weigh_N(answer_N, weight_N))

    def decide(candidates: Candidates) -> jax.Array:
        return jax.vmap(one)(
            candidates.answer_QN, candidates.weight_QN, candidates.count_Q
        )

    return decide


def _tally(answer_N: jax.Array, weight_N: jax.Array) -> jax.Array:
    """The answer with the largest sum of weights; the first seen of equals.

    Sums are compared slot by slot, not by answer id: then argmax itself
    breaks ties by the order of the samples, however the ids are numbered.
    """
    readable_N = answer_N >= 0
    slots = answer_N.shape[0]
    at_N = jnp.where(readable_N, answer_N, slots)
    total_A = jnp.zeros(slots).at[at_N].add(weight_N, mode="drop")
    total_N = total_A[answer_N]
    first = jnp.argmax(jnp.where(readable_N, total_N, -jnp.inf))
    return jnp.where(readable_N.any(), answer_N[first], -1)


def _heaviest_one(answer_N: jax.Array, weight_N: jax.Array, count: jax.Array):
    readable_N = (jnp.arange(answer_N.shape[0]) < count) & (answer_N >= 0)
    first = jnp.argmax(jnp.where(readable_N, weight_N, -jnp.inf))
    return jnp.where(readable_N.any(), answer_N[first], -1)


def _heaviest(candidates: Candidates) -> jax.Array:
    """The answer of the one heaviest sample; the first seen of equals."""
    return jax.vmap(_heaviest_one)(
        candidates.answer_QN, candidates.weight_QN, candidates.count_Q
    )


def _rank(value_N: jax.Array, valid_N: jax.Array) -> jax.Array:
    """Ranks valid values, 1 the largest; the earlier slot first of equals."""
    slot_N = jnp.arange(value_N.shape[0])
    tied_NN = value_N[None, :] == value_N[:, None]
    ahead_NN = (value_N[None, :] > value_N[:, None]) | (
        tied_NN & (slot_N[None, :] < slot_N[:, None])
    )
    return 1 + (ahead_NN & valid_N[None, :]).sum(axis=-1)


def _positive(vote: str, name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{vote}: {name}={value!r} is not above 0")


def _centrality(answers: Sequence[str | None], n: int) -> list[float]:
    """The summed overlap of each answer with the other readable ones."""
    grams = [None if a is None else _ngrams(a, n) for a in answers]
    return [
        0.0
        if mine is None
        else sum(
            len(mine & other) / len(mine | other)
            for j, other in enumerate(grams)
            if other is not None and j != i
        )
        for i, mine in enumerate(grams)
    ]


def _ngrams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    """The word n-grams of a text; all of it where it is shorter than n."""
    words = text.casefold().split()
    return frozenset(
        tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))
    )


def _question(
    reader: Reader, query: Query, samples: Sequence[Sample]
) -> Request:
    messages, parents = chains.fit(
        reader,
        query,
        [
            (s.index, chains.shown(Chain(), reader, s))
            for s in samples
            if s.answer is not None
        ],
        _ask,
    )
    asked = query._replace(id=f"{query.id}#universal")
    return Request(asked, messages, 0, parents=parents)


def _ask(query: Query, responses: Sequence[str]) -> tuple[Message, ...]:
    ask = (
        f"Here are {len(responses)} responses to the question above.\n\n"
        f"{chains.listed(responses, 'Response')}\n\nWhich one agrees best "
        'with the others? Begin your reply with "Response" and its number.'
    )
    return chains.with_turn(query.messages, Message("user", ask))


def _said(reader: Reader, request: Request, reply: str) -> str:
    """A reply without the thought of the model that gives it."""
    turn_start = reader.thinking.turn_start(request.messages)
    return visible(reply, reader.thinking, turn_start) or ""


def _chosen(reply: str, shown: Sequence[int]) -> int | None:
    """The index of the sample that the reply names first."""
    named = re.search(r"\bresponse\s*#?(\d{1,9})\b", reply, re.IGNORECASE)
    if named and 1 <= int(named[1]) <= len(shown):
        return shown[int(named[1]) - 1]
    return None


def _only(chosen: int | None, samples: Sequence[Sample]) -> list[float]:
    """1 for the chosen sample; the votes of its answer for each, if none."""
    if chosen is not None:
        return [float(s.index == chosen) for s in samples]
    count = Counter(s.answer for s in samples)
    return [float(count[s.answer]) for s in samples]
