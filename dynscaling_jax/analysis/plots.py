"""Figures: accuracy against what was spent, with bands."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter
except ImportError as error:
    raise ImportError(
        "figures need matplotlib: pip install 'dynscaling-jax[plots]'"
    ) from error

from dynscaling_jax.analysis.comparison import Trial
from dynscaling_jax.analysis.replay import Curve
from dynscaling_jax.analysis.statistics import bootstrap_interval

AXES = {"samples": "samples per question", "tokens": "new tokens per question"}
STYLES = ("-", "--", ":")  # the ten colours come again in the next style


def accuracy_curves(
    played: Mapping[str, Curve], title: str, stem: Path
) -> list[Path]:
    """Draws STEM-samples.png and STEM-tokens.png, each in one piece.

    A band is the 95% normal interval of the mean over replicates: how sure
    the curve is about these recorded samples, not about other questions.

    Returns:
      The files written.
    """
    return [
        _curves(played, title, stem.with_name(f"{stem.name}-{axis}.png"), axis)
        for axis in AXES
    ]


def _curves(
    played: Mapping[str, Curve], title: str, path: Path, axis: str
) -> Path:
    figure, axes = _begun()
    for number, (name, of_one) in enumerate(played.items()):
        # below one sample a question some have no vote at all
        of_one = _from_one_on(of_one)
        spent_M = getattr(of_one, f"{axis}_RM").mean(axis=0)
        mean_M = of_one.accuracy_RM.mean(axis=0)
        replicates = len(of_one.accuracy_RM)
        half_M = 1.96 * of_one.accuracy_RM.std(axis=0) / replicates**0.5
        color, style = f"C{number % 10}", STYLES[number // 10 % len(STYLES)]
        (line,) = axes.plot(
            spent_M, mean_M, style, color=color, label=name, lw=1.4
        )
        # where spending ends; all there is of a rule that stops at once
        line.set(marker="o", markevery=[-1], markersize=4)
        low_M = np.maximum(mean_M - half_M, 0)
        high_M = np.minimum(mean_M + half_M, 1)
        axes.fill_between(spent_M, low_M, high_M, color=color, alpha=0.15)
    axes.set(title=title, xlabel=AXES[axis])
    return _finished(figure, axes, path)


def trials(found: Sequence[Trial], axis: str, path: Path) -> Path:
    """Draws the accuracy of each method against `samples` or `tokens`.

    Whiskers are 95% intervals over questions. PATH is written in one piece.
    """
    figure, axes = _begun()
    for method in dict.fromkeys(trial.method for trial in found):
        own = [trial for trial in found if trial.method == method]
        own.sort(key=lambda trial: getattr(trial, axis))
        mean = np.array([trial.right_Q.mean() for trial in own])
        ends = np.array([bootstrap_interval(trial.right_Q) for trial in own])
        axes.errorbar(
            [getattr(trial, axis) for trial in own],
            mean,
            np.abs(ends - mean[:, None]).T,
            marker="o",
            markersize=4,
            lw=1.4,
            elinewidth=0.8,
            capsize=2,
            label=method,
        )
    names = {**AXES, "tokens": "tokens per question, read and new"}
    axes.set(xlabel=names[axis])
    return _finished(figure, axes, path)


def _begun() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _finished(figure: Figure, axes: Any, path: Path) -> Path:
    axes.set(ylabel="accuracy")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    draft = path.with_suffix(".tmp")
    figure.savefig(draft, dpi=120, format="png")
    os.replace(draft, path)
    return path


def _from_one_on(played: Curve) -> Curve:
    """The marks of at least one sample a question; all, if there are none."""
    kept_M = played.samples_RM.mean(axis=0) > 1 - 1e-6
    if not kept_M.any():
        return played
    return Curve(
        played.accuracy_RM[:, kept_M],
        played.samples_RM[:, kept_M],
        played.tokens_RM[:, kept_M],
        played.right_QM[:, kept_M],
    )
