"""Examples: what a model is tuned on, from chat JSON Lines to token ids.

A line is either a chat, of which every turn of the assistant is an example,

    {"messages": [{"role": "user", "content": "..."}, ...]}

or a prompt and what is to follow it; where the prompt ends in a turn of the
assistant, the completion goes on with that turn:

    {"prompt": [{"role": "user", "content": "..."}], "completion": "..."}

Only what the assistant is to write counts in the loss.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax.checkpoints.tokenizer import Tokenizer
from dynscaling_jax.files import write_text
from dynscaling_jax.tasks.sources import read_rows
from dynscaling_jax.types import Message


class Example(NamedTuple):
    """A prompt, and what the assistant is to write after it."""

    prompt: tuple[Message, ...]
    completion: str


class Examples(NamedTuple):
    """Many examples as ids, one after another.

    Example i is ids[ends[i - 1] : ends[i]], and its completion begins at
    starts[i], counted from its own first token.
    """

    ids: np.ndarray  # int32 [tokens of all]
    ends: np.ndarray  # int64 [examples]
    starts: np.ndarray  # int32 [examples]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each, int64 [examples]."""
        return np.diff(self.ends, prepend=0)

    def padded(self, which: np.ndarray, size: int) -> np.ndarray:
        """Some of them as int32 [len(which), size], padded with 0."""
        out = np.zeros((len(which), size), np.int32)
        for row, i in enumerate(which):
            begin = self.ends[i - 1] if i else 0
            ids = self.ids[begin : self.ends[i]]
            out[row, : len(ids)] = ids
        return out


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file, in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is neither of the two; names its place.
    """
    for row, place in read_rows(path):
        if "messages" in row:
            turns = _turns(row["messages"], f"{place}: messages")
            ends = [i for i, m in enumerate(turns) if m.role == "assistant"]
            if not ends or not ends[0]:
                raise ValueError(
                    f"{place}: messages need a turn of the assistant, with "
                    "one before it"
                )
            for end in ends:
                yield Example(turns[:end], turns[end].content)
        elif isinstance(row.get("completion"), str):
            yield Example(
                _turns(row.get("prompt"), f"{place}: prompt"),
                row["completion"],
            )
        else:
            raise ValueError(
                f'{place}: expected "messages", or "prompt" and "completion", '
                f"got the fields {', '.join(map(repr, row)) or 'none'}"
            )


def row_of(example: Example) -> dict[str, Any]:
    """An example as the fields of a line, which read_examples reads back."""
    turns = [message._asdict() for message in example.prompt]
    return {"prompt": turns, "completion": example.completion}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON Lines, whole or not at all."""
    write_text(path, (json.dumps(row) + "\n" for row in rows))


def _turns(value: Any, place: str) -> tuple[Message, ...]:
    def turn(one: Any) -> bool:
        return isinstance(one, dict) and all(
            isinstance(one.get(field), str) for field in Message._fields
        )

    if not isinstance(value, list) or not value or not all(map(turn, value)):
        raise ValueError(
            f'{place}: expected turns, each {{"role": "...", "content": "..."}}'
        )
    return tuple(Message(one["role"], one["content"]) for one in value)


def encode(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    end_id: int,
    longest: int,
) -> tuple[Examples, int]:
    """Examples as ids, and how many were left out as too long.

    Prompt and completion are encoded apart, as they are when the model is
    asked, and end_id closes each.

    Raises:
        ValueError: none is at most `longest` tokens long.
    """
    parts, starts, lengths = [], [], []
    for example in examples:
        prompt = tokenizer.encode_chat(example.prompt)
        ids = [*prompt, *tokenizer.encode_content(example.completion), end_id]
        if len(ids) <= longest:
            parts.append(np.asarray(ids, np.int32))
            starts.append(len(prompt))
            lengths.append(len(ids))
    if not parts:
        raise ValueError(
            f"all {len(examples)} examples are longer than {longest} tokens"
        )
    kept = Examples(
        np.concatenate(parts),
        np.cumsum(np.asarray(lengths, np.int64)),
        np.asarray(starts, np.int32),
    )
    return kept, len(examples) - len(parts)
