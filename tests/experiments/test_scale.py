"""Plain questions in, answers out; models are stubs."""

import math

import pytest

import dynscaling_jax as ds
from tests.arriving import Model, reply

FRUIT = "How many apples are 3 and 4 apples?"
CHOICE = "Which is even?\n(A) 3\n(B) 4"
METHOD = ds.methods.dynscaling()


def sampler(replies, seen=None):
    """Replies by question, in turn."""

    def sample(requests):
        for r in requests:
            if seen is not None:
                seen.append(r)
            texts = replies[r.query.messages[-1].content]
            text = texts[r.index % len(texts)]
            yield ds.Sample(
                r.query.id, r.index, r.round, r.parents, text, None, "stop",
                9, 0, 1, 0.0,
            )  # fmt: skip

    return ds.FunctionSampler(sample)


def test_answers_are_read_by_what_the_question_asks_for():
    replies = {
        FRUIT: ["There are 7.", "The answer is 7.", "It is 8."],
        CHOICE: ["The answer is (B)."],
        "Solve x = 1/2 + 1/4.": ["x = 3/4", r"\boxed{0.75}"],
    }
    result = ds.scale(list(replies), sampler(replies))
    assert result.answers == ("7", "B", "0.75")
    assert result.ledger.samples == 24


def test_a_kind_that_is_given_goes_before():
    replies = {"Capital of France?": ["Paris"]}
    found = ds.scale(list(replies), sampler(replies), kind="text")
    assert found.answers == ("paris",)
    with pytest.raises(ValueError, match="kind"):
        ds.scale(list(replies), sampler(replies), kind="word")


def test_equal_questions_are_sampled_apart():
    seen = []
    budget = ds.Budget(samples_per_query=1)
    method = ds.methods.self_consistency()
    replies = {FRUIT: ["7"]}
    result = ds.scale([FRUIT, FRUIT], sampler(replies, seen), method, budget)
    assert result.answers == ("7", "7")
    assert [r.query.id for r in seen] == [FRUIT, f"{FRUIT} #2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": FRUIT}, "a list of texts, got one text"),
        ({"questions": [7]}, "a question is 7; expected a text or a Query"),
        ({"questions": [ds.Query("q", "hi")]}, "messages, a tuple of Message"),
        (
            {"sampler": print},
            "the sampler is <built-in.* without sample, count",
        ),
        ({"sampler": ds.FunctionSampler}, "the sampler is <class"),
        ({"method": "dynscaling"}, "the method is 'dynscaling': expected a M"),
        (
            {"method": METHOD._replace(policy=ds.policies.ucb)},
            r"method.policy is <function ucb.*such as policies.ucb\(\)",
        ),
        (
            {"method": METHOD._replace(vote="majority")},
            "method.vote is 'majority': expected a Vote",
        ),
        (
            {"method": METHOD._replace(schedule=ds.Schedule(stale=0.5))},
            "schedule.stale=0.5: expected a whole number",
        ),
        ({"budget": 8}, "the budget is 8: expected a Budget, such as"),
        ({"budget": ds.Budget("8")}, "budget.samples='8': expected a number"),
        ({"budget": ds.Budget(100.0)}, "samples=100.0: expected a whole"),
        (
            {"budget": ds.Budget(samples_per_query=math.inf)},
            "budget.samples_per_query=inf: expected a number above 0",
        ),
        ({"seed": 1.5}, "seed=1.5: expected a whole number"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    """Most ended in an AttributeError of some inner function."""
    seen = []
    model = sampler({FRUIT: ["7"]}, seen)
    usual = {"questions": [FRUIT], "sampler": model}
    with pytest.raises(ValueError, match=message):
        ds.scale(**usual | arguments)
    assert not seen


def given(**fields):
    """A sampler whose samples have other fields than they should."""

    def sample(requests):
        for one in sampler({FRUIT: ["7"]}).sample(requests):
            yield one._replace(**fields)

    return sample


async def later(requests):
    return []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (given(query_id="of another"), "'of another', which was not asked for"),
        (given(index=99), "sample 99 of query .* which was not asked for"),
        (given(text=None), "text=None is not a text"),
        (given(new_tokens=-5), "new_tokens=-5 is not a whole number"),
        (given(logprob=math.nan), "logprob=nan is not a finite number"),
        (lambda _: iter(["It is 7."]), "gave 'It is 7.'; expected a Sample"),
        (lambda _: None, "gave None; expected an iterator"),
        (later, "gave <coroutine.*; expected an iterator"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_sampler_that_breaks_its_contract(sample, message):
    """A foreign sample was a KeyError, a negative count was taken."""
    with pytest.raises(ValueError, match=message):
        ds.scale([FRUIT], ds.FunctionSampler(sample))


@pytest.mark.parametrize(
    "decide",
    [
        lambda c: c.answer_QN,
        lambda c: c.weight_QN[:, 0],
        lambda c: c.count_Q[0],
        lambda c: None,
    ],
)
def test_a_vote_that_cannot_decide_is_refused_before_it_costs(decide):
    """It was noticed when all samples were there, which were lost."""
    seen = []
    method = METHOD._replace(vote=ds.Vote(decide))
    with pytest.raises(ValueError, match=r"expected int32\(1,\)"):
        ds.scale([FRUIT], sampler({FRUIT: ["7"]}, seen), method)
    assert not seen


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        (ds.Vote(lambda c: c.count_Q + 9), "decides on .17.; expected the ids"),
        (
            ds.votes.medoid()._replace(weigh=lambda *_: [[1.0]]),
            r"weighs \[1\] samples of the queries; expected \[8\]",
        ),
    ],
)
def test_a_vote_that_breaks_its_contract(vote, message):
    with pytest.raises(ValueError, match=message):
        method = METHOD._replace(vote=vote)
        ds.scale([FRUIT], sampler({FRUIT: ["7"]}), method)


def test_chains_keep_to_the_limit_of_the_sampler():
    """No one has to tell a strategy what the model can read."""
    seen = []
    long = "word " * 40 + "The answer is 7."
    replies = {FRUIT: [long, long.replace("7", "8")]}
    free = sampler(replies, seen)
    few = ds.FunctionSampler(free.sample, max_prompt_tokens=90)
    ds.scale([FRUIT], few, budget=ds.Budget(samples_per_query=6))
    chained = [r for r in seen if r.parents]
    assert chained
    assert all(few.count_tokens(r.messages) <= 90 for r in chained)
    assert {len(r.parents) for r in chained} == {1}


def test_a_method_of_ones_own():
    """Ten lines for a strategy, and as many for a vote."""

    def plan(query, samples, n, key, reader):
        for index in range(len(samples), len(samples) + n):
            yield ds.Request(query, query.messages, index)

    def decide(candidates):
        return candidates.answer_QN[:, 0]  # the first sample

    method = ds.Method(
        ds.Strategy(plan, reads_texts=False),
        ds.policies.uniform(),
        ds.Vote(decide),
    )
    replies = {FRUIT: ["It is 8.", "It is 7."]}
    result = ds.scale([FRUIT], sampler(replies), method)
    assert result.answers == ("8",)


def test_a_stale_round_begins_before_the_one_before_it_is_taken():
    """The progress bar held a request back until its first sample was taken,
    so that the sampler idled at the end of each round."""
    events = []

    def sample(requests):
        events.append("asked")
        return map(answer, requests)

    def answer(r):
        events.append("taken")
        return ds.Sample(
            r.query.id, r.index, r.round, (), "It is 7.", None, "stop",
            9, 0, 1, 0.0,
        )  # fmt: skip

    method = ds.methods.dynamic_only()._replace(schedule=ds.Schedule(stale=1))
    budget = ds.Budget(samples=3)
    ds.scale([FRUIT], ds.FunctionSampler(sample), method, budget)
    assert events == ["asked", "taken", "asked", "asked", "taken", "taken"]


def test_a_function_of_many_requests_is_asked_in_rounds():
    """Without rounds it would be asked for one sample at a time: a function
    that sends its requests to a server together would send one."""
    asked = []

    def sample(requests):
        asked.append(len(requests))
        return sampler({FRUIT: ["7", "8"]}).sample(requests)

    budget = ds.Budget(samples=6)
    found = ds.scale([FRUIT], ds.FunctionSampler(sample), METHOD, budget)
    assert asked[0] == ds.methods.ROUNDS.first_round == 4
    assert found.rounds and not found.events
    cancels = METHOD._replace(cancel=ds.cancelling.tail())
    with pytest.raises(ValueError, match="this sampler has no watch"):
        ds.scale([FRUIT], ds.FunctionSampler(sample), cancels, budget)


def test_what_can_be_watched_is_asked_as_samples_end():
    model = Model(4, 0, lambda r: reply(r, None, 5, text="It is 7."))
    found = ds.scale(["a?", "b?"], model.sampler, METHOD, kind="number")
    assert found.answers == ("7", "7")
    assert len(found.events) == 2 * 16 and not found.rounds
    with pytest.raises(ValueError, match=r"use methods\.in_rounds"):
        ds.scale(["a?"], model.sampler, METHOD, on_round=print)
