"""Rules that end samples early, on hand-worked candidates."""

import jax.numpy as jnp
import pytest

from dynscaling_jax.scaling import cancelling
from dynscaling_jax.types import Candidates, Flights


def candidates(answers, pending, weights=None, slots=24):
    """Answers of each query; samples under way."""

    def padded(rows, fill, dtype):
        return jnp.array(
            [[*row, *[fill] * (slots - len(row))] for row in rows], dtype
        )

    return Candidates(
        padded(answers, -1, jnp.int32),
        padded(weights or [[0.0] * len(row) for row in answers], 0, float),
        padded([[1] * len(row) for row in answers], 0, jnp.int32),
        jnp.array([len(row) for row in answers], jnp.int32),
        jnp.array(pending, jnp.int32),
    )


def test_lead_is_more_than_what_may_still_come():
    """3 against 1: two further votes may tie, which the order of answers
    would settle; one cannot."""
    seen = candidates([[0, 0, 1, 0]] * 3, [1, 2, 3])
    assert cancelling.lead().decided(seen).tolist() == [True, False, False]


def test_posterior_is_adaptive_consistency():
    """Four that agree: 1 - 2^-5 = 0.969; three: 0.9375; none read: never."""
    seen = candidates([[0] * 4, [0] * 3, [-1] * 9, [0, 1]], [2] * 4)
    decided = cancelling.posterior(0.95).decided(seen)
    assert decided.tolist() == [True, False, False, False]


def test_deepconf_weighs_votes_by_confidence():
    """16 and 1 samples: by number 0.94 agree, by weight 0.96 or 0.92."""
    answers = [[0] * 16 + [1]] * 2 + [[0] * 15 + [-1]]
    weights = [[3.0] * 16 + [2.0], [3.0] * 16 + [4.0], [3.0] * 16]
    seen = candidates(answers, [1] * 3, weights)
    decided = cancelling.deepconf(consensus=0.95, least=16).decided(seen)
    assert decided.tolist() == [True, False, False]  # the last has 15


def flights(*queries, width=8):
    query_W = jnp.array([*queries, *[-1] * (width - len(queries))], jnp.int32)
    return Flights(query_W, jnp.full(width, 5, jnp.int32))


def test_tail_keeps_what_is_worth_waiting_for():
    """Question 0 agrees and is worth little; 1 is split; 2 has no answer yet
    and is waited for, whatever else."""
    seen = candidates([[0] * 6, [0, 1], []], [1, 1, 1])
    gone_W = cancelling.tail(part=0.1).last(seen, flights(0, 1, 2))
    assert gone_W.tolist() == [True, False, False] + [False] * 5


def test_tail_gives_up_stragglers():
    """Two of eight places are busy, a quarter: the split question has an
    answer, so it is not waited for; the one without is."""
    seen = candidates([[0, 1], []], [1, 1])
    quarter = cancelling.tail(part=0.25).last
    assert quarter(seen, flights(0, 1)).tolist()[:2] == [True, False]
    few = cancelling.tail(part=0.1).last  # two of twenty, one of eight
    assert few(seen, flights(0, 1, width=20)).tolist()[:2] == [True, False]
    assert not few(seen, flights(0, 1)).any()
    seen = candidates([[0, 1], []], [2, 1])
    assert not quarter(seen, flights(0, 0, 1)).any()


def test_texts():
    assert cancelling.parse_cancel("") is None
    assert cancelling.parse_cancel("none") is None
    rule = cancelling.parse_cancel("posterior(confidence=0.9)")
    assert rule and rule.name == "posterior(confidence=0.9)"
    with pytest.raises(ValueError, match="unknown cancel 'lucky'"):
        cancelling.parse_cancel("lucky")
    with pytest.raises(ValueError, match="confidence=2"):
        cancelling.posterior(2.0)
