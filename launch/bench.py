"""Speed and memory, one JSON line a measurement.

python -m launch.bench --config=configs/bench.py
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What is measured; --config.FIELD=VALUE replaces a field."
)
Lines = Iterator[dict[str, Any]]


def allocation(config) -> Lines:
    """One allocation of a large round, in seconds after compilation; the
    goal is below 1."""
    import jax
    import jax.numpy as jnp

    from dynscaling_jax.scaling.policies import parse_policies
    from dynscaling_jax.types import Candidates

    size = config.allocation
    shape = (size.queries, size.capacity)
    keys = jax.random.split(jax.random.key(0), 3)
    count_Q = jax.random.randint(keys[0], shape[:1], 1, size.capacity // 2)
    candidates = Candidates(
        jax.random.randint(keys[1], shape, 0, 4),
        jax.random.normal(keys[2], shape),
        jnp.full(shape, 100, jnp.int32),
        count_Q,
    )
    for name, policy in parse_policies(size.policies).items():
        state = policy.init(size.queries)
        allocate = jax.jit(policy.allocate)

        def once(policy_allocate=allocate, policy_state=state):
            return policy_allocate(
                jax.random.key(1),
                policy_state,
                candidates,
                jnp.int32(size.queries),
            ).block_until_ready()

        granted = int(once().sum())  # compiles
        yield {
            "bench": "allocation",
            "policy": name,
            "queries": size.queries,
            "grants": granted,
            "seconds": _median(once, config.repeats),
            "goal": 1.0,
        }


BENCHES: dict[str, Callable[[Any], Lines]] = {"allocation": allocation}


def _median(once: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        once()
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 4)


def main(_) -> None:
    config = CONFIG.value
    names = [n for n in config.only.split(",") if n] or list(BENCHES)
    for name in names:
        if name not in BENCHES:
            sys.exit(
                f"launch.bench: unknown bench {name!r}; known: "
                f"{', '.join(BENCHES)}"
            )
        for line in BENCHES[name](config):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
