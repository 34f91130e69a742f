"""The scheduler of pages, with a device that stores tokens in place of keys."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.inference.paged.scheduler import Limits, Scheduler
from dynscaling_jax.inference.slot import Numbered, Prompt
from dynscaling_jax.types import Query, Request

ASKED = Request(Query("q", ()), (), 0)
LIMITS = Limits(
    parts=1,
    slots=4,
    pages=32,
    page=4,
    chunk=8,
    steps=4,
    rows=2,
    context=64,
    max_new_tokens=24,
)


def prompt(*ids: int) -> Prompt:
    return Prompt(ids, ids, 0)


def numbered(prompts, first: int = 0):
    """Requests of prompts, numbered from `first` on."""
    return [
        (each, Numbered(number, ASKED))
        for number, each in enumerate(prompts, first)
    ]


def token(number: int, at: int) -> tuple[int, int]:
    """Token `at` of a sample: the same however often it is drawn."""
    return number, at


class Device:
    """Pages that hold token ids, and slots that draw samples of set lengths.

    It checks what a device relies on: that the pages which a chunk or a slot
    reads spell its tokens, and that nothing else writes where a slot does.
    """

    def __init__(self, limits: Limits, lengths):
        self.limits, self.lengths = limits, lengths
        self.pages = [
            [[None] * limits.page for _ in range(limits.pages)]
            for _ in range(limits.parts)
        ]
        self.rows = {}
        self.slots = {}  # slot -> [request number, prompt, count, limit]
        self.drawn = {}  # of each request: how often it began
        self.done = []

    def part(self, slot: int) -> int:
        return slot * self.limits.parts // self.limits.slots

    def spelt(self, part, pages, size):
        every = itertools.chain(*(self.pages[part][page] for page in pages))
        return [*itertools.islice(every, size)]

    def write(self, part, pages, at, value):
        page = pages[at // self.limits.page]
        self.pages[part][page][at % self.limits.page] = value

    def take(self, turn):
        """Does a turn; returns (counts, finished)."""
        limits = self.limits
        self.check(turn)
        for chunk in turn.chunks:
            ids = chunk.prompt.ids
            assert chunk.start % limits.page == 0
            assert 0 < chunk.end - chunk.start <= limits.chunk
            assert len(chunk.pages) == -(-chunk.end // limits.page)
            before = self.spelt(chunk.part, chunk.pages, chunk.start)
            assert before == [*ids[: chunk.start]]
            for at in range(chunk.start, chunk.end):
                self.write(chunk.part, chunk.pages, at, ids[at])
            if chunk.end == len(ids):
                self.rows[chunk.part, chunk.row] = chunk.prompt
        copies = []
        for start in turn.starts:
            part = self.part(start.slot)
            assert self.rows[part, start.row] == start.prompt
            number = start.request.number
            self.drawn[number] = self.drawn.get(number, 0) + 1
            limit = min(
                limits.max_new_tokens, limits.context - len(start.prompt.ids)
            )
            assert start.limit == limit
            self.slots[start.slot] = [number, start.prompt, 1, limit]
            if start.copy:
                source, target = start.copy
                copies.append((part, target, [*self.pages[part][source]]))
        for part, target, held in copies:
            self.pages[part][target] = held
        self.slots = {s: x for s, x in self.slots.items() if turn.tables[s]}
        active = {s for s in self.slots if self.left(s)}
        for _ in range(turn.steps):
            if len(active) <= turn.enough:
                break
            for slot in active:
                number, asked, count, _ = self.slots[slot]
                at, table = len(asked.ids) + count - 1, turn.tables[slot]
                self.write(self.part(slot), table, at, token(number, count - 1))
                self.check_spelling(slot, table, at + 1)
                self.slots[slot][2] += 1
            active = {s for s in active if self.left(s)}
        counts = [0] * limits.slots
        for slot, (_, _, count, _) in self.slots.items():
            counts[slot] = count
        finished = [s for s in sorted(self.slots) if not self.left(s)]
        for slot in finished:
            self.done.append(self.slots.pop(slot)[0])
        return counts, finished

    def left(self, slot) -> int:
        """Tokens that a slot is still to draw."""
        number, _, count, limit = self.slots[slot]
        return min(self.lengths[number], limit) - count

    def check_spelling(self, slot, table, size):
        number, asked, count, _ = self.slots[slot]
        tokens = [token(number, at) for at in range(count)]
        want = [*asked.ids, *tokens][:size]
        assert self.spelt(self.part(slot), table, size) == want

    def check(self, turn):
        """Pages exist; what a slot writes, nobody else has."""
        limits = self.limits
        parts = [chunk.part for chunk in turn.chunks]
        assert parts == sorted({*parts})
        assert turn.steps <= limits.steps
        fresh = {start.slot: start for start in turn.starts}
        written = []
        users = {}
        for slot, table in enumerate(turn.tables):
            part = self.part(slot)
            assert all(0 <= page < limits.pages for page in table)
            assert len({*table}) == len(table)
            if not table:
                assert turn.shared[slot] == 0
                continue
            if slot in fresh:
                asked, count = fresh[slot].prompt, 1
                limit = fresh[slot].limit
            else:
                _, asked, count, limit = self.slots[slot]
            size = len(asked.ids) + count - 1
            steps = min(turn.steps, limit - count)
            assert len(table) * limits.page >= size + steps
            first = size // limits.page  # where it writes next
            written += [(part, page) for page in table[first:]]
            for at, page in enumerate(table):
                users.setdefault((part, page), []).append(slot)
                if at >= turn.shared[slot]:
                    assert users[part, page] == [slot]
            assert turn.shared[slot] <= len(asked.ids) // limits.page
        assert len({*written}) == len(written)
        assert all(len(users[place]) == 1 for place in written)
        for chunk in turn.chunks:
            # who started before has other pages than those that are read now
            for page in chunk.pages[chunk.start // limits.page :]:
                assert {*users.get((chunk.part, page), ())} <= {*fresh}


def run(scheduler, device, change=lambda turn: None, most: int = 20_000):
    """Takes turns until nothing is left; returns them."""
    turns = []
    while scheduler.busy:
        turn = scheduler.turn()
        turns.append(turn)
        scheduler.record(*device.take(turn))
        change(len(turns))
        assert len(turns) < most, "no progress"
    return turns


# hand-worked


def test_all_candidates_share_the_full_pages_and_copy_the_last():
    """A prompt of 6 tokens, W = 4: page 0 is shared, page 1 copied, and the
    last candidate takes page 1 itself."""
    asked = prompt(1, 2, 3, 4, 5, 6)
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([asked] * 3))
    turn = scheduler.turn()
    (chunk,) = turn.chunks
    assert (chunk.start, chunk.end, chunk.pages) == (0, 6, (0, 1))
    # 6 + 4 positions take three pages
    assert turn.tables == ((0, 2, 3), (0, 4, 5), (0, 1, 6), ())
    assert turn.shared == (1, 1, 1, 0)
    assert [start.copy for start in turn.starts] == [(1, 2), (1, 4), None]
    assert turn.steps == 4
    assert scheduler.held == (7,)


def test_a_prompt_of_full_pages_is_not_copied():
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([prompt(1, 2, 3, 4)] * 2))
    turn = scheduler.turn()
    assert turn.tables[:2] == ((0, 1), (0, 2))
    assert [start.copy for start in turn.starts] == [None, None]


def test_a_chain_that_extends_a_prompt_reads_its_full_pages():
    """The first 8 of 11 tokens were read; chunks of prefill begin there."""
    base = prompt(1, 2, 3, 4, 5, 6, 7, 8, 9)
    chain = prompt(1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22)
    device = Device(LIMITS, [3, 3])
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([base]))
    run(scheduler, device)
    assert scheduler.held == (0,)
    scheduler.add(numbered([chain], 1))
    turns = run(scheduler, device)
    (chunk,) = turns[0].chunks
    assert (chunk.start, chunk.end) == (8, 11)
    assert len(turns) == 1
    assert sorted(device.done) == [0, 1]


def test_the_last_token_of_a_prompt_is_always_computed():
    """Its logits are; so of four known pages two are read, a whole chunk."""
    asked = prompt(*range(16))
    device = Device(LIMITS, [3, 3])
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([asked]))
    run(scheduler, device)
    scheduler.add(numbered([asked], 1))
    (chunk,) = scheduler.turn().chunks
    assert (chunk.start, chunk.end) == (8, 16)


def test_a_long_prompt_is_read_between_chunks_of_decoding():
    """20 tokens in chunks of 8, while a sample goes on."""
    limits = LIMITS._replace(slots=2)
    device = Device(limits, [20, 5])
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1), prompt(*range(20))]))
    turns = run(scheduler, device)
    ends = [chunk.end for turn in turns for chunk in turn.chunks]
    assert ends == [1, 8, 16, 20]
    assert [bool(turn.tables[0]) for turn in turns[:4]] == [True] * 4
    assert [start.slot for start in turns[3].starts] == [1]


def test_few_steps_pass_while_a_slot_waits_for_the_rest_of_a_prompt():
    limits = LIMITS._replace(slots=2, steps=8)
    for idle, steps in ((1, [8, 4, 4, 8]), (0, [8, 8, 7])):
        device = Device(limits, [24, 24, 24])
        scheduler = Scheduler(limits)
        scheduler.add(numbered([prompt(1)] * (2 - idle)))
        turns = []
        for _ in steps:
            turns.append(scheduler.turn())
            scheduler.record(*device.take(turns[-1]))
            if len(turns) == 1:
                scheduler.add(numbered([prompt(*range(20))], 2))
        assert [turn.steps for turn in turns] == steps


def test_the_youngest_gives_way_and_starts_again():
    """Two samples of 20 tokens grow in 6 pages of 4, a page a turn:

    turn    1    2    3    4    5    6
    slot 0  2    3    4    5    5    .    is finished in turn 5
    slot 1  .    2    -    .    .    2    gave way in turn 3
    """
    limits = LIMITS._replace(slots=2, pages=6, max_new_tokens=20)
    device = Device(limits, [20, 20])
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1), prompt(2)]))
    turns = run(scheduler, device)
    pages = [[*map(len, turn.tables)] for turn in turns[:6]]
    assert pages == [[2, 0], [3, 2], [4, 0], [5, 0], [5, 0], [2, 0]]
    assert [turn.preempted for turn in turns[:4]] == [(), (), (1,), ()]
    assert device.drawn == {0: 1, 1: 2}
    assert device.done == [0, 1]


def test_a_request_that_gave_way_is_the_next_to_start():
    """Request 1 of prompt 2 gives way; request 2, of prompt 3, comes later."""
    limits = LIMITS._replace(slots=2, pages=6, max_new_tokens=20)
    device = Device(limits, [20, 20, 1])
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1), prompt(2), prompt(3)]))
    turns = run(scheduler, device)
    began = [start.request.number for turn in turns for start in turn.starts]
    assert began[:4] == [0, 1, 1, 2]


def test_a_request_that_gave_way_comes_before_other_prompts():
    """Request 1 gives way. Its prompt started one last, and yet is first."""
    limits = LIMITS._replace(slots=2, pages=9, max_new_tokens=20)
    device = Device(limits, [20] * 4)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1)] * 3 + [prompt(2)]))
    turns = run(scheduler, device)
    began = [start.request.number for turn in turns for start in turn.starts]
    assert began[:4] == [0, 1, 1, 3]


def test_requests_of_a_prompt_that_gave_way_start_in_their_order():
    """Of three samples 2 gives way in turn 3, and 1 in turn 4."""
    limits = LIMITS._replace(slots=3, pages=9, max_new_tokens=20)
    device = Device(limits, [20] * 4)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1)] * 4))
    turns = run(scheduler, device)
    began = [start.request.number for turn in turns for start in turn.starts]
    assert [turn.preempted for turn in turns[2:4]] == [(2,), (1,)]
    assert began[:6] == [0, 1, 2, 1, 2, 3]


def test_nothing_starts_in_a_full_part_until_a_sample_is_finished():
    """Slot 2 gives way in turn 4, which leaves room for it in turn 5; but it
    starts then only if slot 1 is finished by that time."""
    limits = LIMITS._replace(slots=3, pages=14, max_new_tokens=20)
    for length, turn in ((14, 5), (20, 6)):
        device = Device(limits, [20, length, 20])
        scheduler = Scheduler(limits)
        scheduler.add(numbered([prompt(1)] * 3))
        turns = run(scheduler, device)
        assert turns[3].preempted == (2,)
        starts = [at for at, each in enumerate(turns, 1) if each.starts]
        assert starts == [1, turn]


def test_a_prompt_that_waits_gives_way_before_a_sample():
    """Prompt 1 was read ahead into two of six pages; slot 0 needs five."""
    limits = LIMITS._replace(slots=1, pages=6, max_new_tokens=17)
    device = Device(limits, [17, 17])
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1), prompt(*range(2, 10))]))
    turns = run(scheduler, device)
    assert [chunk.end for chunk in turns[1].chunks] == [8]
    assert [len(turn.tables[0]) for turn in turns[:4]] == [2, 3, 4, 5]
    assert not any(turn.preempted for turn in turns)


def test_a_prompt_that_waits_gives_way_where_nothing_runs():
    """Both prompts have three of six pages, and samples of the first one are
    to copy its last page."""
    limits = LIMITS._replace(
        slots=1, pages=6, page=2, chunk=4, steps=1, max_new_tokens=2, context=8
    )
    device = Device(limits, [1] * 4)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1, 2, 3, 4, 5)] * 3))
    scheduler.add(numbered([prompt(11, 12, 13, 14, 15, 16)], 3))
    run(scheduler, device)
    assert device.drawn == dict.fromkeys(range(4), 1)


def test_a_sample_alone_shares_nothing():
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([prompt(*range(8))]))
    assert scheduler.turn().shared == (0, 0, 0, 0)


def test_kept_pages_go_before_a_sample_gives_way():
    """Pages 0 and 1 of a prompt are kept. The next sample takes the four free
    ones, and then page 1: without page 0 that would not be found."""
    limits = LIMITS._replace(slots=1, pages=6, max_new_tokens=12)
    device = Device(limits, [1, 12])
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(*range(9))]))
    run(scheduler, device)
    scheduler.add(numbered([prompt(*range(10, 19))], 1))
    turns = run(scheduler, device)
    assert not any(turn.preempted for turn in turns)
    assert turns[-1].tables[0] == (2, 3, 4, 5, 1)
    assert device.done == [0, 1]


def test_prompts_take_turns():
    """Two of four slots are idle in turn 3: each prompt gets one, though
    enough samples of the first one wait."""
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([prompt(1)] * 12 + [prompt(2)] * 4))
    began = []
    for counts, finished in (([5] * 4, []), ([9] * 4, [0, 1]), (None, None)):
        turn = scheduler.turn()
        began.append([start.request.number for start in turn.starts])
        if counts:
            scheduler.record(counts, finished)
    assert began == [[0, 1, 2, 3], [], [12, 4]]


def test_a_page_for_each_running_sample_stays_available_at_a_start():
    """Two pages for prompt 2 and its sample, beside two of a sample."""
    for pages, starts in ((4, [1]), (5, [1, 2])):
        limits = LIMITS._replace(slots=2, pages=pages, max_new_tokens=8)
        scheduler = Scheduler(limits)
        scheduler.add(numbered([prompt(1), prompt(2, 3, 4, 5)]))
        turns = run(scheduler, Device(limits, [8, 8]))
        began = [n for n, turn in enumerate(turns[:2], 1) if turn.starts]
        assert began == starts


def test_no_prompt_overtakes_one_that_finds_no_room():
    """Two of six pages are free beside a sample: too few for two pages of
    prompt 1, one of which is to stay; enough for prompt 2."""
    limits = LIMITS._replace(pages=6, max_new_tokens=17)
    device = Device(limits, [17] * 3)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1)]))
    for _ in range(2):
        scheduler.record(*device.take(scheduler.turn()))
    scheduler.add(numbered([prompt(*range(2, 10)), prompt(3)], 1))
    turn = scheduler.turn()
    assert [*map(len, turn.tables)] == [4, 0, 0, 0]
    assert not turn.chunks


def test_a_prompt_goes_to_the_part_that_has_its_pages():
    limits = LIMITS._replace(parts=2)
    device = Device(limits, [3] * 4)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(*range(9)), prompt(*range(10, 19))]))
    turns = run(scheduler, device)
    assert [chunk.part for chunk in turns[0].chunks] == [0, 1]
    scheduler.add(numbered([prompt(*range(10, 20)), prompt(*range(10))], 2))
    (first, second) = scheduler.turn().chunks
    assert first.prompt == prompt(*range(10))
    assert (first.start, second.start) == (8, 8)


def test_one_prompt_keeps_all_parts_busy():
    limits = LIMITS._replace(parts=2)
    device = Device(limits, [20] * 4)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1, 2)] * 4))
    turns = run(scheduler, device)
    assert all(turns[1].tables)


def test_fewer_steps_when_all_are_close_to_their_limits():
    limits = LIMITS._replace(max_new_tokens=3)
    scheduler = Scheduler(limits)
    scheduler.add(numbered([prompt(1)] * 2))
    assert scheduler.turn().steps == 2
    scheduler.record([2, 2, 0, 0], [])
    turn = scheduler.turn()
    assert (turn.steps, turn.enough) == (1, 0)


def test_a_chunk_ends_early_while_requests_wait():
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([prompt(1)] * 5))
    assert scheduler.turn().enough == 3


def test_dropped_samples_free_their_slots_and_pages():
    scheduler = Scheduler(LIMITS)
    scheduler.add(numbered([prompt(1, 2)] * 6))
    scheduler.record(Device(LIMITS, [24] * 6).take(scheduler.turn())[0], [])
    scheduler.drop({1, 2, 5})
    assert scheduler.left == 3
    turn = scheduler.turn()
    assert [start.request.number for start in turn.starts] == [4]
    scheduler.drop({0, 3, 4})
    assert (scheduler.busy, scheduler.held) == (False, (0,))


def test_a_pool_too_small_for_one_sample_is_refused():
    with pytest.raises(ValueError, match="Lower max_new_tokens"):
        Scheduler(LIMITS._replace(pages=5))
    scheduler = Scheduler(LIMITS._replace(pages=8))
    with pytest.raises(ValueError, match="take 9 pages of 4; the pool of a"):
        scheduler.add(numbered([prompt(1), prompt(*range(9))]))
    assert not scheduler.busy


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"parts": 3}, {"chunk": 6}, {"rows": 0}]
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Scheduler(LIMITS._replace(**wrong))


def test_a_prompt_without_room_in_the_context_is_refused():
    with pytest.raises(ValueError, match="the context holds 64"):
        Scheduler(LIMITS).add(numbered([prompt(*range(64))]))


def test_turns_are_recorded_in_turn():
    scheduler = Scheduler(LIMITS)
    with pytest.raises(RuntimeError, match="no turn to record"):
        scheduler.record([0] * 4, [])
    scheduler.add(numbered([prompt(1)]))
    scheduler.turn()
    with pytest.raises(RuntimeError, match="record what the last turn"):
        scheduler.turn()
    with pytest.raises(ValueError, match="slot 0 had 1 tokens and has 9"):
        scheduler.record([9, 0, 0, 0], [])


# whatever comes


@st.composite
def cases(draw):
    """Limits with tiny pools, and requests whose prompts begin alike."""
    page = draw(st.sampled_from([1, 2, 4]))
    parts = draw(st.integers(1, 3))
    new, longest = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    least = -(-(new + longest) // page) + 2
    limits = Limits(
        parts=parts,
        slots=parts * draw(st.integers(1, 4)),
        pages=draw(st.integers(least, least + 12)),
        page=page,
        chunk=page * draw(st.integers(1, 3)),
        steps=draw(st.integers(1, 6)),
        rows=draw(st.integers(1, 3)),
        context=draw(st.integers(longest + 1, longest + new)),
        max_new_tokens=new,
    )
    ids = st.lists(st.integers(0, 1), min_size=1, max_size=longest)
    prompts = draw(st.lists(ids, min_size=1, max_size=5))
    asked = draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=16))
    lengths = draw(
        st.lists(st.integers(1, 14), min_size=len(asked), max_size=len(asked))
    )
    # some come later, and some are dropped: (turn, number)
    late = draw(st.integers(0, len(asked)))
    gone = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 15))))
    return limits, [prompt(*ids) for ids in asked], lengths, late, gone


@settings(deadline=None, max_examples=300)
@given(cases())
def test_every_request_is_finished_once_and_every_page_is_free_again(case):
    limits, asked, lengths, late, gone = case
    work = numbered(asked)

    def played():
        scheduler, device = Scheduler(limits), Device(limits, lengths)
        dropped = set()

        def change(turn):
            now = {number for at, number in gone if at == turn}
            waits = {number for _, (number, _) in later}
            now -= {*device.done} | waits  # those that are under way
            if now:
                scheduler.drop(now)
                dropped.update(now)
            if turn == 2:
                scheduler.add(later)
                later.clear()

        later = work[late:]
        scheduler.add(work[:late])
        turns = run(scheduler, device, change)
        scheduler.add(later)
        later.clear()
        turns += run(scheduler, device, change)
        return scheduler, device, dropped, turns

    scheduler, device, dropped, turns = played()
    numbers = {number for _, (number, _) in work}
    assert len({*device.done}) == len(device.done)
    assert {*device.done} | (dropped & numbers) == numbers
    assert scheduler.held == (0,) * limits.parts
    assert scheduler.left == 0
    # one that gave way began once more, and no other did
    lost = sum(len(turn.preempted) for turn in turns)
    again = sum(device.drawn.values()) - len(device.drawn)
    assert again == lost or (dropped and again <= lost)
    assert played()[3] == turns  # the same calls, the same turns
