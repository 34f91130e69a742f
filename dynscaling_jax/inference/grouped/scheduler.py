"""Scheduling in groups: which sample each slot generates, and what waits.

A sequence slot that is idle takes the next sample, of whichever prompt. Slots
that continue the same prompt are a group, up to R of them, and share its pages.
The longest prompts come first. The number of slots and of pages follows the
work. Host data alone; the same calls give the same turns.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from dynscaling_jax.inference.grouped import layout, pages
from dynscaling_jax.inference.grouped.pages import Index, Move, Pages, Resize
from dynscaling_jax.inference.slot import Numbered, Prompt


class Limits(NamedTuple):
    """Sizes that a scheduler keeps to."""

    per_group: int  # R, at most
    context: int  # tokens of a sequence
    max_new_tokens: int  # of a sample
    # (bucket of a prompt, R) -> numbers of slots to choose from, ascending
    slot_counts: Callable[[int, int], tuple[int, ...]]
    steps: int = layout.CHUNK  # of decoding between two polls of the host


class Start(NamedTuple):
    """A slot that begins a sample."""

    slot: int
    request: Numbered
    prompt: Prompt
    group: int  # has the logits that its first token is sampled from
    limit: int  # completion tokens at most


class Fill(NamedTuple):
    """A page that receives keys of a group's prompt."""

    wide: bool
    page: int
    group: int
    prompt: Prompt
    start: int  # the position of its first key


class Turn(NamedTuple):
    """What the device does next, in this order."""

    count: int  # GR, slots
    kept: tuple[int, ...] | None  # old slots that become the first ones; None
    # where all stay what they are
    groups: frozenset[int]  # that have slots
    prompts: tuple[Resize | Move, ...]  # of their pages
    fills: tuple[Fill, ...]
    starts: tuple[Start, ...]
    completions: tuple[Resize | Move, ...]  # of their pages
    active: tuple[bool, ...]  # slots that have samples
    ahead: Int32[np.ndarray, " GR"]  # tokens of the prompt of each slot
    prefix: Index
    suffix: Index
    steps: int  # at most
    enough: int  # decoding ends when no more slots are active


@dataclasses.dataclass(eq=False)
class _Running:
    """A sample that a slot generates."""

    number: int  # of its request
    prompt: Prompt
    group: int
    limit: int  # completion tokens at most
    count: int = 1  # of completion tokens; the newest has no key yet


class Scheduler:
    """Sequence slots, groups, pages, and the requests that wait.

    Turns and records take turns; requests are added and dropped in between.
    """

    def __init__(self, limits: Limits):
        """Starts without requests."""
        self._limits = limits
        self._counts = functools.cache(limits.slot_counts)
        # requests that wait, of prompts that have any; the longest first
        self._pending: dict[Prompt, collections.deque[Numbered]] = {}
        self._per_group = 1
        self._slots: list[_Running | None] = []
        self._groups: dict[int, Prompt] = {}  # that have slots
        self._numbers = itertools.count()  # of groups
        self._prompts = Pages()
        self._completions = Pages(width=layout.SHORTEST_SUFFIX)
        self._shape = 0, 0, 0  # R, blocks of prompts and of completions

    @property
    def busy(self) -> bool:
        """Whether any sample is unfinished."""
        return bool(self._pending or any(self._slots))

    @property
    def left(self) -> int:
        """How many samples are unfinished."""
        return self._active + sum(map(len, self._pending.values()))

    @property
    def _active(self) -> int:
        return sum(slot is not None for slot in self._slots)

    def add(self, work: Iterable[tuple[Prompt, Numbered]]) -> None:
        """Queues requests; those of the longest prompts come first."""
        for prompt, request in work:
            queue = self._pending.setdefault(prompt, collections.deque())
            queue.append(request)
        longest = sorted(self._pending, key=lambda p: -_bucket(p))
        self._pending = {p: self._pending[p] for p in longest}
        counts = map(len, self._pending.values())
        self._per_group = layout.per_group(counts, self._limits.per_group)

    def drop(self, gone: Container[int]) -> None:
        """Cancels requests of these numbers; their slots become idle."""
        for prompt, queue in [*self._pending.items()]:
            left = collections.deque(r for r in queue if r.number not in gone)
            self._pending[prompt] = left
            if not left:
                del self._pending[prompt]
        for i, slot in enumerate(self._slots):
            if slot and slot.number in gone:
                self._slots[i] = None

    def turn(self) -> Turn:
        """Plans what the device does next; some request must be unfinished."""
        kept = self._fit()
        starts = self._start()
        running = [slot for slot in self._slots if slot]
        prompts, fills = self._place_prompts()
        lengths = {
            # the last token of a sample is never read
            slot.number: min(
                slot.count + self._limits.steps - 1, max(1, slot.limit - 1)
            )
            for slot in running
        }
        self._completions, completions = pages.settle(
            self._completions,
            lengths,
            layout.SHORTEST_SUFFIX,
            len(self._slots),
        )
        prefix, suffix = self._index(lengths)
        most = max(slot.limit - slot.count for slot in running)
        return Turn(
            count=len(self._slots),
            kept=kept,
            groups=frozenset(self._groups),
            prompts=tuple(prompts),
            fills=tuple(fills),
            starts=tuple(starts),
            completions=tuple(completions),
            active=tuple(slot is not None for slot in self._slots),
            ahead=np.array(
                [len(s.prompt.ids) if s else 1 for s in self._slots], np.int32
            ),
            prefix=prefix,
            suffix=suffix,
            steps=max(1, min(self._limits.steps, most)),
            enough=self._enough(),
        )

    def record(self, counts: Sequence[int], finished: Iterable[int]) -> None:
        """Takes in what the device did of the last turn.

        Args:
            counts: completion tokens that each slot has now; those of
                inactive slots are not looked at.
            finished: slots whose samples are complete.
        """
        for slot, count in zip(self._slots, counts, strict=True):
            if slot:
                slot.count = int(count)
        for i in finished:
            self._slots[i] = None

    def _options(self) -> tuple[int, ...]:
        """The numbers of slots that the longest prompt may have."""
        prompts = [slot.prompt for slot in self._slots if slot]
        prompts = prompts or [*itertools.islice(self._pending, 1)]
        return self._counts(max(map(_bucket, prompts)), self._per_group)

    def _enough(self) -> int:
        """The number of active slots at which a chunk ends.

        A sixteenth of the slots idles while requests wait, or as few go on as
        fit into fewer slots.
        """
        active = self._active
        if self._pending:
            return active - max(1, len(self._slots) // 16)
        return max((n for n in self._options() if n < active), default=0)

    def _fit(self) -> tuple[int, ...] | None:
        """Makes the slots as many as the work needs; see Turn.kept."""
        active, now = self._active, len(self._slots)
        waiting = self.left - active
        count = pages.slot_count(self._options(), now, active, waiting)
        if count == now:
            return None
        kept = tuple(i for i, slot in enumerate(self._slots) if slot)
        empty = [None] * (count - len(kept))
        self._slots = [*(self._slots[i] for i in kept), *empty]
        return kept

    def _start(self) -> list[Start]:
        """Gives idle slots their next samples."""
        taken = collections.Counter(slot.group for slot in self._slots if slot)
        self._groups = {g: p for g, p in self._groups.items() if taken[g]}
        starts = []
        for i, slot in enumerate(self._slots):
            group = None if slot else self._next(taken)
            if group is None:
                continue
            prompt = self._groups[group]
            request = self._pending[prompt].popleft()
            if not self._pending[prompt]:
                del self._pending[prompt]
            taken[group] += 1
            room = self._limits.context - len(prompt.ids)
            limit = min(self._limits.max_new_tokens, room)
            self._slots[i] = _Running(request.number, prompt, group, limit)
            starts.append(Start(i, request, prompt, group, limit))
        return starts

    def _next(self, taken: collections.Counter[int]) -> int | None:
        """The group of the next sample: one with a lane left, or a new one."""
        for number, prompt in self._groups.items():
            if prompt in self._pending and taken[number] < self._per_group:
                return number
        active = taken.total()
        for prompt in self._pending:
            counts = self._counts(_bucket(prompt), self._per_group)
            if active < counts[-1]:
                number = next(self._numbers)
                self._groups[number] = prompt
                return number
        return None

    def _place_prompts(self) -> tuple[list[Resize | Move], list[Fill]]:
        """Gives new groups the pages of their prompts."""
        before, lengths = self._prompts, _lengths(self._groups)
        self._prompts, done = pages.settle(before, lengths, whole=1)
        return done, [
            Fill(
                wide,
                page,
                block.owner,
                self._groups[block.owner],
                block.number * pages.WIDE,
            )
            for wide, page, block in pages.fresh(before, self._prompts)
        ]

    def _index(self, lengths: Mapping[int, int]) -> tuple[Index, Index]:
        """Says which slots read which pages."""
        groups, own = collections.defaultdict(list), {}
        for i, slot in enumerate(self._slots):
            if slot:
                groups[slot.group].append(i)
                own[slot.number] = [i]
        needed = (
            (max(map(len, groups.values())), 1),
            (pages.blocks(_lengths(self._groups)), pages.FEWEST_BLOCKS),
            (pages.blocks(lengths), pages.FEWEST_BLOCKS),
        )
        self._shape = lanes, first, second = tuple(
            pages.table_size(least, now, fewest)
            for (least, fewest), now in zip(needed, self._shape, strict=True)
        )
        count = len(self._slots)
        return (
            pages.index(self._prompts, groups, lanes, count, first),
            pages.index(self._completions, own, 1, count, second),
        )


def _bucket(prompt: Prompt) -> int:
    return layout.bucket(len(prompt.ids))


def _lengths(groups: Mapping[int, Prompt]) -> dict[int, int]:
    return {group: len(prompt.ids) for group, prompt in groups.items()}
