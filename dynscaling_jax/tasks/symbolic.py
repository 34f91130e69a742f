"""The worker process that reads formulas with math-verify's LaTeX grammar.

Run as a program, not imported. Each request, [seconds, formula], is answered
by [meaning, seconds used]; meaning is null for what is no formula, and
["hard"] where it would take too much. Two formulas are equal where their
meanings are (equivalence.py):

    ["value", points]                  a number or an expression
    ["matrix", rows, [points, ...]]    row by row
    ["set", [part, ...], name]         of real numbers, its parts in order,
                                       [low, high, open below, open above];
                                       name is the variable of an inequality
    ["named", name]                    a set such as Integers
    ["relation", sign, points]         an equation or inequality, as the
                                       difference of its sides; up to a factor

An expression is known by its values at a few points: each variable is given
a number that its name decides, here and in every other formula. A value is
exact, "p/q", where rational arithmetic gives it, and otherwise has 60
digits, {"re": [mantissa, exponent], "im": [mantissa, exponent]}. So nothing
is simplified, and no rounding makes 10^-23 equal to 10^-19.
"""

import functools
import hashlib
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from mpmath import mp
from sympy.core.function import UndefinedFunction

sys.path.insert(0, str(Path(__file__).parents[2]))

from dynscaling_jax.workers import serve

MEMORY = 2 << 30  # bytes of address space
DIGITS = 80
POINTS = 3
EXACT = 20_000  # bits of an exact number
ABSORBED = 600  # bits: what a sum to 160 digits does not show
LARGEST = 64  # bits of an exponent or of what a function is given


Value = Any  # a Fraction, or a number of mpmath


class Unreadable(Exception):
    """No formula, or one whose value cannot be known."""


class Hard(Exception):
    """A formula whose value would take too much time or memory."""


def answer(formula: str) -> tuple[Any, float]:
    """Returns the meaning of a formula and the seconds that it took."""
    before = time.process_time()
    try:
        meaning = read(formula)
    except (MemoryError, Hard, OverflowError):
        meaning = ["hard"]
    except Exception:  # the grammar and sympy raise nearly anything
        meaning = None
    return meaning, time.process_time() - before


def read(text: str) -> list[Any]:
    """Returns the meaning of a formula.

    Raises:
      Exception: Unreadable, Hard, and whatever the grammar and sympy raise.
    """
    if re.search(r"'|\\(?:dots|ldots|cdots|prime)|\^T(?![A-Za-z])", text):
        raise Unreadable  # the grammar would drop the mark
    sides = re.split(r"\\(lor|land)(?![A-Za-z])", text)
    trees = [_parsed(side) for side in sides[::2]]
    if len(set(sides[1::2])) > 1:
        raise Unreadable
    tree = trees[0]
    if len(trees) > 1:
        tree = (sympy.Or if sides[1] == "lor" else sympy.And)(*trees)
    if isinstance(tree, sympy.MatrixBase):
        return ["matrix", tree.rows, [_points(entry) for entry in tree.flat()]]
    if isinstance(tree, sympy.Set):
        return _set(tree, "")
    if isinstance(tree, sympy.logic.boolalg.Boolean) and not tree.is_Symbol:
        return _relation(tree)
    return ["value", _points(tree)]


def _parsed(text: str) -> Any:
    chain = re.split(r"(<|>|\\(?:leq|geq)(?![A-Za-z]))", text)
    if len(chain) > 3:  # 0 < x < 1
        links = range(0, len(chain) - 2, 2)
        return sympy.And(*(_parsed("".join(chain[n : n + 3])) for n in links))
    return latex2sympy(
        text,
        is_real=None,  # type: ignore
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )


def _exact(tree: Any) -> Any:
    """Decimals as the fractions that they are written for."""
    floats = tree.atoms(sympy.Float)
    return tree.xreplace({f: sympy.Rational(str(f)) for f in floats})


def _set(tree: Any, name: str) -> list[Any]:
    tree = _exact(tree).doit()
    if tree in (sympy.S.Integers, sympy.S.Naturals, sympy.S.Naturals0):
        return ["named", str(tree)]
    parts: list[Any] = []
    for part in tree.args if isinstance(tree, sympy.Union) else (tree,):
        if isinstance(part, sympy.Interval):
            ends = part.start, part.end
            parts.append((*ends, part.left_open, part.right_open))
        elif isinstance(part, sympy.FiniteSet):
            parts += [(end, end, False, False) for end in part.args]
        elif part is not sympy.S.EmptySet:
            raise Unreadable
    parts.sort(key=lambda part: _place(part[0]))
    shown = [[*map(_points, part[:2]), *map(bool, part[2:])] for part in parts]
    return ["set", shown, name]


def _place(end: Any) -> tuple[Any, Any]:
    if end in (sympy.oo, -sympy.oo):
        return (mp.inf if end == sympy.oo else mp.ninf), 0
    value = mp.mpmathify(_approximate(_value_at(end, 0)))
    return mp.re(value), mp.im(value)


def _relation(tree: Any) -> list[Any]:
    if not isinstance(tree, sympy.Eq):
        names = {symbol.name for symbol in tree.free_symbols}
        if len(names) == 1:
            (symbol,) = tree.free_symbols
            real = sympy.Symbol(symbol.name, real=True)
            return _set(_exact(tree).xreplace({symbol: real}).as_set(), *names)
    if not isinstance(tree, sympy.core.relational.Relational):
        raise Unreadable
    sign, left, right = tree.rel_op, tree.lhs, tree.rhs  # type: ignore
    minus = sympy.Mul(-1, right, evaluate=False)  # type: ignore
    difference = sympy.Add(left, minus, evaluate=False)  # type: ignore
    values = [_value_at(difference, n) for n in range(POINTS)]
    factor = next((v for v in values if v), None)
    if factor is None or mp.im(_approximate(factor)):
        raise Unreadable
    if sign not in ("==", "!="):
        factor = abs(factor)
    if sign in (">", ">="):
        sign, factor = sign.replace(">", "<"), -factor
    return ["relation", sign, [_shown(_divided(v, factor)) for v in values]]


_CALCULUS = (sympy.Integral, sympy.Derivative)


def _points(tree: Any) -> list[Any]:
    """The values of an expression."""
    if tree in (sympy.oo, -sympy.oo):
        return [str(tree)] * POINTS
    if tree.has(sympy.Sum, sympy.Product, sympy.Limit, *_CALCULUS):
        tree = tree.doit()
    if tree.free_symbols or tree.has(sympy.core.function.AppliedUndef):
        return [_shown(_value_at(tree, n)) for n in range(POINTS)]
    return [_shown(_value_at(tree, 0))] * POINTS


def _value_at(tree: Any, n: int) -> Value:
    """The value of an expression at point n, to 60 digits or exact."""
    values = []
    for digits in (DIGITS, 2 * DIGITS):
        with mp.workdps(digits):
            values.append(_value(tree, n))
            if isinstance(values[-1], Fraction):
                return values[-1]
    rough, fine = map(mp.mpmathify, values)
    with mp.workdps(2 * DIGITS):
        if abs(rough - fine) <= mp.mpf(10) ** -60 * abs(fine):
            if abs(mp.im(fine)) <= mp.mpf(10) ** -60 * abs(fine):
                return mp.re(fine)
            if abs(mp.re(fine)) <= mp.mpf(10) ** -60 * abs(fine):
                return mp.mpc(0, mp.im(fine))
            return fine
        # All digits cancel: e^{i\pi} + 1 is nothing but rounding.
        if abs(rough) < mp.mpf(10) ** -50 and abs(fine) < mp.mpf(10) ** -120:
            return Fraction(0)
    raise Unreadable


def _value(tree: Any, n: int) -> Value:
    """The value of an expression at point n, in mpmath's precision."""
    if tree.is_Rational:
        return Fraction(tree.p, tree.q)
    if tree.is_Float:
        return Fraction(str(tree))
    if tree.is_Symbol:
        return mp.mpc(0, 1) if tree.name == "i" else _chosen(tree.name, n)
    if tree in _CONSTANTS:
        return +_CONSTANTS[tree]
    if not tree.args:
        raise Unreadable
    parts = [_value(part, n) for part in tree.args]
    if tree.is_Add:
        return functools.reduce(_sum, parts)
    if tree.is_Mul:
        return functools.reduce(_product, parts)
    if tree.is_Pow:
        return _power(*parts)
    if isinstance(tree.func, UndefinedFunction):
        return _chosen(f"{tree.func}{list(map(_shown, parts))}", n)
    name = type(tree).__name__
    if name in ("factorial", "binomial") and all(map(_is_small, parts)):
        whole = (sympy.Integer(int(part)) for part in parts)
        return Fraction(int(getattr(sympy, name)(*whole)))
    if name in _ON_EXACT and all(isinstance(p, Fraction) for p in parts):
        return Fraction(_ON_EXACT[name](*parts))
    if name not in _FUNCTIONS:
        raise Unreadable
    parts = [_approximate(part) for part in parts]
    if any(mp.mag(part) > LARGEST for part in parts if part):
        raise Hard
    return _FUNCTIONS[name](*parts)


_CONSTANTS = {
    sympy.pi: mp.pi,
    sympy.E: mp.e,
    sympy.EulerGamma: mp.euler,
    sympy.GoldenRatio: mp.phi,
    sympy.I: mp.mpc(0, 1),
}
_ANY: dict[str, Callable[..., Any]] = {  # of exact values too
    "Abs": abs,
    "Max": max,
    "Min": min,
    "UnevaluatedExpr": lambda x: x,
}
_ON_EXACT: dict[str, Callable[..., Any]] = {
    **_ANY,
    "floor": lambda x: x // 1,
    "ceiling": lambda x: -(-x // 1),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_ANY,
    **{
        name: getattr(mp, name)
        for name in (
            "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh "
            "tanh coth sech csch asinh acosh atanh exp factorial binomial "
            "gamma zeta re im conj arg floor erf"
        ).split()
    },
    "ceiling": mp.ceil,
    "log": lambda x, base=mp.e: mp.log(x) / mp.log(base),
    "conjugate": mp.conj,
    "LambertW": mp.lambertw,
}


def _chosen(name: str, n: int) -> Fraction:
    r"""A variable's number at point n, of either sign: \sqrt{x^2} is not x."""
    digest = hashlib.sha256(f"{name}/{n}".encode()).digest()
    size = Fraction(1 + int.from_bytes(digest[:3], "big"), 1 << 22)
    return size if n == 0 or (n == 1 and digest[3] % 2) else -size


def _approximate(value: Value) -> Any:
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / value.denominator
    return value


def _sum(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a + b)
    a, b = _approximate(a), _approximate(b)
    if a and b and abs(mp.mag(a) - mp.mag(b)) > ABSORBED:
        raise Hard  # 9^{9^9} + 1 would be 9^{9^9}
    return a + b


def _product(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return _bounded(a * b)
    return _approximate(a) * _approximate(b)


def _divided(value: Value, by: Value) -> Value:
    if isinstance(value, Fraction) and isinstance(by, Fraction):
        return value / by
    return _approximate(value) / _approximate(by)


def _bounded(value: Fraction) -> Value:
    return _approximate(value) if _bits(value) > EXACT else value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _is_small(value: Value) -> bool:
    whole = isinstance(value, Fraction) and value.denominator == 1
    return whole and 0 <= value <= 2_000


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction):
        if not base:
            if exponent < 0:
                raise Unreadable
            return Fraction(exponent == 0)
        if isinstance(base, Fraction):
            root = _root(base, exponent.denominator)
            if root and _bits(root) * abs(exponent.numerator) <= EXACT:
                return root**exponent.numerator
        if exponent.denominator == 1:
            exponent = exponent.numerator
        elif exponent.denominator % 2 and _is_negative(base):
            # the real root: \sqrt[3]{-8} is -2
            sign = -1 if exponent.numerator % 2 else 1
            return sign * _power(-base, exponent)
    base, power = _approximate(base), _approximate(exponent)
    if power and mp.mag(power) + mp.mag(mp.mag(base) or 1) > LARGEST:
        raise Hard
    return mp.power(base, power)


def _is_negative(value: Value) -> bool:
    if isinstance(value, Fraction):
        return value < 0
    return not mp.im(value) and mp.re(value) < 0


def _root(value: Fraction, n: int) -> Fraction | None:
    """The exact n-th root of a fraction, None where there is none."""
    if n == 1:
        return value
    if value < 0 or n > 64:
        return None
    top, top_exact = sympy.integer_nthroot(value.numerator, n)
    bottom, bottom_exact = sympy.integer_nthroot(value.denominator, n)
    return (
        Fraction(int(top), int(bottom)) if top_exact and bottom_exact else None
    )


def _shown(value: Value) -> Any:
    if isinstance(value, Fraction):
        return str(value)
    if not mp.isfinite(value):
        raise Unreadable
    return {"re": _mantissa(mp.re(value)), "im": _mantissa(mp.im(value))}


def _mantissa(value: Any) -> list[int]:
    sign, mantissa, exponent, bits = value._mpf_
    excess = max(0, bits - 220)
    return [(-1) ** sign * (int(mantissa) >> excess), int(exponent) + excess]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.set_int_max_str_digits(0)
    serve(answer, MEMORY)
