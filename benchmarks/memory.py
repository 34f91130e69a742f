"""Memory of the host while samples of very many queries are generated.

Each part runs in a process of its own. What the process holds more at the end
than when a tenth was there is the growth; the queries and the requests, which
are there from the start, are in neither.
"""

import gc
import json
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.common import ROOT, Config, Lines, last_line


def lines(config: Config) -> Lines:
    """The loop over a stub that only yields samples, and the engine over a
    very small model."""
    size = config.memory
    for part in PARTS:
        job = {"part": part, **size.to_dict()}
        few, many = last_line(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(job)],
            "the process",
            cwd=ROOT,
        )
        samples = 0.9 * size.queries * size.candidates
        yield {
            "bench": f"memory, {part}",
            "queries": size.queries,
            "candidates": size.candidates,
            "mb_after_a_tenth": round(few / 1e6, 1),
            "mb_at_the_end": round(many / 1e6, 1),
            "growth_mb": round((many - few) / 1e6, 1),
            "growth_bytes_per_sample": round((many - few) / samples, 1),
        }


def resident() -> int:
    """Bytes of this process; the most so far where the system tells no
    more."""
    file = Path("/proc/self/statm")
    if file.is_file():
        return int(file.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Marks:
    """Notes what is resident when a tenth of the samples is there and when
    all are."""

    def __init__(self, samples: int):
        self.at = (samples // 10, samples)
        self.count = 0
        self.found: list[int] = []

    def one_more(self) -> None:
        self.count += 1
        if self.count in self.at:
            gc.collect()
            self.found.append(resident())


def through_loop(job: dict, marks: Marks) -> None:
    """run_rounds, one sample of each query a round."""
    import jax

    from dynscaling_jax.sampler import FunctionSampler
    from dynscaling_jax.scaling.loop import run_rounds
    from dynscaling_jax.scaling.policies import uniform
    from dynscaling_jax.scaling.strategies import parallel
    from dynscaling_jax.scaling.votes import majority
    from dynscaling_jax.types import Budget, Method, Request, Sample, Schedule

    def sample_fn(requests: Sequence[Request]) -> Iterator[Sample]:
        for r in requests:
            answer = str((r.index * 7 + len(r.query.id)) % 3)
            text = f"{r.query.id} {r.index} ".ljust(job["characters"], ".")
            ids = r.query.id, r.index, r.round, ()
            yield Sample(*ids, text, answer, "stop", 100, 0, 20, 1e9)
            marks.one_more()

    schedule = Schedule(capacity=job["candidates"])
    run_rounds(
        made_queries(job["queries"]),
        FunctionSampler(sample_fn),
        Method(parallel(), uniform(), majority(), schedule),
        Budget(samples_per_query=job["candidates"]),
        jax.random.key(0),
    )


def through_engine(job: dict, marks: Marks) -> None:
    """The engine, which gets all requests at once."""
    from benchmarks.stubs import random_model
    from dynscaling_jax.inference import Engine
    from dynscaling_jax.types import Request

    engine = Engine(
        random_model(job["shape"]),
        max_new_tokens=job["new_tokens"],
        slots=job["slots"],
        prefix_bytes=job["prefix_bytes"],
    )
    requests = [
        Request(query, query.messages, index)
        for query in made_queries(job["queries"])
        for index in range(job["candidates"])
    ]
    for _ in engine.sample(requests):
        marks.one_more()


def made_queries(count: int) -> list:
    from dynscaling_jax.types import Message, Query

    return [
        Query(str(i), (Message("user", f"What is {i} + {i}?"),))
        for i in range(count)
    ]


PARTS: dict[str, Callable[[dict, Marks], None]] = {
    "loop": through_loop,
    "engine": through_engine,
}


def run(job: dict) -> list[int]:
    marks = Marks(job["queries"] * job["candidates"])
    PARTS[job["part"]](job, marks)
    return marks.found


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
