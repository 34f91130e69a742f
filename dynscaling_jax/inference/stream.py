"""What is being drawn: rows, the prompts they stand behind, what waits.

The longest prompts come first; the rows that they leave idle take shorter
ones, and prompts and rows become as short and as few, or as long and as many,
as the work. More work may come at any time: it takes the next idle rows.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import cache, decode, layout, sampling
from dynscaling_jax.inference.cache import Prefix, State
from dynscaling_jax.inference.row import Asked, Prompt, Row
from dynscaling_jax.inference.sampling import Settings
from dynscaling_jax.types import Sample


class Draws(NamedTuple):
    """What an engine draws with."""

    model: Model
    settings: Settings
    seed: np.uint32
    stop_ids: np.ndarray
    max_new_tokens: int
    rows_per_group: int
    widths: Callable[[int, int], tuple[int, ...]]  # (size, per group) -> rows
    follows_work: bool  # layout.follows_work
    size: Callable[[int], int]  # what a prompt of so many tokens is padded to
    read: Callable[[Prompt], Prefix]
    empty: Callable[[int, int, int], State]  # (groups, per group, size)
    finished: Callable[[Row], Sample | None]


class Steps(NamedTuple):
    """Row-steps: all that were computed, and those that drew a token."""

    all: int = 0
    live: int = 0


class Stream:
    """A batch of rows and what waits for one; empty once `busy` is false."""

    def __init__(self, draws: Draws):
        self._draws = draws
        self._widths = functools.cache(draws.widths)
        # what is left to draw, of those prompts that have any left
        self._pending: dict[Prompt, collections.deque[Asked]] = {}
        self._waiting: collections.deque[Prompt] = collections.deque()
        self._per = 1
        self._state: Any = None  # a State, once there is work
        self._placed: list[Prompt | None] = []
        self._rows: list[Row | None] = []

    @property
    def busy(self) -> bool:
        return bool(self._pending or any(self._rows))

    @property
    def left(self) -> int:
        """Samples that are not whole."""
        drawn = sum(row is not None for row in self._rows)
        return drawn + sum(map(len, self._pending.values()))

    def add(self, work: Iterable[tuple[Prompt, Asked]]) -> None:
        """Appends to what waits, which then has the longest prompts first."""
        for prompt, asked in work:
            self._pending.setdefault(prompt, collections.deque()).append(asked)
        longest = sorted(self._pending, key=lambda p: -self._size(p))
        self._pending = {p: self._pending[p] for p in longest}
        placed = {*self._placed}
        self._waiting = collections.deque(p for p in longest if p not in placed)
        counts = map(len, self._pending.values())
        self._per = layout.per_group(counts, self._draws.rows_per_group)

    def drop(self, gone: Container[int]) -> None:
        """Draws requests of these numbers no more; their rows take others."""
        for prompt, own in [*self._pending.items()]:
            left = collections.deque(r for r in own if r.number not in gone)
            self._pending[prompt] = left
            if not left:
                del self._pending[prompt]
        for i, row in enumerate(self._rows):
            if row and row.number in gone:
                self._rows[i] = None
        self._waiting = collections.deque(
            p for p in self._waiting if p in self._pending
        )

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a chunk of steps; what is whole by then, by number, and the
        count."""
        self._fit()
        self._fill()
        rows, state = self._rows, self._state
        slots = layout.slots(max(r.count for r in rows if r))
        if cache.slots(state.suffix) < slots:
            state = decode.grow(state, slots)
        most = max(r.limit - r.count for r in rows if r)
        model = self._draws.model
        self._state, chunk = decode.decode(
            model.params,
            model.config,
            state,
            self._draws.stop_ids,
            self._draws.settings,
            max(1, min(decode.CHUNK, most)),
            self._enough(),
        )
        steps = Steps(
            int(chunk.live.any(1).sum()) * len(rows), int(chunk.live.sum())
        )
        whole = []
        for i, row in enumerate(rows):
            if row is None:
                continue
            row.take(chunk.draws, i, int(chunk.live[:, i].sum()))
            sample = self._draws.finished(row)
            if sample:
                rows[i] = None
                whole.append((row.number, sample))
        return whole, steps

    def _size(self, prompt: Prompt) -> int:
        return self._draws.size(len(prompt.ids))

    def _enough(self) -> int:
        """So few rows that go on end a chunk: a sixteenth of them idle while
        others wait, or as few as fit into fewer rows."""
        live = sum(row is not None for row in self._rows)
        if self._pending:
            return live - max(1, len(self._rows) // 16)
        size = cache.slots(self._state.prefix)
        fewer = (w for w in self._widths(size, self._per) if w < live)
        return max(fewer, default=0)

    def _needed(self, size: int, per: int) -> int:
        """Rows for those that are live, and all that waits to be drawn from
        prompts of this size; all there may be where those are more."""
        widths = self._widths(size, per)
        live = [row for row in self._rows if row]
        groups = len(layout.grouped(live, lambda row: row.prompt, per))
        for prompt, own in self._pending.items():  # the longest first
            if self._size(prompt) < size or per * groups >= widths[-1]:
                break
            groups += -(-len(own) // per)
        return next((w for w in widths if w >= per * groups), widths[-1])

    def _fit(self) -> None:
        """The rows that still draw, and room for what waits: as long as the
        prompts and as many as the work asks for. Where rows that draw leave
        no room for longer prompts, these wait for them."""
        live = {i: row for i, row in enumerate(self._rows) if row}
        ahead = itertools.islice(self._pending, 1)  # none that waits is longer
        prompts = *(row.prompt for row in live.values()), *ahead
        size = max(map(self._size, prompts))
        if self._state is None:
            per = self._per
            groups = self._needed(size, per) // per
            self._state = self._draws.empty(groups, per, size)
            self._placed = [None] * groups
            self._rows = [None] * (groups * per)
            return
        if not self._draws.follows_work:
            return
        now = len(self._rows)
        own = now // len(self._placed)
        same = size == cache.slots(self._state.prefix) and own == self._per
        if self._pending and same and self._needed(size, own) <= now:
            return
        each_way = (self._per,) if self._pending else (own, 1)
        for each in dict.fromkeys(each_way):
            groups = layout.grouped([*live], lambda i: live[i].prompt, each)
            count = self._needed(size, each)
            if each * len(groups) <= count and (self._pending or count < now):
                break
        else:
            return
        groups += [[] for _ in range(count // each - len(groups))]
        order = [g + [None] * (each - len(g)) for g in groups]
        kept = [i for group in order for i in group]
        self._state = decode.select(
            self._state,
            np.array([g[0] // own if g else 0 for g in groups], np.int32),
            np.array([i or 0 for i in kept], np.int32),
            np.array([i is not None for i in kept]),
            size,
        )
        self._placed = [live[g[0]].prompt if g else None for g in groups]
        self._rows = [None if i is None else self._rows[i] for i in kept]

    def _fill(self) -> None:
        """Gives idle rows their next samples, and idle groups their next
        prompts."""
        placed, rows, state = self._placed, self._rows, self._state
        count, per = len(rows), len(rows) // len(placed)
        fresh = np.zeros(count, bool)
        name = np.zeros((count, 3), np.uint32)
        limit = np.zeros(count, np.int32)
        for g in range(len(placed)):
            own = range(g * per, (g + 1) * per)
            prompt = placed[g]
            idle = not any(rows[i] for i in own)
            if idle and prompt not in self._pending:
                prompt = placed[g] = self._next()
                if prompt:
                    prefix = self._draws.read(prompt)
                    state = decode.place(state, prefix, np.int32(g))
            for i in own:
                if rows[i] or not prompt or prompt not in self._pending:
                    continue
                asked = self._pending[prompt].popleft()
                if not self._pending[prompt]:
                    del self._pending[prompt]
                row = rows[i] = self._row(asked, prompt)
                fresh[i], limit[i] = True, row.limit
                words = sampling.query_words(row.request.query.id)
                name[i] = (*words, row.request.index)
        self._state = state
        if not fresh.any():
            return
        started, first = decode.start(
            state.rows,
            state.logits,
            self._draws.seed,
            fresh,
            name,
            limit,
            np.array([r is not None for r in rows]),
            self._draws.stop_ids,
            self._draws.settings,
        )
        first = sampling.measures(
            jax.tree.map(lambda x: np.asarray(x)[None], first),
            self._draws.model.config.vocab_size,
        )
        for i, row in enumerate(rows):
            if row and fresh[i]:
                row.take(first, i, 1)
        self._state = state._replace(rows=started)

    def _next(self) -> Prompt | None:
        """A prompt for an idle group that there is room for: a new one, else
        the one that has most samples left to draw."""
        room = cache.slots(self._state.prefix)
        fits = lambda prompt: self._size(prompt) <= room
        new = next(filter(fits, self._waiting), None)
        if new:
            self._waiting.remove(new)
            return new
        pending = self._pending
        known = filter(fits, pending)
        return max(known, key=lambda p: len(pending[p]), default=None)

    def _row(self, asked: Asked, prompt: Prompt) -> Row:
        room = self._draws.model.config.max_position_embeddings - len(
            prompt.ids
        )
        limit = min(self._draws.max_new_tokens, room)
        return Row(*asked, prompt, limit)
