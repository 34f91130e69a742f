"""Methods side by side, worked by hand."""

import numpy as np

from dynscaling_jax.analysis import plots
from dynscaling_jax.analysis.comparison import (
    Trial,
    markdown,
    stability,
    standings,
)


def trial(method, budget, right, tokens):
    """Of two seeds, half of the questions each."""
    right = np.array([c == "x" for c in right])
    of_seeds = right.reshape(2, -1).mean(1)
    spent = float(budget), tokens
    share = right * 1.0
    return Trial(method, budget, share, share, share, of_seeds, *spent)


FEW = trial("self_consistency", 4, "x.x.x.x.", 100.0)
MORE = trial("self_consistency", 8, "x.x.x.xx", 180.0)
MOST = trial("self_consistency", 16, "x.x.xxxx", 340.0)
OURS = trial("dynscaling", 4, "xxx.xxx.", 150.0)


def test_differences_are_paired_at_samples_and_at_tokens():
    one, other = standings([FEW, OURS], [FEW, MORE, MOST])
    assert one.at_samples is None and one.at_tokens is None
    assert other.accuracy == 6 / 8
    assert other.at_samples is not None and other.at_tokens is not None
    assert other.at_samples.mean == 2 / 8
    # 8 samples are the least that cost no fewer than 150 tokens
    assert other.baseline_budget == 8
    assert other.at_tokens.mean == (6 - 5) / 8


def test_nothing_is_said_where_no_baseline_is_as_dear():
    dear = OURS._replace(tokens=1000.0)
    (one,) = standings([dear], [FEW, MORE])
    assert one.at_tokens is None and one.baseline_budget is None


def test_how_steady_a_method_is():
    """Accuracies 1/2, 5/8 and 3/4, of seeds 1/2, 1/2; 1/2, 3/4; 1/2, 1; and
    back to 1/2 with 32 samples."""
    worse = trial("self_consistency", 32, "x.x.x.x.", 700.0)
    text = stability([MOST, worse, FEW, MORE, OURS])
    head, _, steady, once = text.splitlines()
    assert "between seeds" in head and "worst step back" in head
    spreads = [float(cell) for cell in steady.split("|")[2:5]]
    seeds = 100 * (0 + 0.25 + 0.5 + 0) / 2**0.5 / 4
    budgets = 100 * np.std([0.5, 0.625, 0.75, 0.5])
    np.testing.assert_allclose(spreads, [seeds, budgets, 25.0], atol=0.051)
    cells = [cell.strip() for cell in once.split("|")[2:5]]
    assert cells == ["0.0", "", ""]  # one budget says nothing of others


def test_the_table_is_even():
    text = markdown(standings([FEW, OURS], [FEW, MORE, MOST]))
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].startswith("| dynscaling ")
    assert "+25.0 [" in lines[3] and "(at 8)" in lines[3]


def test_figures_are_written(tmp_path):
    for axis in ("samples", "tokens"):
        file = plots.trials([FEW, MORE, OURS], axis, tmp_path / f"{axis}.png")
        assert file.read_bytes().startswith(b"\x89PNG")
