"""Plain questions in, answers out; models are stubs."""

import pytest

import dynscaling_jax as ds

FRUIT = "How many apples are 3 and 4 apples?"
CHOICE = "Which is even?\n(A) 3\n(B) 4"


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


def test_one_text_is_no_list():
    with pytest.raises(ValueError, match="a list of texts, got one text"):
        ds.scale(FRUIT, sampler({FRUIT: ["7"]}))


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
