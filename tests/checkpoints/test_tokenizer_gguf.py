"""The vocabularies of GGUF files.

That the ids are those of transformers is shown on the real models, in
tests/test_smollm2.py and tests/test_gemma3.py.
"""

import pytest

from dynscaling_jax.checkpoints import tokenizer_gguf
from dynscaling_jax.types import Message

# a, b, space, ab, 1, 2, 12 and a control token

GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "Ġ", "ab", "1", "2", "12", "<|x|>"],
    "tokenizer.ggml.merges": ["a b", "1 2"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 1, 3],
    "tokenizer.ggml.eos_token_id": 7,
}


def test_pre_tokenizers():
    """SmolLM2 parts digits; GPT-2 joins them where a merge allows it."""
    smollm = tokenizer_gguf.from_gguf(GGUF)
    assert smollm.encode("ab 12<|x|>") == [3, 2, 4, 5, 7]
    gpt2 = tokenizer_gguf.from_gguf({**GGUF, "tokenizer.ggml.pre": "gpt-2"})
    assert gpt2.encode("ab12") == [3, 6]
    llama3 = tokenizer_gguf.from_gguf(
        {**GGUF, "tokenizer.ggml.pre": "llama-bpe"}
    )
    assert llama3.encode("ab12<|x|>") == [3, 6, 7]
    assert smollm.decode([3, 2, 4, 7]) == "ab 1"


SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        *("<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>"),
        *("\u2581", "a", "b", "ab", "\u2581a", "\u2581ab", "bb", "\n\n"),
    ],
    "tokenizer.ggml.scores": [0.0] * 8 + [-2.0, -3.0, -4.0, -1.0, 0.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 4],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
}


def test_sentencepiece():
    """By hand: the best piece is merged first, so "abb" is a, bb; spaces are
    a mark; what is in no piece is written as bytes."""
    tokenizer = tokenizer_gguf.from_gguf(SENTENCEPIECE)
    assert tokenizer.encode("abb") == [6, 11]
    assert tokenizer.encode("ab") == [8]
    assert tokenizer.encode(" ab a") == [10, 9]
    assert tokenizer.encode("a\n\nb") == [6, 12, 7]
    assert tokenizer.encode("\u00e9") == [3, 4]
    for text in ("abb", " ab a", "a\n\nb", "\u00e9", "  a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # without a chat template a prompt begins as the model was trained
    prompt = tokenizer.encode_chat([Message("user", "ab")])
    assert prompt[:2] == [1, 8]


def test_sentencepiece_may_begin_with_a_space():
    spaced = {**SENTENCEPIECE, "tokenizer.ggml.add_space_prefix": True}
    tokenizer = tokenizer_gguf.from_gguf(spaced)
    assert tokenizer.encode("ab") == [10]
    assert tokenizer.decode([10]) == "ab"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "t5"}, "GGUF tokenizer 't5'"),
        ({"model": "llama"}, "tokenizer.ggml.scores' is missing"),
        ({"model": "llama", "scores": [0.0]}, "8 distinct tokens, yet 1"),
        ({"pre": "viking"}, "pre-tokenizer 'viking' is not supported"),
        ({"tokens": None}, "tokenizer.ggml.tokens' is missing"),
        ({"merges": None}, "tokenizer.ggml.merges' is missing"),
        ({"merges": ["a c"]}, "vocabulary and merges"),
        ({"merges": ["a b c"]}, "vocabulary and merges"),
        ({"token_type": [1]}, "8 tokens, yet 1 token types"),
        ({"bos_token_id": 8}, "bos_token_id is 8, of 8 tokens"),
        ({"chat_template": "{% if %}"}, "chat template: "),
    ],
)
def test_metadata_that_does_not_fit_is_refused(change, message):
    change = {
        k if k == "chat_template" else f"ggml.{k}": v for k, v in change.items()
    }
    change = {f"tokenizer.{k}": v for k, v in change.items()}
    metadata = {k: v for k, v in {**GGUF, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        tokenizer_gguf.from_gguf(metadata)


# Parts of texts, by hand from the patterns of the families' tokenizer.json.
PARTS = [
    ("gpt-2", "It's 1234", ["It", "'s", "\u01201234"]),
    ("smollm", "It's 1234", ["It", "'s", "\u0120", *"1234"]),
    ("qwen2", "IT'S 12", ["IT", "'S", "\u0120", "1", "2"]),
    ("deepseek-r1-qwen", "a 12", ["a", "\u0120", "1", "2"]),
    ("llama-bpe", "a1234!\n\nb", ["a", "123", "4", "!\u010a\u010a", "b"]),
    ("llama3", "IT'S", ["IT", "'S"]),
    ("dbrx", "x 1234", ["x", "\u0120", "123", "4"]),
    ("smaug-bpe", "(x)", ["(x", ")"]),
    ("tekken", "camelCase 12's", ["camel", "Case", "\u0120", "1", "2", "'s"]),
    ("tekken", "a/b.\n/c", ["a", "/b", ".\u010a/", "c"]),
    ("gpt-4o", "HTMLPage's 1234", ["HTMLPage's", "\u0120", "123", "4"]),
    ("gpt-4o", "getURL's IT'S", ["get", "URL's", "\u0120IT'S"]),
    ("llama4", "aB", ["a", "B"]),
]


@pytest.mark.parametrize(("name", "text", "parts"), PARTS)
def test_texts_are_split_as_in_the_family(name, text, parts):
    part = tokenizer_gguf.pre_tokenizer(name)
    assert [piece for piece, _ in part.pre_tokenize_str(text)] == parts


def test_qwen_composes_characters():
    """Its tokenizer.json has NFC; a GGUF file does not say so."""
    tokens = ["e", "\u00c3", "\u00a9", "\u00cc", "\u0123"]
    for pre, ids in (("qwen2", [1, 2]), ("llama-bpe", [0, 3, 4])):
        tokenizer = tokenizer_gguf.from_gguf(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": pre,
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.merges": [],
            }
        )
        assert tokenizer.encode("e\u0301") == ids


def test_who_begins_with_bos():
    """llama.cpp begins texts of Llama 3 with it where a file does not say."""
    named = {**GGUF, "tokenizer.ggml.bos_token_id": 7}
    for pre, key, begin in (
        ("gpt-2", None, []),
        ("gpt-2", True, [7]),
        ("llama-bpe", None, [7]),
        ("llama-bpe", False, []),
    ):
        metadata = {**named, "tokenizer.ggml.pre": pre}
        if key is not None:
            metadata["tokenizer.ggml.add_bos_token"] = key
        tokenizer = tokenizer_gguf.from_gguf(metadata)
        assert tokenizer.encode_chat([Message("user", "ab")])[:1] == (
            begin or [3]
        )


def test_the_unknown_token_is_not_read_from_a_message():
    tokenizer = tokenizer_gguf.from_gguf(SENTENCEPIECE)
    assert tokenizer.encode("a<unk>b") == [6, 0, 7]
    text = tokenizer.render([Message("user", "a<unk>b")])
    assert text == "a<\u200bunk>b\n\n"
