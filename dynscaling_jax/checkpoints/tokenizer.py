"""Text to ids and back, and the prompt that a chat makes.

Tokenizer and template come with a checkpoint and are not trusted: they live in
a worker process, whose memory and time are bounded. Nothing of them is loaded
here. A request costs some 50 microseconds; the worker starts in 0.15 s.
"""

import copy
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynscaling_jax.thinking import KNOWN, Thinking, ending, find
from dynscaling_jax.types import Message
from dynscaling_jax.workers import Worker, WorkerError

SECONDS = 10.0  # of processor time that a request may take,
SPEED = 20_000  # and one more for so many characters of it
LOADING = 60.0  # that the files may take
MOST = 2**27  # bytes of an answer
_PROGRAM = Path(__file__).with_name("tokenizer_worker.py")
# One text at a time: threads, and their stacks, would count as memory.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}


class Tokenizer:
    """A tokenizer and a chat template, in a worker.

    Attributes:
        size: one more than the greatest id.
        end_ids: the ids that end a turn: of eos_token, and of the special
            token that the template writes after what an assistant said.
        added: the tokens that are found in a text before all else.
        template: its text; None where messages are read as they are.
        variables: what the template reads, e.g. bos_token.
    """

    def __init__(self, name: str, spec: Mapping[str, Any]):
        """Starts the worker and waits until it has read the files.

        Args:
            name: of the file or directory; it stands in every message.
            spec: what to read; see codec.open_spec.

        Raises:
            FileNotFoundError: a file that is missing.
            ValueError: a file that is corrupt, or does not load in bounded
                memory and time.
        """
        self.name = name
        first = json.dumps([LOADING, "open", [spec]]) + "\n"
        self._worker = Worker(_PROGRAM, first.encode(), _ENVIRONMENT)
        self._rows: int | None = None
        facts = self._ask("facts", seconds=LOADING)
        self.size: int = facts["size"]
        self.end_ids: tuple[int, ...] = tuple(facts["end_ids"])
        self.added: tuple[str, ...] = tuple(facts["added"])
        self.template: str | None = facts["template"]
        self.variables: dict[str, Any] = facts["variables"]

    def within(self, rows: int) -> "Tokenizer":
        """Returns the same tokenizer for an embedding of so many rows.

        A text with an id past them is refused; other texts are read.
        """
        bounded = copy.copy(self)
        bounded._rows = rows
        return bounded

    def encode(self, text: str) -> list[int]:
        """Encodes text; special tokens in it are recognised, none is added.

        What is no valid Unicode is read as "?".
        """
        return self._ids("encode", text)

    def encode_content(self, text: str) -> list[int]:
        """Encodes what stands within a turn: without special tokens."""
        return self._ids("encode_content", text)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Decodes ids.

        Marks of a thought are never skipped: without them, thought and answer
        would run together.
        """
        return self._ask("decode", [*map(int, ids)], skip_special)

    @functools.cached_property
    def thinking(self) -> Thinking:
        """Is how the model hides its thoughts, by its template and tokens."""
        found = find(self.template or "", self.added)
        marks = tuple(dict.fromkeys((*found, *KNOWN)))

        @functools.lru_cache(4096)
        def turn_start(turns: tuple[Message, ...]) -> str:
            return self._ask("turn_start", turns, seconds=_seconds(turns))

        return Thinking(
            marks,
            lambda turns: turn_start(tuple(turns)),
            ending(self.template or "", self.added),
        )

    def render(self, messages: Sequence[Message]) -> str:
        """Returns the text of the prompt that the messages make.

        Where the last turn is the assistant's, the text ends in it and the
        model goes on with that turn; marks of a thought keep their force in
        it. Otherwise a message cannot smuggle in a turn: special tokens
        spelled in its content are broken by a zero-width space.

        Raises:
            ValueError: the template refuses these messages.
        """
        return self._ask("render", messages, seconds=_seconds(messages))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Encodes the prompt that the messages make.

        It begins with bos_token, once, where the tokenizer begins texts with
        it, whether the template writes it or leaves it out. (transformers
        leaves it out with the template; llama.cpp does not.)
        """
        return self._ids("encode_chat", messages)

    def as_json(self) -> str:
        """Returns the content of a tokenizer.json."""
        return self._ask("as_json")

    def _ids(self, name: str, argument: Any) -> list[int]:
        ids = self._ask(name, argument, seconds=_seconds(argument))
        most = max(ids, default=0)
        if self._rows is not None and most >= self._rows:
            raise ValueError(
                f"{self.name}: a text has the token "
                f"{self._ask('spelled', most)!r}, id {most}; the embedding of "
                f"the model has {self._rows} rows"
            )
        return ids

    def _ask(
        self, name: str, *arguments: Any, seconds: float | None = None
    ) -> Any:
        seconds = seconds or SECONDS
        request = json.dumps([seconds, name, arguments]) + "\n"
        try:
            answer = self._worker.ask(request.encode(), seconds, MOST)
        except WorkerError as error:
            found = {"error": (False, f"tokenizer or chat template: {error}")}
        else:
            found = json.loads(answer)
        if "error" in found:
            missing, message = found["error"]
            if self.name not in message:
                message = f"{self.name}: {message}"
            raise (FileNotFoundError if missing else ValueError)(message)
        return found["value"]


def from_directory(
    directory: Path, variables: Mapping[str, Any] | None = None
) -> Tokenizer:
    """Reads the tokenizer and the template of a Hugging Face directory.

    Args:
        directory: holds tokenizer.json or SentencePiece's tokenizer.model.
        variables: for the template, beside the names of special tokens.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: a file that is corrupt, or variables that the template
            does not read.
    """
    spec = {"directory": str(directory), "variables": variables or {}}
    return _with_template(Tokenizer(str(directory), spec))


def from_gguf(
    file: str,
    metadata: Mapping[str, Any],
    variables: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Builds the tokenizer that the metadata of a GGUF file describe.

    Raises:
        ValueError: a vocabulary of a kind that is not supported, a part that
            is missing or does not fit the others, or variables that the
            template does not read.
    """
    read = {k: v for k, v in metadata.items() if k.startswith("tokenizer.")}
    spec = {"gguf": read, "variables": variables or {}}
    return _with_template(Tokenizer(file, spec))


def from_json(
    text: str,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Makes a tokenizer of the content of a tokenizer.json.

    Raises:
        ValueError: the text or the template is corrupt.
    """
    spec = {"json": text, "template": template, "variables": variables or {}}
    return Tokenizer("", spec)


def _with_template(tokenizer: Tokenizer) -> Tokenizer:
    if tokenizer.template is None:
        warnings.warn(
            f"{tokenizer.name}: no chat template; a prompt is the contents of "
            "its messages, a blank line between, as base models read. For "
            "another model fetch chat_template.jinja",
            stacklevel=2,
        )
    return tokenizer


def _seconds(argument: str | Sequence[Message]) -> float:
    texts = [argument]
    if not isinstance(argument, str):
        texts = [message.content for message in argument]
    return SECONDS + sum(map(len, texts)) / SPEED
