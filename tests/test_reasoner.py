"""The bundled reasoner: what its card says, in small."""

from pathlib import Path

import jax
import pytest

import dynscaling_jax
from dynscaling_jax.engine import Engine
from dynscaling_jax.models import load_model
from dynscaling_jax.tasks import extract, shares_problem
from dynscaling_jax.types import Message, Query, Request

HOME = Path(dynscaling_jax.__file__).parent / "bundled" / "reasoner"


@pytest.fixture(scope="module")
def engine():
    model = load_model("reasoner")
    return Engine(model, max_new_tokens=200, rows=32, rows_per_group=4)


@pytest.fixture(scope="module")
def problems():
    return [shares_problem(5, i, 1 + i % 5, largest=400) for i in range(24)]


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


def test_is_right_now_and_then(engine, problems):
    asked = [
        Request(q, q.messages, i) for q in queries(problems) for i in range(4)
    ]
    assert 0.2 < share_right(list(engine(asked)), problems) < 0.8
