"""Requests in, samples out: prompts, groups, rows and their refilling."""

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from dynscaling_jax.engine import (
    cache,
    decode,
    layout,
    memory,
    mesh,
    prefill,
    sampling,
)
from dynscaling_jax.engine.cache import Prefix, State
from dynscaling_jax.engine.row import Prompt, Row, finished
from dynscaling_jax.models.model import Model
from dynscaling_jax.types import Message, Query, Request, Sample

REUSE = 16  # a common beginning shorter than this is read anew


class Engine:
    """Draws samples from a model. Calling it is a types.SampleFn.

    Sample i of a query is the same however many samples are drawn, whatever
    else runs beside it, and in whichever order. It draws on the mesh that the
    model's parameters lie on.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        rows: int | None = 64,
        rows_per_group: int | None = None,
        prefix_bytes: float = 2e9,
    ):
        """Args:
            max_new_tokens: of one sample, its end-of-turn token included.
            temperature, top_k, top_p, min_p: 0, 0, 1 and 0 switch them off.
            stop: strings that end a sample and are cut from its text.
            rows: samples that are drawn at the same time, at most; None
                takes, for each length of prompt, as many as engine.memory
                says that the device holds.
            rows_per_group: of these, how many share the keys of one prompt;
                by default 8, or the largest power of two below that divides
                rows, on a mesh those of one part of its data axis.
            prefix_bytes: memory for prompts that may be read on from.

        Raises:
            ValueError: a value outside its range.
        """
        self._mesh = mesh.of(model.params)
        data = mesh.data_size(self._mesh)
        if rows_per_group is None:
            rows_per_group = math.gcd((rows or 8 * data) // data, 8)
        if isinstance(stop, str):
            raise ValueError(f"stop must be a list of strings, got {stop!r}")
        for name, value in (
            ("max_new_tokens", max_new_tokens),
            ("rows", 1 if rows is None else rows),
            ("rows_per_group", rows_per_group),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} must be a whole number from 1 on, got {value}"
                )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
        if rows and rows % (data * rows_per_group):
            times = f" x data ({data}) of the mesh" if data > 1 else ""
            raise ValueError(
                f"rows ({rows}) must be a multiple of rows_per_group "
                f"({rows_per_group}){times}"
            )
        if max_new_tokens >= model.config.context:
            raise ValueError(
                f"max_new_tokens ({max_new_tokens}) leaves no room for a "
                f"prompt in a context of {model.config.context} tokens"
            )
        if any(not s for s in stop):
            raise ValueError("stop strings must not be empty")
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.stop = tuple(stop)
        self.settings = sampling.settings(temperature, top_k, top_p, min_p)
        self.seed = np.uint32(seed)
        self.rows_per_group = rows_per_group
        self.widths = layout.widths(rows, self._mesh) if rows else ()
        self.row_steps = 0  # rows x steps computed
        self.live_steps = 0  # of these, steps that drew a token of a sample
        ids = model.eos_ids
        size = max(8, len(ids))
        self.stop_ids = np.full(size, -1, np.int32)
        self.stop_ids[: len(ids)] = ids
        self._encode = functools.lru_cache(4096)(
            lambda messages: tuple(model.tokenizer.encode_chat(messages))
        )
        self._prefixes: collections.OrderedDict = collections.OrderedDict()
        token = memory.token_bytes(model.config, self._dtype.itemsize)
        self._prefix_tokens = int(prefix_bytes // token)

    def __call__(self, requests: Sequence[Request]) -> Iterator[Sample]:
        """Draws the samples asked for; yields each when it is whole.

        Raises:
            ValueError: a prompt that leaves no room in the context, before
                anything is drawn.
        """
        streams = collections.defaultdict(dict)
        for request in requests:
            prompt = self._prompt(request)
            joined = layout.follows_work(self._mesh)
            stream = streams[0 if joined else self._size([prompt])]
            stream.setdefault(prompt, []).append(request)
        for work in streams.values():
            yield from mesh.within(self._mesh, self._stream(work))

    def generate(
        self, prompts: Sequence[str], n: int = 1
    ) -> list[list[Sample]]:
        """n samples of each prompt, given as user turns.

        Raises:
            ValueError: one text in place of a list; a prompt too long.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of texts, got one text")
        queries = [Query(text, (Message("user", text),)) for text in prompts]
        drawn = {
            (s.query_id, s.index): s
            for s in self(
                [
                    Request(q, q.messages, i)
                    for q in dict.fromkeys(queries)
                    for i in range(n)
                ]
            )
        }
        return [[drawn[q.id, i] for i in range(n)] for q in queries]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Length of a prompt, in tokens."""
        return len(self.model.tokenizer.encode_chat(messages))

    def check(self, queries: Sequence[Query]) -> None:
        """Raises ValueError if the prompt of a query leaves no room in the
        context; the message names the query."""
        for query in queries:
            self._prompt(Request(query, query.messages, 0))

    @property
    def _dtype(self):
        return self.model.params["norm"].dtype

    def _size(self, prompts: Iterable[Prompt]) -> int:
        """What the longest of them is padded to."""
        return layout.doubled(layout.SHORTEST, max(len(p.ids) for p in prompts))

    def _prompt(self, request: Request) -> Prompt:
        base = ids = self._encode(request.query.messages)
        common = len(base)
        if request.messages != request.query.messages:
            ids = self._encode(request.messages)
            pairs = zip(base, ids[:-1], strict=False)
            common = next(
                (i for i, (a, b) in enumerate(pairs) if a != b),
                min(len(base), len(ids) - 1),
            )
        context = self.model.config.context
        if not ids or len(ids) >= context:
            raise ValueError(
                f"query {request.query.id!r}: its prompt has {len(ids)} "
                f"tokens; the context of the model holds {context}, one of "
                "them for the answer. Shorten the prompt"
            )
        return Prompt(ids, base, common if common >= REUSE else 0)

    def _prefix(self, prompt: Prompt) -> Prefix:
        """Reads a prompt; its query's part is read, or kept, on its own.

        The split depends on the two prompts alone, never on what is in the
        cache, and so neither does any bit of the result.
        """
        if prompt.ids == prompt.base or not prompt.common:
            return self._read(prompt.ids)
        base = self._read(prompt.base)
        rest = prompt.ids[prompt.common :]
        return prefill.extend(
            self.model.params,
            self.model.config,
            base.layers,
            np.int32(prompt.common),
            _padded(rest, -(-len(rest) // layout.SHORTEST) * layout.SHORTEST),
            np.int32(len(rest)),
            layout.doubled(layout.SHORTEST, len(prompt.ids)),
        )

    def _read(self, ids: tuple[int, ...]) -> Prefix:
        if ids in self._prefixes:
            self._prefixes.move_to_end(ids)
            return self._prefixes[ids]
        prefix = prefill.prefill(
            self.model.params,
            self.model.config,
            _padded(ids, layout.doubled(layout.SHORTEST, len(ids))),
            np.int32(len(ids)),
        )
        self._prefixes[ids] = prefix
        held = sum(
            layout.doubled(layout.SHORTEST, len(i)) for i in self._prefixes
        )
        while held > self._prefix_tokens and len(self._prefixes) > 1:
            oldest, _ = self._prefixes.popitem(last=False)
            held -= layout.doubled(layout.SHORTEST, len(oldest))
        return prefix

    def _stream(self, work: dict[Prompt, list[Request]]) -> Iterator[Sample]:
        """Draws it all, the longest prompts first; the rows they leave idle
        take shorter ones, and prompts and rows become as few as the work."""
        longest = sorted(work, key=lambda p: -self._size([p]))
        # what is left to draw, of those prompts that have any left
        pending = {p: collections.deque(work[p]) for p in longest}
        waiting = collections.deque(longest)  # prompts not placed yet
        per = layout.per_group(map(len, work.values()), self.rows_per_group)
        size = self._size(pending)
        count = self._needed(pending, (), size, per)
        state = cache.empty(
            self.model.config,
            count // per,
            per,
            size,
            layout.FEWEST_SLOTS,
            self._dtype,
            self._mesh,
        )
        placed: list[Prompt | None] = [None] * (count // per)
        rows: list[Row | None] = [None] * count
        while pending or any(rows):
            state = self._fill(state, placed, rows, waiting, pending)
            slots = layout.slots(max(r.count for r in rows if r))
            if cache.slots(state.suffix) < slots:
                state = decode.grow(state, slots)
            most = max(r.limit - r.count for r in rows if r)
            state, chunk = decode.decode(
                self.model.params,
                self.model.config,
                state,
                self.stop_ids,
                self.settings,
                max(1, min(decode.CHUNK, most)),
                self._enough(rows, pending),
            )
            self.row_steps += chunk.live.any(1).sum() * len(rows)
            self.live_steps += chunk.live.sum()
            for i, row in enumerate(rows):
                if row is None:
                    continue
                row.take(chunk.draws, i, int(chunk.live[:, i].sum()))
                sample = self._finished(row)
                if sample:
                    rows[i] = None
                    yield sample
            state, placed, rows = self._fit(state, placed, rows, pending, per)

    def _enough(self, rows, pending) -> int:
        """So few rows that go on end a chunk: a sixteenth of them idle while
        others wait, or as few as fit into fewer rows."""
        live = sum(row is not None for row in rows)
        if pending:
            return live - max(1, len(rows) // 16)
        return max((w for w in self.widths if w < live), default=0)

    def _needed(self, pending, live: Sequence[Row], size: int, per: int) -> int:
        """Rows for those that are live, and all that waits to be drawn from
        prompts of this size."""
        groups = len(layout.grouped(live, lambda row: row.prompt, per))
        for prompt, own in pending.items():
            if self._size([prompt]) == size:
                groups += -(-len(own) // per)
        return self._width(per * groups, size, per)

    def _width(self, needed: int, size: int, per: int) -> int:
        """The fewest rows that hold `needed`; all there may be otherwise."""
        known = self.widths or self._held(size, per)
        room = self._prefix_tokens // size * (per if known[1:] else 1)
        fit = [w for w in known if w <= room and w % per == 0]
        fit = fit or known[:1]
        return next((w for w in fit if w >= needed), fit[-1])

    def _held(self, size: int, per: int) -> tuple[int, ...]:
        """The numbers of rows that the memory of the devices holds."""
        config = mesh.share(self.model.config, self._mesh)
        itemsize, data = self._dtype.itemsize, mesh.data_size(self._mesh)
        weights = mesh.bytes_held(self.model.params)
        prompts = self._prefix_tokens * memory.token_bytes(config, itemsize)

        def predict(groups: int) -> memory.Memory:
            shape = memory.Size(
                groups, per, size, layout.slots(self.max_new_tokens)
            )
            return memory.predicted(config, shape, weights, itemsize, prompts)

        groups = memory.most_groups(per, memory.available(), predict)
        return layout.widths(per * groups * data, self._mesh)

    def _fill(self, state, placed, rows, waiting, pending) -> State:
        """Gives idle rows their next samples, and idle groups their next
        prompts."""
        count, per = len(rows), len(rows) // len(placed)
        fresh = np.zeros(count, bool)
        name = np.zeros((count, 3), np.uint32)
        limit = np.zeros(count, np.int32)
        for g in range(len(placed)):
            own = range(g * per, (g + 1) * per)
            prompt = placed[g]
            idle = not any(rows[i] for i in own)
            if idle and prompt not in pending:
                prompt = placed[g] = _next(waiting, pending)
                if prompt:
                    prefix = self._prefix(prompt)
                    state = decode.place(state, prefix, np.int32(g))
            for i in own:
                if rows[i] or not prompt or prompt not in pending:
                    continue
                request = pending[prompt].popleft()
                if not pending[prompt]:
                    del pending[prompt]
                row = rows[i] = self._row(request, prompt)
                fresh[i], limit[i] = True, row.limit
                words = sampling.query_words(request.query.id)
                name[i] = (*words, request.index)
        if not fresh.any():
            return state
        started, first = decode.start(
            state.rows,
            state.logits,
            self.seed,
            fresh,
            name,
            limit,
            np.array([r is not None for r in rows]),
            self.stop_ids,
            self.settings,
        )
        first = sampling.measures(
            jax.tree.map(lambda x: np.asarray(x)[None], first),
            self.model.config.vocab_size,
        )
        for i, row in enumerate(rows):
            if row and fresh[i]:
                row.take(first, i, 1)
        return state._replace(rows=started)

    def _fit(self, state, placed, rows, pending, per):
        """The rows that still draw, and room for what waits: as short as the
        prompts and as few as the work allows."""
        live = [i for i, row in enumerate(rows) if row]
        if not live and not pending:
            return state, placed, rows
        ahead = itertools.islice(pending, 1)  # none that waits is longer
        size = self._size([*(rows[i].prompt for i in live), *ahead])
        if pending and size == cache.slots(state.prefix):
            return state, placed, rows
        drawing = [rows[i] for i in live]
        for each in (per,) if pending else dict.fromkeys((per, 1)):
            groups = layout.grouped(live, lambda i: rows[i].prompt, each)
            count = self._needed(pending, drawing, size, each)
            fewer = pending or count < len(rows)
            if fewer and each * len(groups) <= count:
                break
        else:
            return state, placed, rows
        groups += [[] for _ in range(count // each - len(groups))]
        order = [g + [None] * (each - len(g)) for g in groups]
        kept = [i for group in order for i in group]
        own = len(rows) // len(placed)
        state = decode.select(
            state,
            np.array([g[0] // own if g else 0 for g in groups], np.int32),
            np.array([i or 0 for i in kept], np.int32),
            np.array([i is not None for i in kept]),
            size,
        )
        return (
            state,
            [rows[g[0]].prompt if g else None for g in groups],
            [None if i is None else rows[i] for i in kept],
        )

    def _finished(self, row: Row) -> Sample | None:
        return finished(row, self.model, self.stop)

    def _row(self, request: Request, prompt: Prompt) -> Row:
        room = self.model.config.context - len(prompt.ids)
        return Row(request, prompt, min(self.max_new_tokens, room))


def _next(waiting, pending) -> Prompt | None:
    """A prompt for an idle group: a new one, else the one that has most
    samples left to draw."""
    if waiting:
        return waiting.popleft()
    return max(pending, key=lambda p: len(pending[p]), default=None)


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    out = np.zeros(size, np.int32)
    out[: len(ids)] = ids
    return out
