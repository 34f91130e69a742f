"""What a sample makes of the chain that it reads, and with what result."""

from collections import Counter
from typing import NamedTuple

from dynscaling_jax.analysis.judged import Asked, Judged, planted

RELATIONS = {
    "repeats": "the answer that most of its chain gives",
    "sides": "another answer of its chain",
    "contradicts": "an answer that its chain has not",
    "unreadable": "no readable answer",
}


class Coherence(NamedTuple):
    """Samples that read a chain, by what they made of it."""

    relation: str  # one of RELATIONS
    samples: int
    right: int  # of these
    chain_right: int  # whose chain's own majority was right


def coherence(judged: Judged) -> list[Coherence]:
    """Of each relation, how often, and how often right.

    The majority of a chain is that of its readable members; of equals the one
    shown by the earliest sample. So "right" against "chain_right" tells what
    reading a chain gained over voting on it. Of chains with planted attempts,
    which are not recorded, nothing is counted.
    """
    count, right, chain_right = Counter(), Counter(), Counter()
    for asked in () if planted(judged) else judged.asked:
        for n, parents in enumerate(asked.parents):
            if not parents:
                continue
            relation, majority = _relation(asked, n, parents)
            count[relation] += 1
            right[relation] += asked.class_N[n] in asked.right
            chain_right[relation] += majority in asked.right
    return [
        Coherence(name, count[name], right[name], chain_right[name])
        for name in RELATIONS
    ]


def _relation(
    asked: Asked, n: int, parents: tuple[int, ...]
) -> tuple[str, int]:
    """What sample n made of its parents, and the class that most of them
    have, -1 where none is readable."""
    shown = [asked.class_N[p] for p in sorted(parents)]
    votes = Counter(own for own in shown if own >= 0)
    majority = max(votes, key=lambda own: votes[own]) if votes else -1
    own = asked.class_N[n]
    if own < 0:
        return "unreadable", majority
    if own == majority:
        return "repeats", majority
    return ("sides" if own in votes else "contradicts"), majority
