"""Which page holds which block: by hand, without a model."""

import numpy as np
import pytest

from dynscaling_jax.inference.grouped import pages as placement
from dynscaling_jax.inference.grouped.pages import Block, Move, Pages, Resize


def test_a_block_that_grows_moves_to_a_wide_page():
    """The worked example of settle."""
    narrow = (Block(1, 0), Block(2, 1), None, None)
    before = Pages(narrow, (Block(2, 0), None, None, None))
    after, done = placement.settle(before, {1: 150, 2: 310})
    assert after.narrow == (None, Block(2, 1), None, None)
    assert after.wide == (Block(2, 0), Block(1, 0), None, None)
    (move,) = done
    assert isinstance(move, Move)
    assert move.source.tolist() == [0] and move.target.tolist() == [1]


def test_short_samples_lie_in_one_pool_of_a_page_a_slot():
    """Its width doubles, up to that of a whole block."""
    pages, widths = Pages(width=32), []
    for length in (16, 33, 100, 130, 256):
        pages, done = placement.settle(pages, {7: length, 9: 20}, 32, 8)
        widths.append(pages.width)
        assert len(pages.narrow) == 8 and not pages.wide
        assert len(done) == (length != 256)
    assert widths == [32, 64, 128, 256, 256]
    pages, done = placement.settle(pages, {7: 257, 9: 20}, 32, 8)
    assert pages.wide[0] == Block(7, 0) and pages.width == placement.NARROW
    assert {*pages.narrow} == {Block(7, 1), Block(9, 0), None}
    wide, move, narrow = done
    assert isinstance(wide, Resize) and isinstance(move, Move)
    assert isinstance(narrow, Resize) and not narrow.wide
    pages, _ = placement.settle(pages, {7: 512, 9: 20}, 32, 8)
    assert pages.width == placement.NARROW  # no shape for 20 positions
    for lengths in ({7: 512, 9: 256}, {7: 512}):  # as many without a short one
        pages, _ = placement.settle(pages, lengths, 32, 8)
        assert pages.narrow == (None,) * placement.STEP


def test_each_block_has_one_page_and_keeps_its_keys():
    """Owners come, grow and go at random. Keys are named by their block and
    followed through what is to be done."""
    random = np.random.RandomState(0)
    pages, lengths, held, born = Pages(width=32), {}, [[], []], 0
    for _ in range(400):
        for owner in [*lengths]:
            lengths[owner] += random.randint(1, 40)
            if random.rand() < 0.08:
                del lengths[owner]
        while len(lengths) < random.randint(1, 24):
            lengths[born] = random.randint(1, 40)
            born += 1
        old = pages
        pages, done = placement.settle(old, lengths, 32, 24)
        for one in done:
            if isinstance(one, Move):
                for source, target in zip(one.source, one.target, strict=True):
                    held[1][target] = held[0][source]
            else:
                before = held[one.wide]
                held[one.wide] = [
                    before[page] if before else None for page in one.index
                ]
        there = {*old.narrow, *old.wide} - {None}
        wanted = {
            Block(owner, number)
            for owner, length in lengths.items()
            for number in range(-(-length // placement.WIDE))
        }
        for pool, keys, width in zip(
            (pages.narrow, pages.wide),
            held,
            (pages.width, placement.WIDE),
            strict=True,
        ):
            assert len(pool) == len(keys)
            for page, block in enumerate(pool):
                if block is None:
                    continue
                wanted.remove(block)  # once
                assert lengths[block.owner] - 256 * block.number <= width or (
                    width == placement.WIDE
                )
                if block in there:
                    assert keys[page] == block
                keys[page] = block
        assert not wanted


def test_who_reads_which_page():
    """The worked example of index."""
    pages = Pages((Block(7, 1),), (Block(7, 0),))
    index = placement.index(pages, {7: [0, 1]}, lanes=2, count=3, length=2)
    assert [np.array(x).tolist() for x in index.lanes] == [[[0, 1]], [[0, 1]]]
    assert [x.tolist() for x in index.first] == [[256], [0]]
    assert index.table.tolist() == [[2, 0], [3, 1], [4, 4]]


@pytest.mark.parametrize(
    ("count", "pages"),
    [(0, 0), (1, 4), (4, 4), (5, 8), (9, 16), (64, 64), (65, 80)],
)
def test_pools_have_few_sizes(count, pages):
    assert placement.rounded(count) == pages


@pytest.mark.parametrize(
    ("now", "active", "waiting", "count"),
    [
        (0, 0, 5, 8),
        (32, 3, 0, 8),
        (32, 3, 20, 32),
        (8, 8, 9, 32),
        (64, 40, 0, 64),
    ],
)
def test_slots_follow_the_work(now, active, waiting, count):
    """With 40 samples in 64 slots that may be 32, none is put out."""
    assert placement.slot_count((8, 16, 32), now, active, waiting) == count


@pytest.mark.parametrize(
    ("needed", "now", "fewest", "size"),
    [
        (1, 0, 1, 1),
        (3, 1, 1, 4),
        (3, 8, 1, 8),
        (2, 8, 1, 2),
        (5, 4, 1, 8),
        (1, 0, 4, 1),
        (2, 1, 4, 4),
        (1, 4, 4, 1),
        (5, 4, 4, 8),
    ],
)
def test_tables_have_few_sizes(needed, now, fewest, size):
    assert placement.table_size(needed, now, fewest) == size


def test_pages_in_the_order_of_slots_need_no_index():
    """Holes keep their place while the width doubles."""
    pages, _ = placement.settle(Pages(width=32), {5: 9, 6: 9, 7: 9}, 32, 4)
    pages, done = placement.settle(pages, {5: 9, 7: 60}, 32, 4)
    assert pages.narrow == (Block(5, 0), None, Block(7, 0), None)
    (resize,) = done
    assert isinstance(resize, Resize)
    assert resize.index.tolist() == [0, 1, 2, 3]
    index = placement.index(pages, {5: [0], 7: [2]}, 1, 4, 1)
    assert index.lanes[0] is None and index.first[0][2] == 0
    index = placement.index(pages, {5: [2], 7: [0]}, 1, 4, 1)
    assert index.lanes[0] is not None
