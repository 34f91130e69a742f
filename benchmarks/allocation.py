"""Where the next samples go, for very many queries."""

import jax
import jax.numpy as jnp

from benchmarks.common import Config, Lines, median_seconds
from dynscaling_jax.scaling.policies import parse_policies
from dynscaling_jax.types import Candidates


def lines(config: Config) -> Lines:
    """One allocation of a large round, in seconds after compilation; the
    goal is below 1."""
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
        allocate = jax.jit(policy.allocate)

        def once(policy_allocate=allocate):
            return policy_allocate(
                jax.random.key(1),
                candidates,
                jnp.int32(size.queries),
            ).block_until_ready()

        granted = int(once().sum())  # compiles
        yield {
            "bench": "allocation",
            "policy": name,
            "queries": size.queries,
            "grants": granted,
            "seconds": round(median_seconds(once, config.repeats), 4),
            "goal": 1.0,
        }
