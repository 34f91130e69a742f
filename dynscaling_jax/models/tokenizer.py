"""Text to ids and back, and the chat template."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from dynscaling_jax.models.checkpoints import read_json
from dynscaling_jax.types import Message

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF token types
SPACE = "\u2581"  # how SentencePiece writes a space
TEMPLATE_FAULTS = (  # what a template's expressions can raise
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


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
        self._specials = [
            token.content
            for token in backend.get_added_tokens_decoder().values()
            if token.special and len(token.content) > 1
        ]
        try:
            self._compiled = _environment().from_string(template or PLAIN)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat template: {error}") from error
        self._add_bos = template is None

    @property
    def size(self) -> int:
        """One more than the greatest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Text to ids; special tokens written in it are recognised, none is
        added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Ids to text."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model reads before it writes.

        Where the last turn is the assistant's, the text ends in it and the
        model goes on with that turn. A message cannot smuggle in a turn:
        special tokens spelled in its content are broken by a zero-width
        space.

        Raises:
            ValueError: the template refuses these messages.
        """
        opened = ""
        if messages and messages[-1].role == "assistant":
            *messages, last = messages
            opened = self._defuse(last.content)
        turns = [
            {"role": m.role, "content": self._defuse(m.content)}
            for m in messages
        ]
        try:
            text = self._compiled.render(
                messages=turns, add_generation_prompt=True, **self.variables
            )
        except TEMPLATE_FAULTS as error:
            raise ValueError(f"chat template: {error}") from error
        return text + opened

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Messages to the ids of a prompt."""
        return self.backend.encode(
            self.render(messages), add_special_tokens=self._add_bos
        ).ids

    def _defuse(self, text: str) -> str:
        for token in self._specials:
            if token in text:
                text = text.replace(token, f"{token[0]}\u200b{token[1:]}")
        return text


# Models without a template read the contents, a blank line between.
PLAIN = "{% for m in messages %}{{ m.content }}\n\n{% endfor %}"


def from_directory(directory: Path) -> Tokenizer:
    """Reads tokenizer.json and the template of a Hugging Face directory.

    Raises:
        FileNotFoundError: tokenizer.json is missing.
        ValueError: a file that is corrupt.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{directory}: tokenizer.json is missing, so text cannot be "
            "encoded; copy it from the model's repository"
        )
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{file}: not a tokenizer ({error})") from error
    extra = directory / "tokenizer_config.json"
    raw = read_json(extra) if extra.is_file() else {}
    template = raw.get("chat_template")
    if isinstance(template, list):  # several by name
        by_name = {t.get("name"): t.get("template") for t in template}
        template = by_name.get("default")
    if (directory / "chat_template.jinja").is_file():
        template = (directory / "chat_template.jinja").read_text("utf-8")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    return Tokenizer(
        backend, template, {n: _content(raw.get(n)) for n in names}
    )


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds the tokenizer that GGUF metadata describes.

    Raises:
        ValueError: a vocabulary of a kind that is not supported, or a part
            that is missing or does not fit the others.
    """
    try:
        tokens = metadata["tokenizer.ggml.tokens"]
        backend = Backend(_gguf_model(metadata, tokens))
        kind = metadata["tokenizer.ggml.model"]
    except KeyError as error:
        raise ValueError(f"GGUF: metadata key {error} is missing") from None
    if kind == "llama":
        _as_sentencepiece(
            backend, metadata.get("tokenizer.ggml.add_space_prefix", True)
        )
    else:
        pre = metadata.get("tokenizer.ggml.pre", "default")
        backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
        backend.decoder = decoders.ByteLevel()
    types = _types(metadata, tokens)
    added = [
        AddedToken(token, special=t == CONTROL, normalized=False)
        for token, t in zip(tokens, types, strict=True)
        if t in (CONTROL, USER_DEFINED)
    ]
    backend.add_tokens(added)
    ids = {
        f"{name}_token": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    named = {n: tokens[i] if i is not None else "" for n, i in ids.items()}
    bos = named["bos_token"]
    if bos and metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, ids["bos_token"])]
        )
    return Tokenizer(backend, metadata.get("tokenizer.chat_template"), named)


def _types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(
            f"GGUF: {len(tokens)} tokens, yet {len(types)} token types"
        )
    return types


def _gguf_model(
    metadata: Mapping[str, Any], tokens: Sequence[str]
) -> models.BPE:
    """The merges of a vocabulary, given (gpt2) or by scores (llama)."""
    kind = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    ids = {token: i for i, token in enumerate(tokens)}
    settings: dict[str, Any] = {}
    if kind == "llama":
        scores = metadata["tokenizer.ggml.scores"]
        unknown = metadata.get("tokenizer.ggml.unknown_token_id")
        merges = _by_score(ids, scores, _types(metadata, tokens))
        settings = {"byte_fallback": True, "fuse_unk": True}
        if unknown is not None:
            settings["unk_token"] = tokens[unknown]
    elif kind == "gpt2" and pre in PRE_TOKENIZERS:
        merges = [
            tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]
        ]
        settings = {"ignore_merges": pre == "llama-bpe"}
    else:
        raise ValueError(
            f"GGUF tokenizer {kind!r} with pre-tokenizer {pre!r} is not "
            f"supported; known: llama, and gpt2 with "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    try:
        return models.BPE(ids, merges, **settings)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"GGUF: vocabulary and merges: {error}") from error


def _by_score(
    ids: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE: of the pairs that make a piece, those
    of the best piece first."""
    if len(scores) != len(ids):
        raise ValueError(
            f"GGUF: {len(ids)} distinct tokens, yet {len(scores)} scores"
        )
    merges = []
    for piece, i in ids.items():
        if types[i] != NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((-scores[i], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _as_sentencepiece(backend: Backend, space_first: bool) -> None:
    """Spaces are written as a mark of their own; unknown characters as
    bytes."""
    mark = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    steps.append(decoders.Fuse())
    if space_first:
        mark = normalizers.Sequence([normalizers.Prepend(SPACE), mark])
        steps.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = mark
    backend.decoder = decoders.Sequence(steps)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2()]
    )


def _qwen2() -> pre_tokenizers.PreTokenizer:
    return _pattern(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _llama3() -> pre_tokenizers.PreTokenizer:
    return _pattern(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "llama-bpe": _llama3,
    "qwen2": _qwen2,
    "smollm": _smollm,
}


def _content(token: Any) -> str:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token or ""


def _environment() -> jinja2.Environment:
    # Templates come with checkpoints and are not trusted.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment
