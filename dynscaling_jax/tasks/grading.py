"""Predicted against reference, by the relation that the votes use."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from dynscaling_jax.tasks.equivalence import Compare
from dynscaling_jax.tasks.forms import canonical
from dynscaling_jax.tasks.references import reference as read_reference

Verdict = Literal["right", "wrong", "unreadable", "timeout"]


class Score(NamedTuple):
    """How many predictions got which verdict."""

    right: int = 0
    wrong: int = 0
    unreadable: int = 0
    timeout: int = 0

    @property
    def accuracy(self) -> float:
        """right / all; NaN of nothing. An unreadable prediction and one that
        could not be compared in time count as not right."""
        return self.right / sum(self) if sum(self) else float("nan")


def grade(
    predicted: str | None, reference: str, kind: str, compare: Compare
) -> Verdict:
    """The verdict on a predicted answer; None is one that nobody could read.

    Raises:
      ValueError: a reference that cannot be read whole as `kind`; an unknown
        kind.
    """
    if read_reference(reference, kind) is None:
        raise ValueError(f"the reference {reference!r} is no {kind} answer")
    if predicted is None or canonical(predicted, kind) is None:
        return "unreadable"
    outcome = compare(predicted, reference, kind)
    if outcome == "timeout":
        return "timeout"
    return "right" if outcome == "equal" else "wrong"


def tally(verdicts: Iterable[Verdict]) -> Score:
    return Score(**Counter(verdicts))
