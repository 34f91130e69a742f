"""Names with arguments, as a flag or a config writes them, to values.

"majority", "weighted(tau=0.5)", "integrated(which=distinct, k=4)".

One grammar serves the tables of strategies, policies, votes and methods. Text
is parsed and never evaluated.
"""

import ast
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from dynscaling_jax.types import Cancel, Method, Policy, Strategy, Vote

P = ParamSpec("P")
Value = TypeVar("Value", Strategy, Policy, Vote, Cancel, Method)


def named(factory: Callable[P, Value]) -> Callable[P, Value]:
    """Has a factory give its values the name that a flag would write.

    ucb(c=0.2) is then named "ucb(c=0.2)". The same arguments give the same
    value, so that jax.jit compiles its functions once.
    """

    @functools.lru_cache(typed=True)
    def cached(*args: Any, **kwargs: Any) -> Value:
        signature = inspect.signature(factory)
        try:
            bound = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{factory.__name__}: {error}") from None
        for name, value in bound.items():
            kind = signature.parameters[name].annotation
            # the factory itself says whether it takes inf
            if type(value) is not float or math.isfinite(value):
                _check_kind(factory.__name__, name, value, kind)
        given = ", ".join(f"{name}={value!r}" for name, value in bound.items())
        name = factory.__name__ + (f"({given})" if given else "")
        return factory(*args, **kwargs)._replace(name=name)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Value:
        # of np.linspace, say: the name of ucb(c=0.2) is one
        args = tuple(map(_plain, args))  # pyright: ignore
        kwargs = {k: _plain(v) for k, v in kwargs.items()}  # pyright: ignore
        written = (int, float, str, type(None))
        if all(isinstance(v, written) for v in (*args, *kwargs.values())):
            return cached(*args, **kwargs)
        return factory(*args, **kwargs)  # a traced value has no name

    return make


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def parse(
    text: str,
    table: Mapping[str, Callable[..., Any]],
    what: str = "method",
) -> Any:
    """Calls the factory of a table that a text such as "ucb(c=0.5)" names.

    Arguments are given by keyword. Values are numbers, quoted strings, True,
    False, None or tuples of these; a bare word is a string.

    Raises ValueError, with the known names or the allowed arguments, where
    the text is malformed, the name unknown, an argument unknown or missing,
    or a value not of the kind that the factory declares.
    """
    name, given = read(text, what)
    factory = choose(what, name, table)
    parameters = inspect.signature(factory).parameters
    listed = ", ".join(parameters) or "none"
    for argument, value in given.items():
        if argument not in parameters:
            raise ValueError(
                f"{what} {name!r} has no argument {argument!r}; "
                f"allowed: {listed}"
            )
        kind = parameters[argument].annotation
        _check_kind(f"{what} {name!r}", argument, value, kind)
    for argument, parameter in parameters.items():
        if argument not in given and parameter.default is parameter.empty:
            raise ValueError(f"{what} {name!r} needs {argument}=...")
    return factory(**given)


def completed(
    text: str,
    table: Mapping[str, Callable[..., Any]],
    what: str,
    options: Mapping[str, Any],
) -> str:
    """Adds to a text the options that its factory takes and it does not give.

    Raises ValueError where the text is malformed or the name unknown.
    """
    name, given = read(text, what)
    taken = inspect.signature(choose(what, name, table)).parameters
    added = {k: v for k, v in options.items() if k in taken and k not in given}
    if not added:
        return text
    listed = (f"{k}={v!r}" for k, v in {**given, **added}.items())
    return f"{name}({', '.join(listed)})"


def choose(what: str, name: str, table: Mapping[str, Any]) -> Any:
    """table[name]; raises ValueError with the names that there are."""
    if name not in table:
        known = ", ".join(sorted(table))
        raise ValueError(f"unknown {what} {name!r}; known: {known}")
    return table[name]


def read(text: str, what: str = "method") -> tuple[str, dict[str, Any]]:
    """The name and the arguments that a text gives, whatever takes them.

    Raises ValueError where the text is malformed.
    """
    malformed = ValueError(
        f"{what} {text!r} is malformed; "
        "expected NAME or NAME(argument=value, ...)"
    )
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise malformed from None
    if isinstance(node, ast.Name):
        return node.id, {}
    if (
        not isinstance(node, ast.Call)
        or not isinstance(node.func, ast.Name)
        or node.args
    ):
        raise malformed
    given = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise malformed
        try:
            given[keyword.arg] = _value(keyword.value)
        except (ValueError, TypeError, RecursionError):
            raise malformed from None
    return node.func.id, given


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Tuple):
        return tuple(map(_value, node.elts))
    value = ast.literal_eval(node)
    if not isinstance(value, (int, float, str, bool, type(None))):
        raise ValueError(f"{type(value).__name__} is no value of an argument")
    return value


def _check_kind(whose: str, name: str, value: Any, kind: Any) -> None:
    if not _fits(value, kind):
        raise ValueError(
            f"{whose}: {name}={value!r} is not {inspect.formatannotation(kind)}"
        )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated kind; True where nothing is said."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, k) for k in typing.get_args(kind))
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if kind is None:
        return value is None
    if not isinstance(kind, type) or kind is inspect.Parameter.empty:
        return True
    if kind is float:  # of JAX, which has 32 bits for it
        return type(value) in (int, float) and abs(value) < 1e38
    if kind is int:  # True is no number here
        return type(value) is int and abs(value) < 2**31
    return isinstance(value, kind)
