"""One engine's paged work: what the scheduler plans, the runner does."""

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynscaling_jax.inference import memory, mesh, sampling
from dynscaling_jax.inference.batch import (
    Setup,
    Steps,
    append,
    begun,
    forget,
    harvest,
    lengths,
)
from dynscaling_jax.inference.paged import runner
from dynscaling_jax.inference.paged.attention import Backend, Layout, layout_of
from dynscaling_jax.inference.paged.attention.select import BACKENDS, select
from dynscaling_jax.inference.paged.runner import State
from dynscaling_jax.inference.paged.scheduler import Limits, Scheduler
from dynscaling_jax.inference.paged.turn import Chunk, Start, Turn
from dynscaling_jax.inference.slot import Numbered, Prompt, Slot
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.sharding import MODEL
from dynscaling_jax.models.stacked import Stacked
from dynscaling_jax.types import Sample

KEYS = ("", "int8")
PROMPT = 1024  # tokens that are expected of a prompt


class Sizes(NamedTuple):
    """What a batch has, and how attention meets it."""

    backend: Backend
    layout: Layout
    limits: Limits


class Wanted(NamedTuple):
    """What an engine is asked for; as of Engine."""

    attention: str
    kv_dtype: str
    slots: int | None
    live: int | None
    max_new_tokens: int
    steps: int


def is_paged(attention: str, on: Mesh | None) -> bool:
    """Tells whether an engine decodes from pages.

    Raises:
        ValueError: an unknown name, or groups where there are none.
    """
    known = ("auto", "reference", *BACKENDS)
    if attention not in known:
        raise ValueError(
            f"attention={attention!r}: expected one of {', '.join(known)}"
        )
    grouped = on is None and mesh.platform(on) == "cpu"
    if attention == "reference" and not grouped:
        raise ValueError(
            "attention=reference decodes in groups, on one CPU device alone; "
            "take auto or xla"
        )
    return attention in BACKENDS or (attention == "auto" and not grouped)


def sizes(
    config: ModelConfig,
    on: Mesh | None,
    wanted: Wanted,
    weights: int,
    dtype: Any,
    available: float,
) -> Sizes:
    """Chooses the backend, and how many slots and pages there are.

    Args:
        config: of the model.
        on: the mesh.
        wanted: by the engine.
        weights: bytes of the parameters on one device.
        dtype: of the model.
        available: bytes of one device that decoding may take.

    Raises:
        ValueError: the backend cannot serve the model, or not one sample
            fits into the memory.
    """
    keys, new = wanted.kv_dtype, wanted.max_new_tokens
    if keys not in KEYS:
        raise ValueError(f"kv_dtype={keys!r}: expected int8, or nothing")
    context, parts = config.max_position_embeddings, mesh.data_size(on)
    pool = memory.paged(
        mesh.share(config, on),
        dtype.itemsize,
        weights,
        available,
        memory.Lengths(min(PROMPT, context - new), new, wanted.live or 0),
        keys,
        (wanted.slots or 0) // parts,
    )
    layout = layout_of(
        config, parts, pool.slots, pool.pages, keys or dtype.name
    )
    limits = Limits(
        parts,
        layout.slots,
        layout.pages,
        layout.page,
        memory.PREFILL,
        wanted.steps,
        pool.slots,
        context,
        new,
    )
    model = on.shape[MODEL] if on else 1
    found = select(wanted.attention, mesh.platform(on), config, layout, model)
    return Sizes(found, layout, limits)


class Batch:
    """Sequence slots, pages, and the requests that wait for them."""

    def __init__(self, setup: Setup, sizes: Sizes):
        """Starts without requests; pages are allocated with the first step."""
        self._setup, self._sizes = setup, sizes
        self._scheduler = Scheduler(sizes.limits)
        self._slots: list[Slot | None] = [None] * sizes.layout.slots
        self._state: State | None = None

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
        """Queues requests, all or none.

        Raises:
            ValueError: the pool cannot hold a prompt and its longest sample.
        """
        self._scheduler.add(work)

    def drop(self, gone: Container[int]) -> None:
        """Cancels requests of these numbers; their slots become idle."""
        self._scheduler.drop(gone)
        forget(self._slots, gone)

    def free(self) -> None:
        """Lets go of the pages; the batch is of no more use.

        A traceback that is kept, as by a notebook, refers to the batch, and
        the devices have no room for the pages of two.
        """
        self._state = None

    def step(self) -> tuple[list[tuple[int, Sample]], Steps]:
        """Takes a turn: a chunk of prefill, samples that start, steps.

        Returns:
            What is finished by then, as (number, sample), and the steps.
        """
        turn, slots = self._scheduler.turn(), self._slots
        if self._state is None:
            self._state = self._empty()
        for i in turn.preempted:
            slots[i] = None  # its tokens will be sampled again
        if turn.chunks:
            self._prefill(turn.chunks)
        # the host waits for the device where it reads tokens: at the end
        first = self._start(turn.starts) if turn.starts else None
        rest = self._decode(turn) if turn.steps else None
        if first is not None:
            tokens = self._scored(jax.tree.map(lambda x: x[None], first))
            for start in turn.starts:
                slot = slots[start.slot] = Slot(
                    *start.request, start.prompt, start.limit
                )
                slot.append(tokens, start.slot, 1)
        steps = Steps()
        if rest is not None:
            tokens, active = self._scored(rest[0]), np.asarray(rest[1])
            steps = append(slots, tokens, active)
        counts, ended, done = harvest(slots, self._setup)
        self._scheduler.record(counts, ended)
        return done, steps

    def _empty(self) -> State:
        params, sizes = self._setup.model.params, self._sizes
        return runner.empty(
            self._setup.model.config,
            sizes.backend,
            sizes.layout,
            sizes.limits.rows,
            params["norm"].dtype,
            isinstance(params["layers"], Stacked),
            self._setup.mesh,
        )

    def _prefill(self, chunks: Sequence[Chunk]) -> None:
        """Computes the chunks, padded to a power of two of pages.

        So a prompt's last chunk, and a short prompt, do not take as long as a
        whole one.
        """
        sizes = self._sizes
        longest = max(chunk.end - chunk.start for chunk in chunks)
        count = memory.doubled(sizes.layout.page, longest)
        count = min(count, sizes.limits.chunk)
        parts = sizes.layout.parts
        tokens = np.zeros((parts, count), np.int32)
        begin, last = np.zeros((2, parts), np.int32)
        row = np.full(parts, sizes.limits.rows, np.int32)
        for chunk in chunks:
            part, ids = chunk.part, chunk.prompt.ids
            new = ids[chunk.start : chunk.end]
            tokens[part, : len(new)] = new
            begin[part], last[part] = chunk.start, len(new) - 1
            if chunk.end == len(ids):
                row[part] = chunk.row
        self._state = runner.prefill_chunk(
            self._setup.model.params,
            self._setup.model.config,
            sizes.backend,
            self._state,
            sizes.backend.chunk_view(sizes.layout, chunks),
            tokens,
            begin,
            last,
            row,
        )

    def _start(self, starts: Sequence[Start]) -> sampling.LogitSums:
        """Begins samples; returns their first tokens."""
        layout, setup = self._sizes.layout, self._setup
        each = layout.slots // layout.parts
        fresh, name, limit = begun(starts, layout.slots)
        row, length = np.zeros((2, layout.slots), np.int32)
        # Of 16 pages, part 0 copies page 5 to 9 and part 1 nothing:
        # source [[5 0] [0 0]], target [[9 16] [16 16]], copies 1
        source = np.zeros((layout.parts, each), np.int32)
        target = np.full_like(source, layout.pages)
        copied = [0] * layout.parts
        for start in starts:
            row[start.slot] = start.row
            length[start.slot] = len(start.prompt.ids)
            if start.copy:
                part = start.slot // each
                at = part, copied[part]
                source[at], target[at] = start.copy
                copied[part] += 1
        self._state, sums = runner.start(
            self._sizes.backend,
            self._state,
            setup.seed,
            fresh,
            name,
            row,
            length,
            limit,
            source,
            target,
            np.int32(max(copied)),
            setup.stops,
            setup.settings,
            setup.cap and setup.cap.after,
        )
        return sums

    def _decode(self, turn: Turn) -> tuple[sampling.LogitSums, jax.Array]:
        """Takes steps; returns tokens, and which slots were active."""
        sizes, setup = self._sizes, self._setup
        self._state, sums, active = runner.decode_chunk(
            setup.model.params,
            setup.model.config,
            sizes.backend,
            self._state,
            sizes.backend.view(sizes.layout, turn.tables, turn.shared),
            np.array([bool(table) for table in turn.tables]),
            setup.stops,
            setup.settings,
            np.int32(turn.steps),
            np.int32(turn.enough),
            setup.cap and setup.cap.laid_out(self._slots),
        )
        return sums, active

    def _scored(self, sums: sampling.LogitSums) -> sampling.ScoredToken:
        vocabulary = self._setup.model.config.vocab_size
        return sampling.score(jax.tree.map(np.asarray, sums), vocabulary)
