"""Scheduling on one CPU device: slots that take any prompt, keys in pages.

A sequence slot that is idle takes the next sample, of whichever prompt. Slots
that continue the same prompt are a group, up to R of them, and share its pages.
The longest prompts come first. The number of slots and of pages follows the
work. What is decided without arrays is in inference.placement.
"""

import collections
import functools
import itertools
from collections.abc import Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.inference import (
    cache,
    decode,
    layout,
    placement,
    pools,
    sampling,
)
from dynscaling_jax.inference.placement import Pages
from dynscaling_jax.inference.scheduler import Setup, Steps
from dynscaling_jax.inference.slot import Numbered, Prompt, Slot
from dynscaling_jax.types import Sample


class Scheduler:
    """A batch of sequence slots and the requests that wait for one."""

    def __init__(self, setup: Setup):
        """Starts without requests."""
        self._setup = setup
        self._counts = functools.cache(setup.slot_counts)
        # requests that wait, of prompts that have any; the longest first
        self._pending: dict[Prompt, collections.deque[Numbered]] = {}
        self._per_group = 1
        self._slots: list[Slot | None] = []
        self._groups: dict[int, Prompt] = {}
        self._group: dict[int, int] = {}  # of the requests that have a slot
        self._logits: dict[int, jax.Array] = {}  # of the prompts of groups
        self._numbers = itertools.count()  # of groups
        self._prompts = Pages()
        self._completions = Pages(width=layout.SHORTEST_SUFFIX)
        self._shape = 0, 0, 0  # R, blocks of prompts and of completions
        self._state: Any = None  # a pools.State, once there is work

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
        longest = sorted(self._pending, key=lambda p: -self._bucket(p))
        self._pending = {p: self._pending[p] for p in longest}
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

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a chunk of steps.

        Returns:
            What is finished by then, as (number, sample), and the steps.
        """
        self._fit()
        self._fill()
        self._place()
        slots = self._slots
        most = max(s.limit - s.count for s in slots if s)
        model = self._setup.model
        self._state, chunk = decode.decode(
            model.params,
            model.config,
            self._state,
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

    def _options(self) -> tuple[int, ...]:
        """The numbers of slots that the longest prompt may have."""
        prompts = [slot.prompt for slot in self._slots if slot]
        prompts = prompts or [*itertools.islice(self._pending, 1)]
        bucket = max(map(self._bucket, prompts))
        return self._counts(bucket, self._per_group)

    def _enough(self) -> int:
        """The number of active slots at which a chunk ends.

        A sixteenth of the slots idles while requests wait, or as few go on as
        fit into fewer slots.
        """
        active = self._active
        if self._pending:
            return active - max(1, len(self._slots) // 16)
        return max((n for n in self._options() if n < active), default=0)

    def _fit(self) -> None:
        """Makes the slots as many as the work needs."""
        active, now = self._active, len(self._slots)
        waiting = self.left - active
        count = placement.slot_count(self._options(), now, active, waiting)
        if self._state is None:
            config = self._setup.model.config
            dtype = self._setup.model.params["norm"].dtype
            self._state = pools.State(
                pools.empty(config, dtype),
                pools.empty(config, dtype),
                None,  # pyright: ignore[reportArgumentType]
                cache.idle(count),
            )
            self._slots = [None] * count
        elif count != now:
            kept = [i for i, slot in enumerate(self._slots) if slot]
            empty = [None] * (count - len(kept))
            self._slots = [*(self._slots[i] for i in kept), *empty]
            self._state = self._state._replace(
                slots=decode.take(
                    self._state.slots,
                    np.array([*kept, *(0 for _ in empty)], np.int32),
                    np.arange(count) < len(kept),
                )
            )

    def _fill(self) -> None:
        """Gives idle slots their next samples."""
        slots, setup = self._slots, self._setup
        fresh = np.zeros(len(slots), bool)
        name = np.zeros((len(slots), 3), np.uint32)
        limit = np.zeros(len(slots), np.int32)
        taken = collections.Counter(
            self._group[slot.number] for slot in slots if slot
        )
        self._groups = {g: p for g, p in self._groups.items() if taken[g]}
        self._logits = {g: self._logits[g] for g in self._groups}
        self._group = {
            slot.number: self._group[slot.number] for slot in slots if slot
        }
        for i, slot in enumerate(slots):
            group = None if slot else self._next(taken)
            if group is None:
                continue
            prompt = self._groups[group]
            number, request = self._pending[prompt].popleft()
            if not self._pending[prompt]:
                del self._pending[prompt]
            taken[group] += 1
            self._group[number] = group
            room = setup.model.config.max_position_embeddings - len(prompt.ids)
            fresh[i], limit[i] = True, min(setup.max_new_tokens, room)
            name[i] = (*sampling.query_words(request.query.id), request.index)
            slots[i] = Slot(number, request, prompt, int(limit[i]))
        self._place_prompts()
        if not fresh.any():
            return
        some = next(iter(self._logits.values()))
        started, sums = decode.start(
            self._state.slots,
            jnp.stack(
                [
                    self._logits[self._group[slot.number]]
                    if slot and new
                    else some
                    for slot, new in zip(slots, fresh, strict=True)
                ]
            ),
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

    def _next(self, taken: collections.Counter[int]) -> int | None:
        """The group of the next sample: one with a lane left, or a new one."""
        for number, prompt in self._groups.items():
            if prompt in self._pending and taken[number] < self._per_group:
                return number
        active = taken.total()
        for prompt in self._pending:
            counts = self._counts(self._bucket(prompt), self._per_group)
            if active < counts[-1]:
                number = next(self._numbers)
                self._groups[number] = prompt
                return number
        return None

    def _place_prompts(self) -> None:
        """Gives new groups the pages of their prompts, and fills them."""
        lengths = {g: len(p.ids) for g, p in self._groups.items()}
        before = self._prompts
        self._prompts, done = placement.settle(before, lengths)
        layers = self._layers("prefix", done)
        prefixes = {}
        for wide, page, block in placement.fresh(before, self._prompts):
            group = block.owner
            if group not in prefixes:
                prefixes[group] = self._setup.prefix(self._groups[group])
                self._logits[group] = prefixes[group].logits
            start = block.number * placement.WIDE
            kv = prefixes[group].layers
            pools.insert(layers, kv, wide, page, start)
        self._state = self._state._replace(prefix=tuple(layers))

    def _place(self) -> None:
        """Gives slots the pages of this chunk, and says where all lie."""
        slots, ahead = self._slots, decode.CHUNK - 1
        lengths = {
            # the last token of a sample is never read
            slot.number: min(slot.count + ahead, max(1, slot.limit - 1))
            for slot in slots
            if slot
        }
        self._completions, done = placement.settle(
            self._completions, lengths, layout.SHORTEST_SUFFIX, len(slots)
        )
        layers = self._layers("suffix", done)
        self._state = self._state._replace(suffix=tuple(layers))
        self._show(lengths)

    def _layers(self, name: str, done: Iterable) -> list[pools.Pools]:
        """Takes layers out of the state, which lets go of what is resized."""
        layers = [*getattr(self._state, name)]
        self._state = self._state._replace(**{name: ()})
        for operation in done:
            pools.do(layers, operation)
        return layers

    def _show(self, lengths: dict[int, int]) -> None:
        slots = self._slots
        groups, own = collections.defaultdict(list), {}
        for i, slot in enumerate(slots):
            if slot:
                groups[self._group[slot.number]].append(i)
                own[slot.number] = [i]
        prompts = {g: len(p.ids) for g, p in self._groups.items()}
        needed = (
            max(map(len, groups.values())),
            placement.blocks(prompts),
            placement.blocks(lengths),
        )
        self._shape = lanes, *lengths_of = tuple(
            map(placement.table_size, needed, self._shape)
        )
        count = len(slots)
        view = pools.View(
            np.array(
                [len(slot.prompt.ids) if slot else 1 for slot in slots],
                np.int32,
            ),
            placement.index(self._prompts, groups, lanes, count, lengths_of[0]),
            placement.index(self._completions, own, 1, count, lengths_of[1]),
        )
        self._state = self._state._replace(view=jax.device_put(view))
