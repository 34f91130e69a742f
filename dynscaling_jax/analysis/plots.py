"""Figures of a replay: accuracy against what was spent, with bands."""

from collections.abc import Mapping
from pathlib import Path

from dynscaling_jax.analysis.replay import Played

AXES = {"samples": "samples per question", "tokens": "new tokens per question"}


def accuracy_curves(
    played: Mapping[str, Played], title: str, stem: Path
) -> list[Path]:
    """Draws STEM-samples.png and STEM-tokens.png; needs matplotlib.

    A band is the 95% normal interval of the mean over replicates: how sure
    the curve is about this bank, not about other questions.

    Returns:
      The files written.

    Raises:
      ImportError: no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'dynscaling-jax[plots]'"
        ) from error
    files = []
    for axis, label in AXES.items():
        figure = Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, of_one in played.items():
            spent_M = getattr(of_one, f"{axis}_RM").mean(axis=0)
            mean_M = of_one.accuracy_RM.mean(axis=0)
            replicates = len(of_one.accuracy_RM)
            half_M = 1.96 * of_one.accuracy_RM.std(axis=0) / replicates**0.5
            (line,) = axes.plot(spent_M, mean_M, label=name, linewidth=1.4)
            axes.fill_between(
                spent_M,
                mean_M - half_M,
                mean_M + half_M,
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
        axes.set(title=title, xlabel=label, ylabel="accuracy", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        files.append(stem.with_name(f"{stem.name}-{axis}.png"))
        figure.savefig(files[-1], dpi=120)
    return files
