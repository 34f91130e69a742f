"""The tokenizer in the metadata of a GGUF file."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers import Tokenizer as Backend

from dynscaling_jax.checkpoints.codec import Codec, add_ends
from dynscaling_jax.checkpoints.template import check_read
from dynscaling_jax.checkpoints.tokenizer_sentencepiece import (
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    decoder,
    merges_by_score,
)


def from_gguf(
    metadata: Mapping[str, Any], variables: Mapping[str, Any] | None = None
) -> Codec:
    """Builds a codec as tokenizer.from_gguf does."""
    try:
        tokens = metadata["tokenizer.ggml.tokens"]
        backend = Backend(_model(metadata, tokens))
        kind = metadata["tokenizer.ggml.model"]
    except KeyError as error:
        raise ValueError(f"GGUF: metadata key {error} is missing") from None
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "llama":
        _as_sentencepiece(
            backend, metadata.get("tokenizer.ggml.add_space_prefix", True)
        )
    else:
        if pre in COMPOSED:
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizer(pre)
        backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=t != USER_DEFINED, normalized=False)
        for token, t in zip(tokens, _types(metadata, tokens), strict=True)
        if t in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    backend.add_tokens(added)
    named = _named(metadata, tokens)
    bos = named.get("bos_token", "")
    begins = kind == "llama" or pre in COMPLETE  # llama.cpp's defaults
    if bos and metadata.get("tokenizer.ggml.add_bos_token", begins):
        add_ends(backend, bos, "")
    template = metadata.get("tokenizer.chat_template")
    chosen = dict(variables or {})
    check_read(template, list(chosen))
    return Codec(backend, template, {**named, **chosen})


def _named(
    metadata: Mapping[str, Any], tokens: Sequence[str]
) -> dict[str, str]:
    """The special tokens that a template may write: bos_token, ..."""
    named = {}
    for name, key in (
        ("bos", "bos"),
        ("eos", "eos"),
        ("pad", "padding"),
        ("unk", "unknown"),
    ):
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if i is not None and not 0 <= i < len(tokens):
            raise ValueError(
                f"GGUF: {key}_token_id is {i}, of {len(tokens)} tokens"
            )
        if i is not None:
            named[f"{name}_token"] = tokens[i]
    return named


def _types(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(
            f"GGUF: {len(tokens)} tokens, yet {len(types)} token types"
        )
    return types


def _model(metadata: Mapping[str, Any], tokens: Sequence[str]) -> models.BPE:
    """The merges of a vocabulary, given (gpt2) or by scores (llama)."""
    kind = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    ids = {token: i for i, token in enumerate(tokens)}
    settings: dict[str, Any] = {}
    if kind == "llama":
        scores = metadata["tokenizer.ggml.scores"]
        if len(scores) != len(ids):
            raise ValueError(
                f"GGUF: {len(ids)} distinct tokens, yet {len(scores)} scores"
            )
        merges = merges_by_score(ids, scores, _types(metadata, tokens))
        settings = {"byte_fallback": True, "fuse_unk": True}
        unknown = _named(metadata, tokens).get("unk_token")
        if unknown is not None:
            settings["unk_token"] = unknown
    elif kind == "gpt2" and pre in PATTERNS:
        merges = [
            tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]
        ]
        settings = {"ignore_merges": pre in COMPLETE}
    else:
        raise ValueError(
            f"GGUF tokenizer {kind!r} with pre-tokenizer {pre!r} is not "
            f"supported; known: llama, and gpt2 with "
            f"{', '.join(PATTERNS)}"
        )
    try:
        return models.BPE(ids, merges, **settings)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"GGUF: vocabulary and merges: {error}") from error


def _as_sentencepiece(backend: Backend, space_first: bool) -> None:
    """Writes spaces as a mark of their own, unknown characters as bytes."""
    mark = normalizers.Replace(" ", SPACE)
    if space_first:
        mark = normalizers.Sequence([normalizers.Prepend(SPACE), mark])
    backend.normalizer = mark
    backend.decoder = decoder(space_first)


# How a text is split before it is merged, by llama.cpp's names; the patterns
# are those of the families' tokenizer.json. None is that of GPT-2.

_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_START = r"[^\r\n\p{L}\p{N}]?"
_QWEN2 = (
    rf"{_ENDS}|{_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# a word in one case, its first letter apart
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MIXED = rf"{_START}{_UPPER}*{_LOWER}+", rf"{_START}{_UPPER}+{_LOWER}*"
_MARKS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{'|'.join(_MIXED)}|\p{{N}}|{_MARKS}"
_GPT4O = rf"{_MIXED[0]}{_ENDS}?|{_MIXED[1]}{_ENDS}?|\p{{N}}{{1,3}}|{_MARKS}"
PATTERNS = {
    "default": None,
    "gpt-2": None,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,  # of OLMo 2 and Phi-4
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "smollm": None,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,  # of gpt-oss and Phi-4-mini
    "llama4": _GPT4O,
}
# a piece that is a token is not merged from parts
COMPLETE = ("llama-bpe", "llama3", "llama-v3", "tekken")
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # text is put into NFC


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """Makes the pre-tokenizer that llama.cpp calls by this name."""
    pattern = PATTERNS[name]
    is_gpt2 = pattern is None
    in_bytes = pre_tokenizers.ByteLevel(False, use_regex=is_gpt2)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, in_bytes])
    if is_gpt2:
        return in_bytes
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, in_bytes])
