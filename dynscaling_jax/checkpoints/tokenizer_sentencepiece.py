"""SentencePiece's tokenizer.model to a `tokenizers` backend.

The file is a protocol buffer (sentencepiece_model.proto). It is read here by
the few fields that matter, with no more trust than a wire format needs.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


class Model(NamedTuple):
    """What a tokenizer.model says."""

    pieces: list[Piece]
    kind: int
    byte_fallback: bool
    ids: dict[str, int]  # bos_token, eos_token, pad_token, unk_token
    charsmap: bytes
    space_first: bool
    trim: bool


def read(
    file: Path, config: Mapping[str, Any], added: Mapping[str, Any]
) -> tuple[Backend, dict[str, str]]:
    """The backend, and the names of the special tokens: bos_token, ...

    Args:
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
        return _backend(model, config, tokens), {
            name: model.pieces[i].text for name, i in model.ids.items()
        }
    except ValueError as error:
        raise ValueError(
            f"{file}: not a SentencePiece model that can be used: {error}"
        ) from error


def merges_by_score(
    ids: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE: of the pairs that make a piece, those
    of the best piece first.

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
    """Marks to spaces and bytes to text, less so many leading spaces."""
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    steps.append(decoders.Fuse())
    if leading:
        steps.append(decoders.Strip(" ", leading, 0))
    return decoders.Sequence(steps)


def _backend(
    model: Model, config: Mapping[str, Any], tokens: Mapping[int, AddedToken]
) -> Backend:
    pieces = list(model.pieces)
    for i, token in tokens.items():
        if i < len(pieces):
            pieces[i] = pieces[i]._replace(text=token.content)
    try:
        made = _unigram if model.kind == UNIGRAM else _bpe
        backend = Backend(made(model, pieces))
        backend.normalizer = normalizers.Sequence(_normalizers(model, config))
        if model.space_first and not config.get("legacy", True):
            # one space, at the very beginning: what transformers does then
            backend.pre_tokenizer = pre_tokenizers.Metaspace(
                SPACE, prepend_scheme="first", split=False
            )
        backend.decoder = decoder(LONGEST if model.trim else model.space_first)
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


def _bpe(model: Model, pieces: Sequence[Piece]) -> models.BPE:
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    scores = [piece.score for piece in pieces]
    merges = merges_by_score(ids, scores, [piece.kind for piece in pieces])
    return models.BPE(
        ids,
        merges,
        unk_token=pieces[model.ids["unk_token"]].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: Model, pieces: Sequence[Piece]) -> models.Unigram:
    # Only what is in no piece is written as bytes, not the text "<0x41>": its
    # token costs more than its characters, where they are known.
    lowest = min((p.score for p in pieces if p.kind == NORMAL), default=0.0)
    never = 8 * (min(lowest, 0.0) - 16)
    return models.Unigram(
        [
            (piece.text, piece.score if piece.kind == NORMAL else never)
            for piece in pieces
        ],
        model.ids["unk_token"],
        model.byte_fallback,
    )


def _normalizers(model: Model, config: Mapping[str, Any]) -> list[Any]:
    steps: list[Any] = []
    if model.charsmap:
        _check_charsmap(model.charsmap)
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.trim:
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if model.space_first and not config.get("legacy", True):
        return steps
    if model.space_first:
        # In each stretch of text between special tokens, as when each is
        # encoded by itself. Pieces of a user are found after this step and
        # must not change by it.
        own = [re.escape(p.text) for p in model.pieces if _in_text(model, p)]
        alone = rf"(?!(?:{'|'.join(own)})\z)" if own else ""
        pattern = Regex(rf"\A{alone}(?=[\s\S])")
        steps.append(normalizers.Replace(pattern, SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _in_text(model: Model, piece: Piece) -> bool:
    """Whether a piece belongs to the text around it: it is found in it once
    spaces are marked. A map of characters must not touch it."""
    return piece.kind == USER_DEFINED and not model.charsmap


def _added(
    model: Model, config: Mapping[str, Any], added: Mapping[str, Any]
) -> dict[int, AddedToken]:
    """Tokens to find in a text before all else: id -> token."""
    found: dict[int, AddedToken] = {}
    for i, piece in enumerate(model.pieces):
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED):
            found[i] = AddedToken(
                piece.text,
                special=piece.kind != USER_DEFINED,
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


# The file


def _parse(data: bytes) -> Model:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(value))
        elif number == 2:
            trainer |= dict(_fields(value))
        elif number == 3:
            normalizer |= dict(_fields(value))
    if not trainer or not normalizer:
        raise ValueError("it ends before its settings")
    texts = {piece.text for piece in pieces}
    if not pieces or len(texts) < len(pieces) or "" in texts:
        raise ValueError(
            f"{len(pieces)} pieces of {len(texts)} different texts"
        )
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise ValueError(f"model_type {kind} is neither unigram nor BPE")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise ValueError(
            "spaces at the end of words, or not marked, are not supported"
        )
    unknown = [i for i, p in enumerate(pieces) if p.kind == UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"{len(unknown)} pieces are of the kind unknown")
    fallback = bool(trainer.get(35, 0))
    if fallback and not texts >= {f"<0x{i:02X}>" for i in range(256)}:
        raise ValueError("byte_fallback, yet not a piece for each byte")
    ids = {
        "bos_token": _id(trainer.get(41, 1)),
        "eos_token": _id(trainer.get(42, 2)),
        "pad_token": _id(trainer.get(43, -1)),
    }
    named = {n: i for n, i in ids.items() if 0 <= i < len(pieces)}
    return Model(
        pieces,
        kind,
        fallback,
        {**named, "unk_token": unknown[0]},
        _bytes(normalizer.get(2, b"")),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4)), 4))
    if not math.isfinite(score):
        raise ValueError(f"the score of a piece is {score}")
    return Piece(_bytes(fields.get(1, b"")).decode(), score, fields.get(3, 1))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: an int, or bytes."""
    at, end = 0, len(_bytes(data))
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = _varint(data, at)
            if size > end - at:
                raise ValueError(f"a field of {size} bytes is cut short")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return value, at + count + 1
    raise ValueError("a number is cut short")


def _id(value: Any) -> int:
    """int32 is written as if it had 64 bits."""
    if not isinstance(value, int):
        raise ValueError("an id is no number")
    return value - 2**64 if value >= 2**63 else value


def _bytes(value: Any, size: int | None = None) -> bytes:
    if not isinstance(value, bytes) or size not in (None, len(value)):
        raise ValueError("a field is not of its type")
    return value


def _check_charsmap(blob: bytes) -> None:
    """Raises ValueError where following the double array of a map of
    characters could lead outside of it: `tokenizers` would panic.

    A unit's children lie in one block of 256 units; a leaf's value is where
    its text begins in what follows the array.
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
