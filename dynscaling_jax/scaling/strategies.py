"""Strategies: a grant of n samples for a query -> n requests to a model.

All are settings of, or short functions over, the chain builder of chains.py.
A chain holds samples that had ended when it was asked for: those of earlier
rounds, where there are rounds. Where what is asked for next rests on samples
that are under way, a strategy takes up fewer samples than it was granted; the
loop grants the rest again later.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax

from dynscaling_jax.sampler import CANCELLED, empty
from dynscaling_jax.scaling import chains, worth
from dynscaling_jax.scaling.chains import (
    Chain,
    Content,
    Layout,
    Order,
    Which,
)
from dynscaling_jax.scaling.confidence import (
    Online,
    least_confidence,
    threshold,
)
from dynscaling_jax.scaling.spec import named
from dynscaling_jax.thinking import thought
from dynscaling_jax.types import (
    Message,
    Plan,
    Query,
    Reader,
    Request,
    Sample,
    Strategy,
)

UNSEEN = "unseen"  # of an earlier round that is still being generated
UNDER_WAY = "under way"  # where there are no rounds
PENDING = (UNSEEN, UNDER_WAY)
_COIN = 1  # a key apart from that of the draws of a chain


def unseen(request: Request, why: str = UNSEEN) -> Sample:
    """Stands among the samples of a query for one that is still pending."""
    return empty(request)._replace(finish_reason=why)


@named
def parallel() -> Strategy:
    """Independent samples (self-consistency, arXiv 2203.11171)."""

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        for index in range(len(samples), len(samples) + n):
            yield _alone(query, index)

    return Strategy(plan, reads_texts=False)


@named
def deepconf(warmup: int = 16, keep: float = 0.9) -> Strategy:
    """Independent samples, of which unsure ones end early.

    This is DeepConf online (arXiv 2508.15260); see scaling.confidence. An
    endpoint ignores the bound.

    Args:
        warmup: samples of a query that are whole.
        keep: share of these that the rule would leave whole.
    """
    settings = Online(warmup, keep)
    least_confidence((), settings)  # checks warmup
    threshold((), keep)

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        there = [s for s in samples if s.finish_reason not in PENDING]
        bound = least_confidence(there, settings)
        for index in range(len(samples), len(samples) + n):
            yield _alone(query, index)._replace(least_confidence=bound)

    return Strategy(plan, reads_texts=False)


@named
def integrated(
    explore: int = 4,
    schedule: Literal["explore", "alternate"] = "explore",
    k: int = 4,
    which: Which = "distinct",
    order: Order = "shuffled",
    content: Content = "answer_and_reasoning",
    layout: Layout = "transcript",
    tail: int = 128,
    corrupted: int = 0,
) -> Strategy:
    """Parallel samples, then samples that continue a chain of earlier ones.

    The idea is DynScaling's (arXiv 2506.16043); options and defaults are ours.

    The first `explore` samples of a query are parallel. After them every
    sample is integrated, or, with schedule="alternate", every other one. The
    other options are those of chains.Chain. Without rounds a query gets none
    of these while fewer of its samples have ended than are under way, so that
    its chains have something to show.
    """
    _at_least("integrated", 1, explore=explore)
    chain = Chain(k, which, order, content, layout, tail, corrupted).checked()

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        start = len(samples)
        if start < explore:
            n = min(n, explore - start)
        elif _too_few_ended(samples):
            return
        for index in range(start, start + n):
            late = index - explore
            if late < 0 or (schedule == "alternate" and late % 2):
                yield _alone(query, index)
            else:
                yield _chained(chain, reader, query, samples, index, key)

    return Strategy(plan, content != "answer_only")


@named
def adaptive(
    explore: int = 4,
    cost: Literal["tokens", "samples"] = "tokens",
    k: int = 4,
    which: Which = "distinct",
    order: Order = "shuffled",
    content: Content = "answer_and_reasoning",
    layout: Layout = "transcript",
    tail: int = 128,
) -> Strategy:
    """Chains as far as they have been worth their cost in this run.

    As of `integrated`, the first `explore` samples of a query are parallel.
    Each later one is a chain with the probability that a chain is worth more
    parallel samples than it costs (Thompson sampling; worth.py says how worth
    is told without a verifier). Without evidence that is 31%; it goes to 1 or
    to 0 as the samples of all queries settle it. The chains of a grant come
    first, so that its parallel samples show what they bring. Chains wait as
    those of `integrated` do. The design is ours.

    Args:
      explore: parallel samples before the first chain.
      cost: tokens is for budgets in which what chains read is paid for, too;
        samples takes a chain to cost as much as any other sample.
      k: this and the rest are options of chains.Chain.
      which: see there.
      order: see there.
      content: see there.
      layout: see there.
      tail: see there.
    """
    _at_least("adaptive", 1, explore=explore)
    chain = Chain(k, which, order, content, layout, tail).checked()

    def learn(samples: Sequence[Sequence[Sample]]) -> Plan:
        finished = [
            [s for s in row if s.finish_reason not in (*PENDING, CANCELLED)]
            for row in samples
        ]
        at = worth.price(finished) if cost == "tokens" else 1.0
        gain = worth.chance_of_gain(finished, at)

        def plan(
            query: Query,
            samples: Sequence[Sample],
            n: int,
            key: jax.Array,
            reader: Reader,
        ) -> Iterator[Request]:
            start = len(samples)
            if start < explore:
                n = min(n, explore - start)
            indices = range(start, start + n)
            chained = 0
            if start >= explore:
                coin = jax.random.fold_in(key, _COIN)
                chained = sum(
                    chains.keyed_draws(coin, query, index).random() < gain
                    for index in indices
                )
            if chained and _too_few_ended(samples):
                return
            for index in indices:
                if index < start + chained:
                    yield _chained(chain, reader, query, samples, index, key)
                else:
                    yield _alone(query, index)

        return plan

    return Strategy(learn(()), content != "answer_only", learn=learn)


@named
def revision(
    depth: int = 4,
    content: Content = "answer_and_reasoning",
    layout: Layout = "transcript",
    tail: int = 128,
) -> Strategy:
    """Sequential revision: the chain is the last attempt alone.

    Attempts form lines of up to `depth`. Each sample goes on with the end of
    the latest line that no other sample goes on with; where there is none, or
    its last attempt is unreadable, it starts a new line.
    """
    _at_least("revision", 1, depth=depth)
    chain = Chain(1, "recent", "shuffled", content, layout, tail).checked()

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        ends = _line_ends(samples, depth)
        for index in range(len(samples), len(samples) + n):
            last = next(ends, [])
            yield _chained(chain, reader, query, last[-1:], index, key)

    return Strategy(plan, content != "answer_only")


@named
def rsa(
    population: int = 16,
    k: int = 4,
    loops: int = 10,
    content: Content = "answer_and_reasoning",
    layout: Layout = "context",
    tail: int = 128,
) -> Strategy:
    """Recursive self-aggregation (arXiv 2509.26626).

    Each of a population is drawn from k members, taken at random, of the
    population before it; the first is parallel. After `loops` populations a
    new one is started.
    """
    _at_least("rsa", 1, population=population, loops=loops)
    chain = Chain(k, "random", "shuffled", content, layout, tail).checked()

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        for index, before in _generations(samples, n, population, loops):
            yield _chained(chain, reader, query, before, index, key)

    return Strategy(plan, content != "answer_only")


@named
def debate(
    agents: int = 3,
    turns: int = 2,
    content: Content = "answer_and_reasoning",
    tail: int = 128,
) -> Strategy:
    """Each agent reads the others' last answers and answers again.

    The method is of Du et al. (arXiv 2305.14325). After `turns` turns a new
    debate is started.
    """
    _at_least("debate", 1, turns=turns)
    _at_least("debate", 2, agents=agents)
    chain = Chain(agents, "all", content=content, tail=tail).checked()

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        for index, before in _generations(samples, n, agents, turns):
            last = {
                s.index: chains.shown(chain, reader, s)
                for s in before
                if s.answer is not None
            }
            mine = index - agents
            said = last.pop(mine, None)
            messages, parents = chains.fit(
                reader, query, list(last.items()), _debate_turn(said)
            )
            if said is not None and parents:
                parents = (mine, *parents)
            yield Request(query, messages, index, parents=parents)

    return Strategy(plan, content != "answer_only")


@named
def budget_forcing(
    forces: int = 2,
    word: str = "Wait",
) -> Strategy:
    """A finished attempt is made to think on (s1, arXiv 2501.19393).

    The assistant's turn is the attempt, hidden thought included and cut at
    the end of that, then `word`; up to `forces` times for each
    attempt. Where that is longer than the reader's limit, a new attempt is
    started.
    """
    _at_least("budget_forcing", 1, forces=forces)

    def plan(
        query: Query,
        samples: Sequence[Sample],
        n: int,
        key: jax.Array,
        reader: Reader,
    ) -> Iterator[Request]:
        lines = _line_ends(samples, forces + 1)
        for index in range(len(samples), len(samples) + n):
            line = next(lines, [])
            said = "".join(f"{_thought(s, reader)}\n\n{word}" for s in line)
            messages = (*query.messages, Message("assistant", said))
            if not line or (
                reader.max_prompt_tokens is not None
                and reader.count_tokens(messages) > reader.max_prompt_tokens
            ):
                yield _alone(query, index)
            else:
                parents = tuple(s.index for s in line)
                yield Request(query, messages, index, parents=parents)

    return Strategy(plan)


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "parallel": parallel,
    "deepconf": deepconf,
    "integrated": integrated,
    "adaptive": adaptive,
    "revision": revision,
    "rsa": rsa,
    "debate": debate,
    "budget_forcing": budget_forcing,
}


def _at_least(strategy: str, least: int, **options: int) -> None:
    for name, value in options.items():
        if value < least:
            raise ValueError(
                f"{strategy}: {name}={value} is not at least {least}"
            )


def _alone(query: Query, index: int) -> Request:
    return Request(query, query.messages, index)


def _chained(
    chain: Chain,
    reader: Reader,
    query: Query,
    pool: Sequence[Sample],
    index: int,
    key: jax.Array,
) -> Request:
    """A request for a chain of samples of the pool, if any is readable."""
    if not pool:
        return _alone(query, index)
    draws = chains.keyed_draws(key, query, index)
    messages, parents = chains.build(chain, reader, query, pool, draws)
    return Request(query, messages, index, parents=parents)


def _line_ends(samples: Sequence[Sample], depth: int) -> Iterator[list[Sample]]:
    """The lines of attempts that can go on, the latest first.

    A line is an attempt, its continuation, and so on. It can go on if it is
    shorter than depth and its last attempt is readable.
    """
    at = {s.index: s for s in samples}
    continued = {s.parents[-1] for s in samples if s.parents}
    for sample in reversed(samples):
        line = [sample]
        while line[0].parents:
            line.insert(0, at[line[0].parents[-1]])
        if (
            sample.index not in continued
            and sample.answer is not None
            and len(line) < depth
        ):
            yield line


def _too_few_ended(samples: Sequence[Sample]) -> bool:
    """Whether fewer samples have ended than are under way.

    A query whose samples are all granted at once would have no chain. In
    rounds all but the newest ones have ended.
    """
    under_way = sum(s.finish_reason == UNDER_WAY for s in samples)
    return 2 * under_way > len(samples)


def _generations(
    samples: Sequence[Sample], n: int, size: int, turns: int
) -> Iterator[tuple[int, Sequence[Sample]]]:
    """Indices of the next samples, each with the generation before its own.

    The samples of a query are generations of `size`, each drawn from the one
    before; every `turns`-th starts afresh, from nothing. A grant ends with a
    generation, since the next one needs all of it.
    """
    start = len(samples)
    generation, place = divmod(start, size)
    before = (
        samples[(generation - 1) * size : generation * size]
        if generation % turns
        else ()
    )
    if any(s.finish_reason in PENDING for s in before):
        return
    for index in range(start, start + min(n, size - place)):
        yield index, before


def _debate_turn(said: str | None) -> chains.Render:
    """Renders what the other agents said, after what this one said."""

    def render(query: Query, others: Sequence[str]) -> chains.Messages:
        ask = (
            "Other agents answered this question; any of them may be wrong."
            f"\n\n{chains.listed(others, 'Agent')}\n\nWeigh their reasoning "
            "against your own, and give your complete, updated solution with "
            "its final answer in the form asked for."
        )
        before = query.messages
        if said is not None:
            before = chains.with_turn(before, Message("assistant", said))
        return chains.with_turn(before, Message("user", ask))

    return render


def _thought(sample: Sample, reader: Reader) -> str:
    """Cuts a response at the end of its thought."""
    # inert, but for the mark that begins the thought
    begin, inside = thought(sample.text, reader.thinking)
    return begin + chains.inert(inside, reader.thinking)
