"""A small model with batch workers, against one batch of as many slots."""

import time
from unittest import mock

from benchmarks import ours
from benchmarks.common import Config, Lines, rate
from configs import reasoner
from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.inference import Engine
from dynscaling_jax.inference.grouped import layout
from dynscaling_jax.inference.mesh import bytes_held
from dynscaling_jax.tasks import load_task


def lines(config: Config) -> Lines:
    """Both give the same samples, in turn; of each its best."""
    size, run = config.workers, reasoner.get_config()
    run.task.limit = size.queries
    queries = [p.query for p in load_task(**run.task).problems]
    model = load_model(run.model)
    small = {"workers": layout.SMALL, "one_worker": 0}

    def measured(side: str) -> float:
        with mock.patch.object(layout, "SMALL", small[side]):
            engine = Engine(
                model,
                max_new_tokens=run.engine.max_new_tokens,
                slots=size.slots,
            )
        begin = time.perf_counter()
        tokens = ours.generate(engine, queries, size.candidates)
        return rate(tokens, time.perf_counter() - begin)

    for side in small:  # compiles
        measured(side)
    turns = [[measured(side) for side in small] for _ in range(config.repeats)]
    many, one = map(max, zip(*turns, strict=True))
    yield {
        "bench": "workers",
        "workers": layout.workers(size.slots, bytes_held(model.params)),
        "slots": size.slots,
        "tokens_per_second": many,
        "one_worker_tokens_per_second": one,
        "ratio": round(many / one, 2),
        "goal": 1.3,
    }
