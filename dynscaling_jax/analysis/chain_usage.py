"""What a sample makes of the chain that it reads, and with what result."""

from collections import Counter
from typing import NamedTuple

from dynscaling_jax.analysis.graded import GradedQuestion, GradedRun

RELATIONS = {
    "repeats": "the answer that most of its chain gives",
    "sides": "another answer of its chain",
    "contradicts": "an answer that its chain has not",
    "unreadable": "no readable answer",
}


class ChainUsage(NamedTuple):
    """Samples that read a chain, by what they made of it."""

    relation: str  # one of RELATIONS
    samples: int
    right: int  # of these
    chain_right: int  # whose chain's own majority was right


def chain_usage(run: GradedRun) -> list[ChainUsage]:
    """Counts each relation, and how often its samples are right.

    The majority of a chain is that of its readable members; of equals the one
    shown by the earliest sample. So "right" against "chain_right" tells what
    reading a chain gained over voting on it. Of chains with corrupted
    attempts, which are not recorded, nothing is counted.
    """
    count, right, chain_right = Counter(), Counter(), Counter()
    for question in () if run.corrupted else run.questions:
        for n, parents in enumerate(question.parents):
            if parents:
                relation, majority = _relation(question, n, parents)
                count[relation] += 1
                right[relation] += question.answer_N[n] in question.right
                chain_right[relation] += majority in question.right
    return [
        ChainUsage(name, count[name], right[name], chain_right[name])
        for name in RELATIONS
    ]


def _relation(
    question: GradedQuestion, n: int, parents: tuple[int, ...]
) -> tuple[str, int]:
    """What sample n made of its parents, and their majority (-1: none)."""
    shown = [question.answer_N[p] for p in sorted(parents)]
    votes = Counter(answer for answer in shown if answer >= 0)
    majority = max(votes, key=lambda a: votes[a]) if votes else -1
    answer = question.answer_N[n]
    if answer < 0:
        return "unreadable", majority
    if answer == majority:
        return "repeats", majority
    return ("sides" if answer in votes else "contradicts"), majority
