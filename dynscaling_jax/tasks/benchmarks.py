"""The benchmarks by name: where each lies, and how its rows are read."""

import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any, NamedTuple

from dynscaling_jax.tasks.sources import HubFile, Row, bundled

OPTIONS = "Options:"  # of bbh, before them


class Item(NamedTuple):
    """A row of a benchmark."""

    question: str
    answer: str  # where there are options, the index of the right one
    options: tuple[str, ...] = ()
    id: str = ""  # "" is the number of the row


Fields = Mapping[str, str]  # what jsonl's fields are called in the file


class Benchmark(NamedTuple):
    """Where the questions of a benchmark are and how its rows are read."""

    read: Callable[[Row, Fields], Item]
    kind: str = ""  # of answer; "" is the one that reads all references
    split: str = ""  # the usual one
    subset: bool = False  # the split belongs to the name of the task
    shuffled: bool = False  # the file lists the right option first
    hub: Mapping[str, HubFile] = {}  # by split; "*" is any


def _field(row: Row, *names: str) -> Any:
    for name in names:
        if row.values.get(name) is not None:
            return row.values[name]
    raise ValueError(
        f"{row.place}: no column {' or '.join(map(repr, names))}; there are: "
        f"{', '.join(row.values)}"
    )


def _text(row: Row, *names: str) -> str:
    """A field that is text or a number, as text."""
    value = _field(row, *names)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{row.place}: expected text in {' or '.join(names)}, got "
            f"{type(value).__name__}"
        )
    if not str(value).strip():
        raise ValueError(f"{row.place}: {' or '.join(names)} is empty")
    return str(value).strip()


def _options(row: Row, name: str) -> tuple[str, ...]:
    options = _field(row, name)
    if not isinstance(options, list) or not 2 <= len(options) <= 26:
        raise ValueError(f"{row.place}: expected 2 to 26 texts in {name!r}")
    return tuple(str(option).strip() for option in options)


def _right(row: Row, name: str, options: tuple[str, ...]) -> str:
    """The index of the right option, which the file names in several ways.

    A number in the file is that index; a text is the letter, the option in
    full, or the index, in this order.
    """
    answer = _text(row, name)
    index = -1
    if re.fullmatch(r"\(?[A-Za-z]\)?", answer):
        index = ord(answer.strip("()").upper()) - ord("A")
    elif isinstance(row.values[name], str) and options.count(answer) == 1:
        index = options.index(answer)
    elif re.fullmatch(r"\d{1,2}", answer):
        index = int(answer)
    if not 0 <= index < len(options):
        raise ValueError(
            f"{row.place}: the answer {answer!r} is none of the "
            f"{len(options)} options"
        )
    return str(index)


def _gsm8k(row: Row, _: Fields) -> Item:
    solution = _text(row, "answer")
    if "####" not in solution:
        raise ValueError(
            f"{row.place}: no #### before the final answer, as gsm8k's files "
            "have it; task.name=jsonl reads answers as they are"
        )
    return Item(_text(row, "question"), solution.rpartition("####")[2].strip())


def _svamp(row: Row, _: Fields) -> Item:
    body, question = _text(row, "Body"), _text(row, "Question")
    body = body if body[-1] in ".?!" else body + "."
    return Item(f"{body} {question}", _text(row, "Answer"))


def _bbh(row: Row, _: Fields) -> Item:
    """Some subtasks end the question with lettered options."""
    text, answer = _text(row, "input"), _text(row, "target")
    question, rest = text.partition(f"\n{OPTIONS}\n")[::2]
    lines = rest.splitlines()
    known = [f"({letter})" for letter in ascii_uppercase[: len(lines)]]
    heads = [line[:4] for line in lines]
    if answer not in known or heads != [f"{head} " for head in known]:
        return Item(text, answer)
    options = tuple(line[4:] for line in lines)
    return Item(f"{question}\n{OPTIONS}", str(known.index(answer)), options)


def _problem(row: Row, _: Fields) -> Item:
    return Item(
        _text(row, "problem", "Problem"), _text(row, "answer", "Answer")
    )


def _gpqa(row: Row, _: Fields) -> Item:
    right = _text(row, "Correct Answer")
    wrong = (_text(row, f"Incorrect Answer {n}") for n in (1, 2, 3))
    return Item(_text(row, "Question"), "0", (right, *wrong))


def _mmlu(row: Row, _: Fields) -> Item:
    options = _options(row, "choices")
    return Item(_text(row, "question"), _right(row, "answer", options), options)


def _jsonl(row: Row, fields: Fields) -> Item:
    question = _text(row, fields.get("question", "question"))
    answer = fields.get("answer", "answer")
    named = "id" in fields or "id" in row.values
    id = _text(row, fields.get("id", "id")) if named else ""
    if "choices" not in fields:
        return Item(question, _text(row, answer), id=id)
    options = _options(row, fields["choices"])
    return Item(question, _right(row, answer, options), options, id)


FIELDS = ("question", "answer", "id", "choices")  # of jsonl

_READERS = {
    "gsm8k": _gsm8k,
    "math500": _problem,
    "svamp": _svamp,
    "bbh": _bbh,
    "aime": _problem,
    "gpqa": _gpqa,
    "mmlu": _mmlu,
}


def _benchmark(read: Callable[[Row, Fields], Item], facts: Any) -> Benchmark:
    files = facts.pop("hub", {}).items()
    hub = {split: HubFile(**file) for split, file in files}
    return Benchmark(read, **facts, hub=hub)


BENCHMARKS = {
    name: _benchmark(_READERS[name], facts)
    for name, facts in bundled("benchmarks.toml").items()
} | {"jsonl": Benchmark(_jsonl)}
