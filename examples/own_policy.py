"""A policy of one's own: the next samples go to those that have least.

.venv/bin/python examples/own_policy.py
"""

import jax
import jax.numpy as jnp

from dynscaling_jax.scaling import majority, parallel, scale
from dynscaling_jax.types import Budget, Message, Policy, Query, Sample


def allocate(key, state, candidates, budget):
    """One sample each for the `budget` queries that have fewest."""
    free = candidates.count_Q < candidates.answer_QN.shape[1]
    order = jnp.argsort(jnp.where(free, candidates.count_Q, 2**31 - 1))
    rank = jnp.argsort(order)
    return jnp.where(free & (rank < budget), 1, 0).astype(jnp.int32)


least_first = Policy(lambda queries: (), allocate, lambda state, *_: state)


def guess(requests):
    """Stands in for a model: any function that yields samples does."""
    for r in requests:
        text = str(len(r.query.id) + r.index % 2)
        yield Sample(
            r.query.id, r.index, r.round, (), text, text, "stop", 9, 0, 1, 0.0
        )


queries = [Query(q, (Message("user", q),)) for q in ("abc", "de", "f")]
result = scale(
    queries,
    guess,
    parallel(),
    least_first,
    majority(),
    Budget(samples=9),
    jax.random.key(0),
    round_size=2,
)
print(result.answers, [len(samples) for samples in result.samples])
