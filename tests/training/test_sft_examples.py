"""Chat JSON Lines to ids."""

import itertools
import json

import numpy as np
import pytest

from dynscaling_jax.training.batches import batches, order, padded_length
from dynscaling_jax.training.sft_examples import (
    Example,
    Examples,
    encode,
    read_examples,
)
from dynscaling_jax.types import Message

USER, BOT = Message("user", "2 + 2?"), Message("assistant", "4.")


def turns(*messages):
    return [m._asdict() for m in messages]


def write(path, *values):
    path.write_text("\n".join(map(json.dumps, values)))  # no last line end
    return path


def test_each_turn_of_the_assistant_is_an_example(tmp_path):
    more = Message("user", "And 3?"), Message("assistant", "7.")
    file = write(tmp_path / "a.jsonl", {"messages": turns(USER, BOT, *more)})
    assert list(read_examples(file)) == [
        Example((USER,), "4."),
        Example((USER, BOT, more[0]), "7."),
    ]


def test_a_completion_goes_on_with_a_turn(tmp_path, byte_tokenizer):
    begun = Message("assistant", "I try.")
    file = write(
        tmp_path / "a.jsonl",
        {"prompt": turns(USER, begun), "completion": " It is 4."},
    )
    examples = list(read_examples(file))
    made, dropped = encode(examples, byte_tokenizer, 258, 100)
    assert dropped == 0
    text = byte_tokenizer.decode(made.ids.tolist(), skip_special=False)
    assert text.endswith("<|im_start|>assistant\nI try. It is 4.<|im_end|>")
    after = made.ids[made.starts[0] :].tolist()
    assert after == [*byte_tokenizer.encode(" It is 4."), 258]


@pytest.mark.parametrize(
    "row, says",
    [
        ({"text": "x"}, "got the fields 'text'"),
        ({"messages": []}, "expected turns"),
        ({"messages": turns(USER)}, "a turn of the assistant"),
        ({"messages": turns(BOT)}, "with one before it"),
        ({"messages": [{"role": "user"}]}, "expected turns"),
        ({"prompt": "x", "completion": "y"}, "expected turns"),
        ({"prompt": turns(USER)}, '"prompt" and "completion"'),
    ],
)
def test_names_the_line_that_is_no_example(tmp_path, row, says):
    good = {"messages": turns(USER, BOT)}
    file = write(tmp_path / "a.jsonl", good, row)
    with pytest.raises(ValueError, match=says) as error:
        list(read_examples(file))
    assert f"{file}:2" in str(error.value)


def test_special_tokens_spelled_in_an_example_are_text(byte_tokenizer):
    example = Example((USER,), "a<|im_end|>b")
    made, _ = encode([example], byte_tokenizer, 258, 100)
    written = made.ids[made.starts[0] :].tolist()
    assert written.count(258) == 1 and written[-1] == 258


def test_examples_that_are_too_long_are_left_out(byte_tokenizer):
    short, long = Example((USER,), "4"), Example((USER,), "4" * 200)
    made, dropped = encode([long, short, long], byte_tokenizer, 258, 100)
    assert dropped == 2 and len(made.ends) == 1
    with pytest.raises(ValueError, match="all 2 examples are longer than 100"):
        encode([long, long], byte_tokenizer, 258, 100)


@pytest.fixture
def many():
    lengths = np.random.default_rng(0).integers(3, 90, 150)
    parts = [np.full(n, i) for i, n in enumerate(lengths)]
    return Examples(
        np.concatenate(parts).astype(np.int32),
        np.cumsum(lengths),
        np.full(150, 2, np.int32),
    )


def test_an_epoch_holds_each_example_once(many):
    groups = order(many.lengths, 8, seed=1, epoch=0)
    met = np.concatenate(groups)
    assert len(groups) == 150 // 8 and len(set(met.tolist())) == len(met)
    other = order(many.lengths, 8, seed=1, epoch=1)
    assert (np.concatenate(other) != met).any()


def test_neighbours_are_alike_in_length(many):
    """Little is padding: sorted, 8 of 150 lengths lie close together."""
    epoch = itertools.islice(batches(many, 8, seed=0), 18)
    shares = [batch.length.sum() / batch.tokens.size for batch in epoch]
    assert np.mean(shares) > 0.75


def test_batches_go_on_where_they_were_left(many):
    whole = itertools.islice(batches(many, 8, seed=3), 23, 40)
    rest = itertools.islice(batches(many, 8, seed=3, first=23), 17)
    for a, b in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.length, b.length)


def test_a_batch_holds_the_examples_as_they_are(many):
    batch = next(batches(many, 8, seed=0))
    for row, length in zip(batch.tokens, batch.length, strict=True):
        i = row[0]
        assert length == many.lengths[i]
        assert (row[:length] == i).all() and not row[length:].any()


def test_few_lengths_and_little_padding():
    sizes = {padded_length(n) for n in range(1, 4097)}
    assert len(sizes) < 35
    for n in range(33, 4097):
        assert n <= padded_length(n) <= 1.25 * n


def test_too_few_examples_for_a_batch(many):
    with pytest.raises(ValueError, match="150 examples do not fill a batch"):
        next(batches(many, 200, seed=0))
