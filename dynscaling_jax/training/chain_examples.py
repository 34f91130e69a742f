"""Integrator tuning: drawn attempts -> examples in using a chain of them.

A model that never saw a chain may copy its first attempt, or start over. An
example shows it some attempts at a question, right and wrong ones mixed, in the
very layout that `integrated` will use, and a right solution to write. Examples
are balanced over how many of the attempts are right, so that neither "copy
the majority" nor "copy nothing" is what is learnt. The method is ours.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dynscaling_jax.scaling import chains
from dynscaling_jax.scaling.chains import Chain, Reader
from dynscaling_jax.thinking import visible
from dynscaling_jax.training.sft_examples import Example
from dynscaling_jax.types import Query, Sample


class Attempts(NamedTuple):
    """A question, samples of it with a readable answer, and which are right.

    solution is what to write; None takes a right sample that the chain does
    not show, that ended by itself and that read no chain of its own.
    """

    query: Query
    samples: tuple[Sample, ...]
    right: tuple[bool, ...]
    solution: str | None = None


class Kind(NamedTuple):
    """What an example shows."""

    attempts: int
    right: int


def examples(
    drawn: Sequence[Attempts],
    chain: Chain,
    count: int,
    seed: int,
    reader: Reader = Reader(),  # noqa: B008, immutable
) -> Iterator[tuple[Kind, Example]]:
    """Yields examples of 1 to chain.k attempts, in equal shares.

    Each number of attempts is as frequent, and of these each number of right
    ones.

    A question gives at most one example of each kind, so that fewer than
    `count` come where few questions have both right and wrong samples.

    Args:
        drawn: questions with their attempts.
        chain: its k, content, layout and tail are used.
        count: examples in all, at most.
        seed: of what is chosen.
        reader: of the attempts, for the chain.

    Raises:
        ValueError: fewer examples than there are kinds of the largest chains.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    for kind, most in wanted(chain.k, count).items():
        able = [one for one in drawn if _able(one, kind)]
        for i in rng.permutation(len(able))[:most]:
            yield kind, _example(able[i], kind, chain, reader, rng)


def wanted(attempts: int, count: int) -> dict[Kind, int]:
    """How many examples of each kind there are where no question is short.

    Raises:
        ValueError: as of examples.
    """
    least = attempts * (attempts + 1)
    if count < least:
        raise ValueError(
            f"{count} examples are too few for each mixture of up to "
            f"{attempts} attempts; at least {least} are needed"
        )
    return {k: count // (attempts * (k.attempts + 1)) for k in kinds(attempts)}


def kinds(most: int) -> list[Kind]:
    """All kinds with 1 to `most` attempts."""
    return [Kind(k, r) for k in range(1, most + 1) for r in range(k + 1)]


def _able(one: Attempts, kind: Kind) -> bool:
    right = [*itertools.compress(one.samples, one.right)]
    wrong = len(one.samples) - len(right)
    solved, spare = True, kind.right
    if one.solution is None:
        solved, spare = any(map(_whole, right)), kind.right + 1
    return (
        solved and len(right) >= spare and wrong >= kind.attempts - kind.right
    )


def _whole(sample: Sample) -> bool:
    """Whether a right sample can be a solution.

    One that was cut off does not end, and one that read a chain may speak of
    what is not shown.
    """
    return sample.finish_reason == "stop" and not sample.parents


def _example(
    one: Attempts,
    kind: Kind,
    chain: Chain,
    reader: Reader,
    rng: np.random.Generator,
) -> Example:
    order = rng.permutation(len(one.samples))
    right = [one.samples[i] for i in order if one.right[i]]
    wrong = [one.samples[i] for i in order if not one.right[i]]
    solution = one.solution
    if solution is None:
        written = next(filter(_whole, right))
        right.remove(written)
        solution = visible(written.text, reader.thinking) or ""
    shown = [*right[: kind.right], *wrong[: kind.attempts - kind.right]]
    layout = chain._replace(k=len(shown), which="all", order="shuffled")
    messages, _ = chains.build(layout, reader, one.query, shown, rng)
    return Example(messages, solution)


def counted(made: Sequence[tuple[Kind, Example]]) -> Counter[Kind]:
    """How many examples there are of each kind."""
    return Counter(kind for kind, _ in made)
