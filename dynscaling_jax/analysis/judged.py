"""Recorded rows of a run, classed and graded: what reports count.

Letters: Q questions, N samples of a question, M budgets, R rounds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax.scaling import spec
from dynscaling_jax.tasks import Compare, classify, grade, of_question
from dynscaling_jax.types import Sample


class Recorded(NamedTuple):
    """The files of a finished run, read. All mappings are by query id."""

    name: str
    summary: Mapping[str, Any]
    references: Mapping[str, str]
    questions: Mapping[str, str]  # texts; those not recorded are missing
    answers: Mapping[str, Mapping[str, Any]]  # answers.json
    samples: Sequence[Sample]
    rounds: Sequence[Mapping[str, Any]]  # rounds.jsonl


class Asked(NamedTuple):
    """The samples of one question by index, and what their answers are.

    A run whose time was up can lack a sample before its last one, so places
    and indices may differ.
    """

    id: str
    samples: tuple[Sample, ...]  # [N]
    parents: tuple[tuple[int, ...], ...]  # [N], their places among samples
    class_N: tuple[int, ...]  # from 0 in the order seen; -1 is unreadable
    firsts: tuple[str, ...]  # the first answer of each class
    right: frozenset[int]  # the classes that equal the reference


class Judged(NamedTuple):
    """A run whose samples are classed and graded."""

    recorded: Recorded
    asked: tuple[Asked, ...]  # [Q], in the order of the references


class Leader(NamedTuple):
    """The majority of one question; ties go to the answer seen first."""

    answer: int  # its class, -1 where nothing is readable
    share: float  # its votes of all samples, 0 where there are none
    right: bool


def judge(recorded: Recorded, compare: Compare) -> Judged:
    """Classes and grades every sample as votes and grading do.

    Raises:
        ValueError: a sample of a question that has no reference; a question
            without an answer, with a sample twice, or with one that has a
            parent which does not come before it.
    """
    kind = recorded.summary["kind"]
    if missing := recorded.references.keys() - recorded.answers.keys():
        raise ValueError(
            f"{recorded.name}: answers.json has no answer to question "
            f"{min(missing)!r}, whose reference is in references.json"
        )
    by_query: dict[str, list[Sample]] = {i: [] for i in recorded.references}
    for sample in recorded.samples:
        if sample.query_id not in by_query:
            raise ValueError(
                f"{recorded.name}: a sample of question {sample.query_id!r}, "
                "for which references.json has no reference"
            )
        by_query[sample.query_id].append(sample)
    return Judged(
        recorded,
        tuple(
            _asked(recorded, id, samples, kind, compare)
            for id, samples in by_query.items()
        ),
    )


def _asked(
    recorded: Recorded,
    id: str,
    samples: list[Sample],
    kind: str,
    compare: Compare,
) -> Asked:
    samples.sort(key=lambda sample: sample.index)
    place = {sample.index: n for n, sample in enumerate(samples)}
    if len(place) < len(samples):
        raise ValueError(f"{recorded.name}: question {id!r} has a sample twice")
    for sample in samples:
        if any(p >= sample.index or p not in place for p in sample.parents):
            raise ValueError(
                f"{recorded.name}: sample {sample.index} of question {id!r} "
                "has a parent that does not come before it"
            )
    compare = of_question(compare)
    class_N = classify((s.answer for s in samples), kind, compare)
    firsts: list[str] = []
    for sample, own in zip(samples, class_N, strict=True):
        if own == len(firsts):
            firsts.append(sample.answer or "")
    reference = recorded.references[id]
    right = (
        grade(first, reference, kind, compare) == "right" for first in firsts
    )
    return Asked(
        id,
        tuple(samples),
        tuple(tuple(place[p] for p in s.parents) for s in samples),
        class_N,
        tuple(firsts),
        frozenset(number for number, yes in enumerate(right) if yes),
    )


def leader(asked: Asked, samples: int | None = None) -> Leader:
    """The majority of the first so many samples, by default of all."""
    class_N = asked.class_N[:samples]
    votes = Counter(own for own in class_N if own >= 0)
    if not votes:
        return Leader(-1, 0.0, False)
    # classes are numbered as they are seen: the least of equals is the first
    answer = min(votes, key=lambda own: (-votes[own], own))
    return Leader(answer, votes[answer] / len(class_N), answer in asked.right)


def support(asked: Asked, answer: str | None) -> float:
    """The share of the samples that give this answer, which a vote need not
    give to the majority's."""
    answers = (sample.answer for sample in asked.samples)
    own = dict(zip(answers, asked.class_N, strict=True)).get(answer, -1)
    return asked.class_N.count(own) / len(asked.class_N) if own >= 0 else 0.0


def planted(judged: Judged) -> bool:
    """Whether chains held altered attempts, of which samples do not tell:
    parents are what was drawn."""
    strategy = judged.recorded.summary.get("strategy")  # the first had none
    return bool(strategy and spec.read(strategy)[1].get("planted"))


def shares(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Of each question, the share of its samples that its majority has, and
    whether that is right, both [Q]."""
    found = [leader(asked) for asked in judged.asked]
    return (
        np.array([one.share for one in found]),
        np.array([one.right for one in found]),
    )


def waves(judged: Judged) -> list[list[tuple[int, Sample]]]:
    """All samples with the number of their question, in the order in which a
    growing budget buys them: round after round, and within a round the first
    sample of every question before the second of any."""
    by_wave: dict[tuple[int, int], list[tuple[int, Sample]]] = {}
    for q, asked in enumerate(judged.asked):
        rank = Counter[int]()
        for sample in asked.samples:
            wave = (sample.round, rank[sample.round])
            by_wave.setdefault(wave, []).append((q, sample))
            rank[sample.round] += 1
    return [by_wave[wave] for wave in sorted(by_wave)]


def votes_right(judged: Judged) -> np.ndarray:
    """Whether the run's own vote was right, bool [Q], as the run graded it."""
    answers = judged.recorded.answers
    return np.array([bool(answers[a.id]["right"]) for a in judged.asked])
