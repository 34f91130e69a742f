"""A tokenizer and a chat template, as a worker process holds them.

What is imported here is imported by the worker: no JAX. Everybody else asks
tokenizer.py, whose methods these are.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from dynscaling_jax.checkpoints.files import read_json, read_text
from dynscaling_jax.checkpoints.template import (
    PROBE,
    Template,
    Turns,
    check_read,
)
from dynscaling_jax.thinking import Thinking, around, find, parts, thought

# How families write what parts turns. Some, as DeepSeek, have such a token as
# an ordinary one: the flag `special` alone does not tell.
MARKER = re.compile(r"<[|\uff5c].+[|\uff5c]>")
MOST = 2**28  # bytes of a tokenizer.json; Gemma's has an eighth of it


class Codec:
    """Wraps a `tokenizers` backend and the checkpoint's chat template."""

    def __init__(
        self,
        backend: Backend,
        template: str | None,
        variables: Mapping[str, Any],
        where: str = "chat template",
    ):
        """Compiles the template.

        Args:
            backend: encodes and decodes.
            template: of chats; None is that of base models.
            variables: what the template may read, e.g. bos_token.
            where: the template stands, for messages.

        Raises:
            ValueError: the template does not parse.
        """
        backend.no_truncation()  # tokenizer.json may ask for either
        backend.no_padding()
        self.backend = backend
        self.template = template
        self.variables = dict(variables)
        self._compiled = Template(template, variables, where)
        added = backend.get_added_tokens_decoder()
        self._specials = [
            token.content
            for token in added.values()
            if (token.special and len(token.content) > 1)
            or MARKER.fullmatch(token.content)
        ]
        tokens = [token.content for token in added.values()]
        self._marks = find(template or "", tokens)
        kept = parts(self._marks, tokens)
        self._dropped = {
            i for i, t in added.items() if t.special and t.content not in kept
        }

    @property
    def size(self) -> int:
        """Is one more than the greatest id."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return 1 + max(vocabulary.values(), default=-1)

    def facts(self) -> dict[str, Any]:
        """Returns the attributes of Tokenizer."""
        added = self.backend.get_added_tokens_decoder().values()
        return {
            "size": self.size,
            "end_ids": self.end_ids,
            "added": [token.content for token in added],
            "template": self.template,
            "variables": self.variables,
        }

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Are the ids that end a turn.

        They are that of eos_token, and that of the special token that the
        template writes after the assistant's words.
        """
        tokens = [self.variables.get("eos_token"), self._end_of_turn()]
        ids = [self.backend.token_to_id(token) for token in tokens if token]
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def encode(self, text: str) -> list[int]:
        """Encodes as Tokenizer.encode does."""
        return self.backend.encode(_valid(text), add_special_tokens=False).ids

    def encode_content(self, text: str) -> list[int]:
        """Encodes as Tokenizer.encode_content does."""
        return self.encode(self._defuse(text))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Decodes as Tokenizer.decode does."""
        dropped = self._dropped if skip_special else ()
        kept = [i for i in ids if i not in dropped]
        return self.backend.decode(kept, skip_special_tokens=False)

    def render(self, messages: Turns) -> str:
        """Renders as Tokenizer.render does."""
        turns, opened = self._opened(messages)
        return self._compiled.render(turns) + opened

    def turn_start(self, messages: Turns) -> str:
        """Returns all of the prompt after the last words of another role."""
        turns, opened = self._opened(messages)
        if turns:
            role, content = turns.pop()
            turns.append((role, content + PROBE))
        try:
            text = self._compiled.render(turns)
        except ValueError:
            return opened  # to render the same raises the error again
        _, found, after = text.rpartition(PROBE)
        return (after if found else "") + opened

    def _opened(self, messages: Turns) -> tuple[list[tuple[str, str]], str]:
        """The turns before a last one of the assistant, and its words."""
        turns = [(role, self._defuse(content)) for role, content in messages]
        if not turns or turns[-1][0] != "assistant":
            return turns, ""
        words = messages[-1][1]
        opened = around(words, self._marks, self._defuse)
        if not thought(words, Thinking(self._marks))[0]:
            # no message, in a family whose messages have headers
            opened = "".join(m.answer for m in self._marks) + opened
        return turns[:-1], opened

    def encode_chat(self, messages: Turns) -> list[int]:
        """Encodes as Tokenizer.encode_chat does."""
        text = self.render(messages)
        if self.template is None:
            return self.backend.encode(_valid(text)).ids
        ids = self.encode(text)
        return ids if ids[:1] == self._begin else self._begin + ids

    def as_json(self) -> str:
        """Returns the content of a tokenizer.json."""
        return self.backend.to_str(pretty=True)

    def spelled(self, i: int) -> str | None:
        """Returns the token of an id."""
        return self.backend.id_to_token(i)

    @functools.cached_property
    def _begin(self) -> list[int]:
        bos = self.variables.get("bos_token")
        ids = self.backend.encode(PROBE).ids[:1]
        begins = bos and ids == [self.backend.token_to_id(bos)]
        return ids if begins else []

    def _end_of_turn(self) -> str | None:
        turns = [("user", PROBE), ("assistant", PROBE)]
        try:
            text = self._compiled.render(turns, prompt=False)
        except ValueError:
            return None  # a run that needs it gets the error
        _, found, rest = text.rpartition(PROBE)
        after = [s for s in self._specials if rest.lstrip().startswith(s)]
        return max(after, key=len) if found and after else None

    def _defuse(self, text: str) -> str:
        for token in self._specials:
            if token in text:
                text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text


def open_spec(spec: Mapping[str, Any]) -> Codec:
    """Opens a directory, the metadata of a GGUF file, or a tokenizer.json."""
    variables = spec["variables"]
    if "directory" in spec:
        return from_directory(Path(spec["directory"]), variables)
    if "gguf" in spec:
        from dynscaling_jax.checkpoints import tokenizer_gguf

        return tokenizer_gguf.from_gguf(spec["gguf"], variables)
    backend = _backend(spec["json"], "tokenizer.json")
    return Codec(backend, spec["template"], variables)


def from_directory(
    directory: Path, variables: Mapping[str, Any] | None = None
) -> Codec:
    """Reads a directory as tokenizer.from_directory does."""
    file, model = directory / "tokenizer.json", directory / "tokenizer.model"
    if file.is_file():
        backend = _backend(read_text(file, MOST), str(file))
        raw = _config(directory)
    elif model.is_file():
        from dynscaling_jax.checkpoints import tokenizer_sentencepiece

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
    template, where = _template(directory, raw)
    chosen = dict(variables or {})
    check_read(template, list(chosen), where)
    return Codec(backend, template, {**named, **chosen}, where)


def _backend(text: str, where: str) -> Backend:
    try:
        return Backend.from_str(text)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{where}: not a tokenizer ({error})") from error


def add_ends(backend: Backend, begin: str, end: str) -> None:
    """Makes texts begin and end with these tokens; "" is none.

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


def _template(
    directory: Path, raw: Mapping[str, Any]
) -> tuple[str | None, str]:
    """The template, and where it stands."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return read_text(file), f"{file}: chat template"
    file = directory / "chat_template.json"  # beside a processor of images
    if not file.is_file():
        file = directory / "tokenizer_config.json"
    else:
        raw = read_json(file)
    template = raw.get("chat_template")
    if isinstance(template, list):  # several by name
        by_name = {
            t.get("name"): t.get("template")
            for t in template
            if isinstance(t, Mapping)
        }
        if "default" not in by_name:
            raise ValueError(
                f"{file}: chat templates {', '.join(map(str, by_name))}, and "
                "none is named default; write the one you want into "
                "chat_template.jinja"
            )
        template = by_name["default"]
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{file}: chat_template must be text")
    return template, f"{file}: chat template"


def _valid(text: str) -> str:
    # Lone surrogates, which a byte-wise truncated answer can hold, have no
    # bytes.
    return text.encode("utf-8", "replace").decode()


def _content(token: Any) -> str:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
