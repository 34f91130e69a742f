"""Scheduling: which sample each sequence slot generates, and what waits.

The longest prompts come first. The slots that they leave idle take shorter
ones, and the state shrinks and grows with the work: the bucket of prefixes,
the number of slots and the size of groups. Requests may come at any time; they
take the next idle slots.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import cache, decode, layout, sampling
from dynscaling_jax.inference.cache import Prefix
from dynscaling_jax.inference.sampling import Settings
from dynscaling_jax.inference.slot import Numbered, Prompt, Slot
from dynscaling_jax.types import Sample


class Setup(NamedTuple):
    """What all schedulers of an engine share."""

    model: Model
    mesh: Mesh | None
    settings: Settings
    seed: np.uint32
    stops: np.ndarray  # as of decode.start
    max_new_tokens: int
    slots_per_group: int
    slot_counts: Callable[[int, int], tuple[int, ...]]  # (bucket, R) -> GR
    follows_work: bool  # layout.follows_work
    bucket: Callable[[int], int]  # the bucket policy: length -> P
    prefix: Callable[[Prompt], Prefix]
    finished: Callable[[Slot], Sample | None]


class Steps(NamedTuple):
    """Slot-steps: all that were computed, and those of active slots."""

    all: int = 0
    active: int = 0


class Scheduler:
    """A batch of sequence slots and the requests that wait for one."""

    def __init__(self, setup: Setup):
        """Starts without requests."""
        self._setup = setup
        self._counts = functools.cache(setup.slot_counts)
        # requests that wait, of prompts that have any
        self._pending: dict[Prompt, collections.deque[Numbered]] = {}
        self._waiting: collections.deque[Prompt] = collections.deque()
        self._per_group = 1
        self._state: Any = None  # a State, once there is work
        self._placed: list[Prompt | None] = []  # of each group
        self._slots: list[Slot | None] = []

    @property
    def busy(self) -> bool:
        """Whether any sample is unfinished."""
        return bool(self._pending or any(self._slots))

    @property
    def left(self) -> int:
        """How many samples are unfinished."""
        active = sum(slot is not None for slot in self._slots)
        return active + sum(map(len, self._pending.values()))

    def add(self, work: Iterable[tuple[Prompt, Numbered]]) -> None:
        """Queues requests; those of the longest prompts come first."""
        for prompt, request in work:
            queue = self._pending.setdefault(prompt, collections.deque())
            queue.append(request)
        longest = sorted(self._pending, key=lambda p: -self._bucket(p))
        self._pending = {p: self._pending[p] for p in longest}
        placed = {*self._placed}
        self._waiting = collections.deque(p for p in longest if p not in placed)
        counts = map(len, self._pending.values())
        self._per_group = layout.per_group(counts, self._setup.slots_per_group)

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
        self._waiting = collections.deque(
            p for p in self._waiting if p in self._pending
        )

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a chunk of steps.

        Returns:
            What is finished by then, as (number, sample), and the steps.
        """
        self._fit()
        self._fill()
        slots, state = self._slots, self._state
        suffix = layout.suffix_bucket(max(s.count for s in slots if s))
        if cache.capacity(state.suffix) < suffix:
            state = decode.grow(state, suffix)
        most = max(s.limit - s.count for s in slots if s)
        model = self._setup.model
        self._state, chunk = decode.decode(
            model.params,
            model.config,
            state,
            self._setup.stops,
            self._setup.settings,
            max(1, min(decode.CHUNK, most)),
            self._enough(),
        )
        steps = Steps(
            int(chunk.active.any(1).sum()) * len(slots),
            int(chunk.active.sum()),
        )
        done = []
        for i, slot in enumerate(slots):
            if slot is None:
                continue
            slot.append(chunk.tokens, i, int(chunk.active[:, i].sum()))
            sample = self._setup.finished(slot)
            if sample:
                slots[i] = None
                done.append((slot.number, sample))
        return done, steps

    def _bucket(self, prompt: Prompt) -> int:
        return self._setup.bucket(len(prompt.ids))

    def _enough(self) -> int:
        """The number of active slots at which a chunk ends.

        A sixteenth of the slots idles while requests wait, or as few go on as
        fit into fewer slots.
        """
        active = sum(slot is not None for slot in self._slots)
        if self._pending:
            return active - max(1, len(self._slots) // 16)
        bucket = cache.capacity(self._state.prefix)
        counts = self._counts(bucket, self._per_group)
        return max((n for n in counts if n < active), default=0)

    def _needed(self, bucket: int, per_group: int) -> int:
        """The fewest slots that hold the active ones and what waits.

        Of what waits, prompts of this bucket count. Where all that there may
        be are too few, it is all.
        """
        counts = self._counts(bucket, per_group)
        active = [slot for slot in self._slots if slot]
        groups = len(layout.grouped(active, lambda s: s.prompt, per_group))
        for prompt, queue in self._pending.items():  # the longest first
            full = per_group * groups >= counts[-1]
            if full or self._bucket(prompt) < bucket:
                break
            groups += -(-len(queue) // per_group)
        return next((n for n in counts if n >= per_group * groups), counts[-1])

    def _fit(self) -> None:
        """Reorders the slots that go on, and makes room for what waits.

        The state becomes as long as the longest prompt and as wide as the
        work. Where active slots leave no room for longer prompts, these wait.
        Slots 0, 5, 6 and 12 of four groups of four (R = 4) go on, and nothing
        waits. In groups of four they would need 3 x 4 slots, so still 16; in
        groups of one they need 4, so 8, the fewest:

            groups of slots    [0] [5] [6] [12] [] [] [] []
            kept                0   5   6   12  -  -  -  -
            old group           0   1   1   3   0  0  0  0    slot // 4
            old slot            0   5   6   12  0  0  0  0

        A group's prompt is that of its first slot. decode.select copies the
        arrays in the same order; the empty groups are there for their shape.
        """
        active = {i: slot for i, slot in enumerate(self._slots) if slot}
        ahead = itertools.islice(self._pending, 1)  # none that waits is longer
        prompts = *(slot.prompt for slot in active.values()), *ahead
        bucket = max(map(self._bucket, prompts))
        if self._state is None:
            per = self._per_group
            groups = self._needed(bucket, per) // per
            shape = groups, per, bucket, layout.SHORTEST_SUFFIX
            params, config = self._setup.model.params, self._setup.model.config
            dtype = params["norm"].dtype
            self._state = cache.empty(config, *shape, dtype, self._setup.mesh)
            self._placed = [None] * groups
            self._slots = [None] * (groups * per)
            return
        if not self._setup.follows_work:
            return
        now = len(self._slots)
        old = now // len(self._placed)
        as_long = bucket == cache.capacity(self._state.prefix)
        same = as_long and old == self._per_group
        if self._pending and same and self._needed(bucket, old) <= now:
            return
        # with nothing waiting only fewer slots are worth a copy
        options = (self._per_group,) if self._pending else (old, 1)
        for per in dict.fromkeys(options):
            groups = layout.grouped([*active], lambda i: active[i].prompt, per)
            count = self._needed(bucket, per)
            if per * len(groups) <= count and (self._pending or count < now):
                break
        else:
            return
        groups += [[] for _ in range(count // per - len(groups))]
        kept = [i for g in groups for i in g + [None] * (per - len(g))]
        self._state = decode.select(
            self._state,
            np.array([g[0] // old if g else 0 for g in groups], np.int32),
            np.array([i or 0 for i in kept], np.int32),
            np.array([i is not None for i in kept]),
            bucket,
        )
        self._placed = [active[g[0]].prompt if g else None for g in groups]
        self._slots = [None if i is None else self._slots[i] for i in kept]

    def _fill(self) -> None:
        """Gives idle slots their next samples, and idle groups prompts."""
        placed, slots, setup = self._placed, self._slots, self._setup
        count, per = len(slots), len(slots) // len(placed)
        fresh = np.zeros(count, bool)
        name = np.zeros((count, 3), np.uint32)
        limit = np.zeros(count, np.int32)
        for g, prompt in enumerate(placed):
            idle = not any(slots[g * per : (g + 1) * per])
            if idle and prompt not in self._pending:
                prompt = placed[g] = self._next()
                if prompt:
                    prefix = setup.prefix(prompt)
                    self._state = decode.insert(
                        self._state, prefix, np.int32(g)
                    )
            for i in range(g * per, (g + 1) * per):
                if slots[i] or not prompt or prompt not in self._pending:
                    continue
                number, request = self._pending[prompt].popleft()
                if not self._pending[prompt]:
                    del self._pending[prompt]
                context = setup.model.config.max_position_embeddings
                room = context - len(prompt.ids)
                fresh[i], limit[i] = True, min(setup.max_new_tokens, room)
                words = sampling.query_words(request.query.id)
                name[i] = (*words, request.index)
                slots[i] = Slot(number, request, prompt, int(limit[i]))
        if not fresh.any():
            return
        started, sums = decode.start(
            self._state.slots,
            self._state.logits,
            setup.seed,
            fresh,
            name,
            limit,
            np.array([slot is not None for slot in slots]),
            setup.stops,
            setup.settings,
        )
        first = sampling.score(
            jax.tree.map(lambda x: np.asarray(x)[None], sums),
            setup.model.config.vocab_size,
        )
        for i, slot in enumerate(slots):
            if slot and fresh[i]:
                slot.append(first, i, 1)
        self._state = self._state._replace(slots=started)

    def _next(self) -> Prompt | None:
        """A prompt for an idle group, which has room for it.

        It is a new one, else the one with the most samples that wait.
        """
        room = cache.capacity(self._state.prefix)
        fits = lambda prompt: self._bucket(prompt) <= room
        new = next(filter(fits, self._waiting), None)
        if new:
            self._waiting.remove(new)
            return new
        pending = self._pending
        known = filter(fits, pending)
        return max(known, key=lambda p: len(pending[p]), default=None)
