"""A small model in lanes, against one batch of as many rows."""

import time
from unittest import mock

from benchmarks import ours
from benchmarks.common import Config, Lines, rate
from configs import reasoner
from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.inference import Engine, layout
from dynscaling_jax.inference.mesh import bytes_held
from dynscaling_jax.tasks import load_task


def lines(config: Config) -> Lines:
    """Both draw the same samples, in turn; of each its best."""
    size, run = config.lanes, reasoner.get_config()
    run.task.limit = size.queries
    queries = [p.query for p in load_task(**run.task).problems]
    model = load_model(run.model)
    small = {"lanes": layout.SMALL, "one_lane": 0}

    def drawn(side: str) -> float:
        with mock.patch.object(layout, "SMALL", small[side]):
            engine = Engine(
                model,
                max_new_tokens=run.engine.max_new_tokens,
                rows=size.rows,
            )
        begin = time.perf_counter()
        tokens = ours.draw(engine, queries, size.candidates)
        return rate(tokens, time.perf_counter() - begin)

    for side in small:  # compiles
        drawn(side)
    turns = [[drawn(side) for side in small] for _ in range(config.repeats)]
    many, one = map(max, zip(*turns, strict=True))
    yield {
        "bench": "lanes",
        "lanes": layout.lanes(size.rows, bytes_held(model.params), None),
        "rows": size.rows,
        "tokens_per_second": many,
        "one_lane_tokens_per_second": one,
        "ratio": round(many / one, 2),
        "goal": 1.3,
    }
