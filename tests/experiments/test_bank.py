"""Banks: what is read, and that every bad file says what is wrong."""

import json

import numpy as np
import pytest

from dynscaling_jax.experiments.bank import load_bank, tidy
from dynscaling_jax.experiments.log import row_of
from dynscaling_jax.types import Sample

ROW = {
    "query_id": "a",
    "reference": "1/2",
    "answers": ["0.5", None, " 1/2 ", "0.5"],
    "new_tokens": [10, 20, 30, 40],
}
OTHER = ROW | {"query_id": "b", "reference": "7"}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_become_arrays(tmp_path):
    bank = load_bank(written(tmp_path / "some.jsonl", ROW, OTHER))
    assert bank.name == "some"
    assert bank.ids == ("a", "b")
    assert bank.answer_QN.tolist() == [[0, -1, 0, 0]] * 2
    assert bank.tokens_QN.tolist() == [[10, 20, 30, 40]] * 2
    assert bank.reference_Q.tolist() == [0, -2]
    assert bank.logprob_QN is None
    assert bank.answer_QN.dtype == bank.tokens_QN.dtype == np.int32


@pytest.mark.parametrize(
    ("reference", "answers", "kind", "right"),
    [
        # an AIME answer with leading zeros made a whole question wrong
        ("033", ["33", "34"], "number", 0.5),
        # two spellings were two answers, and split the vote
        ("(3,\\frac{\\pi}{2})", ["3,\\pi/2", "(3, \\pi)"], "math", 0.5),
        # a list is no number: it keeps a class of its own, and is not 1
        ("1", ["1", "1,2"], "number", 0.5),
        ("B", ["(b)", "C"], "choice", 0.5),
    ],
)
def test_answers_are_compared_as_answers_of_a_kind(
    tmp_path, reference, answers, kind, right
):
    row = {"query_id": "q", "reference": reference, "answers": answers}
    row["new_tokens"] = [1, 1]
    bank = load_bank(written(tmp_path / "some.jsonl", row))
    assert bank.kind == kind
    assert (bank.answer_QN == bank.reference_Q[:, None]).mean() == right
    assert bank.answer_QN.tolist() == [[0, 1]]


def test_what_a_kind_does_not_read_is_told_apart_by_its_text(tmp_path):
    path = written(tmp_path / "some.jsonl", ROW)
    bank = load_bank(path, kind="choice")
    assert bank.answer_QN.tolist() == [[0, -1, 1, 0]]
    assert (bank.kind, bank.reference_Q.tolist()) == ("choice", [1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" 42 ", "42"),
        ("$42$", "42."),
        (r"\left( 3, 4 \right)", "( 3, 4 )"),
        (r"\dfrac12", r"\tfrac12"),
        (r"10\,000", "10000"),
    ],
)
def test_tidy_joins_spellings(one, other):
    assert tidy(one) == tidy(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "-1"), ("12", "1 2"), (r"\leftarrow", "arrow"), ("a", "A")],
)
def test_tidy_keeps_different_answers_apart(one, other):
    assert tidy(one) != tidy(other)


def test_log_probabilities_are_kept(tmp_path):
    row = ROW | {"logprobs": [-0.5, -1, -0.25, 0.0]}
    bank = load_bank(written(tmp_path / "some.jsonl", row))
    assert bank.logprob_QN is not None
    assert bank.logprob_QN.tolist() == [[-0.5, -1, -0.25, 0]]
    mixed = written(tmp_path / "mixed.jsonl", row, OTHER)
    assert load_bank(mixed).logprob_QN is None


def test_a_last_line_without_its_end_is_read(tmp_path):
    """A bank is no log: its last line counts without a newline too."""
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(OTHER))
    assert load_bank(path).ids == ("a", "b")


def test_depth_keeps_the_first_samples(tmp_path):
    longer = OTHER | {"answers": ["7"] * 6, "new_tokens": [1] * 6}
    path = written(tmp_path / "some.jsonl", ROW, longer)
    bank = load_bank(path, depth=3)
    assert bank.answer_QN.tolist() == [[0, -1, 0], [0, 0, 0]]
    assert bank.tokens_QN.shape == (2, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "found none"),
        ([3], ":1: expected a JSON object"),
        ([ROW, ROW], ":2: question 'a' comes twice"),
        ([ROW, OTHER | {"query_id": 3}], ":2: expected query_id"),
        ([ROW | {"reference": 7}], ":1: expected reference"),
        ([ROW | {"answers": "7"}], ":1: expected answers"),
        ([ROW | {"answers": [7, 7, 7, 7]}], ":1: expected answers"),
        ([ROW | {"new_tokens": [1, 2]}], "expected 4 new_tokens, .* not 2"),
        ([ROW | {"new_tokens": [1, 2, 3, -4]}], ":1: expected new_tokens"),
        ([ROW | {"new_tokens": [1, 2, 3, True]}], ":1: expected new_tokens"),
        ([ROW | {"logprobs": [0.0]}], "expected 4 logprobs, .* not 1"),
        ([ROW | {"logprobs": [0, 0, 0, "x"]}], ":1: expected logprobs"),
        ([ROW | {"logprobs": [0, 0, 0, 10**400]}], ":1: expected logprobs"),
        ([ROW | {"new_tokens": [1, 2, 3, 10**400]}], ":1: expected new_tokens"),
        ([ROW | {"answers": [], "new_tokens": []}], "'a' has no answers"),
        (
            [ROW, OTHER | {"answers": ["7"], "new_tokens": [1]}],
            "'b' has 1 answers, 'a' has 4.*depth to at most 1",
        ),
    ],
)
def test_a_bad_bank_says_where_and_why(tmp_path, rows, message):
    path = written(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(ValueError, match=message):
        load_bank(path)


def test_a_malformed_line_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROW) + "\n{oops\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: expected a JSON"):
        load_bank(path)


@pytest.mark.parametrize("depth", [0, 5])
def test_a_depth_beyond_the_bank_is_refused(tmp_path, depth):
    path = written(tmp_path / "some.jsonl", ROW)
    with pytest.raises(ValueError, match=f"depth={depth}: expected 1 to 4"):
        load_bank(path, depth=depth)


def sample(query_id, index, answer, logprob: float | None = -0.5):
    return Sample(
        query_id, index, 0, (), "text", answer, "stop", 5, 0, 7, 1.0, logprob
    )


def logged(path, *samples):
    return written(path, *(row_of(s) for s in samples))


def test_a_sample_log_is_a_bank(tmp_path):
    """Rows of a run, in the order of its requests, references beside it."""
    path = logged(
        tmp_path / "samples.jsonl",
        sample("a", 0, "3"),
        sample("b", 0, "x"),
        sample("b", 1, None),
        sample("a", 1, "4"),
    )
    (tmp_path / "references.json").write_text('{"a": "4", "b": "y"}')
    bank = load_bank(path)
    assert bank.name == tmp_path.name
    assert bank.ids == ("a", "b")
    assert bank.answer_QN.tolist() == [[0, 1], [0, -1]]
    assert bank.tokens_QN.tolist() == [[7, 7], [7, 7]]
    assert bank.reference_Q.tolist() == [1, -2]
    assert bank.logprob_QN is not None


def test_samples_that_read_others_are_no_part_of_a_bank(tmp_path):
    """A replay takes samples of a question as independent."""
    chain = sample("a", 1, "3")._replace(parents=(0,))
    path = logged(
        tmp_path / "samples.jsonl",
        sample("a", 0, "3"),
        chain,
        sample("a", 2, "4"),
    )
    (tmp_path / "references.json").write_text('{"a": "4"}')
    assert load_bank(path).answer_QN.tolist() == [[0, 1]]


def test_a_sample_log_takes_references_as_an_argument(tmp_path):
    path = logged(tmp_path / "samples.jsonl", sample("a", 0, "3", None))
    bank = load_bank(path, references={"a": "3"})
    assert bank.reference_Q.tolist() == [0]
    assert bank.logprob_QN is None


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (None, "no .*references.json"),
        ("{", "expected JSON"),
        ("[1]", "expected an object of strings"),
        ('{"b": "3"}', "no reference for question 'a'"),
    ],
)
def test_missing_references_are_asked_for(tmp_path, beside, message):
    path = logged(tmp_path / "samples.jsonl", sample("a", 0, "3"))
    if beside is not None:
        (tmp_path / "references.json").write_text(beside)
    with pytest.raises(ValueError, match=message):
        load_bank(path)
