"""The bundled reasoner: what its card says, in small."""

from pathlib import Path

import jax
import numpy as np
import pytest

import dynscaling_jax
from configs import reasoner
from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.inference import Engine
from dynscaling_jax.scaling.chains import Chain, Reader, build
from dynscaling_jax.tasks import extract, shares_problem, with_answers
from dynscaling_jax.types import Message, Query, Request
from projects.reasoner import config as train_reasoner

HOME = Path(dynscaling_jax.__file__).parent / "bundled" / "reasoner"


@pytest.fixture(scope="module")
def engine():
    model = load_model("reasoner")
    return Engine(model, max_new_tokens=200, slots=32, slots_per_group=4)


@pytest.fixture(scope="module")
def problems():
    return [shares_problem(5, i, 1 + i % 5, largest=400) for i in range(40)]


def queries(problems):
    return [
        Query(str(i), (Message("user", p.question),))
        for i, p in enumerate(problems)
    ]


def share_right(samples, problems):
    right = [
        extract(s.text, "number") == str(problems[int(s.query_id)].answer)
        for s in samples
    ]
    return sum(right) / len(right)


def test_is_small():
    size = sum(file.stat().st_size for file in HOME.iterdir())
    assert size < 12e6
    params = load_model("reasoner").params
    assert 1e6 < sum(p.size for p in jax.tree.leaves(params)) < 5e6
    assert (HOME / "README.md").exists()


def test_is_of_the_recipe():
    """The shape of the weights was once another than that of the config that
    is said to have made them."""
    there = load_model("reasoner").config
    for name, value in train_reasoner.get_config().shape.items():
        assert getattr(there, name) == value, name


def test_is_right_now_and_then_and_more_often_after_attempts(engine, problems):
    """A sample that reads two attempts, as configs/reasoner.py shows them, is
    right more often than one that reads the problem alone."""
    asked = [
        Request(q, q.messages, i) for q in queries(problems) for i in range(4)
    ]
    alone = [*with_answers(engine.sample, "number")(asked)]
    assert 0.2 < share_right(alone, problems) < 0.8
    options = reasoner.get_config().chain
    chain = Chain(k=options.k, content=options.content, tail=options.tail)
    draws = np.random.default_rng(0)
    reading = []
    for query in queries(problems):
        pool = [s for s in alone if s.query_id == query.id][:2]
        reader = Reader(engine.count_tokens)
        shown, _ = build(chain, reader, query, pool, draws)
        reading += [Request(query, shown, i) for i in range(4, 8)]
    after = share_right(list(engine.sample(reading)), problems)
    assert after > share_right(alone, problems)
