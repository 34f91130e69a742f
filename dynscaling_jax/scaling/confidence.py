"""DeepConf's online rule: a sample that is not sure enough ends early.

Fu et al. 2025 (arXiv 2508.15260), section 3.3. The first samples of a query,
its warm-up, are generated to their ends. The least sure windows of their tokens
tell how sure each window of a later sample has to be: Request.least_confidence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynscaling_jax.scaling.bounds import at_least
from dynscaling_jax.types import Sample


class Online(NamedTuple):
    """Settings of the rule; DeepConf-high keeps 0.9, DeepConf-low 0.1."""

    warmup: int = 16  # samples of a query that are whole
    keep: float = 0.9  # share of these that the rule would leave whole


def threshold(samples: Sequence[Sample], keep: float) -> float | None:
    """Computes how sure each window of a sample has to be.

    It is the (100 - eta) percentile of the least sure windows of the samples,
    signals["lowest"], with eta = 100 * keep. Of windows 1, 2, 3, 4, 5, keep =
    0.25 gives 4, below which three of five end; keep = 1 gives 1.

    Args:
        samples: of one query. Those without signals do not count.
        keep: share of them that lies above, up to rounding.

    Returns:
        The bound; None where no sample has signals.

    Raises:
        ValueError: keep is not above 0 and up to 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r} is not above 0 and up to 1")
    lowest = [s.signals["lowest"] for s in samples if "lowest" in s.signals]
    return float(np.quantile(lowest, 1 - keep)) if lowest else None


def least_confidence(
    samples: Sequence[Sample], settings: Online
) -> float | None:
    """Computes Request.least_confidence of a query's next requests.

    Args:
        samples: of the query, in any order. The warm-up are the first ones by
            index, so what comes later changes nothing.
        settings: of the rule.

    Returns:
        The bound; None until the warm-up is there, or where it has no signals.

    Raises:
        ValueError: a setting outside its range.
    """
    at_least("warmup", settings.warmup, 1)
    first = [s for s in samples if s.index < settings.warmup]
    bound = threshold(first, settings.keep)
    return bound if len(first) >= settings.warmup else None
