"""Shapes that follow the work: buckets of prompts, slots, groups, workers."""

import os
from collections.abc import Iterable, Sequence

from dynscaling_jax.inference.batch import CHUNK
from dynscaling_jax.inference.memory import doubled
from dynscaling_jax.models.attention import AT_ONCE

SHORTEST = 128  # the least bucket; what extends a prefix has multiples of it
SHORTEST_SUFFIX = 2 * CHUNK  # doubled as needed
FEWEST_SLOTS = 8  # fewer may round otherwise
WORKER_SLOTS = 32  # of a batch worker, at least
SMALL = 2**25  # bytes of the weights of a small model


def slot_counts(slots: int) -> tuple[int, ...]:
    """Lists the numbers of slots to choose from: `slots`, and its halves.

    Each slot rounds alike in products of every size
    (tests/inference/grouped/test_batch.py).
    """
    halves = (slots >> n for n in range(slots.bit_length()))
    return tuple(sorted({slots, *(n for n in halves if n >= FEWEST_SLOTS)}))


def workers(slots: int, weight_bytes: int) -> int:
    """Counts the batches that decode side by side, each with a part of slots.

    The products of a small model are too small for several cores,
    so each core takes a batch. Those of a large one are not, and every
    worker would read the weights again.
    """
    if weight_bytes > SMALL:
        return 1
    return max(1, min(os.cpu_count() or 1, slots // WORKER_SLOTS))


def partition(
    counts: Sequence[int], loads: Sequence[int], unit: int
) -> list[tuple[int, int, int, int]]:
    """Partitions the samples of each prompt among workers.

    counts are the samples of each prompt, loads those that each worker has
    already. A prompt stays with one worker, which computes its prefix, unless
    it has more samples than an even share, in whole units. Two workers, the
    first with 3 samples, and prompts with 2, 2 and 9 in units of 4:

        share       13 samples / 2 workers, in units of 4: 8
        prompt 0    2 to worker 1          loads 3 2
        prompt 1    2 to worker 1          loads 3 4
        prompt 2    8 to worker 0, then    loads 11 4
                    1 to worker 1          loads 11 5

    Returns:
        (worker, prompt by number, first sample, one past the last) of parts.
    """
    loads, parts = [*loads], []
    share = -(-sum(counts) // (len(loads) * unit)) * unit
    for number, count in enumerate(counts):
        for first in range(0, count, share):
            end = min(first + share, count)
            worker = loads.index(min(loads))
            loads[worker] += end - first
            parts.append((worker, number, first, end))
    return parts


def per_group(counts: Iterable[int], most: int) -> int:
    """Chooses R for prompts with so many samples.

    It is the greatest divisor of `most` that leaves at most an eighth as many
    slots empty as there are samples. Of counts 12 and 12 and most = 8: groups
    of 8 need 2 x 2 x 8 = 32 slots for 24 samples, groups of 4 need 24.
    """
    counts = list(counts)
    return next(
        per
        for per in range(most, 0, -1)
        if most % per == 0
        and 8 * per * sum(-(-n // per) for n in counts) <= 9 * sum(counts)
    )


def bucket(length: int) -> int:
    """Pads a prompt to a quarter of a power of two, in whole blocks of keys.

    1,025 tokens take 1,536, where the next power of two is 2,048.
    """
    most = doubled(SHORTEST, length)
    step = min(most, max(AT_ONCE, most // 4))
    return -(-length // step) * step


def suffix_bucket(count: int) -> int:
    """Pads so many completion tokens and those of the next chunk."""
    return doubled(SHORTEST_SUFFIX, count + CHUNK - 1)
