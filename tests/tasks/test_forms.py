from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynscaling_jax.tasks.forms import KINDS, canonical
from dynscaling_jax.tasks.formulas import listing
from dynscaling_jax.tasks.numbers import rational


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("18", "18"),
        ("1,000", "1000"),
        ("$1,450,000", "1450000"),
        (r"\$18.90", "18.9"),
        ("$5.00", "5"),
        ("5.", "5"),
        ("50%", "50"),
        (r"50\%", "50"),
        ("145.0", "145"),
        ("1/2", "0.5"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        (r"\frac{1}{3}", "1/3"),
        (r"1\frac{4}{5}", "1.8"),
        ("2 1/2", "2.5"),
        ("-3", "-3"),
        ("\N{MINUS SIGN}3", "-3"),
        ("- 3", "-3"),
        ("-$5", "-5"),
        ("+4", "4"),
        (r"10,\!080", "10080"),
        ("1{,}000", "1000"),
        ("1.5e3", "1500"),
        ("007", "7"),
        ("**42**", "42"),
        ("18 dollars", "18"),
        (r"18\text{ dollars}", "18"),
        ("3 + 4 = 7 apples", "7"),
        ("x = -2", "-2"),
        ("16 - 3", "13"),
        ("\u0663", "3"),
        ("1 234", "1234"),
        ("1,00,000", "100000"),
        ("3\u00bd", "3.5"),
        ("2^{10}", "1024"),
        (r"\frac{6}{2}+1", "4"),
        ("3!", "6"),
        (r"\sqrt{144}", "12"),
        ("seventeen", "17"),
        ("2.5 million", "2500000"),
        ("7:30", "7:30"),
    ],
)
def test_numbers(answer, expected):
    assert canonical(answer, "number") == expected


@pytest.mark.parametrize(
    "answer",
    ["", "none", "...", "5/0", "-", "$", "9" * 500, "1/" + "9" * 299]
    + ["1,2", "3-4", "3 or 4", "(1, 2)", r"\sqrt{2}", r"10\pi", "x^2+3", "2x"]
    + ["9^{9^9}", "999999!", "1/0!0", "between 3 and 4", "x > 3"],
)
def test_what_is_no_number(answer):
    assert canonical(answer, "number") is None


@given(st.fractions(max_denominator=10**6))
def test_a_number_has_one_spelling(value):
    """Integer, decimal or fraction: what is written never matters."""
    shown = canonical(f"{value.numerator}/{value.denominator}", "number")
    assert shown is not None and rational(shown) == value
    latex = rf"\dfrac{{{value.numerator}}}{{{value.denominator}}}"
    assert canonical(latex, "number") == shown
    assert canonical(latex, "math") == shown


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_decimals_are_exact(digits, places):
    value = Fraction(digits, 10**places)
    sign, size = ("-" if digits < 0 else ""), abs(digits)
    whole, part = divmod(size, 10**places)
    text = f"{sign}{whole:,}." + (f"{part:0{places}}" if places else "")
    shown = canonical(text, "number")
    assert shown is not None and rational(shown) == value


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"),
        (r"3,\pi/2", r"3, \pi/2"),
        (r"\dfrac{17}{50}", "0.34"),
        (r"\frac43", "4/3"),
        (r"\frac 59", "5/9"),
        (r"\frac9{19}", "9/19"),
        (r"\frac{270}7\text{ degrees}", "270/7"),
        (r"11\sqrt2", r"11\sqrt{2}"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"864 \mbox{ inches}^2", "864"),
        ("10 meters", "10"),
        ("4 inches per second", "4"),
        ("2 pi", r"2\pi"),
        ("\N{SQUARE ROOT}2", r"\sqrt{2}"),
        ("x=5", "5"),
        ("y = 2x + 3", "y=2x+3"),
        (r"x \in [-2,7]", "[-2, 7]"),
        (r"\text{Evelyn}", "evelyn"),
        ("East.", "east"),
        (r"\text{(C)}", "C"),
        (r"4210_{5}", "4210_5"),
        (r"$\frac12$", "0.5"),
        (r"\(\frac12\)", "0.5"),
        (r"\boldmath", r"\boldmath"),
        (r"\cot x", r"\cot x"),
        ("1 and -2", "1, -2"),
        (r"1 \text{ and } -2", "1, -2"),
        ("((5))", "5"),
        ("10!", "10!"),
    ],
)
def test_mathematics(answer, expected):
    assert canonical(answer, "math") == expected


def test_matrix_rows_survive():
    r"""`\ ` is a space, but the `\\ ` that ends a row is not one more of
    them: a rewriting that took it merged all rows into one."""
    matrix = r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"
    assert canonical(matrix, "math") == r"\begin{pmatrix}1\\2\end{pmatrix}"


def test_powers_do_not_swallow_their_neighbour():
    """x^{2}3 must not become x^23."""
    assert canonical("x^{2}3", "math") == "x^{2}3"
    assert canonical("x^{2}+3", "math") == "x^2+3"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", ("", ("5",), "")),
        ("1, 2", ("", ("1", "2"), "")),
        ("(1, 2]", ("(", ("1", "2"), "]")),
        (r"\{1, (2,3)\}", (r"\{", ("1", "(2,3)"), r"\}")),
        ("(a+5)(b+2)", ("", ("(a+5)(b+2)",), "")),
        (r"(0,9)\cup(9,36)", ("", (r"(0,9)\cup(9,36)",), "")),
        (r"\frac{1,2}{3}", ("", (r"\frac{1,2}{3}",), "")),
        ("(1, 2", ("", ("(1, 2",), "")),
        ("1, 2)", ("", ("1", "2)"), "")),
        ("", ("", ("",), "")),
    ],
)
def test_listing(text, expected):
    assert listing(text) == expected


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("choice", "(B)", "B"),
        ("choice", "(b)", "B"),
        ("choice", "b", "B"),
        ("choice", r"\text{(C)}", "C"),
        ("choice", r"\mathrm{D}.", "D"),
        ("choice", "B) 12/25/1937", "B"),
        ("choice", "option C", "C"),
        ("choice", "A because it is larger", "A"),
        ("choice", "I think (B)", "B"),
        ("choice", "A train leaves", None),
        ("choice", "none of them", None),
        ("boolean", "true", "True"),
        ("boolean", "No.", "False"),
        ("boolean", r"\text{yes}", "True"),
        ("boolean", "perhaps", None),
        ("text", "  Mercury. ", "mercury"),
        ("text", '"New  York"', "new york"),
        ("text", "12/25/1937", "1937-12-25"),
        ("text", "December 25, 1937", "1937-12-25"),
        ("text", "25 Dec 1937", "1937-12-25"),
        ("text", "1937-12-25", "1937-12-25"),
        ("text", "13/13/1937", "13/13/1937"),
        ("text", "7.0", "7"),
        ("text", "", None),
    ],
)
def test_options_truth_and_text(kind, answer, expected):
    assert canonical(answer, kind) == expected


ALPHABET = st.sampled_from(
    list("0123456789.,;:/%$-+*=^_(){}[]!' \nABIabx\\\u2212\u00b0\u00df\u0663")
    + [r"\frac", r"\dfrac{", r"\text{", r"\boxed{", r"\left(", r"\right)"]
    + [r"\{", r"\}", r"\pm", r"\in", r"\circ", r"\!", "cm", " and ", "answer"]
)
WRITING = st.lists(ALPHABET, max_size=30).map("".join) | st.text(max_size=60)


@settings(max_examples=500, deadline=None)
@example("((((((((((((5))))))))))))", "math")
@example("(5) cm", "math")
@given(WRITING, st.sampled_from(KINDS))
def test_canonical_is_idempotent_and_never_raises(text, kind):
    form = canonical(text, kind)
    assert form is None or (form and canonical(form, kind) == form)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'numbr'; known: number, math"):
        canonical("5", "numbr")


def test_what_is_too_long_is_no_answer():
    assert canonical("a" * 2_001, "text") is None
