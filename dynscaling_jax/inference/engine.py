"""The engine: requests to prompts, cached prefixes, and calls."""

import collections
import copy
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
from dynscaling_jax.inference import memory, mesh, sampling, thoughts
from dynscaling_jax.inference.batch import Batch, Setup, Steps
from dynscaling_jax.inference.grouped import batch as grouped
from dynscaling_jax.inference.grouped import layout
from dynscaling_jax.inference.grouped.prefill import Prefixes
from dynscaling_jax.inference.grouped.scheduler import Limits
from dynscaling_jax.inference.paged import batch as paged
from dynscaling_jax.inference.paged import scheduler
from dynscaling_jax.inference.slot import (
    Numbered,
    Prompt,
    finished,
    paid,
)
from dynscaling_jax.lines import shown
from dynscaling_jax.models import stacked
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.sampler import cancelled
from dynscaling_jax.thinking import Thinking
from dynscaling_jax.types import (
    Budget,
    Message,
    Query,
    Request,
    Sample,
    SampleKey,
    Watch,
)

REUSE = 16  # a common beginning shorter than this is computed anew
LIVE = (  # ends the message that begins with "live=10000"
    "says how many slots of pages there are: take slots=None "
    "(config.engine.groups=auto) on an accelerator or a mesh, or leave live "
    "out"
)
TURN = 0.2  # seconds that a worker decodes before it waits for the others


class Change(NamedTuple):
    """What changed: requests that came, and numbers of some that were dropped.

    Requests are numbered from the first that an engine was given.
    """

    added: Sequence[Request] = ()
    dropped: Sequence[int] = ()


class Engine:
    """Samples from a local model; it is a types.Sampler.

    Sample i of a query is the same however many samples there are, whatever
    else runs beside it, and in any order. The engine runs on the mesh that
    the model's parameters lie on. On one CPU device it decodes in groups that
    share a prompt (inference.grouped), unless `attention` says otherwise;
    elsewhere from pages (inference.paged).
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
        slots: int | None = 64,
        slots_per_group: int | None = None,
        prefix_bytes: float = 2e9,
        available: float | None = None,
        attention: str = "auto",
        kv_dtype: str = "",
        live: int | None = None,
        steps: int = layout.CHUNK,
        max_thinking_tokens: int | None = None,
        thinking: Thinking | None = None,
    ):
        """Checks the settings; nothing is compiled yet.

        Args:
            model: its parameters may lie on a mesh.
            max_new_tokens: of one sample, its end-of-turn token included.
            temperature: 0 takes the likeliest token.
            top_k: 0 switches it off.
            top_p: 1 switches it off.
            min_p: 0 switches it off.
            stop: strings that end a sample and are cut from its text.
            seed: of all samples.
            slots: samples that are generated at the same time, at most; None
                takes as many as inference.memory says that the device holds:
                in groups, for each bucket of prompts; from pages, so many
                that `live` tokens a slot fill 7/8 of the pool. Without `live`
                samples that are half done fill all of it.
            slots_per_group: how many of them share the prefix of one prompt;
                by default 8, or the largest power of two below that divides
                slots. Pages need no groups.
            prefix_bytes: memory for prefixes that groups keep for reuse, and
                for those that are read at one time: so it bounds the slots of
                long prompts. The pool of pages keeps those that it has room
                for.
            available: bytes of each device that decoding may take, where
                slots is None, and for pages; by default what
                inference.memory finds.
            attention: reference decodes in groups; xla, tpu, pallas and gpu
                from pages, by inference.paged.attention; auto takes what
                suits the devices and the model.
            kv_dtype: int8 keeps keys and values in pages as int8; empty in the
                dtype of the model.
            live: tokens of a slot while it samples, on average, its prompt
                included; with slots=None, and from pages alone.
            steps: decode steps between two polls of what has ended; above 16
                it is 16. It changes no sample. Where samples are granted one
                by one, fewer leave a slot idle for a shorter time.
            max_thinking_tokens: of one sample: where its thought has no end
                after so many, the mark that ends it is forced, token by
                token, and the answer follows. Forced tokens are new tokens
                as the others are; logprob, confidence and signals leave them
                out. A sample that has begun no thought by then is left alone.
                None and 0 switch it off.
            thinking: how thoughts are told and what ends them; by default as
                the model's template and tokens say.

        Raises:
            ValueError: a value outside its range.
        """
        if not isinstance(model, Model):
            raise ValueError(
                f"the model is {shown(model)}: expected a Model, such as "
                'load_model("reasoner")'
            )
        self._mesh = mesh.of(model.params)
        data = mesh.data_size(self._mesh)
        from_pages = paged.is_paged(attention, self._mesh)
        if slots_per_group is None:
            slots_per_group = math.gcd(int(slots or 8), 8)
        if isinstance(stop, str):
            raise ValueError(f"stop must be a list of strings, got {stop!r}")
        if not all(stop):
            raise ValueError("stop strings must not be empty")
        _check_whole(
            max_new_tokens=max_new_tokens,
            slots=1 if slots is None else slots,
            slots_per_group=slots_per_group,
            live=1 if live is None else live,
            steps=steps,
            max_thinking_tokens=max_thinking_tokens or 1,
        )
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2**32), got {seed!r}")
        if from_pages:
            _check_pages(slots, live, data)
        else:
            _check_groups(slots, slots_per_group, live, kv_dtype)
        if max_new_tokens >= model.config.max_position_embeddings:
            raise ValueError(
                f"max_new_tokens ({max_new_tokens}) leaves no room for a "
                "prompt in a context of "
                f"{model.config.max_position_embeddings} tokens"
            )
        self._thinking = thinking or model.tokenizer.thinking
        # the layers as they came are let go of
        self.model = model = self._laid_out(model, from_pages)
        self.slots_per_group = slots_per_group
        self._stop = tuple(stop)
        self._available = available
        self._steps = min(steps, layout.CHUNK)
        self.slot_steps = 0  # slots x steps computed
        self.active_steps = 0  # of these, steps of active slots
        weights = mesh.bytes_held(model.params)
        self._workers = 1 if from_pages else layout.workers(slots or 0, weights)
        each = (slots or 0) // self._workers // slots_per_group
        self.slot_counts = (
            layout.slot_counts(each * slots_per_group) if slots else ()
        )
        stops = model.eos_ids
        stops = np.array([*stops, *[-1] * (8 - len(stops))], np.int32)
        self._dtype = model.params["norm"].dtype
        self._setup = Setup(
            model,
            self._mesh,
            sampling.settings(temperature, top_k, top_p, min_p),
            np.uint32(seed),
            stops,
            max_new_tokens,
            # no method, or an engine would live until garbage is collected
            functools.partial(finished, model=model, stop=self._stop),
            thoughts.cap(
                model, self._thinking, max_thinking_tokens, max_new_tokens
            )
            if max_thinking_tokens
            else None,
        )
        # Receives, before each chunk of steps, all that changed since the last
        # one: what else an engine does follows from that (inference.lockstep).
        self.announce: Callable[[Sequence[Change]], object] = lambda _: None
        self._changes: list[Change] = []
        self._next_number = 0
        self._batches: dict[int, Batch] = {}  # by worker
        self._sizes = None
        if from_pages:
            self._sizes = paged.sizes(
                model.config,
                self._mesh,
                paged.Wanted(
                    attention,
                    kv_dtype,
                    slots,
                    live,
                    max_new_tokens,
                    self._steps,
                ),
                weights,
                self._dtype,
                available or memory.available(),
            )
        self._batch: paged.Batch | None = None  # kept between calls
        self._map: Any = map
        if self._workers > 1:
            self._map = ThreadPoolExecutor(self._workers, "worker").map
        self._lock = threading.RLock()  # of whoever takes steps or adds
        self._busy = False
        # requests of calls that were left; any thread may add to it
        self._gone: collections.deque[int] = collections.deque()
        self._calls: weakref.WeakSet[_Call] = weakref.WeakSet()
        self._encode = functools.lru_cache(4096)(
            lambda messages: tuple(model.tokenizer.encode_chat(messages))
        )
        token = memory.token_bytes(model.config, self._dtype.itemsize)
        self._prefix_tokens = int(prefix_bytes // token)
        self._prefixes = Prefixes(
            self._setup.model.params, model.config, self._prefix_tokens
        )

    def sample(self, requests: Sequence[Request]) -> Iterator[Sample]:
        """Samples what is requested; yields each sample when it is finished.

        Calls may overlap: the requests of a later one take the slots that an
        earlier one leaves idle. They may come from several threads.

        Raises:
            ValueError: a prompt leaves no room in the context, or in the
                pool of pages; nothing is sampled then.
        """
        with self._lock:
            keys = [(r.query.id, r.index) for r in requests]
            call = _Call(
                self, dict(zip(self._add(requests), keys, strict=True))
            )
            self._calls.add(call)
        return call

    @property
    def watch(self) -> Watch:
        """How samples are watched while they are generated."""
        return Watch(self._under_way, self._step_any, self._cancelled)

    def _under_way(self) -> dict[SampleKey, int]:
        """The tokens so far of each sample that is unfinished."""
        with self._lock:
            lengths: dict[int, int] = {}
            for batch in self._batches.values():
                lengths |= batch.lengths
            return {
                key: lengths.get(number, 0)
                for call in [*self._calls]
                for number, key in call.left.items()
            }

    def _step_any(self) -> None:
        """Takes steps with what is under way, if anything is."""
        with self._lock:
            if self._batches or any(call.left for call in [*self._calls]):
                self._step(0.0)

    def _cancelled(self, request: Request, new: int) -> Sample:
        """Makes the sample of a request that was ended after so many tokens."""
        read, cached = paid(request, self._prompt(request))
        flops = sample_flops(self.model.config, read, cached, new)
        return cancelled(request, read, cached, new)._replace(flops=flops)

    def follow(self, changes: Iterable[Change]) -> None:
        """Repeats what another engine did when it announced these."""
        for change in changes:
            self._drop(change.dropped)
            self._add(change.added)
        self._step()

    def generate(
        self, prompts: Sequence[str], n: int = 1
    ) -> list[list[Sample]]:
        """Generates n samples of each prompt, a user turn.

        Raises:
            ValueError: one text in place of a list; a prompt too long.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of texts, got one text")
        queries = [Query(text, (Message("user", text),)) for text in prompts]
        requests = [
            Request(q, q.messages, i)
            for q in dict.fromkeys(queries)
            for i in range(n)
        ]
        samples = {(s.query_id, s.index): s for s in self.sample(requests)}
        return [[samples[q.id, i] for i in range(n)] for q in queries]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Counts the tokens of a prompt."""
        return len(self._encode(tuple(messages)))

    def check(self, queries: Sequence[Query]) -> None:
        """Checks that the prompts of queries leave room for a sample.

        Raises:
            ValueError: one does not, in the context or in the pool of pages;
                with the name of its query.
        """
        for query in queries:
            self._prompt(Request(query, query.messages, 0))

    @property
    def name(self) -> str:
        """The address that the model was loaded from."""
        return self.model.name

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for max_new_tokens."""
        if self._sizes:
            return scheduler.longest_prompt(self._sizes.limits)
        config = self.model.config
        return config.max_position_embeddings - self._setup.max_new_tokens

    @property
    def max_cost(self) -> Budget:
        """The most that one sample can cost."""
        config, new = self.model.config, self._setup.max_new_tokens
        return Budget(
            new_tokens=new,
            total_tokens=config.max_position_embeddings,
            flops=sample_flops(config, self.max_prompt_tokens, 0, new),
        )

    @property
    def thinking(self) -> Thinking:
        """How the thoughts of the model are told from its answers."""
        return self._thinking

    def _step(self, seconds: float = TURN) -> None:
        """Takes steps with each worker, a chunk or so many seconds."""
        if not self._batches:
            raise RuntimeError("what was under way failed in another call")
        self._busy = True
        names = [*self._batches]
        try:
            self.announce(self._changes)
            self._changes = []
            chunk = functools.partial(self._chunk, seconds=seconds)
            chunks = [*self._map(chunk, map(self._batches.get, names))]
        except BaseException:
            for name in names:
                del self._batches[name]
            if self._batch is not None:
                self._batch.free()
            self._batch = None
            raise
        finally:
            self._busy = False
        self._drop(())
        for done, steps in chunks:
            self.slot_steps += steps.all
            self.active_steps += steps.active
            for number, sample in done:
                for call in [*self._calls]:
                    call.take(number, sample)

    def _chunk(
        self, batch: Batch, seconds: float
    ) -> tuple[list[tuple[int, Sample]], Steps]:
        """A chunk of steps; with several workers as many as time allows.

        So none waits for a slower one.
        """
        until = time.monotonic() + seconds
        done, total = [], Steps()
        while True:
            with mesh.ambient(self._mesh):
                more, steps = batch.step()
            done += more
            total = Steps(*map(sum, zip(total, steps, strict=True)))
            late = self._workers == 1 or time.monotonic() >= until
            if late or not batch.busy:
                return done, total

    def _add(self, requests: Sequence[Request]) -> list[int]:
        """Queues requests, all or none; returns their numbers."""
        prompts = [*map(self._prompt, requests)]
        numbered = map(Numbered, itertools.count(self._next_number), requests)
        work = [*zip(prompts, numbered, strict=False)]
        self._busy = True
        try:
            for name, part in self._partition(work).items():
                if name not in self._batches:
                    self._batches[name] = self._new_batch()
                self._batches[name].add(part)
        finally:
            self._busy = False
        self._next_number += len(work)
        if requests:
            self._changes.append(Change(added=[*requests]))
        self._drop(())
        return [numbered.number for _, numbered in work]

    def _new_batch(self) -> Batch:
        """One for a worker; pages are kept, with the prompts in them."""
        if self._sizes is None:
            limits = Limits(
                self.slots_per_group,
                self.model.config.max_position_embeddings,
                self._setup.max_new_tokens,
                self._slot_counts,
                self._steps,
            )
            return grouped.Batch(self._setup, limits, self._prefixes.of)
        if self._batch is None:
            self._batch = paged.Batch(self._setup, self._sizes)
        return self._batch

    def _laid_out(self, model: Model, from_pages: bool) -> Model:
        """The model with its layers as its devices want them."""
        if not from_pages:
            params = stacked.unstacked(model.params)
        elif mesh.scans(self._mesh):
            params = stacked.stack(model.params, model.config)
        else:
            return model
        model = copy.copy(model)
        model.params = params
        return model

    def _partition(
        self, work: Sequence[tuple[Prompt, Numbered]]
    ) -> dict[int, list[tuple[Prompt, Numbered]]]:
        """The work of each worker."""
        parts = collections.defaultdict(list)
        if self._workers == 1:
            return {0: [*work]} if work else {}
        by_prompt: dict[Prompt, list] = {}
        for pair in work:
            by_prompt.setdefault(pair[0], []).append(pair)
        of_each = [*by_prompt.values()]
        loads = [0] * self._workers
        for worker, batch in self._batches.items():
            loads[worker] += batch.left
        for worker, number, first, end in layout.partition(
            [*map(len, of_each)], loads, self.slots_per_group
        ):
            parts[worker] += of_each[number][first:end]
        return parts

    def _drop(self, numbers: Iterable[int]) -> None:
        """Cancels requests, at the end of the call that it may interrupt.

        A call can be collected at any time, and in any thread, so this waits
        for no lock.
        """
        self._gone.extend(numbers)
        if self._busy or not self._lock.acquire(blocking=False):
            return
        self._busy = True
        try:
            gone = {self._gone.popleft() for _ in range(len(self._gone))}
            if gone:
                self._changes.append(Change(dropped=[*gone]))
            for name, batch in [*self._batches.items()]:
                if gone:
                    batch.drop(gone)
                if not batch.busy:
                    del self._batches[name]
        finally:
            self._busy = False
            self._lock.release()

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
        if not ids:
            raise ValueError(
                f"query {shown(request.query.id)}: its prompt has no tokens"
            )
        if len(ids) >= context:
            raise ValueError(
                f"query {shown(request.query.id)}: its prompt has {len(ids)} "
                f"tokens; the context of the model holds {context}, one of "
                "them for the answer. Shorten the prompt"
            )
        if self._sizes:
            try:
                scheduler.check_prompt(self._sizes.limits, len(ids))
            except ValueError as error:
                name = shown(request.query.id)
                raise ValueError(f"query {name}: {error}") from None
        return Prompt(ids, base, common if common >= REUSE else 0)

    def _slot_counts(self, bucket: int, per_group: int) -> tuple[int, ...]:
        """The numbers of slots that prompts of this bucket may have."""
        counts = self.slot_counts or self._held(bucket, per_group)
        room = self._prefix_tokens // bucket * per_group
        fit = tuple(n for n in counts if n <= room and n % per_group == 0)
        return fit or (per_group * max(1, counts[0] // per_group),)

    def _held(self, bucket: int, per_group: int) -> tuple[int, ...]:
        """The numbers of slots that the memory of the device holds."""
        config, itemsize = self.model.config, self._dtype.itemsize
        weights = mesh.bytes_held(self.model.params)
        prefixes = self._prefix_tokens * memory.token_bytes(config, itemsize)
        suffix = layout.suffix_bucket(self._setup.max_new_tokens)

        def predict(groups: int) -> memory.Memory:
            size = memory.Size(groups, per_group, bucket, suffix)
            return memory.predicted(config, size, weights, itemsize, prefixes)

        available = self._available or memory.available()
        groups = memory.most_groups(per_group, available, predict)
        return layout.slot_counts(per_group * groups)


class _Call(Iterator[Sample]):
    """The samples of one call, as they finish.

    Taking the next one has the engine go on with all that is under way.
    """

    def __init__(self, engine: Engine, left: dict[int, SampleKey]):
        self._engine = engine
        self.left = left  # what is unfinished, by number
        self._ready: collections.deque[Sample] = collections.deque()

    def __next__(self) -> Sample:
        with self._engine._lock:
            while not self._ready:
                if not self.left:
                    raise StopIteration
                self._engine._step()
            return self._ready.popleft()

    def take(self, number: int, sample: Sample) -> None:
        if self.left.pop(number, None):
            self._ready.append(sample)

    def close(self) -> None:
        """Cancels what is unfinished."""
        if self.left:
            self._engine._drop([*self.left])
            self.left.clear()

    __del__ = close


def _check_whole(**settings: int) -> None:
    """Raises ValueError unless all are whole numbers from 1 on."""
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{name} must be a whole number from 1 on, got {value}"
            )


def _check_pages(slots: int | None, live: int | None, data: int) -> None:
    """Raises ValueError for settings that decoding from pages cannot have."""
    if slots and slots % data:
        raise ValueError(
            f"slots ({slots}) must be a multiple of data ({data}) of the mesh"
        )
    if live and slots:
        raise ValueError(f"live={live} {LIVE}")


def _check_groups(
    slots: int | None, slots_per_group: int, live: int | None, kv_dtype: str
) -> None:
    """Raises ValueError for settings that decoding in groups cannot have."""
    if slots and slots % slots_per_group:
        raise ValueError(
            f"slots ({slots}) must be a multiple of slots_per_group "
            f"({slots_per_group})"
        )
    if kv_dtype:
        raise ValueError(
            f"kv_dtype={kv_dtype!r} is of pages, and this engine decodes in "
            "groups; take attention=xla, or leave kv_dtype empty"
        )
    if live:
        raise ValueError(f"live={live} {LIVE}")
