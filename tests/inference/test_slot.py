"""When a sample is finished: by the end of its text, as by all of it."""

import types

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers import models as backends

from dynscaling_jax.inference import slot as slots
from dynscaling_jax.inference.sampling import ScoredToken
from dynscaling_jax.inference.slot import Prompt, Slot, finished
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.types import Message, Query, Request

CONFIG = ModelConfig("llama", 300, 16, 2, 4, 2, 4, 24, 64)
QUERY = Query("a", (Message("user", "x"),))
EOS, SPECIAL = 258, 257
SPELT = [
    " the", "the", " stop", "st", "op", "\n\n", "\n", "a", " ", "END", "E",
    "N", "D", "é", "😀", " ##", "##", ".", " .",
]  # fmt: skip


def byte_level():
    """256 bytes, special tokens, and tokens of several bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = dict(zip(range(256), _letters(), strict=True))
    assert sorted(letters.values()) == sorted(ByteLevel.alphabet())
    vocabulary = {c: b for b, c in letters.items()}
    vocabulary |= {"<a>": 256, "<s>": SPECIAL, "<e>": EOS}
    for text in SPELT:
        name = "".join(letters[b] for b in text.encode())
        vocabulary.setdefault(name, len(vocabulary))
    backend = Tokenizer(backends.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    return with_specials(backend)


def _letters():
    """The letter of each byte, as GPT-2 has them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in plain else next(others)) for b in range(256)]


def byte_fallback():
    """As SentencePiece: a space is a letter, bytes stand for what is rare."""
    vocabulary = {f"<0x{b:02X}>": b for b in range(256)}
    vocabulary |= {"<a>": 256, "<s>": SPECIAL, "<e>": EOS}
    for text in SPELT:
        vocabulary.setdefault(text.replace(" ", "▁"), len(vocabulary))
    backend = Tokenizer(backends.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return with_specials(backend)


def with_specials(backend):
    backend.add_special_tokens(["<a>", "<s>", "<e>"])
    assert backend.token_to_id("<e>") == EOS
    return backend


TOKENIZERS = {"byte level": byte_level(), "byte fallback": byte_fallback()}


class Decoded:
    """A model that has a tokenizer alone, and counts what it decodes."""

    def __init__(self, backend):
        self.tokenizer = types.SimpleNamespace(decode=self.decode)
        self.config, self.eos_ids = CONFIG, (EOS,)
        self.backend, self.decoded = backend, 0

    def decode(self, ids):
        self.decoded += len(ids)
        return self.backend.decode(ids)


def plain(slot, model, stop):
    """By the whole text after each chunk."""
    ids = [int(i) for part in slot.tokens for i in part.token]
    ends = ids[-1] in model.eos_ids
    text = model.decode(ids[:-1] if ends else ids)
    if any(s in text for s in stop):
        hit = lambda n: any(s in model.decode(ids[:n]) for s in stop)
        count = next(n for n in range(1, len(ids) + 1) if hit(n))
        text = model.decode(ids[:count])
        found = [at for at in map(text.find, stop) if at >= 0]
        return "stop", text[: min(found)], count
    if ends:
        return "stop", text, len(ids)
    return ("length", text, len(ids)) if len(ids) >= slot.limit else None


def chunks_of(ids, sizes):
    """Chunks that end with the token that ends a sample, if any."""
    ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
    at = 0
    for size in sizes:
        if at < len(ids):
            yield ids[at : at + size]
        at += size


def scored(ids):
    return ScoredToken(
        np.array(ids, np.int32)[:, None],
        *np.zeros((len(ScoredToken._fields) - 1, len(ids), 1), np.float32),
    )


def started(limit):
    request = Request(QUERY, QUERY.messages, 0)
    return Slot(0, request, Prompt((1,), (1,), 0), limit)


def compare(name, ids, sizes, stop, limit):
    model = Decoded(TOKENIZERS[name])
    slot = Slot(
        0, Request(QUERY, QUERY.messages, 0), Prompt((1,), (1,), 0), limit
    )
    for chunk in chunks_of(ids[:limit], sizes):
        slot.append(scored(chunk), 0, len(chunk))
        expected = plain(slot, model, stop)
        if expected and expected[2] <= slot.checked:
            # bytes that spelt a stop string within an earlier chunk, until
            # others behind them made all of them no text
            ids = slot.last(slot.count)
            then, now = model.decode(ids[: expected[2]]), model.decode(ids)
            if not now.startswith(then):
                reject()
        found = finished(slot, model, stop)
        assert (
            found and (found.finish_reason, found.text, found.new_tokens)
        ) == expected
        if found:
            return found
    return None


PLAIN = st.sampled_from([*b"xyz", 256, SPECIAL]).map(lambda token: [token])
TEXT = st.sampled_from(["é", "😀", "汉", "E", "EN", "st", " s", "\n"])
ANY = st.one_of(st.integers(0, 256), st.integers(259, 258 + len(SPELT) - 6))
PIECES = st.one_of(
    PLAIN,
    PLAIN,
    TEXT.map(lambda text: [*text.encode()]),
    ANY.map(lambda token: [token]),
)
WORDS = st.sampled_from(["END", "\n\n", " stop", "é😀", "😀😀", ". ", "x y"])
STOPS = st.lists(
    st.one_of(WORDS, st.text(st.sampled_from("zEé😀"), min_size=2)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("margin", [16, 4])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(st.data())
def test_the_end_of_a_text_says_what_all_of_it_does(name, margin, data):
    """Random tokens and characters of several bytes, and a stop string among
    them, over borders of chunks; a small margin has the tail begin in the
    middle of more of them."""
    stop = data.draw(STOPS)
    before = data.draw(st.lists(PIECES, max_size=100))
    after = data.draw(st.lists(PIECES, max_size=40))
    spelt = [*data.draw(st.sampled_from(stop)).encode()]
    ends = data.draw(st.sampled_from([[], [], [EOS]]))
    ids = [*sum(before, []), *spelt, *sum(after, []), *ends]
    sizes = data.draw(st.lists(st.integers(1, 16), min_size=len(ids)))
    limit = data.draw(st.integers(max(1, len(ids) - 5), len(ids) + 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "MARGIN", margin)
        compare(name, ids, sizes, stop, limit)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("behind", range(1, 26))
def test_a_stop_string_that_begins_before_what_is_new(name, behind):
    """Its last characters are new, or the rest of one's bytes."""
    letters, faces = "NEDDENEDaNDaEEDaND", "😀" * 7
    of = TOKENIZERS[name].token_to_id
    ids = [of(letter) for letter in ".a" * 50 + letters]
    ids += [*faces.encode()]
    sizes = [len(ids) - behind, behind]
    found = compare(name, ids, sizes, [letters + faces], 500)
    assert found is not None and found.finish_reason == "stop"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_characters_that_are_complete_in_a_later_chunk(name):
    """A run of bytes that is no text before its last one is there."""
    run = [*("😀" * 30).encode()]
    for cut in range(1, 8):
        ids = [259] * 40 + run[: -4 - cut] + run[-4 - cut :] + [259] * 5
        sizes = [40, len(run) - cut, cut, 5]
        sample = compare(name, ids, sizes, ["😀a", "a😀"], 500)
        assert sample is None or sample.finish_reason == "stop"
        found = compare(name, ids, sizes, ["😀" * 9], 500)
        assert found is not None and found.finish_reason == "stop"


def test_a_long_sample_is_decoded_once():
    """Chunk after chunk, its whole text was, and for each token at its end."""
    backend = TOKENIZERS["byte level"]
    ids = [97 + i % 20 for i in range(8000)] + [69, 78, 68]
    model = Decoded(backend)
    slot = Slot(
        0, Request(QUERY, QUERY.messages, 0), Prompt((1,), (1,), 0), 9000
    )
    sample = None
    for at in range(0, len(ids), 16):
        part = ids[at : at + 16]
        slot.append(scored(part), 0, len(part))
        sample = finished(slot, model, ["END", "\n\n"])
    assert sample is not None and sample.new_tokens == len(ids)
    assert sample.text == backend.decode(ids[:-3])
    assert model.decoded < 20 * len(ids)
