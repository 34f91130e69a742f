"""Requests in, samples out: prompts, what is kept of them, and calls."""

import collections
import functools
import itertools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import (
    cache,
    layout,
    memory,
    mesh,
    prefill,
    sampling,
)
from dynscaling_jax.inference.cache import Prefix, State
from dynscaling_jax.inference.row import Asked, Prompt, Row, finished
from dynscaling_jax.inference.stream import Draws, Steps, Stream
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.thinking import Thinking
from dynscaling_jax.types import Budget, Message, Query, Request, Sample

REUSE = 16  # a common beginning shorter than this is read anew
TURN = 0.2  # seconds that a lane draws before the others are waited for


class Change(NamedTuple):
    """Of what there is to draw: requests that were asked for, or the numbers
    of some, counted from the first that ever was, that are drawn no more."""

    asked: Sequence[Request] = ()
    dropped: Sequence[int] = ()


class Engine:
    """Samples from a local model; it is a types.Sampler.

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
        available: float | None = None,
    ):
        """Args:
            max_new_tokens: of one sample, its end-of-turn token included.
            temperature, top_k, top_p, min_p: 0, 0, 1 and 0 switch them off.
            stop: strings that end a sample and are cut from its text.
            rows: samples that are drawn at the same time, at most; None
                takes, for each length of prompt, as many as inference.memory
                says that the device holds.
            rows_per_group: of these, how many share the keys of one prompt;
                by default 8, or the largest power of two below that divides
                rows, on a mesh those of one part of its data axis.
            prefix_bytes: memory for prompts that may be read on from.
            available: bytes of each device that drawing may take, where rows
                is None; by default what inference.memory finds.

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
        if max_new_tokens >= model.config.max_position_embeddings:
            raise ValueError(
                f"max_new_tokens ({max_new_tokens}) leaves no room for a "
                "prompt in a context of "
                f"{model.config.max_position_embeddings} tokens"
            )
        if any(not s for s in stop):
            raise ValueError("stop strings must not be empty")
        self.model = model
        self.rows_per_group = rows_per_group
        self._stop = tuple(stop)
        self._available = available
        self.row_steps = 0  # rows x steps computed
        self.live_steps = 0  # of these, steps that drew a token of a sample
        weights = mesh.bytes_held(model.params)
        self._lanes = layout.lanes(rows or 0, weights, self._mesh)
        own = (rows or 0) // self._lanes // rows_per_group * rows_per_group
        self.widths = layout.widths(own, self._mesh) if rows else ()
        ids = model.eos_ids
        stop_ids = np.full(max(8, len(ids)), -1, np.int32)
        stop_ids[: len(ids)] = ids
        follows_work = layout.follows_work(self._mesh)
        self._size = layout.stepping if follows_work else layout.doubling
        self._draws = Draws(
            model,
            sampling.settings(temperature, top_k, top_p, min_p),
            np.uint32(seed),
            stop_ids,
            max_new_tokens,
            rows_per_group,
            self._fitting,
            follows_work,
            self._size,
            self._prefix,
            self._empty,
            self._finished,
        )
        # Is told, before each chunk of steps, all that changed since the last
        # one: what else an engine does follows from that (inference.lockstep).
        self.announce: Callable[[Sequence[Change]], object] = lambda _: None
        self._changes: list[Change] = []
        self._count = itertools.count()
        # by lane; or, one after another, by size of prompts
        self._streams: dict[int, Stream] = {}
        self._each: Any = map
        if self._lanes > 1:
            self._each = ThreadPoolExecutor(self._lanes, "lane").map
        self._busy = False
        self._gone: set[int] = set()  # requests of calls that were left
        self._calls: weakref.WeakSet[_Call] = weakref.WeakSet()
        self._encode = functools.lru_cache(4096)(
            lambda messages: tuple(model.tokenizer.encode_chat(messages))
        )
        self._prefixes: collections.OrderedDict = collections.OrderedDict()
        self._keeping = threading.Lock()
        token = memory.token_bytes(model.config, self._dtype.itemsize)
        self._prefix_tokens = int(prefix_bytes // token)

    def sample(self, requests: Sequence[Request]) -> Iterator[Sample]:
        """Draws the samples asked for; yields each when it is whole.

        Calls may overlap: what a later one asks for takes the rows that an
        earlier one leaves idle.

        Raises:
            ValueError: a prompt that leaves no room in the context, before
                anything is drawn.
        """
        call = _Call(self, self._ask(requests))
        self._calls.add(call)
        return call

    def follow(self, changes: Iterable[Change]) -> None:
        """Does what another engine did when it announced these."""
        for change in changes:
            self._drop(change.dropped)
            self._ask(change.asked)
        self._step()

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
            for s in self.sample(
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
        return len(self._encode(tuple(messages)))

    def check(self, queries: Sequence[Query]) -> None:
        """Raises ValueError if the prompt of a query leaves no room in the
        context; the message names the query."""
        for query in queries:
            self._prompt(Request(query, query.messages, 0))

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for max_new_tokens."""
        config = self.model.config
        return config.max_position_embeddings - self._draws.max_new_tokens

    @property
    def max_cost(self) -> Budget:
        """The most that one sample can cost."""
        config, new = self.model.config, self._draws.max_new_tokens
        return Budget(
            new_tokens=new,
            total_tokens=config.max_position_embeddings,
            flops=sample_flops(config, self.max_prompt_tokens, 0, new),
        )

    @property
    def thinking(self) -> Thinking:
        """How the thoughts of the model are told from its answers."""
        return self.model.tokenizer.thinking

    @property
    def _dtype(self):
        return self.model.params["norm"].dtype

    def _step(self) -> None:
        """Takes steps with each lane that has work, or with the first size of
        prompts."""
        if not self._streams:
            raise RuntimeError("what was under way failed in another call")
        self._busy = True
        own = [*self._streams][: self._lanes]
        try:
            self.announce(self._changes)
            self._changes = []
            chunks = [*self._each(self._chunk, map(self._streams.get, own))]
        except BaseException:
            for name in own:
                del self._streams[name]
            raise
        finally:
            self._busy = False
        self._drop(())
        for whole, steps in chunks:
            self.row_steps += steps.all
            self.live_steps += steps.live
            for number, sample in whole:
                for call in [*self._calls]:
                    call.take(number, sample)

    def _chunk(self, stream: Stream) -> tuple[list[tuple[int, Sample]], Steps]:
        """A chunk of steps; of a lane so many as fit into a TURN, so that no
        lane waits for a slower one."""
        until = time.monotonic() + TURN
        with mesh.ambient(self._mesh):
            whole, steps = stream.step()
            while self._lanes > 1 and stream.busy and time.monotonic() < until:
                more, taken = stream.step()
                whole += more
                steps = Steps(*map(sum, zip(steps, taken, strict=True)))
        return whole, steps

    def _ask(self, requests: Sequence[Request]) -> list[int]:
        """Has these wait to be drawn; their numbers."""
        prompts = [*map(self._prompt, requests)]  # all, or none is asked for
        asked = [
            (prompt, Asked(next(self._count), request))
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        self._busy = True
        for name, own in self._dealt(asked).items():
            self._streams.setdefault(name, Stream(self._draws)).add(own)
        self._busy = False
        if requests:
            self._changes.append(Change(asked=[*requests]))
        self._drop(())
        return [one.number for _, one in asked]

    def _dealt(
        self, asked: Sequence[tuple[Prompt, Asked]]
    ) -> dict[int, list[tuple[Prompt, Asked]]]:
        """What each lane takes, or of each size of prompts what there is."""
        dealt = collections.defaultdict(list)
        if not self._draws.follows_work:
            for prompt, one in asked:
                dealt[self._size(len(prompt.ids))].append((prompt, one))
            return dealt
        by_prompt = collections.defaultdict(list)
        for prompt, one in asked:
            by_prompt[prompt].append((prompt, one))
        work = [*by_prompt.values()]
        loads = [0] * self._lanes
        for lane, stream in self._streams.items():
            loads[lane] = stream.left
        parts = layout.dealt([*map(len, work)], loads, self.rows_per_group)
        for lane, number, first, end in parts:
            dealt[lane] += work[number][first:end]
        return dealt

    def _drop(self, numbers: Iterable[int]) -> None:
        """Draws these no more, from the end of that on which it may be called
        in: a call can be collected at any time."""
        self._gone.update(numbers)
        if self._busy:
            return
        self._busy = True
        gone, self._gone = self._gone, set()
        if gone:
            self._changes.append(Change(dropped=[*gone]))
        for size, stream in [*self._streams.items()]:
            if gone:
                stream.drop(gone)
            if not stream.busy:
                del self._streams[size]
        self._busy = False

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
        context = self.model.config.max_position_embeddings
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
            self._size(len(prompt.ids)),
        )

    def _read(self, ids: tuple[int, ...]) -> Prefix:
        with self._keeping:
            if ids in self._prefixes:
                self._prefixes.move_to_end(ids)
                return self._prefixes[ids]
        prefix = prefill.prefill(
            self.model.params,
            self.model.config,
            _padded(ids, self._size(len(ids))),
            np.int32(len(ids)),
        )
        with self._keeping:
            self._prefixes[ids] = prefix
            held = sum(self._size(len(i)) for i in self._prefixes)
            while held > self._prefix_tokens and len(self._prefixes) > 1:
                oldest, _ = self._prefixes.popitem(last=False)
                held -= self._size(len(oldest))
        return prefix

    def _fitting(self, size: int, per: int) -> tuple[int, ...]:
        """The numbers of rows that may draw from prompts of this size."""
        known = self.widths or self._held(size, per)
        room = self._prefix_tokens // size * (per if known[1:] else 1)
        fit = tuple(w for w in known if w <= room and w % per == 0)
        return fit or (per * max(1, known[0] // per),)

    def _held(self, size: int, per: int) -> tuple[int, ...]:
        """The numbers of rows that the memory of the devices holds."""
        config = mesh.share(self.model.config, self._mesh)
        itemsize, data = self._dtype.itemsize, mesh.data_size(self._mesh)
        weights = mesh.bytes_held(self.model.params)
        prompts = self._prefix_tokens * memory.token_bytes(config, itemsize)

        def predict(groups: int) -> memory.Memory:
            shape = memory.Size(
                groups, per, size, layout.slots(self._draws.max_new_tokens)
            )
            return memory.predicted(config, shape, weights, itemsize, prompts)

        there = self._available or memory.available()
        groups = memory.most_groups(per, there, predict)
        return layout.widths(per * groups * data, self._mesh)

    def _finished(self, row: Row) -> Sample | None:
        return finished(row, self.model, self._stop)

    def _empty(self, groups: int, per: int, size: int) -> State:
        slots = layout.FEWEST_SLOTS
        return cache.empty(
            self.model.config, groups, per, size, slots, self._dtype, self._mesh
        )


class _Call:
    """The samples of one call, as they are drawn; whoever asks for the next
    one has the engine go on with all that is under way."""

    def __init__(self, engine: Engine, numbers: Iterable[int]):
        self._engine = engine
        self._left = {*numbers}
        self._ready: collections.deque[Sample] = collections.deque()

    def __iter__(self) -> "_Call":
        return self

    def __next__(self) -> Sample:
        while not self._ready:
            if not self._left:
                raise StopIteration
            self._engine._step()
        return self._ready.popleft()

    def take(self, number: int, sample: Sample) -> None:
        if number in self._left:
            self._left.remove(number)
            self._ready.append(sample)

    def close(self) -> None:
        """What is not drawn yet is drawn no more."""
        if self._left:
            self._engine._drop(self._left)
            self._left.clear()

    __del__ = close


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    out = np.zeros(size, np.int32)
    out[: len(ids)] = ids
    return out
