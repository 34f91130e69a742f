"""Which slots read which pages, as arrays; and where they write.

What the host lays out is NumPy: all backends take parts of it. Slots are
numbered within their part; -1 is none.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from dynscaling_jax.inference.memory import doubled
from dynscaling_jax.inference.paged.attention import Layout
from dynscaling_jax.inference.paged.turn import Chunk

LANES = 16  # slots that read a shared page at a time
FEWEST = 64  # shared pages that a view has room for, doubled as needed


class Shared(NamedTuple):
    """Pages that several slots read, in each part."""

    count: Int32[np.ndarray, " D"]  # how many follow
    page: Int32[np.ndarray, "D A"]
    lanes: Int32[np.ndarray, "D A R"]  # slots that read it
    place: Int32[np.ndarray, "D A"]  # of it in their tables


class ChunkView(NamedTuple):
    """The chunk of a prompt in each part."""

    table: Int32[np.ndarray, "D P"]  # pages of the prompt; -1 is none
    start: Int32[np.ndarray, " D"]  # tokens that have keys already
    end: Int32[np.ndarray, " D"]  # of the chunk; 0 where there is none


class Owners(NamedTuple):
    """Which slots read which pages of one part."""

    table: Int32[np.ndarray, "S P"]
    owner: Int32[np.ndarray, " N"]  # -1 where no slot has a page alone
    index: Int32[np.ndarray, " N"]  # place of a page in its slot's table
    shared: list[tuple[int, int, list[int]]]  # (page, place, slots up to R)


def of_parts(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> list[tuple[Sequence[Sequence[int]], Sequence[int]]]:
    """Cuts what is told of all slots into the parts of the mesh."""
    size = layout.slots // layout.parts
    cuts = [slice(at, at + size) for at in range(0, layout.slots, size)]
    return [(tables[cut], shared[cut]) for cut in cuts]


def owners(
    layout: Layout,
    tables: Sequence[Sequence[int]],
    shared: Sequence[int],
) -> Owners:
    """Finds the slots that read each page of a part.

    A page that may be shared, and that one slot reads, is that slot's own.
    """
    readers: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    for slot, (pages, count) in enumerate(zip(tables, shared, strict=True)):
        for place, page in enumerate(pages[:count]):
            readers.setdefault(page, []).append(slot)
            places[page] = place
    several = {page for page, slots in readers.items() if len(slots) > 1}
    owner = np.full(layout.pages, -1, np.int32)
    index = np.zeros(layout.pages, np.int32)
    counts = [*map(len, tables)]
    every = np.fromiter(itertools.chain.from_iterable(tables), np.int32)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    owner[every] = np.repeat(np.arange(len(tables)), counts)
    index[every] = np.arange(len(every)) - before
    owner[[*several]], index[[*several]] = -1, 0
    lists = [
        (page, places[page], readers[page][at : at + LANES])
        for page in sorted(several)
        for at in range(0, len(readers[page]), LANES)
    ]
    return Owners(padded_tables(layout, tables), owner, index, lists)


def listed(parts: Sequence[list[tuple[int, int, list[int]]]]) -> Shared:
    """Lays out the shared pages of all parts, with room for as many each."""
    room = doubled(FEWEST, max(map(len, parts)))
    page, place = np.zeros((2, len(parts), room), np.int32)
    lanes = np.full((len(parts), room, LANES), -1, np.int32)
    for part, lists in enumerate(parts):
        for at, (number, where, slots) in enumerate(lists):
            page[part, at], place[part, at] = number, where
            lanes[part, at, : len(slots)] = slots
    return Shared(np.array([*map(len, parts)], np.int32), page, lanes, place)


def padded_tables(
    layout: Layout, tables: Sequence[Sequence[int]]
) -> Int32[np.ndarray, "S P"]:
    """Tables as rows of Layout.longest pages, -1 behind the last."""
    table = np.full((len(tables), layout.longest), -1, np.int32)
    for row, pages in zip(table, tables, strict=True):
        row[: len(pages)] = pages
    return table


def chunk_view(layout: Layout, chunks: Sequence[Chunk]) -> ChunkView:
    """Lays out the chunk of each part; some parts have none."""
    start, end = np.zeros((2, layout.parts), np.int32)
    tables: list[Sequence[int]] = [()] * layout.parts
    for chunk in chunks:
        tables[chunk.part] = chunk.pages
        start[chunk.part], end[chunk.part] = chunk.start, chunk.end
    return ChunkView(padded_tables(layout, tables), start, end)


def written_to(
    table: Int32[Array, "S P"],
    base: Int32[Array, ""],
    position: Int32[Array, " S"],
    active: Bool[Array, " S"],
    page: int,
    nowhere: int,
) -> tuple[Int32[Array, " S"], Int32[Array, " S"]]:
    """Finds the place of each slot's page in its table, and its page.

    Args:
        table: pages of the slots; -1 is none.
        base: the part's first page.
        position: of each slot's token.
        active: slots that write.
        page: W.
        nowhere: stands for the page of those that do not.
    """
    place = jnp.clip(position // page, 0, table.shape[1] - 1)
    own = table[jnp.arange(len(position)), place]
    return place, jnp.where(active & (own >= 0), base + own, nowhere)


def chunk_written_to(
    view: Any,  # a ChunkView of one part, traced
    base: Int32[Array, ""],
    tokens: int,
    page: int,
    nowhere: int,
) -> tuple[Int32[Array, " T"], Int32[Array, " T"]]:
    """Finds the positions of a chunk's tokens, and their pages.

    Those behind the end of the chunk go `nowhere`.
    """
    position = view.start + jnp.arange(tokens)
    own = view.table[jnp.minimum(position // page, len(view.table) - 1)]
    there = (position < view.end) & (own >= 0)
    return position, jnp.where(there, base + own, nowhere)
