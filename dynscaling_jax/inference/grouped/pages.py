"""Which page holds which keys: decisions of the host, without any array.

A sequence is cut into blocks of WIDE positions. Each block lies in a page,
and a page belongs to one block. While no sample has a second block, all lie
in one pool, whose width doubles as needed. Else a block of up to NARROW
positions lies in a narrow page, since half of the last blocks are as short;
when it grows longer, it moves to a wide one. Products over keys that are
padded round as those over the keys alone, so no bit depends on where a block
lies.

The pages of a sequence are those of a sequence slot, or of the group of slots
that share a prompt. Both are named by a number, the owner.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from dynscaling_jax.inference.memory import doubled
from dynscaling_jax.models.attention import AT_ONCE

WIDE = AT_ONCE
NARROW = WIDE // 2
STEP = 8  # pages that a pool grows by, at least
# of a table with more than one: a merge with states of nothing is cheap, and
# each shape takes a second to compile
FEWEST_BLOCKS = 4
NOWHERE = 2**30  # the first position of a page that nobody owns


class Block(NamedTuple):
    """A part of a sequence."""

    owner: int
    number: int  # positions from number * WIDE on


class Pages(NamedTuple):
    """What each page of two pools holds; None where it is free."""

    narrow: tuple[Block | None, ...] = ()
    wide: tuple[Block | None, ...] = ()
    width: int = NARROW  # of narrow pages


class Resize(NamedTuple):
    """A pool becomes longer or shorter.

    New page n is a copy of old page index[n]; what no block owns may hold
    anything that is finite.
    """

    wide: bool
    index: Int32[np.ndarray, " N"]
    width: int


class Move(NamedTuple):
    """Blocks move from narrow pages to wide ones."""

    source: Int32[np.ndarray, " M"]
    target: Int32[np.ndarray, " M"]


class Index(NamedTuple):
    """Who reads a page, and which pages a slot reads; numpy or on a device.

    Slot i reads the pages of its sequence in the order of table[i]. A row is
    a page as one of its lanes reads it: narrow pages first, rows of L lanes.
    The row behind all others reads nothing.
    """

    # slots, of narrow and wide; None where page n is that of slot n alone
    lanes: tuple[Int32[np.ndarray, "N L"] | None, ...]
    first: tuple[Int32[np.ndarray, " N"], ...]  # positions of their sequences
    table: Int32[np.ndarray, "GR T"]


def settle(
    pages: Pages,
    lengths: Mapping[int, int],
    least: int = NARROW,
    whole: int = 0,
) -> tuple[Pages, list[Resize | Move]]:
    """Gives each owner the pages of so many positions, and frees others.

    Owner 1 has 100 positions and owner 2 has 300, which become 150 and 310;
    pools of four pages (a block is owner.number, . is free):

        before   narrow  1.0 2.1 .   .      wide  2.0 .   .   .
        after    narrow  .   2.1 .   .      wide  2.0 1.0 .   .

    and narrow page 0 moves to wide page 1.

    Args:
        pages: as it was; it is not changed.
        lengths: positions of each owner.
        least: the narrowest width of narrow pages while no sequence has a
            second block; it doubles as needed. Once one has, it is NARROW.
        whole: pages at least while no sequence has a second block, all of one
            width: with one for each slot short samples have few shapes. 0
            keeps narrow and wide pages apart from the first block on. With
            more than one, narrow pages beside wide ones are never fewer than
            STEP (half as many for up to four), even if no block needs them:
            the last ones come and go with every sample, and each number of
            pages compiles anew.

    Returns:
        Pages, and what is to be done in this order.
    """
    filled = {
        Block(owner, number): min(WIDE, length - WIDE * number)
        for owner, length in lengths.items()
        for number in range(-(-length // WIDE))
    }
    alone = not any(block.number for block in filled)
    short = bool(whole) and not pages.wide and alone
    most = WIDE if short else NARROW
    far = [block for block, size in filled.items() if size > most]
    near = [block for block, size in filled.items() if size <= most]
    done: list[Resize | Move] = []
    wide, index = _fit(pages.wide, far, rounded(len(far)))
    if index is not None:
        done.append(Resize(True, index, WIDE))
    at = {block: page for page, block in enumerate(pages.narrow) if block}
    moved = [page for page, block in enumerate(wide) if block in at]
    if moved:
        source = [at[block] for page in moved if (block := wide[page])]
        done.append(Move(np.array(source, "i4"), np.array(moved, "i4")))
    width = least if alone else NARROW
    width = doubled(width, max(map(filled.__getitem__, near), default=0))
    if not {*near}.isdisjoint(at):
        width = max(width, min(pages.width, most))
    size = max(whole * short, rounded(len(near)))
    if whole > 1 and wide:
        size = max(size, min(STEP, rounded(whole)))
    narrow, index = _fit(pages.narrow, near, size, width != pages.width)
    if index is not None:
        done.append(Resize(False, index, width))
    return Pages(narrow, wide, width), done


def rounded(count: int) -> int:
    """Rounds a number of pages up: to half of STEP, or by an eighth or STEP."""
    if 2 * count <= STEP:
        return STEP // 2 if count else 0
    step = max(STEP, 1 << max(0, (count - 1).bit_length() - 3))
    return -(-count // step) * step


def _fit(
    held: tuple[Block | None, ...],
    blocks: Collection[Block],
    size: int,
    other: bool = False,
) -> tuple[tuple[Block | None, ...], np.ndarray | None]:
    """Places blocks in a pool; with the old page of each where it is copied.

    It becomes longer as it must, and shorter when an eighth is too much.
    """
    wanted = {*blocks}
    fresh = [block for block in blocks if block not in {*held}]
    if not other and 8 * size > 7 * len(held) and size <= len(held):
        new = iter(fresh)
        return tuple(
            block if block in wanted else next(new, None) for block in held
        ), None
    if not held and not size:
        return (), None
    if size == len(held):
        order, _ = _fit(held, blocks, size)
        return order, np.arange(size, dtype=np.int32)
    kept = [page for page, block in enumerate(held) if block in wanted]
    index = np.zeros(size, np.int32)
    index[: len(kept)] = kept
    order = [*(held[page] for page in kept), *fresh]
    return (*order, *[None] * (size - len(order))), index


def index(
    pages: Pages,
    slots: Mapping[int, Sequence[int]],
    lanes: int,
    count: int,
    length: int,
) -> Index:
    """Says which slots read which page.

    Slots 0 and 1 share owner 7 of two blocks, one of them narrow (two lanes):

        narrow  7.1    lanes [[0 1]]   first [256]    rows 0 1
        wide    7.0    lanes [[0 1]]   first [0]      rows 2 3
        table   slot 0: 2 0    slot 1: 3 1    others: 4 4

    Args:
        pages: of all owners.
        slots: by owner, `lanes` at most.
        lanes: L.
        count: GR.
        length: T, at least the blocks of any sequence.
    """
    both = pages.narrow, pages.wide
    in_order = len(pages.narrow) == count and not pages.wide and lanes == 1
    in_order &= all(
        [page] == [*slots[block.owner]]
        for page, block in enumerate(pages.narrow)
        if block
    )
    rows = lanes * sum(map(len, both))
    table = np.full((count, length), rows, np.int32)
    readers: list[np.ndarray | None] = []
    firsts, row = [], 0
    for pool in both:
        reads = np.zeros((len(pool), lanes), np.int32)
        first = np.full(len(pool), NOWHERE, np.int32)
        for page, block in enumerate(pool):
            if block:
                own = slots[block.owner]
                reads[page, : len(own)] = own
                first[page] = WIDE * block.number
                for lane, slot in enumerate(own):
                    table[slot, block.number] = row + page * lanes + lane
        readers.append(reads)
        firsts.append(first)
        row += lanes * len(pool)
    if in_order:
        readers[0] = None
    return Index(tuple(readers), tuple(firsts), table)


def blocks(lengths: Mapping[int, int]) -> int:
    """Counts the blocks of the longest sequence, 1 at least."""
    return max((-(-length // WIDE) for length in lengths.values()), default=1)


def fresh(before: Pages, after: Pages) -> list[tuple[bool, int, Block]]:
    """Lists the pages of new blocks, as (wide, page, block)."""
    old = {*before.narrow, *before.wide}
    return [
        (wide, page, block)
        for wide, pool in ((False, after.narrow), (True, after.wide))
        for page, block in enumerate(pool)
        if block and block not in old
    ]


def table_size(needed: int, now: int, fewest: int = 1) -> int:
    """Rounds lanes or blocks up to a power of two, for few shapes.

    It becomes less when a quarter of it is enough, and not below `fewest`.

    Args:
        needed: so many at least.
        now: as it is.
        fewest: the least that is not 1, a power of two.
    """
    size = 1 if needed == 1 else doubled(fewest, needed)
    return size if size > now or 4 * size <= now else now


def slot_count(
    options: Sequence[int], now: int, active: int, waiting: int
) -> int:
    """Chooses the number of slots: the fewest that hold what there is.

    Args:
        options: to choose from, ascending.
        now: slots that there are.
        active: samples that go on.
        waiting: samples without a slot.
    """
    most = max(options)
    count = next((n for n in options if n >= active + waiting), most)
    return now if count < active else count
