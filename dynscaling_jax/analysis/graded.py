"""A recorded run with its answers numbered and graded: what reports count.

Letters: Q questions, N samples of a question, M budgets, R rounds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax.sampler import CANCELLED
from dynscaling_jax.scaling import spec
from dynscaling_jax.tasks import Compare, classify, grade, of_question
from dynscaling_jax.types import Sample


class RecordedRun(NamedTuple):
    """The files of a finished run, read. All mappings are by query id."""

    name: str
    summary: Mapping[str, Any]
    references: Mapping[str, str]
    questions: Mapping[str, str]  # texts; those not recorded are missing
    answers: Mapping[str, Mapping[str, Any]]  # answers.json
    samples: Sequence[Sample]
    rounds: Sequence[Mapping[str, Any]]  # rounds.jsonl
    events: Sequence[Mapping[str, Any]] = ()  # events.jsonl


class GradedQuestion(NamedTuple):
    """The samples of one question by index, and what their answers are.

    A run whose time was up can lack a sample before its last one, so places
    and indices may differ.
    """

    id: str
    samples: tuple[Sample, ...]  # [N]
    parents: tuple[tuple[int, ...], ...]  # [N], their places among samples
    answer_N: tuple[int, ...]  # from 0 in the order seen; -1 is unreadable
    answers: tuple[str, ...]  # the first text of each answer id
    right: frozenset[int]  # the answer ids that equal the reference

    @property
    def right_N(self) -> list[bool]:
        """Whether each sample is right."""
        return [answer in self.right for answer in self.answer_N]

    def number(self, answer: str | None) -> int:
        """Finds the id of a text that some sample answered; -1 is none."""
        texts = (sample.answer for sample in self.samples)
        return dict(zip(texts, self.answer_N, strict=True)).get(answer, -1)


class GradedRun(NamedTuple):
    """A run whose answers are numbered and graded."""

    recorded: RecordedRun
    questions: tuple[GradedQuestion, ...]  # [Q], in the references' order

    @property
    def vote_right_Q(self) -> np.ndarray:
        """Whether the run's own vote was right, as the run graded it."""
        answers = self.recorded.answers
        return np.array([bool(answers[q.id]["right"]) for q in self.questions])

    @property
    def corrupted(self) -> bool:
        """Whether chains held corrupted attempts; samples do not tell."""
        strategy = self.recorded.summary.get("strategy")  # the first had none
        options = spec.read(strategy)[1] if strategy else {}
        return bool(options.get("corrupted") or options.get("planted"))


class Majority(NamedTuple):
    """The majority of one question; ties go to the answer seen first."""

    answer: int  # its id, -1 where nothing is readable
    share: float  # its votes of all samples, 0 where there are none
    right: bool


def grade_run(recorded: RecordedRun, compare: Compare) -> GradedRun:
    """Numbers and grades every answer as votes and grading do.

    Raises:
        ValueError: a question without an answer; or as grade_questions.
    """
    if missing := recorded.references.keys() - recorded.answers.keys():
        raise ValueError(
            f"{recorded.name}: answers.json has no answer to question "
            f"{min(missing)!r}, whose reference is in references.json"
        )
    try:
        questions = grade_questions(
            recorded.samples,
            recorded.references,
            recorded.summary["kind"],
            compare,
        )
    except ValueError as error:
        raise ValueError(f"{recorded.name}: {error}") from None
    return GradedRun(recorded, questions)


def grade_questions(
    samples: Iterable[Sample],
    references: Mapping[str, str],
    kind: str,
    compare: Compare,
) -> tuple[GradedQuestion, ...]:
    """Numbers and grades the answers to each question, [Q].

    Samples that were cancelled are left out.

    Raises:
        ValueError: a sample of a question that has no reference; a question
            with a sample twice, or with one that has a parent which does not
            come before it.
    """
    by_query: dict[str, list[Sample]] = {id: [] for id in references}
    for sample in samples:
        if sample.query_id not in by_query:
            raise ValueError(
                f"a sample of question {sample.query_id!r}, for which "
                "references.json has no reference"
            )
        if sample.finish_reason != CANCELLED:
            by_query[sample.query_id].append(sample)
    return tuple(
        _question(id, own, references[id], kind, of_question(compare))
        for id, own in by_query.items()
    )


def _question(
    id: str, samples: list[Sample], reference: str, kind: str, compare: Compare
) -> GradedQuestion:
    samples.sort(key=lambda sample: sample.index)
    place = {sample.index: n for n, sample in enumerate(samples)}
    if len(place) < len(samples):
        raise ValueError(f"question {id!r} has a sample twice")
    for sample in samples:
        if any(p >= sample.index or p not in place for p in sample.parents):
            raise ValueError(
                f"sample {sample.index} of question {id!r} has a parent that "
                "does not come before it"
            )
    answer_N = classify((s.answer for s in samples), kind, compare)
    answers: list[str] = []
    for sample, answer in zip(samples, answer_N, strict=True):
        if answer == len(answers):
            answers.append(sample.answer or "")
    return GradedQuestion(
        id,
        tuple(samples),
        tuple(tuple(place[p] for p in s.parents) for s in samples),
        answer_N,
        tuple(answers),
        frozenset(
            number
            for number, answer in enumerate(answers)
            if grade(answer, reference, kind, compare) == "right"
        ),
    )


def majority(question: GradedQuestion, samples: int | None = None) -> Majority:
    """Finds the majority of the first so many samples, by default of all."""
    answer_N = question.answer_N[:samples]
    votes = Counter(answer for answer in answer_N if answer >= 0)
    if not votes:
        return Majority(-1, 0.0, False)
    # ids are numbered as they are seen: the least of equals is the first
    answer = min(votes, key=lambda answer: (-votes[answer], answer))
    share = votes[answer] / len(answer_N)
    return Majority(answer, share, answer in question.right)


def majorities(run: GradedRun) -> tuple[np.ndarray, np.ndarray]:
    """Gives the share of each question's majority, and whether it is right."""
    found = [majority(question) for question in run.questions]
    return (
        np.array([one.share for one in found]),
        np.array([one.right for one in found]),
    )
