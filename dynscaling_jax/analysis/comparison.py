"""Methods side by side on the same questions: who is ahead, and how surely.

A method's questions are paired with those of the baseline: the difference of
each question is taken first, and the interval is of their mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynscaling_jax.analysis import statistics, tables
from dynscaling_jax.analysis.statistics import Difference


class Trial(NamedTuple):
    """One method at one budget, over the questions of all seeds.

    Values of a question are means over the seeds that asked it.
    """

    method: str
    budget: float  # samples a question that it was given
    right_Q: np.ndarray  # whether the vote is right
    single_Q: np.ndarray  # share of right samples
    oracle_Q: np.ndarray  # whether any sample is right
    accuracy_S: np.ndarray  # of each seed
    samples: float  # a question, that it took
    tokens: float  # a question: read, less what the cache held, and new


class Standing(NamedTuple):
    """A trial against self-consistency."""

    trial: Trial
    accuracy: float
    low: float  # of the 95% interval of the accuracy
    high: float
    at_samples: Difference | None  # the baseline at the same budget
    at_tokens: Difference | None  # the baseline at no fewer tokens
    baseline_budget: float | None  # of that baseline


def standings(
    trials: Sequence[Trial], baseline: Sequence[Trial]
) -> list[Standing]:
    """Compares each trial with the baseline at its budget and its tokens.

    The second is the cheapest baseline that spends no fewer tokens. None
    where there is none, or where it is the trial itself.
    """
    return [_standing(trial, baseline) for trial in trials]


def _standing(trial: Trial, baseline: Sequence[Trial]) -> Standing:
    def against(other: Trial | None) -> Difference | None:
        if other is None or other.method == trial.method:
            return None
        return statistics.paired_bootstrap(trial.right_Q, other.right_Q)

    same = next((b for b in baseline if b.budget == trial.budget), None)
    dearer = [b for b in baseline if b.tokens >= trial.tokens]
    equal = min(dearer, key=lambda b: b.tokens, default=None)
    low, high = statistics.bootstrap_interval(trial.right_Q)
    return Standing(
        trial,
        float(trial.right_Q.mean()),
        low,
        high,
        against(same),
        against(equal),
        equal.budget if equal else None,
    )


def markdown(found: Sequence[Standing]) -> str:
    """Tabulates standings, for the terminal and the report."""
    heads = (
        "method",
        "budget",
        "right",
        "95% interval",
        "oracle",
        "same samples",
        "same tokens",
        "tokens",
    )
    lines = [
        (
            one.trial.method,
            f"{one.trial.budget:g}",
            f"{one.accuracy:.1%}",
            f"{one.low:.1%} to {one.high:.1%}",
            f"{one.trial.oracle_Q.mean():.1%}",
            _points(one.at_samples),
            _points(one.at_tokens)
            + (
                f" (at {one.baseline_budget:g})"
                if one.at_tokens and one.baseline_budget
                else ""
            ),
            f"{one.trial.tokens:.0f}",
        )
        for one in found
    ]
    return tables.markdown(heads, lines)


def stability(trials: Sequence[Trial]) -> str:
    """Tabulates how steady each method is over seeds and budgets."""
    rows = []
    for method in dict.fromkeys(trial.method for trial in trials):
        own = [trial for trial in trials if trial.method == method]
        own.sort(key=lambda trial: trial.budget)
        found = statistics.stability(np.stack([t.accuracy_S for t in own], 1))
        over = (found.over_budgets, found.worst_drop) if own[1:] else ()
        spreads = [found.over_draws_M.mean(), *over]
        cells = [f"{100 * spread:.1f}" for spread in spreads]
        rows.append((method, *cells, *[""] * (3 - len(cells))))
    heads = ("method", "between seeds", "over budgets", "worst step back")
    return tables.markdown(heads, rows)


def _points(one: Difference | None) -> str:
    """A difference in percentage points."""
    if one is None:
        return ""
    mean, low, high = (100 * x for x in (one.mean, one.low, one.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
