"""SentencePiece's tokenizer.model to a `tokenizers` backend.

`sentencepiece` knows the format of the file. Its own encoder is not used:
added tokens, special tokens and an export to tokenizer.json are those of
`tokenizers`, and the tests compare the ids of the two.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers import Tokenizer as Backend

SPACE = "\u2581"  # how SentencePiece writes a space
# kinds of pieces, in SentencePiece and in GGUF
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE = 1, 2  # kinds of models
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
LONGEST = 1024  # characters of a piece; real ones have up to a few dozen


def read(
    file: Path, config: Mapping[str, Any], added: Mapping[str, Any]
) -> tuple[Backend, dict[str, str]]:
    """Reads the backend, and the texts of the special tokens: bos_token, ...

    Args:
        file: tokenizer.model.
        config: tokenizer_config.json. Its added_tokens_decoder comes before
            the file's own pieces and adds to them.
        added: added_tokens.json, text -> id.

    Raises:
        ValueError: a file that is corrupt or of a kind that is not supported,
            or tokens that do not fit it.
    """
    try:
        model = _parse(file.read_bytes())
        tokens = _added(model, config, added)
        named = _named(model)
        return _backend(model, config, tokens), named
    except (ValueError, DecodeError) as error:
        raise ValueError(
            f"{file}: not a SentencePiece model that can be used: {error}"
        ) from error


def merges_by_score(
    ids: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Lists the merges of SentencePiece's BPE, those of the best piece first.

    Among equals SentencePiece goes from left to right. Runs of spaces are
    such in Mistral's models; the longest left part first does the same.
    """
    merges = []
    for piece, i in ids.items():
        if kinds[i] != NORMAL:
            continue
        if len(piece) > LONGEST:
            raise ValueError(f"token {i} has {len(piece)} characters")
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((left, right, i))

    def order(merge: tuple[str, str, int]) -> tuple:
        left, right, i = merge
        return -scores[i], -len(left), -len(right), ids[left], ids[right]

    return [(left, right) for left, right, _ in sorted(merges, key=order)]


def decoder(leading: int) -> decoders.Decoder:
    """Makes spaces of marks and text of bytes, less so many leading spaces."""
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    steps.append(decoders.Fuse())
    if leading:
        steps.append(decoders.Strip(" ", leading, 0))
    return decoders.Sequence(steps)


def _backend(
    model: ModelProto,
    config: Mapping[str, Any],
    tokens: Mapping[int, AddedToken],
) -> Backend:
    for i, token in tokens.items():
        if i < len(model.pieces):
            model.pieces[i].piece = token.content
    is_unigram = model.trainer_spec.model_type == UNIGRAM
    rules = model.normalizer_spec
    try:
        backend = Backend(_unigram(model) if is_unigram else _bpe(model))
        backend.normalizer = normalizers.Sequence(_normalizers(model, config))
        if rules.add_dummy_prefix and not config.get("legacy", True):
            # one space, at the very beginning: what transformers does then
            backend.pre_tokenizer = pre_tokenizers.Metaspace(
                SPACE, prepend_scheme="first", split=False
            )
        backend.decoder = decoder(
            LONGEST
            if rules.remove_extra_whitespaces
            else rules.add_dummy_prefix
        )
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(str(error)) from error
    for i, token in sorted(tokens.items()):
        backend.add_tokens([token])
        got = backend.token_to_id(token.content)
        if got != i:
            raise ValueError(
                f"added token {token.content!r} is to have id {i}, yet would "
                f"get {got}"
            )
    return backend


def _bpe(model: ModelProto) -> models.BPE:
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = [piece.score for piece in model.pieces]
    merges = merges_by_score(ids, scores, [p.type for p in model.pieces])
    return models.BPE(
        ids,
        merges,
        unk_token=model.pieces[_unknown(model)].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _unigram(model: ModelProto) -> models.Unigram:
    # Only what is in no piece is written as bytes, not the text "<0x41>": its
    # token costs more than its characters, where they are known.
    pieces = model.pieces
    lowest = min((p.score for p in pieces if p.type == NORMAL), default=0.0)
    never = 8 * (min(lowest, 0.0) - 16)
    return models.Unigram(
        [(p.piece, p.score if p.type == NORMAL else never) for p in pieces],
        _unknown(model),
        model.trainer_spec.byte_fallback,
    )


def _unknown(model: ModelProto) -> int:
    return next(i for i, p in enumerate(model.pieces) if p.type == UNKNOWN)


def _named(model: ModelProto) -> dict[str, str]:
    trainer = model.trainer_spec
    ids = {
        "bos_token": trainer.bos_id,
        "eos_token": trainer.eos_id,
        "pad_token": trainer.pad_id,
        "unk_token": _unknown(model),
    }
    known = range(len(model.pieces))
    return {n: model.pieces[i].piece for n, i in ids.items() if i in known}


def _normalizers(model: ModelProto, config: Mapping[str, Any]) -> list[Any]:
    steps: list[Any] = []
    rules = model.normalizer_spec
    if rules.precompiled_charsmap:
        _check_charsmap(rules.precompiled_charsmap)
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if rules.add_dummy_prefix and not config.get("legacy", True):
        return steps
    if rules.add_dummy_prefix:
        # In each stretch of text between special tokens, as when each is
        # encoded by itself. Pieces of a user are found after this step and
        # must not change by it.
        users = [re.escape(p.piece) for p in model.pieces if _in_text(model, p)]
        alone = rf"(?!(?:{'|'.join(users)})\z)" if users else ""
        pattern = Regex(rf"\A{alone}(?=[\s\S])")
        steps.append(normalizers.Replace(pattern, SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _in_text(model: ModelProto, piece: ModelProto.SentencePiece) -> bool:
    """Whether a piece is found in a text once spaces are marked.

    A map of characters must not touch such a piece.
    """
    if piece.type != USER_DEFINED:
        return False
    return not model.normalizer_spec.precompiled_charsmap


def _added(
    model: ModelProto, config: Mapping[str, Any], added: Mapping[str, Any]
) -> dict[int, AddedToken]:
    """Tokens to find in a text before all else: id -> token."""
    found: dict[int, AddedToken] = {}
    for i, piece in enumerate(model.pieces):
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED):
            found[i] = AddedToken(
                piece.piece,
                special=piece.type != USER_DEFINED,
                normalized=_in_text(model, piece)
                and config.get("legacy", True),
            )
    for text, i in added.items():
        if not isinstance(i, int) or i < 0:
            raise ValueError(f"added_tokens.json: id {i!r} of {text!r}")
        found[i] = AddedToken(text, special=True, normalized=False)
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise ValueError("tokenizer_config.json: added_tokens_decoder: no map")
    for i, fields in decoder.items():
        content = fields.get("content") if isinstance(fields, dict) else None
        if not (i.isdecimal() and content and isinstance(content, str)):
            raise ValueError(
                f"tokenizer_config.json: added_tokens_decoder: {i!r}: {fields}"
            )
        flags = {name: bool(fields.get(name)) for name in FLAGS}
        found[int(i)] = AddedToken(content, **flags)
    return found


def _parse(data: bytes) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(data)
    trainer, pieces = model.trainer_spec, model.pieces
    if not all(map(model.HasField, ("trainer_spec", "normalizer_spec"))):
        raise ValueError("it ends before its settings")
    for piece in pieces:
        if not math.isfinite(piece.score):
            raise ValueError(f"the score of a piece is {piece.score}")
    texts = {piece.piece for piece in pieces}
    if not pieces or len(texts) < len(pieces) or "" in texts:
        raise ValueError(
            f"{len(pieces)} pieces of {len(texts)} different texts"
        )
    if trainer.model_type not in (UNIGRAM, BPE):
        raise ValueError(
            f"model_type {trainer.model_type} is neither unigram nor BPE"
        )
    marked = model.normalizer_spec.escape_whitespaces
    if trainer.treat_whitespace_as_suffix or not marked:
        raise ValueError(
            "spaces at the end of words, or not marked, are not supported"
        )
    unknown = sum(piece.type == UNKNOWN for piece in pieces)
    if unknown != 1:
        raise ValueError(f"{unknown} pieces are of the kind unknown")
    of_bytes = {f"<0x{i:02X}>" for i in range(256)}
    if trainer.byte_fallback and not texts >= of_bytes:
        raise ValueError("byte_fallback, yet not a piece for each byte")
    return model


def _check_charsmap(blob: bytes) -> None:
    """Refuses a map of characters that leads outside of itself.

    `tokenizers` would follow its double array without looking, and panic. A
    unit's children lie in one block of 256 units; a leaf's value is where its
    text begins in what follows the array.
    """
    size = int.from_bytes(blob[:4], "little")
    texts = blob[4 + size :]
    if size == 0 or size % 4 or size > len(blob) - 4:
        raise ValueError("precompiled_charsmap is cut short")
    texts.decode()
    units = np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64)
    inner = units >> 31 == 0
    inner[0] = True
    offset = (units >> 10) << ((units >> 6) & 8)
    base = (np.arange(len(units)) ^ offset)[inner]
    if (base | 255).max() >= len(units):
        raise ValueError("precompiled_charsmap leads outside of itself")
    leaf = (units[inner] >> 8) & 1 == 1
    value = units[base[leaf]] & (2**31 - 1)
    # past the end, or in the middle of a character
    starts = np.frombuffer(texts + b"\0", np.uint8) & 0xC0 != 0x80
    if (value > len(texts)).any() or not starts[value].all():
        raise ValueError("precompiled_charsmap names a text it lacks")
