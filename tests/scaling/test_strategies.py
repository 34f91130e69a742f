import jax
import pytest

from dynscaling_jax.scaling import strategies
from dynscaling_jax.scaling.spec import parse
from dynscaling_jax.scaling.strategies import STRATEGIES
from dynscaling_jax.types import Message, Query, Reader, Sample, Strategy

QUERY = Query("q", (Message("user", "How many?"),))
KEY = jax.random.key(0)
LIMITED = Reader(max_prompt_tokens=400)


def run(strategy, grants, answer=str, text="try {}", reader=Reader()):  # noqa: B008
    """Lets a strategy take up one grant a round; the samples it led to."""
    samples, asked = [], []
    for round, n in enumerate(grants):
        plan = strategy.plan(QUERY, tuple(samples), n, KEY, reader)
        requests = [r._replace(round=round) for r in plan]
        asked.append(requests)
        for r in requests:
            said = answer(r.index)
            samples.append(
                Sample(
                    "q",
                    r.index,
                    r.round,
                    r.parents,
                    text.format(r.index),
                    said,
                    "stop",
                    1,
                    0,
                    1,
                    1.0,
                )  # fmt: skip
            )
    return samples, asked


def parents(samples):
    return [s.parents for s in samples]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_keeps_the_contract(name):
    """In any round: indices go on from the samples there are; at least one
    and at most n requests; parents are readable samples of earlier rounds;
    the same again for the same input."""
    strategy = parse(name, STRATEGIES, "strategy")

    def answer(i):
        return None if i % 3 == 0 else str(i % 4)

    grants = [1, 5, 2, 30, 1, 7, 16, 3]
    samples, asked = run(strategy, grants, answer, reader=LIMITED)
    assert [s.index for s in samples] == list(range(len(samples)))
    first = 0
    for round, (n, requests) in enumerate(zip(grants, asked, strict=True)):
        assert 1 <= len(requests) <= n
        for r in requests:
            assert (r.query, r.round) == (QUERY, round)
            assert r.messages[0].content.startswith("How many?")
            assert all(p < first and answer(p) for p in r.parents)
            assert bool(r.parents) == (r.messages != QUERY.messages)
            for p in r.parents:
                assert f"try {p}" in "".join(m.content for m in r.messages)
        first += len(requests)
    assert run(strategy, grants, answer, reader=LIMITED)[1] == asked


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_with_nothing_readable_all_samples_are_parallel(name):
    strategy = parse(name, STRATEGIES, "strategy")
    samples, _ = run(strategy, [4] * 6, lambda i: None)
    assert set(parents(samples)) == {()}


def test_parallel():
    samples, asked = run(strategies.parallel(), [3, 2])
    assert parents(samples) == [()] * 5
    assert all(r.messages == QUERY.messages for r in asked[1])


def test_integrated_explores_first():
    strategy = strategies.integrated(explore=3, k=2)
    samples, asked = run(strategy, [2, 4, 4])
    # a grant ends where exploring ends: the rest would find no parents
    assert [len(r) for r in asked] == [2, 1, 4]
    assert [len(p) for p in parents(samples)] == [0, 0, 0, 2, 2, 2, 2]
    assert all(p < 3 for s in samples for p in s.parents)


def test_one_big_grant_does_not_make_an_integrated_run_parallel():
    """All samples asked for in one round would have no earlier ones to read,
    and the method would silently be another."""
    samples, _ = run(strategies.integrated(explore=2), [8, 8])
    assert [bool(p) for p in parents(samples)] == [False] * 2 + [True] * 8


def test_integrated_alternates():
    strategy = strategies.integrated(explore=1, schedule="alternate")
    samples, _ = run(strategy, [1] * 6)
    chained = [bool(p) for p in parents(samples)]
    assert chained == [False, True, False, True, False, True]


def test_revision_of_single_grants_is_sequential():
    samples, asked = run(strategies.revision(depth=3), [1] * 7)
    assert parents(samples) == [(), (0,), (1,), (), (3,), (4,), ()]
    assert "try 1" in asked[2][0].messages[-1].content
    assert "try 0" not in asked[2][0].messages[-1].content


def test_revision_goes_on_with_each_line_once():
    samples, _ = run(strategies.revision(depth=2), [2, 3, 2])
    assert parents(samples) == [(), (), (1,), (0,), (), (4,), ()]


def test_revision_leaves_a_line_that_ends_unreadable():
    def answer(i):
        return None if i == 1 else "a"

    samples, _ = run(strategies.revision(), [1] * 4, answer)
    assert parents(samples) == [(), (0,), (), (2,)]


def test_rsa_draws_each_population_from_the_one_before():
    strategy = strategies.rsa(population=4, k=2, loops=3)
    samples, asked = run(strategy, [3, 9, 4, 4, 4])
    assert [len(r) for r in asked] == [3, 1, 4, 4, 4]
    for s in samples[:4] + samples[12:]:
        assert s.parents == ()
    for s in samples[4:12]:
        before = s.index // 4 - 1
        assert len(set(s.parents)) == 2
        assert {p // 4 for p in s.parents} == {before}


def test_debate_shows_each_agent_the_others():
    samples, asked = run(strategies.debate(agents=3, turns=2), [3, 3, 3])
    assert parents(samples) == [
        (), (), (),
        (0, 1, 2), (1, 0, 2), (2, 0, 1),
        (), (), (),
    ]  # fmt: skip
    messages = asked[1][1].messages
    assert [m.role for m in messages] == ["user", "assistant", "user"]
    assert messages[1].content == "try 1"
    assert "Agent 1:\ntry 0\n\nAgent 2:\ntry 2" in messages[2].content


def test_debate_of_an_agent_without_an_answer():
    def answer(i):
        return None if i == 0 else "a"

    samples, asked = run(strategies.debate(), [3, 3], answer)
    assert samples[3].parents == (1, 2)
    assert [m.role for m in asked[1][0].messages] == ["user"]


def test_budget_forcing_makes_an_attempt_think_on():
    strategy = strategies.budget_forcing(forces=2)
    text = "<think>thought {}</think>answer"
    samples, asked = run(strategy, [1] * 4, text=text)
    assert parents(samples) == [(), (0,), (0, 1), ()]
    turn = asked[2][0].messages[-1]
    assert turn.role == "assistant"
    assert turn.content == ("<think>thought 0\n\nWait<think>thought 1\n\nWait")


def test_budget_forcing_that_does_not_fit_starts_anew():
    strategy = strategies.budget_forcing()
    short = Reader(max_prompt_tokens=14)
    samples, _ = run(strategy, [1] * 4, text="a b c {}", reader=short)
    assert parents(samples) == [(), (0,), (), (2,)]


def test_what_reads_no_texts_says_so():
    reads = {name: make().reads_texts for name, make in STRATEGIES.items()}
    texts = [name for name in reads if not reads[name]]
    assert texts == ["parallel", "deepconf"]
    assert not strategies.integrated(content="answer_only").reads_texts
    assert Strategy(lambda *_: []).reads_texts  # to be on the safe side


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("integrated(explore=0)", "explore=0 is not at least 1"),
        ("adaptive(explore=0)", "explore=0 is not at least 1"),
        ("adaptive(cost=time)", "cost='time'"),
        ("integrated(k=0)", "k=0 is not at least 1"),
        ("integrated(which=best)", "which='best'"),
        ("integrated(schedule=never)", "schedule='never'"),
        ("revision(depth=0)", "depth=0"),
        ("rsa(population=0)", "population=0"),
        ("debate(agents=1)", "agents=1 is not at least 2"),
        ("budget_forcing(forces=0)", "forces=0"),
        ("tree", "unknown strategy 'tree'; known: adaptive, budget_forcing"),
    ],
)
def test_bad_options(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, STRATEGIES, "strategy")


def test_deepconf_bounds_what_follows_its_warm_up():
    """Two whole samples, whose least sure windows are 1 and 3: the tenth
    percentile is 1.2. A sample that is pending is none of the warm-up."""
    plan = strategies.deepconf(warmup=2, keep=0.9).plan
    (request,) = plan(QUERY, (), 1, KEY, Reader())
    pending = strategies.unseen(request)
    whole = [
        pending._replace(
            index=i, finish_reason="stop", signals={"lowest": lowest}
        )
        for i, lowest in enumerate((1.0, 3.0))
    ]
    for samples, bound in (
        ([], None),
        ([whole[0], pending._replace(index=1)], None),
        (whole, pytest.approx(1.2)),
    ):
        (request,) = plan(QUERY, samples, 1, KEY, Reader())
        assert request.index == len(samples)
        assert request.least_confidence == bound
    with pytest.raises(ValueError, match="keep=2"):
        strategies.deepconf(keep=2.0)


@pytest.mark.parametrize(
    ("ended", "under_way", "shown"),
    [
        (0, 2, None),  # nothing to show yet
        (1, 1, (0,)),
        (1, 2, None),  # one chain is under way: the next one learns from it
        (2, 1, (0, 1)),
        (2, 2, (0, 1)),
    ],
)
def test_a_chain_waits_until_it_has_something_to_show(ended, under_way, shown):
    """A question whose samples were all granted at once had no chain, though
    each was asked for as one: it showed the question alone."""
    samples, _ = run(strategies.parallel(), [ended + under_way])
    pending = [
        s._replace(answer=None, finish_reason=strategies.UNDER_WAY)
        for s in samples[ended:]
    ]
    plan = strategies.integrated(explore=2, k=4).plan
    requests = [*plan(QUERY, [*samples[:ended], *pending], 1, KEY, Reader())]
    found = [tuple(sorted(request.parents)) for request in requests]
    assert found == ([] if shown is None else [shown])
