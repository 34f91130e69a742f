"""One CPU device's work: what the scheduler plans, the runner does."""

from collections.abc import Callable, Container, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.batch import (
    Setup,
    Steps,
    append,
    begun,
    forget,
    harvest,
    lengths,
)
from dynscaling_jax.inference.grouped import cache, runner
from dynscaling_jax.inference.grouped.cache import State, View
from dynscaling_jax.inference.grouped.prefill import Prefix
from dynscaling_jax.inference.grouped.scheduler import (
    Fill,
    Limits,
    Scheduler,
    Start,
    Turn,
)
from dynscaling_jax.inference.slot import Numbered, Prompt, Slot
from dynscaling_jax.inference.slots import Slots
from dynscaling_jax.types import Sample


class Batch:
    """Sequence slots, and the requests that wait for one."""

    def __init__(
        self,
        setup: Setup,
        limits: Limits,
        prefix: Callable[[Prompt], Prefix],
    ):
        """Starts without requests; `prefix` computes that of a prompt."""
        self._setup, self._prefix = setup, prefix
        self._scheduler = Scheduler(limits)
        self._slots: list[Slot | None] = []
        self._logits: dict[int, jax.Array] = {}  # of the prompts of groups
        config = setup.model.config
        dtype = setup.model.params["norm"].dtype
        self._pages = [
            [*cache.empty(config, dtype)] for _ in ("prompts", "completions")
        ]
        self._device = Slots.idle(0)

    @property
    def busy(self) -> bool:
        """Whether any sample is unfinished."""
        return self._scheduler.busy

    @property
    def left(self) -> int:
        """How many samples are unfinished."""
        return self._scheduler.left

    @property
    def lengths(self) -> dict[int, int]:
        """The tokens so far of each sample that has a slot, by number."""
        return lengths(self._slots)

    def add(self, work: Iterable[tuple[Prompt, Numbered]]) -> None:
        """Queues requests; those of the longest prompts come first."""
        self._scheduler.add(work)

    def drop(self, gone: Container[int]) -> None:
        """Cancels requests of these numbers; their slots become idle."""
        self._scheduler.drop(gone)
        forget(self._slots, gone)

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a turn: prompts, samples that start, steps.

        Returns:
            What is finished by then, as (number, sample), and the steps.
        """
        turn = self._scheduler.turn()
        self._rearrange(turn)
        prompts, completions = self._pages
        cache.apply(prompts, turn.prompts)
        self._fill(turn.fills, turn.groups)
        if turn.starts:
            self._start(turn.starts, turn.active)
        cache.apply(completions, turn.completions)
        chunk = self._decode(turn)
        steps = append(self._slots, chunk.tokens, chunk.active)
        counts, ended, done = harvest(self._slots, self._setup)
        self._scheduler.record(counts, ended)
        return done, steps

    def _rearrange(self, turn: Turn) -> None:
        """Makes slots fewer or more."""
        if turn.kept is None:
            return
        empty = [None] * (turn.count - len(turn.kept))
        self._slots = [*(self._slots[i] for i in turn.kept), *empty]
        if not turn.kept:
            self._device = Slots.idle(turn.count)
            return
        self._device = runner.take(
            self._device,
            np.array([*turn.kept, *(0 for _ in empty)], np.int32),
            np.arange(turn.count) < len(turn.kept),
        )

    def _fill(self, fills: Sequence[Fill], groups: Container[int]) -> None:
        """Puts the keys of prompts into their pages."""
        self._logits = {g: x for g, x in self._logits.items() if g in groups}
        prefixes = {}
        for fill in fills:
            group = fill.group
            if group not in prefixes:
                prefixes[group] = self._prefix(fill.prompt)
                self._logits[group] = prefixes[group].logits
            layers = prefixes[group].layers
            cache.insert(
                self._pages[0], layers, fill.wide, fill.page, fill.start
            )

    def _start(self, starts: Sequence[Start], active: Sequence[bool]) -> None:
        """Begins samples, with their first tokens."""
        setup, count = self._setup, len(self._slots)
        fresh, name, limit = begun(starts, count)
        rows = [next(iter(self._logits.values()))] * count
        for start in starts:
            rows[start.slot] = self._logits[start.group]
            self._slots[start.slot] = Slot(
                *start.request, start.prompt, start.limit
            )
        self._device, sums = runner.start(
            self._device,
            jnp.stack(rows),
            setup.seed,
            fresh,
            name,
            limit,
            np.array(active),
            setup.stops,
            setup.settings,
            setup.cap and setup.cap.after,
        )
        first = sampling.score(
            jax.tree.map(lambda x: np.asarray(x)[None], sums),
            setup.model.config.vocab_size,
        )
        for start in starts:
            slot = self._slots[start.slot]
            assert slot is not None
            slot.append(first, start.slot, 1)

    def _decode(self, turn: Turn) -> runner.Chunk:
        """Takes steps with all slots."""
        setup, (prompts, completions) = self._setup, self._pages
        view = View(turn.ahead, turn.prefix, turn.suffix)
        state = State(
            tuple(prompts),
            tuple(completions),
            jax.device_put(view),
            self._device,
        )
        completions.clear()  # they are donated
        state, chunk = runner.decode(
            setup.model.params,
            setup.model.config,
            state,
            np.array(turn.active),
            setup.stops,
            setup.settings,
            turn.steps,
            turn.enough,
            setup.cap and setup.cap.laid_out(self._slots),
        )
        completions.extend(state.suffix)
        self._device = state.slots
        return chunk
