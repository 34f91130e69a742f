"""The study from Python, as a notebook asks for it."""

import numpy as np
import pytest

import dynscaling_jax as ds
from dynscaling_jax.experiments.replay import overall
from dynscaling_jax.scaling.bandits import uab, ucb, uniform
from dynscaling_jax.scaling.cancelling import tail


@pytest.fixture
def bank():
    """Ten questions of 40 samples, from easy to hard."""
    rng = np.random.default_rng(0)
    share_Q1 = np.linspace(0.9, 0.3, 10)[:, None]
    wrong_QN = rng.integers(1, 4, (10, 40))
    answer_QN = np.where(rng.random((10, 40)) < share_Q1, 0, wrong_QN)
    return ds.Bank(
        name="made up",
        ids=tuple(f"q/{q}" for q in range(10)),
        answer_QN=answer_QN.astype(np.int32),
        tokens_QN=np.full((10, 40), 100, np.int32),
        logprob_QN=None,
        reference_Q=np.zeros(10, np.int32),
        kind="number",
    )


def test_policies_without_names(bank):
    policies = [p._replace(name="") for p in (uniform(), ucb(c=0.2))]
    study = ds.replay(bank, policies, budgets=[4, 2.1], replicates=10)
    assert [(r.policy, r.budget) for r in study.results] == [
        (name, budget)
        for budget in (2.1, 4.0)
        for name in ("policy 0", "policy 1")
    ]
    for result in study.results:
        low, high = result.accuracy_ci95
        assert 0 < low <= result.accuracy <= high <= 1
        assert result.samples_per_query == pytest.approx(result.budget)
        assert result.new_tokens_per_query == pytest.approx(100 * result.budget)
    assert study.efficiency["policy 0"][0].ratio == 1  # uniform itself
    first, head, one, other = str(study).splitlines()
    assert first.startswith("made up: 10 questions, answers: number, pass@1 ")
    assert head.split()[:3] == ["@2.1", "@4", "spent"]
    assert one.startswith("policy 0") and other.startswith("policy 1")
    assert str(study) in study._repr_markdown_()


def test_policies_with_names_and_the_same_orders(bank):
    """A name changes nothing, and uniform is played beside one alone."""
    ways = {"narrow": ucb(c=0.2), "equal": uniform()}
    both = ds.replay(bank, ways, budgets=[4], replicates=10)
    alone = ds.replay(bank, [ucb(c=0.2)], budgets=[4], replicates=10)
    assert [r.policy for r in both.results] == ["narrow", "equal"]
    assert both.results[0].accuracy == alone.results[0].accuracy
    assert both.efficiency["narrow"] == alone.efficiency["ucb(c=0.2)"]


@pytest.mark.parametrize(
    ("policies", "budgets", "message"),
    [
        ([], [2], "expected at least one"),
        ([uniform()], [], "expected at least one"),
        ([uniform()], [41], "over the 40 that the bank holds"),
        ([uniform()], [0], "above 0"),
        ({"mine": uab()}, [2], "mine needs log-probabilities"),
        ([ucb(), ucb()], [2], "two of one name among .*ucb"),
        (ucb(), [2], "expected a list of them, got one"),
        ([ucb], [2], r"<function ucb.*> is no Policy; expected .*ucb\(\)"),
        ({"mine": "ucb"}, [2], "'ucb' is no Policy"),
        ([ucb()], 2, "budgets=2: expected a list"),
    ],
)
def test_what_cannot_be_played(bank, policies, budgets, message):
    with pytest.raises(ValueError, match=message):
        ds.replay(bank, policies, budgets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicates": 0}, "replicates=0: expected a whole number from 1"),
        ({"chunk": 1.5}, "chunk=1.5: expected a whole number"),
        ({"round_per_query": 0}, "round_per_query=0: expected samples"),
        ({"first_round_per_query": -1}, "first_round_per_query=-1: expected"),
        ({"vote": "majority"}, "the vote is 'majority'; expected a Vote"),
        ({"slots": 8}, "slots is not of schedule=rounds"),
        ({"poll_steps": 1}, "poll_steps is not of schedule=rounds"),
        ({"cancel": tail()}, "cancel is not of schedule=rounds"),
        (
            {"schedule": "async", "round_per_query": 1},
            "round_per_query is not of schedule=async",
        ),
        ({"schedule": "async", "slots": 0}, "slots=0"),
    ],
)
def test_settings_that_cannot_be(bank, settings, message):
    with pytest.raises(ValueError, match=message):
        ds.replay(bank, [uniform()], [2], **settings)


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        (
            lambda c, b: c.count_Q.astype(float),
            r"float32\(10,\); expected int32",
        ),
        (lambda c, b: b, r"int32\(\); expected int32\(10,\)"),
    ],
)
def test_grants_of_another_shape(bank, grants, message):
    """One number was taken as a grant of so many to each question."""
    policy = ds.Policy(lambda key, c, b: grants(c, b), name="mine")
    with pytest.raises(ValueError, match=message):
        ds.replay(bank, [policy], [2], replicates=3)


def test_a_mean_over_banks_is_of_all_of_them(bank):
    """uab plays where there are log-probabilities. Its mean over two banks was
    the root of what it had on one."""
    told = bank._replace(logprob_QN=np.full((10, 40), -1.0, np.float32))
    one = ds.replay(told, [ucb(), uab()], [4], replicates=10)
    other = ds.replay(bank, [ucb()], [4], replicates=10)
    *_, of_ucb, of_uab = overall([one, other]).splitlines()
    ratios = [
        round(np.sqrt(a.ratio * b.ratio), 2)
        for a, b in zip(
            one.efficiency[ucb().name],
            other.efficiency[ucb().name],
            strict=True,
        )
    ]
    shown = [float(word) for word in of_ucb.split()[1:]]
    np.testing.assert_allclose(shown, ratios, atol=0.0051)
    assert of_uab.split()[1:] == ["-"] * 3
