"""A tokenizer learnt from examples."""

import pytest

from dynscaling_jax.checkpoints import tokenizer as tokenizers
from dynscaling_jax.training.vocabulary import END, save_tokenizer
from dynscaling_jax.types import Message

TEXTS = ["Ada has 137 marbles.", "Ada finds another 25 marbles."] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory, TEXTS, 300)
    return tokenizers.from_directory(directory)


def test_any_text_comes_back(tokenizer):
    for text in (*TEXTS[:2], "Größe: 5\n\n  漢字 🦊\t<b>", " 7", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stay_apart(tokenizer):
    ids = tokenizer.encode("has 137 marbles")
    pieces = [tokenizer.decode([i]) for i in ids]
    assert pieces[-4:] == [" 1", "3", "7", " marbles"]


def test_turns_end(tokenizer):
    end = tokenizer.encode(END)[0]
    assert tokenizer.end_ids == (end,)
    ids = tokenizer.encode_chat([Message("user", "Ada?")])
    text = tokenizer.decode(ids, skip_special=False)
    assert text == "<|user|>Ada?<|assistant|>"


def test_a_vocabulary_holds_all_bytes(tmp_path):
    with pytest.raises(ValueError, match="needs 260 ids at least, got 200"):
        save_tokenizer(tmp_path, TEXTS, 200)
