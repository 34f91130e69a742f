"""Scheduling with pages: which sample each slot generates, and what waits.

Prompts are read in the order they came, a few ahead, and start samples in
turn. Nothing is reserved for what a sample may grow to: a request starts when
pages are free, and where they run out later the youngest sample gives its
pages up and is sampled again. Host data alone; the same calls give the same
turns.
"""

import collections
import dataclasses
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from dynscaling_jax.inference.paged.pages import Pool
from dynscaling_jax.inference.paged.turn import Chunk, Start, Turn
from dynscaling_jax.inference.slot import Numbered, Prompt

# Pages that stay available when a request starts, for each running sample of
# its part. In simulated runs (benchmarks/pages.py) 0.25 to 4 lose about as
# many tokens; 8 leaves more rows idle.
WATERMARK = 1.0
# Of a pool, what prompts may hold so that their samples start in turn. If
# those of a hard question run alone, all of them grow long together.
SHARE = 1 / 16
# Steps of a turn while slots wait for the rest of a prompt
FEW = 4


class Limits(NamedTuple):
    """Sizes that a scheduler keeps to."""

    parts: int  # D, of the mesh's data axis
    slots: int  # S, over all parts
    pages: int  # of the pool of one part
    page: int  # W, positions of a page
    chunk: int  # T, tokens of prefill of a part in a turn
    steps: int  # of decoding in a turn, at most
    rows: int  # of logits of a part: prompts that are read there at most
    context: int  # tokens of a sequence
    max_new_tokens: int  # of a sample


@dataclasses.dataclass(eq=False)
class _Line:
    """A prompt and its requests that wait."""

    prompt: Prompt
    waiting: collections.deque[Numbered] = dataclasses.field(
        default_factory=collections.deque
    )
    last: int = -1  # when it was its turn to start one


@dataclasses.dataclass(eq=False)
class _Placed:
    """A prompt whose keys lie in a part while requests of it wait."""

    line: _Line
    part: int
    row: int
    pages: tuple[int, ...]
    done: int  # tokens that have keys

    @property
    def ready(self) -> bool:
        """Whether all tokens have keys."""
        return self.done == len(self.line.prompt.ids)


@dataclasses.dataclass(eq=False)
class _Running:
    """A sample that a slot generates."""

    request: Numbered
    prompt: Prompt
    limit: int  # completion tokens at most
    table: tuple[int, ...]
    born: int  # its place in the order of all starts
    count: int = 1  # of completion tokens; the newest has no key yet

    def positions(self, steps: int) -> int:
        """How many positions have keys after so many steps.

        With a prompt of 6 tokens and 3 completion tokens:

            positions  0 1 2 3 4 5 6 7 8 9
            has keys   p p p p p p c c . .    of 8 positions
            1 step     p p p p p p c c c .    of 9; and samples token 9
        """
        steps = min(steps, self.limit - self.count)
        return len(self.prompt.ids) + self.count - 1 + steps


class Scheduler:
    """The slots and pages of all parts, and the requests that wait.

    Turns and records take turns: what the device did of one turn is recorded
    before the next one. Requests are added and dropped in between.
    """

    def __init__(self, limits: Limits):
        """Starts without requests.

        Raises:
            ValueError: sizes that do not fit together.
        """
        _check(limits)
        self._limits = limits
        self._each = limits.slots // limits.parts
        self._pools = [
            Pool(limits.pages, limits.page) for _ in range(limits.parts)
        ]
        self._rows = [[*range(limits.rows)] for _ in range(limits.parts)]
        # lines in which requests wait, the next one first
        self._lines: collections.deque[_Line] = collections.deque()
        self._by_prompt: dict[Prompt, _Line] = {}
        self._placed: list[_Placed] = []  # in the order of their lines
        self._slots: list[_Running | None] = [None] * limits.slots
        self._steps: int | None = None  # of a turn that is not recorded yet
        self._born = 0
        self._full: set[int] = set()  # parts in which samples gave way, and
        # none was finished since

    @property
    def busy(self) -> bool:
        """Whether any sample is unfinished."""
        return bool(self._lines) or any(self._slots)

    @property
    def left(self) -> int:
        """How many samples are unfinished."""
        active = sum(slot is not None for slot in self._slots)
        return active + self.waiting

    @property
    def waiting(self) -> int:
        """How many requests have no slot."""
        return sum(len(line.waiting) for line in self._lines)

    @property
    def held(self) -> tuple[int, ...]:
        """How many pages of each part have owners."""
        return tuple(pool.held for pool in self._pools)

    def add(self, work: Iterable[tuple[Prompt, Numbered]]) -> None:
        """Queues requests, all or none; each behind those of its prompt.

        Raises:
            ValueError: a pool cannot hold a prompt and its longest sample.
        """
        work = [*work]
        for prompt in dict.fromkeys(prompt for prompt, _ in work):
            check_prompt(self._limits, len(prompt.ids))
        for prompt, request in work:
            self._line(prompt).waiting.append(request)

    def drop(self, gone: Container[int]) -> None:
        """Cancels requests of these numbers; their slots become idle."""
        for line in [*self._lines]:
            left = [r for r in line.waiting if r.number not in gone]
            line.waiting = collections.deque(left)
            self._tidy(line)
        for i, slot in enumerate(self._slots):
            if slot and slot.request.number in gone:
                self._vacate(i)

    def turn(self) -> Turn:
        """Plans what the device does next.

        Running samples get their pages first, the oldest before the others;
        then a chunk of prefill, then samples that start. Where slots wait for
        a prompt that is longer than a chunk, few steps pass before the next.

        Raises:
            RuntimeError: the turn before was not recorded.
        """
        if self._steps is not None:
            raise RuntimeError("record what the last turn did before the next")
        preempted = self._grow()
        chunks = self._prefill()
        self._full.update(map(self._part, preempted))
        starts = self._start()
        running = [slot for slot in self._slots if slot]
        most = max((s.limit - s.count for s in running), default=0)
        self._steps = min(self._limits.steps, most)
        if any(self._idle(chunk.part) for chunk in chunks if not _last(chunk)):
            self._steps = min(self._steps, FEW)
        return Turn(
            chunks=tuple(chunks),
            starts=tuple(starts),
            preempted=tuple(preempted),
            steps=self._steps,
            enough=self._enough(len(running)),
            tables=tuple(s.table if s else () for s in self._slots),
            shared=tuple(
                self._shared(i) if s else 0 for i, s in enumerate(self._slots)
            ),
        )

    def record(self, counts: Sequence[int], finished: Iterable[int]) -> None:
        """Takes in what the device did of the last turn.

        Args:
            counts: completion tokens that each slot has now; those of
                inactive slots are not looked at.
            finished: slots whose samples are complete. Their pages are free.

        Raises:
            ValueError: a count that the turn cannot have led to.
            RuntimeError: no turn is to be recorded.
        """
        if self._steps is None:
            raise RuntimeError("there is no turn to record")
        for i, slot in enumerate(self._slots):
            if slot is None:
                continue
            count = int(counts[i])
            most = min(slot.count + self._steps, slot.limit)
            if not slot.count <= count <= most:
                raise ValueError(
                    f"slot {i} had {slot.count} tokens and has {count} after "
                    f"{self._steps} steps; its limit is {slot.limit}"
                )
            slot.count = count
        for i in finished:
            self._vacate(i)
        self._steps = None

    # pages of running samples

    def _grow(self) -> list[int]:
        """Gives running samples room for the next steps.

        Returns:
            The slots that lost theirs.
        """
        preempted = []
        order = sorted(
            (i for i, slot in enumerate(self._slots) if slot), key=self._age
        )
        for i in order:
            part = self._part(i)
            pool = self._pools[part]
            while slot := self._slots[i]:
                positions = slot.positions(self._limits.steps)
                more = self._count(positions) - len(slot.table)
                if more <= pool.available:
                    slot.table += pool.take(max(0, more))
                    break
                if self._displace(part):
                    continue
                youngest = max(self._active(part), key=self._age)
                self._preempt(youngest)
                preempted.append(youngest)
        return preempted

    def _preempt(self, i: int) -> None:
        """Puts the request of a slot at the head of the queue."""
        slot = self._slots[i]
        assert slot is not None
        self._vacate(i)
        line = self._line(slot.prompt)
        line.waiting.appendleft(slot.request)
        self._lines.remove(line)
        self._lines.appendleft(line)
        line.last = -1
        self._placed.sort(key=lambda placed: placed.line is not line)

    def _vacate(self, i: int) -> None:
        """Frees a slot and its pages."""
        slot, part = self._slots[i], self._part(i)
        if slot is None:
            raise ValueError(f"slot {i} generates no sample")
        self._pools[part].release(slot.table)
        self._slots[i] = None
        self._full.discard(part)

    # prompts

    def _prefill(self) -> list[Chunk]:
        """The next chunk of a prompt in each part."""
        self._place()
        chunks = []
        for placed in self._placed:
            if placed.ready:
                continue
            prompt, pool = placed.line.prompt, self._pools[placed.part]
            start = placed.done
            end = min(start + self._limits.chunk, len(prompt.ids))
            more = self._count(end) - len(placed.pages)
            if not self._has_room(placed.part, more):
                continue
            placed.pages += pool.take(more)
            placed.done = end
            pool.name(prompt.ids[:end], placed.pages)
            chunks.append(
                Chunk(placed.part, prompt, start, end, placed.pages, placed.row)
            )
        return sorted(chunks, key=lambda chunk: chunk.part)

    def _place(self) -> None:
        """Chooses the parts that read the next prompts.

        A part looks for one while it reads none and too few requests wait for
        its slots. New prompts come before those that another part has.
        """
        looking = [
            part for part in range(self._limits.parts) if self._wants(part)
        ]
        lines = iter(self._lines)
        while looking:
            line = next(lines, None)
            if line is None:
                break
            if self._parts(line):
                continue
            parts = [part for part in looking if self._can_place(line, part)]
            if not parts:
                return  # no other prompt overtakes it
            found = {part: self._found(line, part) for part in parts}
            best = max(parts, key=lambda part: (*found[part], -part))
            self._put(line, best)
            looking.remove(best)
        for part in looking:
            # Slots are idle, and elsewhere are too few for all that waits.
            if not self._idle(part):
                continue
            lines = [
                line
                for line in dict.fromkeys(p.line for p in self._placed)
                if part not in (parts := self._parts(line))
                and len(line.waiting) > sum(map(self._idle, parts))
            ]
            line = max(lines, key=lambda x: len(x.waiting), default=None)
            if line and self._can_place(line, part):
                self._put(line, part)

    def _wants(self, part: int) -> bool:
        own = [placed for placed in self._placed if placed.part == part]
        if not self._rows[part] or not all(placed.ready for placed in own):
            return False
        ahead = max(2, self._each // 16)
        waiting = sum(len(placed.line.waiting) for placed in own)
        if waiting < self._idle(part) + ahead:
            return True
        held = sum(len(placed.pages) for placed in own)
        return held < SHARE * self._limits.pages

    def _parts(self, line: _Line) -> list[int]:
        """The parts that a prompt has been given."""
        return [p.part for p in self._placed if p.line is line]

    def _found(self, line: _Line, part: int) -> tuple[int, int]:
        """Pages that a part need not compute, and those that it could give."""
        return len(self._known(line, part)), self._pools[part].available

    def _known(self, line: _Line, part: int) -> tuple[int, ...]:
        """The pages of whole chunks that a prompt begins with.

        Its last token is computed. Chunks of a prompt thus begin and end at
        the same tokens whatever a part knows, and its keys have the same bits:
        with chunks of four pages, of six that are found two are computed anew.
        """
        found = self._pools[part].find(line.prompt.ids[:-1])
        chunk = self._limits.chunk // self._limits.page
        return found[: len(found) - len(found) % chunk]

    def _can_place(self, line: _Line, part: int) -> bool:
        """Whether there is room for the first chunk of a prompt in a part."""
        known = self._known(line, part)
        start = len(known) * self._limits.page
        end = min(start + self._limits.chunk, len(line.prompt.ids))
        # kept pages are no longer available to others
        pool = self._pools[part]
        kept = sum(pool.owners(page) == 0 for page in known)
        return self._has_room(part, self._count(end) - len(known) + kept)

    def _put(self, line: _Line, part: int) -> None:
        known = self._known(line, part)
        self._pools[part].share(known)
        row = self._rows[part].pop(0)
        done = len(known) * self._limits.page
        placed = _Placed(line, part, row, known, done)
        self._placed.append(placed)
        order = {id(x): i for i, x in enumerate(self._lines)}
        self._placed.sort(key=lambda placed: order[id(placed.line)])

    def _displace(self, part: int, but: _Placed | None = None) -> bool:
        """Takes its pages from the last prompt in line; False: none has any.

        They are kept where they are full, so it is soon read again.
        """
        for placed in reversed(self._placed):
            if placed.part == part and placed is not but:
                self._remove(placed)
                return True
        return False

    def _remove(self, placed: _Placed) -> None:
        self._placed.remove(placed)
        self._pools[placed.part].release(placed.pages)
        rows = [*self._rows[placed.part], placed.row]
        self._rows[placed.part] = sorted(rows)

    # samples that start

    def _start(self) -> list[Start]:
        """Starts requests in idle slots of all parts but those that are full.

        Where one finds no room in a part, none overtakes it there.
        """
        closed = {part for part in self._full if self._active(part)}
        starts = []
        while ready := [
            placed
            for placed in self._placed
            if placed.ready
            and placed.part not in closed
            and self._idle(placed.part)
        ]:
            first = min(placed.line.last for placed in ready)
            line = next(x.line for x in ready if x.line.last == first)
            placed = max(
                (placed for placed in ready if placed.line is line),
                key=lambda placed: (
                    self._idle(placed.part),
                    self._pools[placed.part].available,
                    -placed.part,
                ),
            )
            started = self._begin(placed)
            if started is None:
                closed.add(placed.part)
            else:
                starts.append(started)
        return starts

    def _begin(self, placed: _Placed) -> Start | None:
        """Starts the next request of a line, if there is room.

        The last one that waits takes the last page of the prompt over, and
        the others copy it.
        """
        line, part = placed.line, placed.part
        prompt, pool = line.prompt, self._pools[part]
        size = len(prompt.ids)
        limit = most_new_tokens(self._limits, size)
        whole = size // self._limits.page  # pages that are full
        last = len(line.waiting) == 1
        own = placed.pages if last else placed.pages[:whole]
        running = _Running(line.waiting[0], prompt, limit, own, self._born)
        positions = running.positions(self._limits.steps)
        more = self._count(positions) - len(own)
        if not self._make_room(placed, more):
            return None
        pool.share(own)
        running.table += pool.take(more)
        copy = None
        if len(own) < len(placed.pages):
            copy = placed.pages[whole], running.table[whole]
        first = part * self._each
        slot = self._slots.index(None, first, first + self._each)
        self._slots[slot] = running
        line.last = self._born
        self._born += 1
        line.waiting.popleft()
        start = Start(slot, running.request, prompt, placed.row, limit, copy)
        self._tidy(line)
        return start

    def _has_room(self, part: int, pages: int) -> bool:
        """Whether a part may give pages to what has not started."""
        left = self._pools[part].available - pages
        return left >= WATERMARK * len(self._active(part))

    def _make_room(self, placed: _Placed, pages: int) -> bool:
        """Like _has_room; where nothing runs, other prompts give theirs."""
        part = placed.part
        if self._active(part):
            return self._has_room(part, pages)
        while self._pools[part].available < pages:
            if not self._displace(part, but=placed):
                return False
        return True

    # small things

    def _enough(self, running: int) -> int:
        """The number of active slots at which decoding ends early.

        A sixteenth of the slots idles while requests wait.
        """
        if not self._lines:
            return 0
        return max(0, running - max(1, self._limits.slots // 16))

    def _shared(self, i: int) -> int:
        """Pages of a slot that others own too; they are its first ones."""
        slot, pool = self._slots[i], self._pools[self._part(i)]
        assert slot is not None
        low, high = 0, len(slot.prompt.ids) // self._limits.page
        while low < high:  # who has a page has those before it
            middle = (low + high) // 2
            if pool.owners(slot.table[middle]) > 1:
                low = middle + 1
            else:
                high = middle
        return low

    def _line(self, prompt: Prompt) -> _Line:
        """The line of a prompt, at the end if it is new."""
        if prompt not in self._by_prompt:
            line = self._by_prompt[prompt] = _Line(prompt)
            self._lines.append(line)
        return self._by_prompt[prompt]

    def _tidy(self, line: _Line) -> None:
        """Forgets a line in which nothing waits."""
        if line.waiting:
            return
        for placed in [p for p in self._placed if p.line is line]:
            self._remove(placed)
        self._lines.remove(line)
        del self._by_prompt[line.prompt]

    def _part(self, slot: int) -> int:
        return slot // self._each

    def _active(self, part: int) -> list[int]:
        first = part * self._each
        numbers = range(first, first + self._each)
        return [i for i in numbers if self._slots[i]]

    def _idle(self, part: int) -> int:
        return self._each - len(self._active(part))

    def _age(self, i: int) -> int:
        slot = self._slots[i]
        return slot.born if slot else 0

    def _count(self, positions: int) -> int:
        """The number of pages of so many positions."""
        return -(-positions // self._limits.page)


def check_prompt(limits: Limits, size: int) -> None:
    """Checks that a pool holds a prompt of so many tokens and its sample.

    Raises:
        ValueError: it does not, or the prompt leaves no room in the context.
    """
    if not 0 < size < limits.context:
        raise ValueError(
            f"a prompt has {size} tokens; the context holds "
            f"{limits.context}, one of them for the answer"
        )
    new = most_new_tokens(limits, size)
    # one more page while the last one of the prompt is copied
    need = -(-(size + new - 1) // limits.page) + (size % limits.page > 0)
    if need > limits.pages:
        raise ValueError(
            f"a prompt of {size} tokens and {new} new ones take {need} pages "
            f"of {limits.page}; the pool of a part has {limits.pages}. Lower "
            "max_new_tokens, hold keys in int8, or take more memory"
        )


def most_new_tokens(limits: Limits, size: int) -> int:
    """The longest sample of a prompt of so many tokens, by the context."""
    return min(limits.max_new_tokens, limits.context - size)


def longest_prompt(limits: Limits) -> int:
    """Returns a length such that no prompt up to it lacks room.

    It leaves room for max_new_tokens in the context, and in a pool that has
    one page more than the sample, for a copy.
    """
    pool = (limits.pages - 1) * limits.page + 1
    return min(limits.context, pool) - limits.max_new_tokens


def _last(chunk: Chunk) -> bool:
    """Whether a chunk ends its prompt."""
    return chunk.end == len(chunk.prompt.ids)


def _check(limits: Limits) -> None:
    """Refuses sizes that do not fit together."""
    for name, value in limits._asdict().items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if limits.slots % limits.parts:
        raise ValueError(
            f"slots ({limits.slots}) must be a multiple of parts "
            f"({limits.parts})"
        )
    if limits.chunk % limits.page:
        raise ValueError(
            f"a chunk of prefill ({limits.chunk} tokens) must be whole pages "
            f"of {limits.page}"
        )
    longest = min(limits.context - 1, limits.max_new_tokens)
    need = -(-longest // limits.page)
    if need > limits.pages:
        raise ValueError(
            f"{longest} new tokens take {need} pages of {limits.page}; the "
            f"pool of a part has {limits.pages}. Lower max_new_tokens, hold "
            "keys in int8, or take more memory"
        )
