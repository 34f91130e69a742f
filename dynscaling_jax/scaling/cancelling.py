"""Rules that end samples before they are finished; see types.Cancel.

They serve schedules without rounds, where the answers of a query come one by
one while others of its samples are still being generated. All but deepconf
count votes as majority does; another vote might have been changed by what they
end.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynscaling_jax.scaling.allocation import under_way
from dynscaling_jax.scaling.bounds import above, at_least, inside
from dynscaling_jax.scaling.opportunity import opportunity_cost
from dynscaling_jax.scaling.spec import named, parse
from dynscaling_jax.scaling.uncertainty import behind, two_leaders
from dynscaling_jax.types import Cancel, Candidates, Flights

LOST = -1e30  # the score of a query that has no place in a comparison


@named
def lead() -> Cancel:
    """Ends the samples of a query that cannot change its majority any more.

    The leader is ahead of the runner-up by more votes than there are samples
    under way.
    """

    def decided(candidates: Candidates) -> jax.Array:
        first_Q, second_Q = two_leaders(candidates)
        return first_Q - second_Q > under_way(candidates)

    return Cancel(decided)


@named
def posterior(confidence: float = 0.95) -> Cancel:
    """Ends the samples of a query whose leader is probably its mode.

    This is the criterion of Adaptive-Consistency (arXiv 2305.11860): the
    posterior probability that the leader is ahead of the runner-up is above
    confidence.
    """
    inside("confidence", confidence, 0, 1)

    def decided(candidates: Candidates) -> jax.Array:
        first_Q, second_Q = two_leaders(candidates)
        return (first_Q > 0) & (1 - behind(first_Q, second_Q) > confidence)

    return Cancel(decided)


@named
def deepconf(consensus: float = 0.95, least: int = 16) -> Cancel:
    """Ends the samples of a query whose confident answers agree.

    This is the adaptive sampling of DeepConf (arXiv 2508.15260): votes weigh
    as much as their samples' confidence, and the leader has the share
    consensus of all weight.

    Args:
        consensus: of the weight.
        least: readable samples before a query can be decided.
    """
    inside("consensus", consensus, 0, 1)
    at_least("least", least, 1)

    def decided_one(
        answer_N: jax.Array, weight_N: jax.Array, count: jax.Array
    ) -> jax.Array:
        slots = answer_N.shape[0]
        read_N = (jnp.arange(slots) < count) & (answer_N >= 0)
        weight_N = jnp.where(read_N, weight_N, 0.0)
        at_N = jnp.where(read_N, answer_N, slots)
        weight_A = jnp.zeros(slots).at[at_N].add(weight_N, mode="drop")
        enough = jnp.sum(read_N) >= least
        return enough & (jnp.max(weight_A) >= consensus * jnp.sum(weight_A))

    def decided(candidates: Candidates) -> jax.Array:
        return jax.vmap(decided_one)(
            candidates.answer_QN, candidates.weight_QN, candidates.count_Q
        )

    return Cancel(decided, reads="confidence")


@named
def tail(share: float = 0.4, part: float = 0.1) -> Cancel:
    """Ends samples that are not worth waiting for, once all are granted.

    A run is over when its longest sample ends. Until then slots fall idle,
    and those samples that are still under way are the longest of their
    queries, which are more often wrong than the others. So, once nothing more
    will be granted, a sample is cancelled

    - where the vote of its query cannot change any more, as by `lead`;
    - where the opportunity_cost of its query, without the samples under way,
      is less than `share` of the highest that any query has with them, which
      is what one more sample would be worth;
    - where no more samples run than `part` of the slots and its query has an
      answer. With fewer than 1 / part slots that ends nothing.

    The rule was chosen by replay; docs/lab/allocation.md has what lost.

    Args:
        share: of what the best further sample would be worth.
        part: of the slots.
    """
    above("share", share, 0)
    inside("part", part, 0, 1)
    score = opportunity_cost().score
    assert score
    secure = lead().decided

    def decided(candidates: Candidates) -> jax.Array:
        return jnp.zeros_like(candidates.count_Q, bool)

    def last(candidates: Candidates, flights: Flights) -> jax.Array:
        pending_Q = under_way(candidates)
        first_Q, _ = two_leaders(candidates)
        next_Q = score(candidates, pending_Q)
        best = jnp.max(jnp.where(candidates.count_Q > 0, next_Q, LOST))
        worth_Q = score(candidates, jnp.zeros_like(pending_Q))
        cheap_Q = worth_Q < best + jnp.log(jnp.float32(share))
        few = jnp.sum(pending_Q) <= math.floor(part * len(flights.query_W))
        gone_Q = secure(candidates) | cheap_Q | (few & (first_Q > 0))
        query_W = flights.query_W
        return (query_W >= 0) & gone_Q[jnp.maximum(query_W, 0)]

    return Cancel(decided, last)


CANCELS: dict[str, Callable[..., Cancel]] = {
    "lead": lead,
    "posterior": posterior,
    "deepconf": deepconf,
    "tail": tail,
}


def parse_cancel(text: str) -> Cancel | None:
    """Reads the name of a rule, as a flag writes it; none is None.

    Raises:
        ValueError: an unknown rule, or a setting that it has not.
    """
    if text in ("", "none"):
        return None
    return parse(text, CANCELS, "cancel")
