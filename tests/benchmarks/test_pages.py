"""The goals of pages, in runs scaled down to a sixteenth."""

import json

import numpy as np
import pytest

from benchmarks import pages
from dynscaling_jax.inference.paged.scheduler import Limits
from dynscaling_jax.inference.slot import Prompt

CAP = 2048
LIMITS = Limits(
    parts=1,
    slots=1,
    pages=3000,
    page=8,
    chunk=32,
    steps=8,
    rows=16,
    context=2 * CAP,
    max_new_tokens=CAP,
)


def scaled(questions: int, samples: int):
    """Prompts of 12 to 37 tokens, samples of 2,048 at most."""
    work = pages.made_up(questions, samples, CAP)
    prompts = [Prompt(p.ids[: len(p.ids) // 16], (), 0) for p in work.prompts]
    return work._replace(prompts=tuple(prompts))


@pytest.mark.parametrize("parts", [1, 2])
def test_pages_hold_little_more_than_is_live_and_rows_are_busy(parts):
    work = scaled(20, 32)
    live = pages.live_tokens(work)
    pool = LIMITS.pages * LIMITS.page
    rows = pages.rows_of(live, pool, parts)
    outcome = pages.simulate(work, LIMITS._replace(parts=parts, slots=rows))
    assert outcome.held <= 1.1
    assert outcome.held_at_peak <= 1.1
    assert outcome.idle <= 0.05
    assert outcome.lost <= 0.1
    # the memory is used, and no row is there in vain
    assert outcome.filled >= 0.75
    held, _ = pages.classes(work, rows, 64)
    assert 1.3 < held < 1.5  # as keys that double do


def test_a_pool_for_all_loses_nothing():
    outcome = pages.simulate(
        scaled(6, 8), LIMITS._replace(slots=8, pages=20_000)
    )
    assert (outcome.lost, outcome.preempted) == (0, 0)
    assert outcome.idle < 0.02


def test_rows_do_not_wait_for_long_prompts():
    """Chains, each of its own: 13 chunks of prefill a sample, one of which
    ends in some 160 steps. With 32 steps between any two chunks four rows
    would be idle half of the time."""
    work = scaled(200, 1)
    prompts = [
        Prompt((q, *range(399)), (), 0) for q in range(len(work.prompts))
    ]
    work = work._replace(prompts=tuple(prompts))
    outcome = pages.simulate(work, LIMITS._replace(slots=4, steps=32))
    assert outcome.idle <= 0.05
    assert outcome.held <= 1.1


def test_more_rows_than_memory_lose_tokens():
    work = scaled(12, 16)
    fitting = pages.rows_of(pages.live_tokens(work), 1000 * 8, 1)
    few, many = (
        pages.simulate(work, LIMITS._replace(pages=1000, slots=rows))
        for rows in (fitting, 3 * fitting)
    )
    assert many.lost > few.lost
    assert many.idle > 0.3


def test_one_row_in_length_classes_holds_what_can_be_counted():
    """A sample of 192 tokens behind 64 holds 64, 128 and 256 positions: on
    average 256, while 64 to 256 are live."""
    prompt = Prompt(tuple(range(64)), (), 0)
    work = pages.Work((prompt,), np.full((1, 2), 192))
    now = np.arange(64, 256)
    held = np.where(now <= 64, 64, np.where(now <= 128, 128, 256))
    assert pages.classes(work, 1, 64)[0] == pytest.approx(
        (held / now).mean(), rel=0.02
    )


def test_a_live_row_has_its_prompt_and_half_of_its_sample():
    """A row has 100 tokens for 100 steps and 300 for 300 steps: behind a
    prompt of 10, 60 and 160 live ones on average."""
    prompt = Prompt(tuple(range(10)), (), 0)
    work = pages.Work((prompt,), np.array([[100, 300]]))
    assert pages.live_tokens(work) == pytest.approx((60 + 3 * 160) / 4)
    assert pages.rows_of(135, 1350, 2) == 2 * 8


def test_a_bank_is_read_and_cut(tmp_path):
    path = tmp_path / "bank.jsonl"
    row = {"query_id": "q", "answers": [], "new_tokens": [5, 900, 0, 7]}
    path.write_text(json.dumps(row) + "\n")
    work = pages.read(path, samples=3, cap=100)
    assert work.length_QN.tolist() == [[5, 100, 1]]
    assert 200 <= len(work.prompts[0].ids) <= 600
