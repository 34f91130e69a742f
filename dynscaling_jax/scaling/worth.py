"""What a chain is worth: how many independent samples its answer stands for.

Nothing but answers, tokens and parents is read. The samples of a query that
read no others are draws from one unknown distribution of answers. What the
samples before predict of the next such draw is a matter of counting: under a
Dirichlet prior with m possible answers and concentration t,

    P(the next answer is a) = (votes of a + t / m) / (all votes + t).

In it the samples that read others vote too. One of them alone has weight w,
and n of them w n^d together: they read the same attempts and may say the same,
so d is between 0 (however many they are, they are one voice) and 1. If they
only repeat what they read, counting that again makes predictions worse, and w
is 0. If they bring something of their own, the independent draws that follow
agree with them more often than the samples before had promised; where they do
so as often as with one independent sample more, w is 1. So agreement counts
only with what a chain cannot have read, and copies are no evidence.

Samples are taken in the order of their indices. A chain reads lower ones
alone, so no draw is predicted from a copy of itself. Which query gets more
samples, and which of them are chains, may depend on all samples before in any
way: the likelihood of the draws that there are is the same.

What cannot be told: whether independent samples settle on the right answer. A
chain that finds what they never find looks like noise.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynscaling_jax.types import Sample

# V voices, (w, d): w is 0, or from 1/4 to 16
WEIGHTS = (0.0, *(2.0 ** (k / 2) for k in range(-4, 9)))
VOICES = tuple(itertools.product(WEIGHTS, (0.0, 0.5, 1.0)))
NOTHING = 0.5  # the prior of w = 0; the others share the rest
# G shapes of a query: answers that there may be, and the concentration
SHAPES = tuple(
    itertools.product((2, 4, 16, 128, 1024), (0.3, 1.0, 3.0, 10.0, 30.0))
)
PASSES = 10  # of fitting how common each shape is


class Step(NamedTuple):
    """What stood before an independent sample, and what it gave.

    votes are the independent samples of its answer, all_votes those of any.
    chains are the other samples, and share is what part of them gave its
    answer. answers counts the different ones of both kinds.
    """

    votes: int
    all_votes: int
    chains: int
    share: float
    answers: int


def steps(samples: Sequence[Sample]) -> tuple[Step, ...]:
    """Returns a step for each readable independent sample of one query."""
    votes, chained, answers, found = Counter(), Counter(), set(), []
    others = 0
    for sample in sorted(samples, key=lambda s: s.index):
        answer = sample.answer
        if answer is None:
            continue
        if sample.parents:
            chained[answer] += 1
            others += 1
        else:
            share = chained[answer] / max(1, others)
            before = votes[answer], len(found), others, share, len(answers)
            found.append(Step(*before))
            votes[answer] += 1
        answers.add(answer)
    return tuple(found)


def weigh(samples: Sequence[Sequence[Sample]]) -> np.ndarray:
    """Returns the posterior of the WEIGHTS, [W], from the samples of a run.

    Queries differ in shape. How common each shape is is fitted to the run,
    by expectation maximisation.
    """
    histories = Counter(map(steps, samples))
    histories.pop((), None)
    weight_V = np.array([weight for weight, _ in VOICES])
    some = np.count_nonzero(weight_V)
    voice_V = np.where(
        weight_V > 0, (1 - NOTHING) / some, NOTHING / (len(VOICES) - some)
    )
    if any(step.chains for history in histories for step in history):
        voice_V = _fitted(voice_V, histories)
    return voice_V.reshape(len(WEIGHTS), -1).sum(axis=1)


def _fitted(
    prior_V: np.ndarray, histories: Counter[tuple[Step, ...]]
) -> np.ndarray:
    """Returns the posterior of the VOICES, [V]."""
    # sorted, so that queries give the same sums in whatever order they come
    in_order = sorted(histories)
    count_H = np.array([histories[history] for history in in_order], float)
    log_HVG = np.stack([sum(map(_log_chance, history)) for history in in_order])
    peak_H11 = log_HVG.max(axis=(1, 2), keepdims=True)
    chance_HVG = np.exp(np.maximum(log_HVG - peak_H11, -700))  # never 0
    shape_G, voice_V = np.full(len(SHAPES), 1 / len(SHAPES)), prior_V
    for _ in range(PASSES):
        chance_HV = chance_HVG @ shape_G
        log_V = np.log(prior_V) + count_H @ np.log(chance_HV)
        voice_V = np.exp(log_V - log_V.max())
        voice_V /= voice_V.sum()
        share_HG = shape_G * np.einsum(
            "hv,hvg->hg", voice_V / chance_HV, chance_HVG
        )
        # as if one more query had been of every shape in equal parts
        shape_G = count_H @ share_HG + 1 / len(SHAPES)
        shape_G /= shape_G.sum()
    return voice_V


@functools.lru_cache(maxsize=2**14)
def _log_chance(step: Step) -> np.ndarray:
    """Returns the log probability of what a sample gave, [V, G]."""
    weight_V1, power_V1 = np.array(VOICES).T[:, :, None]
    possible_G, total_G = np.array(SHAPES).T
    each_G = total_G / possible_G
    chained_V1 = weight_V1 * step.chains**power_V1 * (step.chains > 0)
    if step.votes or step.share:
        chance_VG = step.votes + chained_V1 * step.share + each_G
    else:  # more answers than there may be: as good as impossible
        chance_VG = each_G * np.maximum(possible_G - step.answers, 1e-3)
    return np.log(chance_VG / (step.all_votes + chained_V1 + total_G))


def price(samples: Sequence[Sequence[Sample]]) -> float:
    """Returns what a readable chain costs, in readable independent samples.

    Costs are prompt tokens that were not cached, and new tokens. Chains are
    compared with the independent samples of their own query, other than the
    first, which pays for the prompt. It is 1 where there is none of either.
    """
    pairs = [
        (
            [s for s in of_query if s.parents],
            [s for s in of_query if not s.parents and s.index],
        )
        for of_query in samples
    ]
    pairs = [(chained, alone) for chained, alone in pairs if chained and alone]
    dear = sum(_tokens(s) for chained, _ in pairs for s in chained)
    cheap = math.fsum(
        len(chained) * sum(map(_tokens, alone)) / len(alone)
        for chained, alone in pairs
    )
    if not dear or not cheap:
        return 1.0
    chained, alone = ([s for pair in pairs for s in pair[of]] for of in (0, 1))
    return dear / cheap * _readable(alone) / _readable(chained)


def _readable(samples: Sequence[Sample]) -> float:
    """The share of readable samples, with one more of them: never 0."""
    readable = sum(s.answer is not None for s in samples)
    return (readable + 1) / (len(samples) + 1)


def _tokens(sample: Sample) -> int:
    return sample.prompt_tokens - sample.cached_tokens + sample.new_tokens


def chance_of_gain(samples: Sequence[Sequence[Sample]], at: float) -> float:
    """Returns the probability that a chain is worth more than `at`."""
    return float(weigh(samples)[np.array(WEIGHTS) > at].sum())
