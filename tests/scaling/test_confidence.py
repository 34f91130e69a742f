"""DeepConf's bound of confidence, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynscaling_jax.scaling.confidence import (
    Online,
    least_confidence,
    threshold,
)
from dynscaling_jax.types import Sample


def sample(index, lowest=None):
    signals = {} if lowest is None else {"lowest": float(lowest), "tail": 0.0}
    reason = "stop" if signals else "error: a timeout"
    return Sample(
        "q", index, 0, (), "", "1", reason, 1, 0, 1, 0.0, signals=signals
    )


def samples(*lowest):
    return [sample(i, value) for i, value in enumerate(lowest)]


@pytest.mark.parametrize(
    ("keep", "bound"),
    [(1, 1), (0.75, 2), (0.5, 3), (0.25, 4), (0.9, 1.4), (0.1, 4.6)],
)
def test_a_bound_by_hand(keep, bound):
    """keep = 0.9 drops the lowest tenth, and not the other nine."""
    assert threshold(samples(3, 1, 5, 2, 4), keep) == pytest.approx(bound)


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=40, unique=True),
    st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]),
)
def test_the_share_that_is_kept(lowest, keep):
    bound = threshold(samples(*lowest), keep)
    assert bound is not None
    above = sum(value >= bound - 1e-9 for value in lowest)
    assert above >= max(1, int(keep * (len(lowest) - 1)))
    assert above <= keep * (len(lowest) - 1) + 2
    assert bound == pytest.approx(np.percentile(lowest, 100 - 100 * keep))


def test_samples_without_signals_do_not_count():
    assert threshold([], 0.9) is None
    assert threshold([sample(0)], 0.9) is None
    assert threshold([sample(0), sample(1, 2), sample(2, 4)], 0.5) == 3


def test_the_warm_up_alone_counts():
    rule = Online(warmup=3, keep=0.5)
    first = samples(5, 1, 3)
    later = [sample(3, 9), sample(4, 8)]
    assert least_confidence([], rule) is None
    assert least_confidence(first[:2], rule) is None
    assert least_confidence([*first[:2], *later], rule) is None
    assert least_confidence(first, rule) == 3
    assert least_confidence([*later, *first[::-1]], rule) == 3
    assert least_confidence([sample(i) for i in range(3)], rule) is None
    assert least_confidence([sample(0), *first[1:]], rule) == 2


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan")])
def test_shares_that_cannot_be(keep):
    with pytest.raises(ValueError, match="is not above 0 and up to 1"):
        threshold(samples(1), keep)
    with pytest.raises(ValueError, match="is not above 0 and up to 1"):
        least_confidence([], Online(keep=keep))


def test_a_warm_up_that_cannot_be():
    with pytest.raises(ValueError, match="warmup=0: expected at least 1"):
        least_confidence([], Online(warmup=0))
