"""How long prompts are padded, and how many rows stand in how many groups."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dynscaling_jax.engine.decode import CHUNK
from dynscaling_jax.models.attention import AT_ONCE

SHORTEST = 128  # least length a prompt is padded to; doubled as needed, or,
# of what a prompt goes on with, a multiple of it
FEWEST_SLOTS = 2 * CHUNK  # of drawn tokens; doubled as needed
NARROWEST = 8  # rows; fewer may round otherwise


def follows_work(mesh: Mesh | None) -> bool:
    """Whether rows and lengths follow the work.

    They do on one CPU, where each row rounds alike in products of every size
    (tests/engine/test_width.py). Elsewhere time is that of reading the
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
