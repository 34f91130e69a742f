"""Questions in, answers out: the method without a task and without files."""

import functools
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
from tqdm import tqdm

from dynscaling_jax import methods
from dynscaling_jax import sampler as samplers
from dynscaling_jax.experiments.environment import use_compilation_cache
from dynscaling_jax.experiments.log import sound
from dynscaling_jax.lines import shown
from dynscaling_jax.sampler import each, tap
from dynscaling_jax.scaling.arrivals import run_arrivals
from dynscaling_jax.scaling.loop import (
    Result,
    Round,
    check,
    for_queries,
    run_rounds,
)
from dynscaling_jax.tasks import Comparer, with_answers
from dynscaling_jax.tasks.choices import options
from dynscaling_jax.types import (
    Budget,
    Message,
    Method,
    Query,
    Sampler,
)


def scale(
    questions: Sequence[str | Query],
    sampler: Sampler,
    method: Method | None = None,
    budget: Budget = Budget(samples_per_query=8),  # noqa: B008, immutable
    *,
    kind: str = "",
    seed: int = 0,
    on_round: Callable[[Round], None] | None = None,
) -> Result:
    """Answers questions with one budget of samples for all of them.

    Args:
      questions: texts, or queries with ids and messages of their own.
      sampler: an Engine, an Endpoint, or a sampler.FunctionSampler. Answers
        are read from its texts.
      method: by default methods.dynscaling().
      budget: caps; by default eight samples for each question, on average.
      kind: of the answers: number, math, choice, boolean or text. By default
        a question that lists options has a choice, and any other one math,
        which numbers are too.
      seed: of the policy and the chains; the sampler has a seed of its own.
      on_round: called after each round, of a method that has some.

    Returns:
      Answers, samples and costs in the order of the questions.

    Raises:
      ValueError: as scaling.loop.run_rounds; an unknown kind; one text in
        place of a list.
    """
    method = methods.dynscaling() if method is None else method
    queries = _queries(questions)
    samplers.check(sampler)
    check(queries, method, budget)
    method = methods.for_sampler(method, sampler)
    rounds = not method.schedule.concurrent
    if on_round and not rounds:
        raise ValueError(
            "on_round is for a method with rounds, and this one's schedule has "
            "none; use methods.in_rounds(method), or leave on_round out"
        )
    key = key_of(seed)
    kinds = {
        query.id: kind or ("choice" if options(query) else "math")
        for query in queries
    }
    reading = functools.partial(
        with_answers, kind=kinds, thinking=sampler.thinking
    )
    total = for_queries(budget, len(queries)).samples
    use_compilation_cache()
    # silent where there is no terminal
    bar = tqdm(total=total, unit="sample", disable=None, dynamic_ncols=True)
    with Comparer() as compare, bar:
        spend = run_arrivals
        if rounds:
            spend = functools.partial(run_rounds, on_round=on_round)
        return spend(
            queries,
            tap(sampler, sound, reading, each(lambda _: bar.update())),
            method,
            budget,
            key,
            same=same_answer(compare, kinds),
            vote_sampler=tap(sampler, sound, reading),
        )


def key_of(seed: int) -> jax.Array:
    """The key of a seed. Raises ValueError where it is none."""
    if not (isinstance(seed, numbers.Integral) and 0 <= seed < 2**32):
        raise ValueError(
            f"seed={shown(seed)}: expected a whole number from 0 on, below 2^32"
        )
    return jax.random.key(int(seed))


def same_answer(
    compare: Comparer, kinds: Mapping[str, str]
) -> Callable[[Query], Callable[[str, str], bool]]:
    """The test of whether two answers of a query are one; kinds by query id."""

    def of_query(query: Query) -> Callable[[str, str], bool]:
        outcome, kind = compare.question(), kinds[query.id]
        return lambda a, b: outcome(a, b, kind) == "equal"

    return of_query


def _queries(questions: Sequence[str | Query]) -> list[Query]:
    """Makes queries whose ids are their texts.

    So a question has the same samples whatever is asked beside it. The second
    of two equal texts is numbered.
    """
    if isinstance(questions, str | bytes | Query) or not isinstance(
        questions, Iterable
    ):
        raise ValueError(
            "questions must be a list of texts, got one text or "
            f"{type(questions).__name__}"
        )
    queries: list[Query] = []
    count: dict[str, int] = {}
    for question in questions:
        if isinstance(question, Query):
            queries.append(question)
            continue
        if not isinstance(question, str):
            raise ValueError(
                f"a question is {shown(question)}; expected a text or a Query"
            )
        number = count[question] = count.get(question, 0) + 1
        id = question if number == 1 else f"{question} #{number}"
        queries.append(Query(id, (Message("user", question),)))
    return queries
