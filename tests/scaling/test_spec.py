from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.scaling.policies import POLICIES, parse_policy
from dynscaling_jax.scaling.spec import completed, parse


def plain():
    return "plain"


def tuned(
    tau: float = 1.0,
    kind: Literal["a", "b"] = "a",
    k: int | None = None,
    deep: bool = False,
):
    return tau, kind, k, deep


def demanding(n: int):
    return n


TABLE = {"plain": plain, "tuned": tuned, "demanding": demanding}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        (" plain() ", "plain"),
        ("tuned", (1.0, "a", None, False)),
        ("tuned(tau=-2, kind=b)", (-2, "b", None, False)),
        ("tuned(kind='b', k=3, deep=True)", (1.0, "b", 3, True)),
        ("demanding(n=2)", 2),
    ],
)
def test_names_and_arguments(text, value):
    assert parse(text, TABLE) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "unknown vote 'foo'; known: demanding, plain, tuned"),
        ("tuned(t=1)", "no argument 't'; allowed: tau, kind, k, deep$"),
        ("plain(x=1)", "no argument 'x'; allowed: none"),
        ("tuned(tau=x)", "tau='x' is not float"),
        ("tuned(k=True)", "k=True is not"),
        ("tuned(kind=c)", "kind='c' is not Literal"),
        ("demanding", r"needs n=\.\.\."),
        ("tuned(1)", "malformed"),
        ("tuned(", "malformed"),
        ("", "malformed"),
        ("tuned(**{})", "malformed"),
        ("tuned(tau=__import__('os'))", "malformed"),
        ("a.b(c=1)", "malformed"),
        ("plain; plain", "malformed"),
        ("(" * 5000, "malformed"),
        ("tuned(tau={[]: 1})", "malformed"),
        ("tuned(tau=[1])", "malformed"),
        ("tuned(tau=1j)", "malformed"),
        ("tuned(tau=1e999)", "tau=inf is not float"),
        (f"tuned(tau={10**400})", "tau=10.* is not float"),
        (f"tuned(k={2**31})", "k=2147483648 is not"),
        ("\0", "malformed"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, TABLE, "vote")


def test_values_know_their_names():
    assert parse("ucb(c=0.5)", POLICIES).name == "ucb(c=0.5)"
    assert POLICIES["ucb"]("beta", c=1).name == "ucb(uncertainty='beta', c=1)"
    assert POLICIES["ucb"]().name == "ucb"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_does_more_than_call_a_factory(text):
    try:
        parse(text, TABLE)
    except ValueError as error:
        assert str(error)


def test_a_value_is_made_once():
    """Each run made its policy anew, and jax.jit compiled it again."""
    assert parse_policy("ucb(c=0.5)") is parse_policy("ucb(c=0.5)")
    assert parse_policy("ucb(c=0.5)") is not parse_policy("ucb(c=0.25)")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("tuned", "tuned(kind='b', k=3)"),
        ("tuned(k=4)", "tuned(k=4, kind='b')"),
        ("tuned(k=4, kind=a)", "tuned(k=4, kind=a)"),
        ("plain", "plain"),
    ],
)
def test_options_that_a_text_leaves_out(text, whole):
    options = {"kind": "b", "k": 3, "explore": 2}
    found = completed(text, TABLE, "vote", options)
    assert found == whole
    assert parse(found, TABLE) == parse(whole, TABLE)


def test_a_number_of_numpy_is_named_as_any_other():
    """ucb(c=np.float64(0.2)) was another policy than ucb(c=0.2)."""
    assert POLICIES["ucb"](c=np.float64(0.2)) is POLICIES["ucb"](c=0.2)
    assert POLICIES["ucb"](c=np.float32(0.5)).name == "ucb(c=0.5)"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ucb", {"c": "x"}, "ucb: c='x' is not float"),
        ("esc", {"window": 2.5}, "esc: window=2.5 is not int"),
        ("ucb", {"d": 1}, "ucb: got an unexpected keyword argument 'd'"),
    ],
)
def test_python_hears_what_is_wrong_too(name, given, message):
    """As a flag does; it was a TypeError of a comparison."""
    with pytest.raises((ValueError, TypeError), match=message):
        POLICIES[name](**given)
