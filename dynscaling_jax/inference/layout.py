"""How long prompts are padded, and how many rows stand in how many groups."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dynscaling_jax.inference.decode import CHUNK
from dynscaling_jax.models.attention import AT_ONCE

SHORTEST = 128  # least length a prompt is padded to; doubled as needed, or,
# of what a prompt goes on with, a multiple of it
FEWEST_SLOTS = 2 * CHUNK  # of drawn tokens; doubled as needed
NARROWEST = 8  # rows; fewer may round otherwise
LANE = 32  # rows of a lane, at least
SMALL = 2**25  # bytes of the weights of a small model


def follows_work(mesh: Mesh | None) -> bool:
    """Whether rows and lengths follow the work.

    They do on one CPU, where each row rounds alike in products of every size
    (tests/inference/test_width.py). Elsewhere time is that of reading the
    weights, and a sample must not depend on what else is asked for: one
    number of rows, and prompts of one length at a time.
    """
    return mesh is None and jax.default_backend() == "cpu"


def widths(rows: int, mesh: Mesh | None) -> tuple[int, ...]:
    """So many rows, and fewer where that saves time."""
    if not follows_work(mesh):
        return (rows,)
    halves = (rows >> n for n in range(rows.bit_length()))
    return tuple(sorted({rows, *(w for w in halves if w >= NARROWEST)}))


def lanes(rows: int, weights: int, mesh: Mesh | None) -> int:
    """How many batches draw beside each other, each with a part of the rows.

    On a CPU the products of a small model are too small for several cores,
    which take a lane each. Those of a large one are not, and every lane would
    read the weights again.

    Args:
        weights: their bytes.
    """
    if not follows_work(mesh) or weights > SMALL:
        return 1
    return max(1, min(os.cpu_count() or 1, rows // LANE))


def dealt(
    counts: Sequence[int], loads: Sequence[int], unit: int
) -> list[tuple[int, int, int, int]]:
    """Deals so many samples of each prompt to lanes with so much to draw.

    A prompt stays in one lane, where it is read once, unless it has more
    samples than an even share, in whole units.

    Returns:
        (lane, prompt by number, first sample, one past the last) of each part.
    """
    loads, parts = [*loads], []
    share = -(-sum(counts) // (len(loads) * unit)) * unit
    for number, count in enumerate(counts):
        for first in range(0, count, share):
            end = min(first + share, count)
            lane = loads.index(min(loads))
            loads[lane] += end - first
            parts.append((lane, number, first, end))
    return parts


def per_group(counts: Iterable[int], most: int) -> int:
    """Rows of a group: the greatest divisor of `most` that leaves at most an
    eighth of the rows of so many samples a prompt empty."""
    counts = list(counts)
    return next(
        per
        for per in range(most, 0, -1)
        if most % per == 0
        and 8 * per * sum(-(-n // per) for n in counts) <= 9 * sum(counts)
    )


def doubling(length: int) -> int:
    """What a prompt is padded to where new lengths are dear: powers of two."""
    return doubled(SHORTEST, length)


def stepping(length: int) -> int:
    """What a prompt is padded to where reading its keys is dear: quarters of
    powers of two, in whole blocks of keys."""
    most = doubled(SHORTEST, length)
    step = min(most, max(AT_ONCE, most // 4))
    return -(-length // step) * step


def slots(drawn: int) -> int:
    """Room for so many tokens and those of the next chunk."""
    return doubled(FEWEST_SLOTS, drawn + CHUNK - 1)


def doubled(size: int, length: int) -> int:
    while size < length:
        size *= 2
    return size


def grouped(
    items: Sequence[Any], key: Callable[[Any], Any], size: int
) -> list[list]:
    """Lists of at most `size` items of one key, keys in order."""
    by_key: dict = {}
    for item in items:
        by_key.setdefault(key(item), []).append(item)
    return [
        own[at : at + size]
        for own in by_key.values()
        for at in range(0, len(own), size)
    ]
