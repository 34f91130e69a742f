"""Batch workers: batches of a small model that decode side by side."""

import os
import threading

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from dynscaling_jax.inference import Engine
from dynscaling_jax.inference.grouped import layout, prefill, runner
from dynscaling_jax.types import Message, Query, Request

SLOTS = 2 * layout.WORKER_SLOTS
SHAPE = {"slots": SLOTS, "slots_per_group": 4, "max_new_tokens": 24}
QUERIES = [Query(f"q/{i}", (Message("user", "x" * i),)) for i in range(10)]
COUNTS = st.lists(st.integers(1, 70), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(num_hidden_layers=1, eos_token_id=(258, 11, 50))


@pytest.fixture
def workers(monkeypatch):
    """Gives engines so many cores."""
    return lambda count: monkeypatch.setattr(os, "cpu_count", lambda: count)


@pytest.fixture
def cpu_mesh():
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))


def ask(queries, indices):
    return [Request(q, q.messages, i) for q in queries for i in indices]


def by_name(samples):
    return {(s.query_id, s.index): s for s in samples}


def test_one_for_each_core_that_has_slots(workers):
    workers(4)
    small = layout.SMALL
    counts = [layout.workers(n, small) for n in (8, 64, 128, 512)]
    assert counts == [1, 2, 4, 4]
    assert layout.workers(512, small + 1) == 1


def test_partition_by_hand():
    """Two workers, the first with 3 samples, and 2 + 2 + 9 in fours:
    8 is a share, so the last prompt is cut."""
    parts = layout.partition([2, 2, 9], [3, 0], 4)
    assert parts == [(1, 0, 0, 2), (1, 1, 0, 2), (0, 2, 0, 8), (1, 2, 8, 9)]


@given(COUNTS, st.integers(1, 5), st.integers(1, 8))
def test_each_sample_is_partitioned_once_and_evenly(counts, workers, unit):
    parts = layout.partition(counts, [0] * workers, unit)
    samples = [(n, i) for _, n, first, end in parts for i in range(first, end)]
    assert sorted(samples) == [
        (n, i) for n, c in enumerate(counts) for i in range(c)
    ]
    share = -(-sum(counts) // (workers * unit)) * unit
    loads = [0] * workers
    for worker, _, first, end in parts:
        loads[worker] += end - first
    assert max(loads) - min(loads) <= share
    uncut = [n for n, count in enumerate(counts) if count <= share]
    for number in uncut:  # stays with one worker
        assert sum(n == number for _, n, _, _ in parts) == 1


def test_samples_are_those_of_one_worker(model, workers):
    """Of calls that overlap, too, and after one that is left."""
    work = ask(QUERIES, range(9))
    workers(1)
    alone = by_name(Engine(model, **SHAPE).sample(work))
    workers(2)
    engine = Engine(model, **SHAPE)
    assert engine.slot_counts == (8, 16, 32)
    one, other = engine.sample(work[:45]), engine.sample(work[45:])
    assert by_name([next(one), next(other), *one, *other]) == alone
    left = engine.sample(work)
    next(left)
    del left
    assert by_name(engine.sample(work)) == alone


def test_workers_decode_at_the_same_time(model, workers, monkeypatch):
    """Each waits within a chunk until the other is in one."""
    workers(2)
    both = threading.Barrier(2, timeout=60)
    chunk, met = runner.decode, []

    def meeting(*args):
        if not met:
            both.wait()
            met.append(threading.current_thread().name)
        return chunk(*args)

    monkeypatch.setattr(runner, "decode", meeting)
    assert len([*Engine(model, **SHAPE).sample(ask(QUERIES, range(4)))]) == 40
    assert met


def test_a_prompt_is_computed_by_one_worker(model, workers, monkeypatch):
    workers(2)
    compute, count = prefill.prefill, []

    def counting(*args):
        count.append(1)
        return compute(*args)

    monkeypatch.setattr(prefill, "prefill", counting)
    engine = Engine(model, **SHAPE)
    assert len([*engine.sample(ask(QUERIES, range(8)))]) == 80
    assert len(count) == len(QUERIES)
    assert (
        len([*engine.sample(ask(QUERIES[:1], range(8, 72)))]) == 64
    )  # both know it
    assert len(count) == len(QUERIES)


def test_a_worker_that_fails_fails_the_call(model, workers, monkeypatch):
    workers(2)
    engine = Engine(model, **SHAPE)
    chunk = runner.decode

    def failing(*args):
        raise MemoryError("no room")

    monkeypatch.setattr(runner, "decode", failing)
    with pytest.raises(MemoryError, match="no room"):
        next(engine.sample(ask(QUERIES, range(4))))
    monkeypatch.setattr(runner, "decode", chunk)
    assert len([*engine.sample(ask(QUERIES, range(4)))]) == 40
