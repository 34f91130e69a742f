"""Measures of a sample's confidence from the confidence of its tokens."""

import numpy as np

WINDOW = 2048  # tokens


def windowed(confidence_T: np.ndarray, size: int = WINDOW) -> dict[str, float]:
    """The measures of DeepConf (arXiv 2508.15260, section 3) over windows.

    confidence_T is, for each new token, minus the mean log-probability of the
    likeliest tokens. Windows slide by one token; a sample shorter than a
    window is one window. tail is the mean of the last window, bottom of the
    lowest tenth of windows, lowest of the lowest one.
    """
    trace_T = np.asarray(confidence_T, np.float64)
    size = min(size, len(trace_T))
    sums = np.concatenate([[0.0], trace_T.cumsum()])
    means = np.sort((sums[size:] - sums[:-size]) / size)
    return {
        "tail": float(trace_T[-size:].mean()),
        "bottom": float(means[: max(1, len(means) // 10)].mean()),
        "lowest": float(means[0]),
    }
