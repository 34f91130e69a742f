"""Checks of hyper-parameters; one that is traced goes unchecked."""

import math

from jax.core import Tracer


def at_least(name: str, value: float, bound: float) -> None:
    """Raises ValueError unless bound <= value < inf."""
    if not isinstance(value, Tracer) and not bound <= value < math.inf:
        raise ValueError(
            f"{name}={value}: expected at least {bound}, and finite."
        )


def above(name: str, value: float, bound: float) -> None:
    """Raises ValueError unless bound < value < inf."""
    if not isinstance(value, Tracer) and not bound < value < math.inf:
        raise ValueError(
            f"{name}={value}: expected more than {bound}, and finite."
        )


def inside(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low < value < high."""
    if not low < value < high:
        raise ValueError(
            f"{name}={value}: expected more than {low} and less than {high}."
        )
