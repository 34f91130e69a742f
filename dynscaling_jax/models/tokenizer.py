"""Text to ids and back, and the prompt that a chat makes."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from dynscaling_jax.models import tokenizer_sentencepiece
from dynscaling_jax.models.checkpoints import read_json
from dynscaling_jax.models.template import Template, check_read
from dynscaling_jax.thinking import (
    KNOWN,
    Thinking,
    around,
    find,
    parts,
    thought,
)
from dynscaling_jax.types import Message

# How families write what parts turns. Some, as DeepSeek, have such a token as
# an ordinary one: the flag `special` alone does not tell.
MARKER = re.compile(r"<[|\uff5c].+[|\uff5c]>")
PROBE = "dynscaling"  # a turn that no template writes by itself


class Tokenizer:
    """Wraps a `tokenizers` backend and the checkpoint's chat template."""

    def __init__(
        self,
        backend: Backend,
        template: str | None,
        variables: Mapping[str, Any],
    ):
        """variables are what the template may read, e.g. bos_token."""
        backend.no_truncation()  # tokenizer.json may ask for either
        backend.no_padding()
        self.backend = backend
        self.template = template
        self.variables = dict(variables)
        self._compiled = Template(template, variables)
        added = backend.get_added_tokens_decoder()
        self._specials = [
            token.content
            for token in added.values()
            if (token.special and len(token.content) > 1)
            or MARKER.fullmatch(token.content)
        ]
        tokens = [token.content for token in added.values()]
        self.marks = find(template or "", tokens)
        kept = parts(self.marks, tokens)
        self._dropped = {
            i for i, t in added.items() if t.special and t.content not in kept
        }

    @property
    def size(self) -> int:
        """One more than the greatest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a turn: of eos_token, and of the special token
        that the template writes after what an assistant said."""
        tokens = [self.variables.get("eos_token"), self._end_of_turn()]
        ids = [self.backend.token_to_id(token) for token in tokens if token]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def encode(self, text: str) -> list[int]:
        """Text to ids; special tokens written in it are recognised, none is
        added. What is no valid Unicode is read as "?"."""
        return self.backend.encode(_valid(text), add_special_tokens=False).ids

    def encode_content(self, text: str) -> list[int]:
        """What stands within a turn to ids: no special token is recognised
        in it, see render."""
        return self.encode(self._defuse(text))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Ids to text. What marks a thought is never skipped: without it,
        thought and answer would run together."""
        dropped = self._dropped if skip_special else ()
        kept = [i for i in ids if i not in dropped]
        return self.backend.decode(kept, skip_special_tokens=False)

    @functools.cached_property
    def thinking(self) -> Thinking:
        """How the model hides its thoughts, by its template and its tokens."""
        marks = tuple(dict.fromkeys((*self.marks, *KNOWN)))
        begun = functools.lru_cache(4096)(self._begun)
        return Thinking(marks, lambda turns: begun(tuple(turns)))

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model reads before it writes.

        Where the last turn is the assistant's, the text ends in it and the
        model goes on with that turn; marks of a thought keep their force in
        it. Otherwise a message cannot smuggle in a turn: special tokens
        spelled in its content are broken by a zero-width space.

        Raises:
            ValueError: the template refuses these messages.
        """
        turns, opened = self._opened(messages)
        return self._compiled.render(turns) + opened

    def _opened(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The turns before a last one of the assistant, and its words."""
        turns = [Message(m.role, self._defuse(m.content)) for m in messages]
        if not turns or turns[-1].role != "assistant":
            return turns, ""
        words = messages[-1].content
        opened = around(words, self.marks, self._defuse)
        if not thought(words, Thinking(self.marks))[0]:
            # no message, in a family whose messages have headers
            opened = "".join(m.answer for m in self.marks) + opened
        return turns[:-1], opened

    def _begun(self, messages: Sequence[Message]) -> str:
        """How the prompt begins the assistant's turn: all after the last
        words of another."""
        turns, opened = self._opened(messages)
        if turns:
            last = turns.pop()
            turns.append(Message(last.role, last.content + PROBE))
        try:
            text = self._compiled.render(turns)
        except ValueError:
            return opened  # what it refuses is said when it is rendered
        _, found, after = text.rpartition(PROBE)
        return (after if found else "") + opened

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages to the ids of a prompt.

        It begins with bos_token, once, where the tokenizer begins texts with
        it, whether the template writes it or leaves it out. (transformers
        leaves it out with the template; llama.cpp does not.)
        """
        text = self.render(messages)
        if self.template is None:
            return self.backend.encode(_valid(text)).ids
        ids = self.encode(text)
        return ids if ids[:1] == self._begin else self._begin + ids

    @functools.cached_property
    def _begin(self) -> list[int]:
        bos = self.variables.get("bos_token")
        ids = self.backend.encode(PROBE).ids[:1]
        begins = bos and ids == [self.backend.token_to_id(bos)]
        return ids if begins else []

    def _end_of_turn(self) -> str | None:
        turns = [Message("user", PROBE), Message("assistant", PROBE)]
        try:
            text = self._compiled.render(turns, prompt=False)
        except ValueError:
            return None  # what it refuses is said when a run asks for it
        _, found, rest = text.rpartition(PROBE)
        after = [s for s in self._specials if rest.lstrip().startswith(s)]
        return max(after, key=len) if found and after else None

    def _defuse(self, text: str) -> str:
        for token in self._specials:
            if token in text:
                text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text


def from_directory(
    directory: Path, variables: Mapping[str, Any] | None = None
) -> Tokenizer:
    """Reads the tokenizer and the template of a Hugging Face directory:
    tokenizer.json or, where there is none, SentencePiece's tokenizer.model.

    Args:
        variables: for the template, beside the names of special tokens.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: a file that is corrupt, or variables that the template
            does not read.
    """
    file, model = directory / "tokenizer.json", directory / "tokenizer.model"
    if file.is_file():
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{file}: not a tokenizer ({error})") from error
        raw = _config(directory)
    elif model.is_file():
        raw = _config(directory)
        added = directory / "added_tokens.json"
        backend, named = tokenizer_sentencepiece.read(
            model, raw, read_json(added) if added.is_file() else {}
        )
        raw = {"add_bos_token": True, **named, **raw}
    else:
        raise FileNotFoundError(
            f"{directory}: tokenizer.json is missing, and tokenizer.model "
            "too, so text cannot be encoded; copy one from the model's "
            "repository"
        )
    # of what kind and content: {"bos_token": ..., "add_bos_token": true}
    named = {
        name: _content(value)
        for name, value in raw.items()
        if name.endswith("_token") and _content(value)
    }
    if "add_bos_token" in raw or "add_eos_token" in raw:
        begin = raw.get("add_bos_token") and named.get("bos_token")
        end = raw.get("add_eos_token") and named.get("eos_token")
        add_ends(backend, begin or "", end or "")
    template = _template(directory, raw)
    chosen = dict(variables or {})
    check_read(template, list(chosen))
    return Tokenizer(backend, template, {**named, **chosen})


def add_ends(backend: Backend, begin: str, end: str) -> None:
    """Texts begin and end with these tokens, where named.

    Raises:
        ValueError: a token that the vocabulary lacks.
    """
    ids = {t: backend.token_to_id(t) for t in (begin, end) if t}
    for token, i in ids.items():
        if i is None:
            raise ValueError(
                f"texts are to begin or end with {token!r}, which the "
                "tokenizer's vocabulary lacks"
            )
    backend.post_processor = processors.TemplateProcessing(
        single=[part for part in (begin, "$A", end) if part],
        special_tokens=list(ids.items()),
    )


def _config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json; what early files hold apart is joined to it."""
    file = directory / "tokenizer_config.json"
    raw = read_json(file) if file.is_file() else {}
    named = directory / "special_tokens_map.json"
    if named.is_file() and "added_tokens_decoder" not in raw:
        raw |= read_json(named)
    return raw


def _template(directory: Path, raw: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not text ({error})") from None
    template = raw.get("chat_template")
    if isinstance(template, list):  # several by name
        by_name = {
            t.get("name"): t.get("template")
            for t in template
            if isinstance(t, Mapping)
        }
        if "default" not in by_name:
            raise ValueError(
                f"{directory}: tokenizer_config.json has chat templates "
                f"{', '.join(map(str, by_name))}, and none is named default; "
                "write the one you want into chat_template.jinja"
            )
        template = by_name["default"]
    if template is not None and not isinstance(template, str):
        raise ValueError(
            f"{directory}: tokenizer_config.json: chat_template must be text"
        )
    return template


def _valid(text: str) -> str:
    """Lone surrogates, which a byte-wise truncated answer can hold, have no
    bytes."""
    return text.encode("utf-8", "replace").decode()


def _content(token: Any) -> str:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
