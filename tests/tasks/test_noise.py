"""Misspelt questions."""

from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.tasks import load_task
from dynscaling_jax.tasks.noise import misspelt

TEXT = "Ada counts 48 marbles and gives 19 of them away."


def test_letters_of_long_words_are_swapped():
    assert misspelt(TEXT, 0.0, "a") == TEXT
    noisy = misspelt(TEXT, 1.0, "a").split()
    plain = TEXT.split()
    for before, after in zip(plain, noisy, strict=True):
        assert sorted(before) == sorted(after)
        assert before[0] == after[0]
        assert (before == after) == (len(before.strip(".")) < 4)
    assert [w for w in noisy if w.isdigit()] == ["48", "19"]


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.text())
def test_a_larger_share_misspells_the_same_words_and_more(text, a, b, key):
    few, many = (misspelt(text, share, key) for share in sorted((a, b)))
    assert len(few) == len(many) == len(text)
    for before, x, y in zip(text, few, many, strict=True):
        assert x == before or y == x


def test_formulas_stay():
    text = r"\begin{align} $\frac{sqrt}{four}$ \text{word}"
    assert misspelt(text, 1.0, "k") == text


def test_a_share_of_the_words():
    long = "letters " * 4000
    wrong = sum(w != "letters" for w in misspelt(long, 0.3, "k").split())
    # of five places to swap, one would swap two equal letters
    assert 0.2 < wrong / 4000 < 0.28


def test_the_questions_of_a_task():
    fields = {"name": "arithmetic", "limit": 5}
    plain = load_task(**fields).problems
    noisy = load_task(**{**fields, "noise": 0.5}).problems
    for a, b in zip(plain, noisy, strict=True):
        assert a.query.id == b.query.id and a.reference == b.reference
        assert a.query.messages != b.query.messages
