import numpy as np
import pytest

from dynscaling_jax.inference.sampling import windowed


def test_windows_by_hand():
    """Windows of two of 4 0 2 6: means 2, 1, 4."""
    measures = windowed(np.array([4.0, 0, 2, 6]), size=2)
    assert measures == {"tail": 4, "bottom": 1, "lowest": 1}


def test_a_short_sample_is_one_window():
    assert windowed(np.array([1.0, 3])) == {
        "tail": 2,
        "bottom": 2,
        "lowest": 2,
    }


def test_the_bottom_is_a_tenth_of_all_windows():
    trace = np.random.default_rng(0).random(49)
    means = sorted(trace[i : i + 10].mean() for i in range(40))
    measures = windowed(trace, size=10)
    assert measures["bottom"] == pytest.approx(np.mean(means[:4]))
    assert measures["lowest"] == pytest.approx(means[0])
    assert measures["tail"] == pytest.approx(trace[-10:].mean())
