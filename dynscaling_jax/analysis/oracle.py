"""The oracle: what a perfect allocation of the same samples would reach.

It reads the references, so no live run can use it; regret is measured
against it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dynscaling_jax.scaling.allocation import free_slots, place
from dynscaling_jax.scaling.uncertainty import answer_counts
from dynscaling_jax.types import Candidates, Policy


def oracle(reference_Q: jax.Array) -> Policy:
    """Draws for a question until its majority is right, the nearest first.

    A question whose vote is right, or that never can be, gets nothing more,
    so budget may be left. The score of another is one over the votes that
    its reference still lacks to lead; a virtual pull is one vote lacking
    more. No policy that votes by majority can be right on more questions
    than it is with an unbounded budget; it is greedy, so at small budgets a
    lucky policy may still pass it.

    Args:
      reference_Q: int32, the class of the reference among the candidates'
        answers; -2 where no sample can give it.
    """

    def allocate(key, candidates: Candidates, budget):
        def look(answer_N, count, reference):
            counts_N, _ = answer_counts(answer_N, count)
            own = jnp.where(reference >= 0, counts_N[reference], 0)
            right = (jnp.argmax(counts_N) == reference) & (own > 0)
            return right | (reference < 0), jnp.max(counts_N) - own + 1

        done_Q, lacking_Q = jax.vmap(look)(
            candidates.answer_QN, candidates.count_Q, reference_Q
        )
        free_Q = jnp.where(done_Q, 0, free_slots(candidates))

        def score(virtual):
            return 1 / (lacking_Q + virtual).astype(jnp.float32)

        slots = candidates.answer_QN.shape[1]
        return place(key, jax.vmap(score), free_Q, budget, slots)

    return Policy(allocate)


def regret(accuracy_RM: np.ndarray, oracle_RM: np.ndarray) -> np.ndarray:
    """Averages how much more accurate the oracle is, at each budget, [M].

    Both are of the same replicates.
    """
    return (oracle_RM - accuracy_RM).mean(axis=0)
