"""The threshold search against the rule it stands for: argmax a pull."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.scaling.allocation import NARROW, best, place

QUERIES, SLOTS = 5, 4
KEY = jax.random.key(7)


def of_table(key, score_QN, free_Q, budget):
    slots = score_QN.shape[1]
    return place(key, lambda v: score_QN.T[v], free_Q, budget, slots)


placed = jax.jit(of_table)


def sequential(key, score_QN, free_Q, budget):
    """One argmax a pull; ties go by the order that key draws."""
    drawn = np.asarray(jax.random.bits(key, len(score_QN))) >> 1
    order = np.argsort(drawn)[::-1]
    grants = np.zeros(len(score_QN), int)
    for _ in range(budget):
        able = [q for q in order if grants[q] < free_Q[q]]
        if not able:
            break
        grants[max(able, key=lambda q: score_QN[q][grants[q]])] += 1
    return grants


def check_sequential(score_QN, free, budget):
    grants_Q = placed(
        KEY,
        jnp.array(score_QN),
        jnp.array(free, jnp.int32),
        jnp.int32(budget),
    )
    assert grants_Q.tolist() == sequential(KEY, score_QN, free, budget).tolist()


scores = st.lists(
    st.lists(
        # few values, so that ties are common; both zeros, both infinities
        st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 1e-40, 0.5, 3.0, np.inf]),
        min_size=SLOTS,
        max_size=SLOTS,
    ).map(lambda row: sorted(row, reverse=True)),
    min_size=QUERIES,
    max_size=QUERIES,
)
frees = st.lists(st.integers(0, SLOTS), min_size=QUERIES, max_size=QUERIES)


@given(scores, frees, st.integers(0, 25), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_equals_one_argmax_a_pull(rows, free, budget, seed):
    key = jax.random.key(seed)
    score_QN = jnp.array(rows, jnp.float32)
    # XLA flushes denormals to zero, in the reference's comparisons too.
    flushed = np.where(np.abs(rows) < 1e-37, 0, rows)
    grants_Q = placed(
        key, score_QN, jnp.array(free, jnp.int32), jnp.int32(budget)
    )
    assert grants_Q.tolist() == sequential(key, flushed, free, budget).tolist()


@given(st.integers(0, 2**31), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_equals_one_argmax_a_pull_on_random_scores(seed, budget):
    rng = np.random.default_rng(seed)
    score_QN = -np.sort(rng.normal(size=(QUERIES, SLOTS)).astype(np.float32))
    free = rng.integers(0, SLOTS + 1, QUERIES)
    check_sequential(score_QN, free, budget)


@given(
    st.integers(0, 2**31),
    st.integers(0, 200),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_equals_one_argmax_a_pull_on_wide_tables(seed, budget, apart, ties):
    """Wider than the columns that are searched first; scores so far apart
    that one query takes more than those, or so near that none does."""
    rng = np.random.default_rng(seed)
    score_QN = rng.normal(size=(QUERIES, 2 * NARROW + 3))
    score_QN += apart * np.arange(QUERIES)[:, None]
    if ties:
        score_QN = np.round(score_QN)
    score_QN = -np.sort(-score_QN.astype(np.float32))
    free = rng.integers(0, 2 * NARROW + 4, QUERIES)
    check_sequential(score_QN, free, budget)


def test_the_order_of_queries_does_not_matter_without_ties():
    rng = np.random.default_rng(3)
    score_QN = -np.sort(rng.normal(size=(QUERIES, SLOTS)).astype(np.float32))
    free_Q = jnp.array([4, 0, 3, 2, 4], jnp.int32)
    turn = rng.permutation(QUERIES)
    grants_Q = placed(KEY, jnp.array(score_QN), free_Q, jnp.int32(7))
    turned_Q = placed(
        KEY, jnp.array(score_QN[turn]), free_Q[turn], jnp.int32(7)
    )
    assert turned_Q.tolist() == grants_Q[turn].tolist()


def test_ties_are_broken_evenly():
    """One pull, five equal queries: chi-square over 2,000 keys, 4 degrees of
    freedom, below 23.5 at level 1e-4."""
    keys = jax.random.split(jax.random.key(0), 2000)
    grants = jax.vmap(of_table, (0, None, None, None))(
        keys,
        jnp.zeros((QUERIES, SLOTS)),
        jnp.full(QUERIES, SLOTS, jnp.int32),
        jnp.int32(1),
    )
    seen_Q = np.asarray(grants.sum(axis=0))
    assert seen_Q.sum() == 2000
    assert ((seen_Q - 400) ** 2 / 400).sum() < 23.5


@pytest.mark.parametrize("budget", [0, 1, 13, 14, 1000, 2**31 - 1])
def test_the_sum_is_the_budget_or_all_that_is_free(budget):
    free_Q = jnp.array([4, 2, 0, 4, 4], jnp.int32)
    grants_Q = placed(
        KEY, jnp.zeros((QUERIES, SLOTS)), free_Q, jnp.int32(budget)
    )
    assert grants_Q.sum() == min(budget, 14)
    assert (grants_Q <= free_Q).all() and (grants_Q >= 0).all()


@given(scores, frees, st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_the_best_query_is_where_a_single_pull_goes(rows, free, seed):
    key = jax.random.key(seed)
    score_QN, free_Q = jnp.array(rows, jnp.float32), jnp.array(free, jnp.int32)
    grants_Q = placed(key, score_QN, free_Q, jnp.int32(1))
    found = int(best(key, score_QN[:, 0], free_Q))
    assert found == (int(grants_Q.argmax()) if grants_Q.any() else -1)
