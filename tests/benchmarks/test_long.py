"""Lengths of samples that follow recorded ones."""

import pytest

from benchmarks.long import scaled


@pytest.mark.parametrize(
    ("mean", "most", "lengths"),
    [(20.0, 100, [[10, 30]]), (20.0, 28, [[12, 28]]), (1.0, 9, [[1, 1]])],
)
def test_lengths_are_scaled_to_a_mean(mean, most, lengths):
    assert scaled([[100, 300]], mean, most) == lengths
