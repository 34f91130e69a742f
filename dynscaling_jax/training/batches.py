"""The order of examples: a function of the seed and the number of the step.

Nothing is kept between steps, so that a run that goes on from step 1,000
meets the very batches that it would have met.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dynscaling_jax.training.sft_examples import Examples

NEIGHBOURS = 32  # batches within which examples are sorted by length


class Batch(NamedTuple):
    """B examples, padded to a common length L."""

    tokens: np.ndarray  # int32 [B, L]
    start: np.ndarray  # int32 [B], where the completion begins
    length: np.ndarray  # int32 [B], tokens that count


def batches(
    examples: Examples, size: int, seed: int, first: int = 0
) -> Iterator[Batch]:
    """Yields batches of `size` examples without end, from step `first` on.

    Each epoch leaves out what does not fill a batch.

    Raises:
        ValueError: fewer examples than a batch holds.
    """
    count = len(examples.ends) // size
    if not count:
        raise ValueError(
            f"{len(examples.ends)} examples do not fill a batch of {size}"
        )
    epoch, at = divmod(first, count)
    while True:
        for which in order(examples.lengths, size, seed, epoch)[at:]:
            yield take(examples, which)
        epoch, at = epoch + 1, 0


def order(
    lengths: np.ndarray, size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Shuffles an epoch into batches, of numbers of examples.

    Lengths within a batch are similar, so that little is padding.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    shuffled = rng.permutation(len(lengths))
    shuffled = shuffled[: len(lengths) // size * size]
    near = NEIGHBOURS * size
    groups = []
    for at in range(0, len(shuffled), near):
        part = shuffled[at : at + near]
        part = part[np.argsort(lengths[part], kind="stable")]
        groups += np.split(part, len(part) // size)
    return [groups[i] for i in rng.permutation(len(groups))]


def take(examples: Examples, which: np.ndarray) -> Batch:
    """Some examples as a batch."""
    lengths = examples.lengths[which].astype(np.int32)
    size = padded_length(int(lengths.max()))
    return Batch(examples.padded(which, size), examples.starts[which], lengths)


def padded_length(longest: int) -> int:
    """Rounds up by quarters of a power of two, to 32 at least.

    Few lengths compile, and at most a fifth is padding.
    """
    step = max(8, 2 ** ((longest - 1).bit_length() - 3))
    return max(32, -(-longest // step) * step)
