"""The benchmarks by name: where each lies, and how its rows are read."""

import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from typing import Any, NamedTuple

from dynscaling_jax.tasks.sources import HubFile, Row

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

_COMMITS = {  # the version that is read of each dataset on the hub
    "openai/gsm8k": "740312add88f781978c0658806c59bc2815b9866",
    "HuggingFaceH4/MATH-500": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
    "ChilleD/SVAMP": "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef",
    "lukaemon/bbh": "982bb89fd79532a8ac676a61fc42eb1aeec63f99",
    "HuggingFaceH4/aime_2024": "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    "math-ai/aime25": "563bb8404243c5f09de6ec262f2db674fe5bce9b",
    "Idavidrein/gpqa": "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    "cais/mmlu": "c30699e8356da336a370243923dbaf21066bb9fe",
}


def _hub(repo: str, file: str, split: str = "*") -> dict[str, HubFile]:
    return {split: HubFile(repo, file, _COMMITS[repo])}


_SHARD = "-00000-of-00001.parquet"
BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        _gsm8k,
        kind="number",
        split="test",
        hub=_hub("openai/gsm8k", "main/{split}" + _SHARD),
    ),
    "math500": Benchmark(
        _problem,
        kind="math",
        split="test",
        hub=_hub("HuggingFaceH4/MATH-500", "test.jsonl", "test"),
    ),
    "svamp": Benchmark(
        _svamp,
        kind="number",
        split="test",
        hub=_hub("ChilleD/SVAMP", "{split}.json"),
    ),
    "bbh": Benchmark(
        _bbh, subset=True, hub=_hub("lukaemon/bbh", "{split}/test" + _SHARD)
    ),
    "aime": Benchmark(
        _problem,
        kind="number",
        split="2025",
        subset=True,
        hub=_hub("HuggingFaceH4/aime_2024", "data/train" + _SHARD, "2024")
        | _hub("math-ai/aime25", "test.jsonl", "2025"),
    ),
    "gpqa": Benchmark(
        _gpqa,
        kind="choice",
        split="diamond",
        subset=True,
        shuffled=True,
        hub=_hub("Idavidrein/gpqa", "gpqa_{split}.csv"),
    ),
    "mmlu": Benchmark(
        _mmlu,
        kind="choice",
        split="test",
        hub=_hub("cais/mmlu", "all/{split}" + _SHARD),
    ),
    "jsonl": Benchmark(_jsonl),
}
