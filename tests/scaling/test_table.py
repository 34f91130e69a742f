import operator
import random

import numpy as np

from dynscaling_jax.scaling.table import Table
from dynscaling_jax.types import Message, Query, Sample

QUERIES = [Query(id, (Message("user", "?"),)) for id in "ab"]


def sample(id, index, answer, **measures):
    return Sample(
        id, index, 0, (), f"text {index}", answer, "stop", 5, 0, 7 + index,
        1.0, **measures,
    )  # fmt: skip


def table(same=operator.eq, weights=()):
    return Table(QUERIES, 4, lambda _: same, weights)


def test_answers_are_numbered_in_the_order_of_the_samples():
    """Not in the order of arrival, which differs between runs."""
    drawn = [
        sample("a", 0, "x"), sample("a", 1, None), sample("a", 2, "y"),
        sample("b", 0, "y"), sample("a", 3, "x"),
    ]  # fmt: skip
    for seed in range(5):
        random.Random(seed).shuffle(drawn)
        t = table()
        t.add(drawn)
        packed = t.candidates()
        assert packed.answer_QN.tolist() == [[0, -1, 1, 0], [0, -1, -1, -1]]
        assert packed.tokens_QN.tolist() == [[7, 8, 9, 10], [7, 0, 0, 0]]
        assert packed.count_Q.tolist() == [4, 1]
        assert t.free_Q.tolist() == [0, 3]
        assert t.texts(np.array([1, -1])) == ("y", None)
        assert [s.index for s in t.samples[0]] == [0, 1, 2, 3]


def test_equivalent_answers_do_not_split_the_vote():
    """A public implementation compared strings: 0.5 and 1/2 were two answers,
    and a third one with fewer voices won."""
    asked = []

    def same(first, second):
        asked.append((first, second))
        return eval(first) == eval(second)

    t = table(same)
    t.add([sample("a", i, s) for i, s in enumerate(["1/2", "3", "0.5"])])
    t.add([sample("a", 3, "0.5"), sample("b", 0, "0.5")])
    packed = t.candidates()
    assert packed.answer_QN.tolist() == [[0, 1, 0, 0], [0, -1, -1, -1]]
    # asked for each new text alone; and classes are of a query
    assert asked == [("1/2", "3"), ("1/2", "0.5")]
    assert [s.answer for s in t.samples[0]] == ["1/2", "3", "1/2", "1/2"]
    assert t.samples[1][0].answer == "0.5"


def test_each_reader_gets_its_own_weights():
    t = table(weights=["logprob", "tail"])
    t.add([sample("a", 0, "x", logprob=-1.0, signals={"tail": 3.0})])
    assert t.candidates("logprob").weight_QN[0, 0] == -1
    assert t.candidates("tail").weight_QN[0, 0] == 3
    assert not t.candidates().weight_QN.any()
    assert t.candidates([[5.0], []]).weight_QN.tolist()[0] == [5, 0, 0, 0]


def test_candidates_are_a_snapshot():
    """jnp.asarray may share memory with NumPy: arrays that a policy had been
    given then changed under its hands as the next round was added."""
    t = table()
    before = t.candidates()
    t.add([sample("a", 0, "x")])
    assert before.count_Q.tolist() == [0, 0]
    assert before.answer_QN.max() == -1
