"""Every policy keeps every contract; names and settings are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynscaling_jax.scaling.allocation import free_slots
from dynscaling_jax.scaling.policies import (
    POLICIES,
    parse_policies,
    parse_policy,
)
from dynscaling_jax.types import Candidates

QUERIES, SLOTS = 5, 8
KEY = jax.random.key(0)
MAY_LEAVE = {"elimination", "adaptive_consistency", "esc", "lead_k", "mmc"}
DRAWS = {"random", "thompson"}
DEFAULTS = {name: factory() for name, factory in POLICIES.items()}
allocate = {name: jax.jit(p.allocate) for name, p in DEFAULTS.items()}
every_policy = pytest.mark.parametrize("name", POLICIES)


def packed(rows, slots=SLOTS) -> Candidates:
    """Rows of answer ids -> candidates; weights and tokens are made up."""
    answer_QN = np.full((len(rows), slots), -1, np.int32)
    for row, answers in zip(answer_QN, rows, strict=True):
        row[: len(answers)] = answers
    tokens_QN = 50 + 10 * np.arange(slots) + np.arange(len(rows))[:, None]
    return Candidates(
        jnp.array(answer_QN),
        jnp.full(answer_QN.shape, -0.5, jnp.float32),
        jnp.array(tokens_QN, jnp.int32),
        jnp.array([len(answers) for answers in rows], jnp.int32),
    )


def first_seen(row):
    """Renumbers answer ids in the order in which they come."""
    ids = {}
    return [a if a < 0 else ids.setdefault(a, len(ids)) for a in row]


rows = st.lists(
    st.lists(st.integers(-1, 3), max_size=SLOTS).map(first_seen),
    min_size=QUERIES,
    max_size=QUERIES,
)

HARD_CASES = {
    "nothing drawn": [[]] * QUERIES,
    "all unreadable": [[-1] * 4] * QUERIES,
    "unanimous": [[0] * 4] * QUERIES,
    "full": [[0, 1] * (SLOTS // 2)] * QUERIES,
    "all different": [[0, 1, 2, 3]] * QUERIES,
    "mixed": [[], [-1] * 8, [0] * 3, [0, 1], [0, 1, 1, -1, 2]],
}


def grants_of(name, candidates, budget, key=KEY):
    return allocate[name](key, candidates, jnp.int32(budget))


def check(name, candidates, budget):
    grants_Q = grants_of(name, candidates, budget)
    free_Q = free_slots(candidates)
    assert grants_Q.dtype == jnp.int32 and grants_Q.shape == (QUERIES,)
    assert (grants_Q >= 0).all() and (grants_Q <= free_Q).all()
    expected = min(budget, int(free_Q.sum()))
    if name in MAY_LEAVE:
        assert grants_Q.sum() <= expected
    else:
        assert grants_Q.sum() == expected


@every_policy
@given(rows=rows, budget=st.integers(0, QUERIES * SLOTS + 3))
@settings(max_examples=40, deadline=None)
def test_grants_are_a_split_of_the_budget(name, rows, budget):
    check(name, packed(rows), budget)


@every_policy
@pytest.mark.parametrize("case", HARD_CASES)
def test_grants_are_a_split_of_the_budget_in_hard_cases(name, case):
    for budget in (0, 1, 7, 1000):
        check(name, packed(HARD_CASES[case]), budget)


@pytest.mark.parametrize("name", sorted(MAY_LEAVE))
@given(rows=rows, budget=st.integers(0, QUERIES * SLOTS))
@settings(max_examples=40, deadline=None)
def test_a_stopping_rule_spends_all_on_what_goes_on(name, rows, budget):
    """Queries that get nothing for a boundless budget have stopped; what
    the others can take is spent to the last sample."""
    candidates = packed(rows)
    room_Q = grants_of(name, candidates, 1000)
    grants_Q = grants_of(name, candidates, budget)
    assert grants_Q.sum() == min(budget, int(room_Q.sum()))
    assert (grants_Q <= room_Q).all()


@every_policy
def test_jit_equals_eager(name):
    candidates = packed(HARD_CASES["mixed"])
    eager = DEFAULTS[name].allocate(KEY, candidates, jnp.int32(9))
    assert grants_of(name, candidates, 9).tolist() == eager.tolist()


@every_policy
def test_one_compilation_serves_every_budget(name):
    traced = []

    def counted(*args):
        traced.append(1)
        return DEFAULTS[name].allocate(*args)

    jitted = jax.jit(counted)
    for budget in (0, 3, 20):
        jitted(KEY, packed(HARD_CASES["mixed"]), jnp.int32(budget))
    assert len(traced) == 1


@pytest.mark.parametrize("name", sorted(set(POLICIES) - DRAWS))
@given(rows=rows, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_order_of_queries_matters_in_ties_alone(name, rows, seed):
    """Grants that no tie decides (equal under ten keys, which with a tie
    happens once in 2^18) move with their query when they are reordered."""
    turn = np.random.default_rng(seed).permutation(QUERIES)
    keys = [jax.random.key(k) for k in range(10)]
    candidates = packed(rows)  # tokens go with their query
    moved = jax.tree.map(lambda array: array[turn], candidates)
    straight = [grants_of(name, candidates, 6, k).tolist() for k in keys]
    turned = [grants_of(name, moved, 6, k).tolist() for k in keys]
    decided = all(
        g == grants[0] for grants in (straight, turned) for g in grants
    )
    if decided:
        assert turned[0] == [straight[0][q] for q in turn]


@every_policy
def test_padding_is_not_read(name):
    candidates = packed(HARD_CASES["mixed"])
    drawn_QN = jnp.arange(SLOTS)[None] < candidates.count_Q[:, None]
    littered = candidates._replace(
        answer_QN=jnp.where(drawn_QN, candidates.answer_QN, 3),
        weight_QN=jnp.where(drawn_QN, candidates.weight_QN, jnp.nan),
        tokens_QN=jnp.where(drawn_QN, candidates.tokens_QN, 10**6),
    )
    assert (
        grants_of(name, littered, 9).tolist()
        == grants_of(name, candidates, 9).tolist()
    )


@pytest.mark.parametrize("name", sorted(set(POLICIES) - MAY_LEAVE))
def test_a_query_without_samples_is_not_starved(name):
    """Four queries agree on three samples, one has none. A budget of two
    samples a query reaches it (for the drawn ones: on most keys)."""
    candidates = packed([[0, 0, 0]] * 4 + [[]])
    reached = [
        int(grants_of(name, candidates, 10, jax.random.key(k))[4]) > 0
        for k in range(20)
    ]
    assert np.mean(reached) > (0.5 if name in DRAWS else 0.999)


def test_settings_reach_the_policy():
    """At c = 0 ucb is greedy: all to the query that disagrees most."""
    candidates = packed([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0], [0], [0]])
    greedy = parse_policy("ucb(uncertainty=gini, c=0)")
    grants_Q = jax.jit(greedy.allocate)(KEY, candidates, jnp.int32(3))
    assert grants_Q.tolist() == [0, 3, 0, 0, 0]


def test_policies_are_read_from_a_list():
    named = parse_policies("uniform, ucb(uncertainty=beta,c=0.2),esc")
    assert list(named) == ["uniform", "ucb(uncertainty=beta,c=0.2)", "esc"]
    assert list(parse_policies("all")) == list(POLICIES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "uniform"),
        ("uniform(c=1)", "none"),
        ("ucb(d=1)", "uncertainty, c, unreadable"),
        ("ucb(c=beta)", "c='beta'"),
        ("ucb(c=-1)", "at least 0"),
        ("ucb(uncertainty=variance)", "entropy, gini"),
        ("ucb(0.5)", "malformed"),
        ("ucb(c=", "malformed"),
        ("thompson(prior=0)", "more than 0"),
        ("adaptive_consistency(confidence=1.5)", "less than 1"),
        ("esc(window=5,most=4)", "at least 5"),
        ("esc(window=0)", "at least 1"),
        ("lead_k(lead=0)", "at least 1"),
        ("mmc(delta=0)", "more than 0"),
        ("", "malformed"),
    ],
)
def test_a_bad_policy_says_what_is_expected(text, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(text)


def test_a_policy_cannot_be_named_twice():
    with pytest.raises(ValueError, match="twice"):
        parse_policies("ucb,uniform, ucb")
