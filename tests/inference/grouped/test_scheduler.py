"""The scheduler of groups: host data alone, without a model."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.inference.grouped import layout, pages
from dynscaling_jax.inference.grouped.pages import Move, Resize
from dynscaling_jax.inference.grouped.scheduler import Limits, Scheduler
from dynscaling_jax.inference.slot import Numbered, Prompt
from dynscaling_jax.types import Message, Query, Request

QUERY = Query("a", (Message("user", "x"),))


def prompt(length, name=0):
    ids = (name, *range(1, length))
    return Prompt(ids, ids, 0)


def work(*counts):
    """(length of a prompt, its samples) -> requests, numbered from 0."""
    numbers = iter(range(10_000))
    return [
        (
            prompt(length, name),
            Numbered(next(numbers), Request(QUERY, QUERY.messages, index)),
        )
        for name, (length, count) in enumerate(counts)
        for index in range(count)
    ]


def limits(slots=16, per_group=4, new=600, context=2000):
    counts = layout.slot_counts(slots)
    return Limits(per_group, context, new, lambda bucket, per: counts)


class Device:
    """What pages hold, as turns say: (owner, number of the block)."""

    def __init__(self):
        self.prompts = [[], []]  # narrow, wide
        self.completions = [[], []]

    def apply(self, pools, operations):
        for operation in operations:
            if isinstance(operation, Move):
                for source, target in zip(*operation, strict=True):
                    pools[1][target] = pools[0][source]
            else:
                assert isinstance(operation, Resize)
                old = pools[operation.wide]
                pools[operation.wide] = [
                    old[i] if old else None for i in operation.index
                ]


def played(scheduler, lengths, given=()):
    """Plays turns to the end; yields each, and what it started."""
    slots, later = [], [*given]
    device = Device()
    while scheduler.busy:
        turn = scheduler.turn()
        if turn.kept is not None:
            kept = [slots[i] for i in turn.kept]
            slots = kept + [None] * (turn.count - len(kept))
        device.apply(device.prompts, turn.prompts)
        for fill in turn.fills:
            device.prompts[fill.wide][fill.page] = (
                fill.prompt.ids,
                fill.start // pages.WIDE,
            )
        for start in turn.starts:
            assert slots[start.slot] is None
            slots[start.slot] = [start, 1]
        device.apply(device.completions, turn.completions)
        check(turn, slots, device)
        yield turn, slots
        active = sum(slot is not None for slot in slots)
        counts, ended = [], []
        for i, slot in enumerate(slots):
            if slot:
                number = slot[0].request.number
                slot[1] = min(
                    slot[1] + turn.steps, slot[0].limit, lengths[number]
                )
                if slot[1] == min(lengths[number], slot[0].limit):
                    ended.append(i)
            counts.append(slot[1] if slot else 0)
        assert turn.enough < max(active, 1)
        for i in ended:
            slots[i] = None
        scheduler.record(counts, ended)
        if later:
            scheduler.add(later.pop(0))


def check(turn, slots, device):
    """Each slot reads the pages of its prompt, and has room to write."""
    assert len(slots) == turn.count == len(turn.active)
    readers, written = collections.Counter(), []
    for i, slot in enumerate(slots):
        assert turn.active[i] == (slot is not None)
        if slot is None:
            continue
        start, count = slot
        readers[start.group] += 1
        ids = start.prompt.ids
        assert turn.ahead[i] == len(ids) and start.group in turn.groups
        rows = [*turn.prefix.table[i]]
        held = rows_of(turn.prefix, device.prompts, i)
        blocks = -(-len(ids) // pages.WIDE)
        assert [held[row] for row in rows[:blocks]] == [
            (ids, number) for number in range(blocks)
        ]
        assert all(row == len(held) for row in rows[blocks:])
        room = min(count + layout.CHUNK - 1, max(1, start.limit - 1))
        rows = sum(map(len, device.completions))
        used = [row for row in turn.suffix.table[i] if row < rows]
        assert len(used) == -(-room // pages.WIDE)
        written += used
    assert max(readers.values()) <= 4
    assert len({*written}) == len(written)


def rows_of(index, pools, slot):
    """What each row reads; None where it is not this slot's lane."""
    rows = []
    for lanes, pool in zip(index.lanes, pools, strict=True):
        if lanes is None:
            rows += pool
            continue
        for reads, block in zip(lanes, pool, strict=True):
            rows += [block if lane == slot else None for lane in reads]
    return rows


@settings(deadline=None)
@given(
    counts=st.lists(
        st.tuples(st.integers(1, 700), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 99),
)
def test_every_request_is_generated_once_in_pages_of_its_own(counts, seed):
    """Prompts of one block to three, samples of one token to three blocks."""
    requests = work(*counts)
    random = np.random.RandomState(seed)
    lengths = random.randint(1, 700, len(requests))
    scheduler = Scheduler(limits())
    half = len(requests) // 2
    scheduler.add(requests[:half] or requests)
    given = [requests[half:]] if half else []
    started = [
        start.request.number
        for turn, _ in played(scheduler, lengths, given)
        for start in turn.starts
    ]
    assert sorted(started) == [*range(len(requests))]
    assert not scheduler.left


def test_the_longest_prompts_come_first_and_share_their_pages():
    scheduler = Scheduler(limits(slots=8))
    scheduler.add(work((10, 4), (300, 8), (20, 4)))
    turn, _ = next(played(scheduler, [9] * 16))
    assert turn.count == 8 and not turn.kept
    assert [len(start.prompt.ids) for start in turn.starts] == [300] * 8
    assert [start.group for start in turn.starts] == [0] * 4 + [1] * 4
    # two groups, of two blocks each: one wide page, and one narrow
    assert sorted((f.group, f.wide, f.start) for f in turn.fills) == [
        (0, False, 256),
        (0, True, 0),
        (1, False, 256),
        (1, True, 0),
    ]


def test_slots_become_fewer_when_none_waits():
    scheduler = Scheduler(limits(slots=32, new=100))
    scheduler.add(work((10, 32)))
    lengths = [90 if i < 5 else 10 for i in range(32)]
    counts = [turn.count for turn, _ in played(scheduler, lengths)]
    assert counts[0] == 32 and counts[-1] == 8


def test_what_is_dropped_gives_its_slot_up():
    scheduler = Scheduler(limits(slots=8))
    scheduler.add(work((10, 12)))
    turns = played(scheduler, [600] * 12)
    next(turns)
    assert scheduler.left == 12
    scheduler.drop({0, 11})
    assert scheduler.left == 10
    turn = scheduler.turn()
    assert [start.slot for start in turn.starts] == [0]
    assert turn.starts[0].request.number == 8


@pytest.mark.parametrize(("size", "limit"), [(10, 600), (1900, 100)])
def test_a_sample_ends_with_the_context(size, limit):
    scheduler = Scheduler(limits())
    scheduler.add(work((size, 1)))
    assert scheduler.turn().starts[0].limit == limit
