"""The engine of a checkout, which PYTHONPATH names, on samples of given
lengths; see README.md. It reads a job, a line of JSON, and does it once more
for each further line.

Other checkouts have the same engine before a change, so this keeps to what
they share: limits and measurements are put around functions of inference.
"""

import importlib
import itertools
import json
import sys
import time
from dataclasses import replace
from typing import Any

# where checkouts have the slots of one CPU device, and the class that steps
BATCHES = (
    ("scheduler", "Scheduler"),
    ("continuous", "Scheduler"),
    ("grouped.batch", "Batch"),
)
RUNNERS = "decode", "grouped.runner"


def found(name: str) -> Any:
    """A module of inference, or None where a checkout has none of that name."""
    try:
        return importlib.import_module(f"dynscaling_jax.inference.{name}")
    except ImportError:
        return None


def main() -> None:
    job = json.loads(sys.stdin.readline())
    import jax

    from dynscaling_jax.checkpoints import Model, load_model
    from dynscaling_jax.inference import Engine, memory
    from dynscaling_jax.types import Message, Query, Request

    loaded = load_model(job["model"], job["dtype"])
    config = replace(loaded.config, eos_token_id=())
    model = Model(config, loaded.params, lambda: loaded.tokenizer)
    model.eos_ids = ()
    queries = [
        Query(str(number), tuple(Message(*turn) for turn in turns))
        for number, turns in enumerate(job["messages"])
    ]
    requests = [
        Request(query, query.messages, index)
        for query, lengths in zip(queries, job["lengths"], strict=True)
        for index in range(len(lengths))
    ]
    limits = Limits(job["lengths"], queries)
    seen = Keys(memory.token_bytes(config, 4))
    for name, class_name in BATCHES:
        module = found(name)
        if hasattr(module, class_name):
            module.Slot = limits.slot(module.Slot)
            batch = getattr(module, class_name)
            batch.step = seen.step(batch.step)
    planner = found("grouped.scheduler")
    if planner:
        planner._Running = limits.running(planner._Running, requests)
    decode = next(filter(None, map(found, RUNNERS)))
    decode.start = limits.start(decode.start)
    decode.decode = seen.decode(decode.decode)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: (
            compiled.append(duration_secs)
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    for _ in itertools.chain([job], sys.stdin):
        engine = Engine(  # a new one, which knows no prompt
            model,
            max_new_tokens=max(map(max, job["lengths"])),
            temperature=job["temperature"],
            slots=job["rows"],
            slots_per_group=job["slots_per_group"],
        )
        result = measured(engine, requests, job, compiled, seen)
        print(json.dumps(result), flush=True)


def measured(engine, requests, job, compiled, seen) -> dict[str, Any]:
    """What one run over all requests took."""
    compiled.clear()
    seen.held = seen.live = 0
    begin, cpu = time.perf_counter(), time.process_time()
    tokens = sum(sample.new_tokens for sample in engine.sample(requests))
    seconds = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    if tokens != sum(map(sum, job["lengths"])):
        sys.exit(f"{tokens} tokens were generated")
    return {
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": round(cpu, 1),
        "idle": round(1 - engine.active_steps / engine.slot_steps, 4),
        "compilations": len(compiled),
        "compile_seconds": round(sum(compiled), 1),
        "keys_held_bytes": seen.held,
        "keys_live_bytes": seen.live,
        "held_to_live": round(seen.held / seen.live, 3),
    }


class Limits:
    """Ends sample i of a query after so many tokens."""

    def __init__(self, lengths, queries):
        from dynscaling_jax.inference import sampling

        self.of = {
            (query.id, index): length
            for query, each in zip(queries, lengths, strict=True)
            for index, length in enumerate(each)
        }
        self.ids = {(*sampling.query_words(q.id),): q.id for q in queries}

    def slot(self, make):
        def limited(number, request, prompt, limit):
            length = self.of[request.query.id, request.index]
            return make(number, request, prompt, min(limit, length))

        return limited

    def running(self, make, requests):
        def limited(number, prompt, group, limit):
            asked = requests[number]
            length = self.of[asked.query.id, asked.index]
            return make(number, prompt, group, min(limit, length))

        return limited

    def start(self, function):
        def limited(slots, logits, seed, fresh, name, limit, *more):
            for row in fresh.nonzero()[0]:
                first, second, index = map(int, name[row])
                limit[row] = self.of[self.ids[first, second], index]
            return function(slots, logits, seed, fresh, name, limit, *more)

        return limited


class Keys:
    """The most bytes of keys and values that were held, and that were live:
    of tokens that active samples read, prompts once."""

    def __init__(self, token_bytes: int):
        self.token_bytes = token_bytes
        self.held = self.live = 0
        self.scheduler: Any = None

    def step(self, function):
        def noted(scheduler):
            self.scheduler = scheduler
            return function(scheduler)

        return noted

    def decode(self, function):
        def noted(params, config, state, *more):
            import jax

            held = jax.tree.leaves((state.prefix, state.suffix))
            slots = [slot for slot in self.scheduler._slots if slot]
            prompts = {slot.prompt for slot in slots}
            live = sum(slot.count for slot in slots)
            live += sum(len(prompt.ids) for prompt in prompts)
            self.held = max(self.held, sum(x.nbytes for x in held))
            self.live = max(self.live, live * self.token_bytes)
            return function(params, config, state, *more)

        return noted


if __name__ == "__main__":
    main()
