"""Recorded samples as arrays, to replay whole experiments without a model.

A bank is a file of JSON lines, one a question:

    {"query_id": "aime2025/3", "reference": "117",
     "answers": ["117", null, ...], "new_tokens": [5350, 4011, ...],
     "logprobs": [-0.3, -0.4, ...]}

null is an unreadable answer; logprobs, the mean log-probability of each
sample, may be left out. A finished samples.jsonl is read as a bank too; its
references come as an argument or from references.json beside it, an object
{query_id: reference}.
"""

import contextlib
import numbers
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax import lines
from dynscaling_jax.analysis.bank import Bank
from dynscaling_jax.experiments.log import read_samples, runs_below
from dynscaling_jax.files import read_json
from dynscaling_jax.sampler import CANCELLED
from dynscaling_jax.tasks import Comparer, classify, kind_of, read_reference


class _Row(NamedTuple):
    query_id: str
    reference: str | None
    answers: list[str | None]
    new_tokens: list[int]
    logprobs: list[float] | None


def load_bank(
    path: str | os.PathLike,
    *,
    kind: str = "",
    references: Mapping[str, str] | None = None,
    depth: int | None = None,
    compare: Comparer | None = None,
) -> Bank:
    """Reads a bank file, or the samples.jsonl of a run or its directory.

    Answers are numbered as votes and grading do; one that the kind does not
    read in full keeps a number of its own: it was an answer, if a wrong one.

    Args:
      path: of the file or the directory.
      kind: of answers; by default the references tell it.
      references: query id -> reference, in place of those in the file.
      depth: keeps the first so many samples of each question; by default
        all, and then every question must have equally many.
      compare: one that is open already saves the time to start another.

    Raises:
      ValueError: naming file and line or question, for a malformed line, a
        question that comes twice, lists that differ in length, questions of
        unequal depth or less than depth, or a missing reference; for an
        unknown kind.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "samples.jsonl").exists():
            raise FileNotFoundError(
                f"{path} has no samples.jsonl: expected a bank file, or the "
                f"workdir of a run{runs_below(path)}"
            )
        path = path / "samples.jsonl"
    rows = _rows(path)
    if not rows:
        raise ValueError(f"{path}: expected a line a question, found none.")
    if references is None and any(row.reference is None for row in rows):
        references = _sibling(path)
    logged = all(row.logprobs is not None for row in rows)
    depth = _depth(path, rows, depth)
    correct = []
    for row in rows:
        reference = row.reference
        if references is not None:
            reference = references.get(row.query_id, reference)
        if not isinstance(reference, str):
            raise ValueError(
                f"{path}: no reference for question {row.query_id!r}; give "
                "one, a text, in the row, in the argument references, or in "
                "references.json beside the file."
            )
        correct.append(reference)
    kind = kind or kind_of(correct)
    answer_QN = np.full((len(rows), depth), -1, np.int32)
    reference_Q = np.empty(len(rows), np.int32)
    with contextlib.ExitStack() as stack:
        compare = compare or stack.enter_context(Comparer())
        for q, (row, reference) in enumerate(zip(rows, correct, strict=True)):
            texts = [*row.answers[:depth], reference]
            *ids, right = _numbered(texts, kind, compare)
            answer_QN[q] = ids
            reference_Q[q] = right if right in ids else -2
    return Bank(
        name=path.resolve().parent.name
        if path.name == "samples.jsonl"
        else path.stem,
        ids=tuple(row.query_id for row in rows),
        answer_QN=answer_QN,
        tokens_QN=np.array([r.new_tokens[:depth] for r in rows], np.int32),
        logprob_QN=np.array(
            [(r.logprobs or [])[:depth] for r in rows], np.float32
        )
        if logged
        else None,
        reference_Q=reference_Q,
        kind=kind,
    )


def tidy(answer: str) -> str:
    r"""Gives a light canonical form, safe for any kind of answer.

    No outer dollar signs, no spacing (blanks, \, \! \; and \left \right),
    \frac for \dfrac and \tfrac, no full stop at the end.
    """
    answer = re.sub(
        r"\\(?:left|right)(?![A-Za-z])|(?<!\\)\\[,!;: ]", "", answer
    )
    answer = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", answer)
    return re.sub(r"\s+", " ", answer).strip(" $").rstrip(". ")


def _numbered(
    texts: Sequence[str | None], kind: str, compare: Comparer
) -> list[int]:
    """Ids of answers in the order first seen; -1 is None."""
    read = [text and read_reference(text, kind) for text in texts]
    keys = [
        text if text is None else tidy(text) if id < 0 else id
        for text, id in zip(texts, classify(read, kind, compare), strict=True)
    ]
    known: dict[Hashable, int] = {None: -1}
    return [known.setdefault(key, len(known) - 1) for key in keys]


def _depth(path: Path, rows: list[_Row], depth: int | None) -> int:
    """Samples of each question that the bank has, or that are wanted."""
    shortest = min(rows, key=lambda row: len(row.answers))
    longest = max(rows, key=lambda row: len(row.answers))
    least, most = len(shortest.answers), len(longest.answers)
    if least == 0:
        raise ValueError(
            f"{path}: question {shortest.query_id!r} has no answers."
        )
    if depth is None and least < most:
        raise ValueError(
            f"{path}: question {shortest.query_id!r} has {least} answers, "
            f"{longest.query_id!r} has {most}; expected equally many. Set "
            f"depth to at most {least} to keep the first so many of each."
        )
    if depth is not None and not (
        isinstance(depth, numbers.Integral) and 0 < depth <= least
    ):
        raise ValueError(
            f"{path}: depth={depth!r}: expected 1 to {least}, the answers of "
            f"question {shortest.query_id!r}."
        )
    return depth or least


def _rows(path: Path) -> list[_Row]:
    """The questions of a file of either form."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of recorded samples")
    first = next(lines.rows(path, log=False), (0, 0, None))[-1]
    if isinstance(first, dict) and "index" in first:
        return _logged(path)
    found: dict[str, _Row] = {}

    def read(value: Any) -> None:
        row = _bank_row(value)
        if row.query_id in found:
            raise ValueError(f"question {row.query_id!r} comes twice")
        found[row.query_id] = row

    for _ in lines.rows(path, read, log=False):
        pass
    return list(found.values())


def _bank_row(value: Any) -> _Row:
    def check(right: bool, expected: str) -> None:
        if not right:
            raise ValueError(f"expected {expected}")

    check(isinstance(value, dict), "a JSON object")
    query_id, reference = value.get("query_id"), value.get("reference")
    answers, tokens = value.get("answers"), value.get("new_tokens")
    logprobs = value.get("logprobs")
    check(isinstance(query_id, str), "query_id, a string")
    check(
        reference is None or isinstance(reference, str),
        "reference, a string",
    )
    check(
        isinstance(answers, list)
        and all(a is None or isinstance(a, str) for a in answers),
        "answers, a list of strings and nulls",
    )
    check(
        isinstance(tokens, list)
        and all(type(t) is int and 0 <= t < 2**31 for t in tokens),
        "new_tokens, a list of whole numbers",
    )
    check(
        logprobs is None
        or isinstance(logprobs, list)
        and all(map(lines.is_sound, logprobs)),
        "logprobs, a list of numbers, or none",
    )
    for name, of_each in (("new_tokens", tokens), ("logprobs", logprobs)):
        check(
            of_each is None or len(of_each) == len(answers),
            f"{len(answers)} {name}, one an answer, not {len(of_each or ())}",
        )
    return _Row(query_id, reference, answers, tokens, logprobs)


def _logged(path: Path) -> list[_Row]:
    """The samples of a run by question, in the order of their indices.

    Samples that were cancelled are left out, and so are those that read
    others: a replay takes the samples of a question as independent.
    """
    rows: dict[str, list] = {}
    for sample in read_samples(path):
        if sample.finish_reason == CANCELLED or sample.parents:
            continue
        rows.setdefault(sample.query_id, []).append(sample)
    gathered = []
    for query_id, samples in rows.items():
        samples.sort(key=lambda sample: sample.index)
        logprobs = [sample.logprob for sample in samples]
        gathered.append(
            _Row(
                query_id,
                None,
                [sample.answer for sample in samples],
                [sample.new_tokens for sample in samples],
                None if None in logprobs else logprobs,
            )
        )
    return gathered


def _sibling(path: Path) -> dict[str, str]:
    beside = path.with_name("references.json")
    if not beside.exists():
        raise ValueError(
            f"{path}: rows without a reference, and no {beside}; write one, "
            '{"query_id": "reference"}, or give references.'
        )
    references = read_json(beside)
    if not isinstance(references, dict) or not all(
        isinstance(reference, str) for reference in references.values()
    ):
        raise ValueError(
            f"{beside}: expected an object of strings, query id -> reference."
        )
    return references
