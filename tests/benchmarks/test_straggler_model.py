"""Rounds and meetings that were played by hand, and what lengths must be
like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import straggler_model as stragglers
from benchmarks.straggler_model import (
    Lengths,
    Lost,
    Speeds,
    simulate,
    without_rounds,
)
from dynscaling_jax.experiments.shared import partition

SPREAD = Lengths(within=0.3, between=0.5)


def near(waiting, idle):
    return Lost(pytest.approx(waiting), pytest.approx(idle))


@pytest.mark.parametrize("stale", [0, 1, 2])
def test_one_host_waits_for_nobody(stale):
    length_MHS = stragglers.lengths(5, 1, 7, SPREAD, 1, 7, partition)
    assert simulate(length_MHS, 3, stale).waiting == 0


@pytest.mark.parametrize("stale", [0, 1])
def test_equal_lengths_lose_nothing(stale):
    assert simulate(np.ones((4, 3, 6)), 2, stale) == near(0, 0)


def test_two_hosts_that_take_turns_to_be_slow():
    """Steps of A: 4, then 1; of B: 1, then 4. Where they meet, rounds end at
    4 and 8, and each host waits for 3 of 8; where the second round is granted
    at once, both end at 5."""
    length_MHS = np.array([[[4], [1]], [[1], [4]]])
    assert simulate(length_MHS, 1) == near(6 / 16, 6 / 16)
    assert simulate(length_MHS, 1, stale=1) == near(0, 0)


def test_counts_of_one_round_before_still_wait_for_it():
    """A takes 6, 1, 1 and B 1, 1, 1. The third round is granted when the
    first has ended, at 6: B, done at 2, waits 4; A ends at 8, B waits 1
    more."""
    length_MHS = np.array([[[6], [1]], [[1], [1]], [[1], [1]]])
    assert simulate(length_MHS, 1, stale=1) == near(5 / 16, 5 / 16)
    # with counts of two rounds before B goes on to the end, and waits there
    assert simulate(length_MHS, 1, stale=2) == near(5 / 16, 5 / 16)
    # meeting, rounds end at 6, 7 and 8
    assert simulate(length_MHS, 1) == near(5 / 16, 5 / 16)


def test_a_slot_that_is_idle_takes_the_next_sample():
    """Two slots generate 3, 1, 1: the second takes both short ones and ends at
    2; the round ends at 3, the next at 5. 9 of 10 slot-steps are active."""
    length_MHS = np.array([[[3, 1, 1]], [[2, 2, 0]]])
    assert simulate(length_MHS, 2) == near(0, 1 / 10)
    # granted at once, the second slot goes on at 2 and is done at 4
    assert simulate(length_MHS, 2, stale=1) == near(0, 1 / 10)


def test_a_host_without_samples_waits():
    """Of two rounds of one sample each, the other host draws both."""
    length_MHS = np.array([[[2], [0]], [[2], [0]]])
    assert simulate(length_MHS, 1) == near(1 / 2, 1 / 2)


def test_more_hosts_wait_longer_and_old_counts_less():
    waiting = {
        (hosts, stale): simulate(
            stragglers.lengths(8, hosts, 32, SPREAD, 0, 32, partition), 8, stale
        ).waiting
        for hosts in (2, 32)
        for stale in (0, 1)
    }
    assert waiting[32, 0] > waiting[2, 0] > 0
    assert waiting[32, 1] < waiting[32, 0] / 2


@pytest.mark.parametrize(
    ("length_MHS", "slots", "stale"),
    [
        (np.zeros((1, 1, 1)), 1, 0),
        (-np.ones((1, 1, 1)), 1, 0),
        (np.full((1, 1, 1), np.nan), 1, 0),
        (np.ones((1, 1)), 1, 0),
        (np.ones((1, 1, 1)), 0, 0),
        (np.ones((1, 1, 1)), 1, -1),
    ],
)
def test_what_is_no_run(length_MHS, slots, stale):
    with pytest.raises(ValueError, match="not negative|at least one sample"):
        simulate(length_MHS, slots, stale)


def test_lengths_vary_as_asked():
    """Cut at four means, a few per thousand are shorter."""
    arguments = 50, 20, 100, SPREAD, 3, 300, partition
    length_MHS = stragglers.lengths(*arguments)
    assert length_MHS.max() <= stragglers.LONGEST
    drawn = length_MHS[length_MHS > 0]
    assert len(drawn) == 50 * 20 * 100
    assert drawn.mean() == pytest.approx(1, abs=0.02)
    # factors multiply: (1 + 0.3^2)(1 + 0.5^2) - 1
    assert drawn.std() == pytest.approx(0.3625**0.5, rel=0.05)
    np.testing.assert_array_equal(length_MHS, stragglers.lengths(*arguments))


def test_hosts_that_keep_their_questions_stay_slow():
    """All samples of a round are dealt; a host's mean of one half of the
    rounds tells that of the other."""
    alike = Lengths(within=0.1, between=0.8)
    arguments = 20, 10, 30, alike, 0, 5
    length_MHS = stragglers.lengths(*arguments, stragglers.kept)
    count_MH = (length_MHS > 0).sum(2)
    np.testing.assert_array_equal(count_MH.sum(1), 300)
    assert count_MH.std() > 1
    early_H, late_H = (
        half.sum((0, 2)) / (half > 0).sum((0, 2))
        for half in (length_MHS[:10], length_MHS[10:])
    )
    assert np.corrcoef(early_H, late_H)[0, 1] > 0.9


def test_dealt_by_what_is_known_hosts_have_as_much_to_do():
    """The slowest host has a quarter more than the mean where each keeps its
    questions."""
    arguments = 12, 10, 60, Lengths(within=0.1, between=0.8), 0, 30
    over = []
    for deal in (stragglers.kept, partition):
        work_MH = stragglers.lengths(*arguments, deal)[6:].sum(2)
        over.append((work_MH.max(1) / work_MH.mean(1)).mean() - 1)
    assert over[0] > 0.2
    assert over[1] < over[0] / 3


def test_one_more_sample_for_each_that_ends():
    """Two hosts of one slot meet after 4 steps. A generates 3 tokens and B 6,
    of which 2 remain at step 4, when A gets 2 more: both end at 6. A's last
    one is granted then and ends at 7."""
    early, run = without_rounds(np.array([3, 6, 2, 1]), 2, 1, every=4, later=0)
    np.testing.assert_array_equal(run.drawn_MH, [[3, 4], [2, 2], [1, 0]])
    assert early.lost(1) == near(1 / 12, 1 / 12)
    assert run.lost(1) == near(2 / 14, 2 / 14)


def test_a_sample_that_begins_a_meeting_after_its_grant():
    """A's second sample is granted at step 4 and begins at 6, where the last
    is granted, which begins at 8."""
    early, run = without_rounds(np.array([3, 6, 2, 1]), 2, 1, every=4, later=1)
    np.testing.assert_array_equal(
        run.drawn_MH, [[3, 4], [0, 2], [2, 0], [1, 0]]
    )
    assert early.lost(1) == near(3 / 12, 3 / 12)
    assert run.lost(1) == near(6 / 18, 6 / 18)


def test_unequal_hosts_wait_for_the_slowest():
    """A step takes B twice as long: 8, 4 and then, A alone, 1. A waits for 5
    and 2, B for 1."""
    early, run = without_rounds(np.array([3, 6, 2, 1]), 2, 1, every=4, later=0)
    step_MH = np.array([[1, 2]])
    assert early.lost(1, step_MH) == near(7 / 24, 7 / 24)
    assert run.lost(1, step_MH) == near(8 / 26, 8 / 26)


def test_the_host_with_the_most_idle_slots_gets_the_next_sample():
    """Both slots of B are idle after the first steps, and one of A's."""
    _, run = without_rounds(np.array([9, 1, 1, 1, 5]), 2, 2, every=2, later=0)
    np.testing.assert_array_equal(run.drawn_MH[:2], [[3, 2], [2, 2]])


def test_meetings_after_each_step_leave_nothing_idle_before_the_last_grant():
    step_N = np.random.default_rng(0).integers(1, 30, 200)
    early, run = without_rounds(step_N, 3, 4, every=1, later=0)
    assert len(early.busy_MH) > 100
    assert early.lost(4) == near(0, 0)
    assert run.lost(4).idle > 0
    # a sample that begins a meeting later leaves a step idle
    early, _ = without_rounds(step_N, 3, 4, every=1, later=1)
    assert early.lost(4).idle > 0.02


def test_samples_that_all_fit_are_granted_at_the_start():
    early, run = without_rounds(np.array([2, 4]), 1, 2, every=1, later=1)
    assert early.lost(2) == Lost(0, 0)
    assert run.lost(2) == near(0, 1 / 4)


@given(
    steps=st.lists(st.integers(1, 20), min_size=1, max_size=40),
    hosts=st.integers(1, 4),
    slots=st.integers(1, 3),
    every=st.integers(1, 8),
    later=st.integers(0, 2),
)
def test_what_is_drawn_and_lost(steps, hosts, slots, every, later):
    """All tokens are generated. Until the last grant a slot is idle for less
    than the steps to the next meeting and those until the sample begins."""
    parts = without_rounds(np.array(steps), hosts, slots, every, later)
    early, run = parts
    assert run.drawn_MH.sum() == sum(steps)
    assert (run.busy_MH <= np.minimum(run.drawn_MH, every)).all()
    assert (run.drawn_MH <= slots * run.busy_MH).all()
    idle = early.busy_MH.max(1, initial=0).sum() * hosts * slots
    idle -= early.drawn_MH.sum()
    assert 0 <= idle <= len(steps) * (every - 1 + later * every)
    step_MH = stragglers.step_times(
        len(run.busy_MH), hosts, Speeds(0.1, 0.05), 0
    )
    for part in parts:
        for lost in (
            part.lost(slots),
            part.lost(slots, step_MH[: len(part.busy_MH)]),
        ):
            assert -1e-9 <= lost.waiting <= lost.idle + 1e-9 < 1


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [
        ([], (1, 1, 1, 0)),
        ([0], (1, 1, 1, 0)),
        ([1.5], (1, 1, 1, 0)),
        ([[1]], (1, 1, 1, 0)),
        ([1], (0, 1, 1, 0)),
        ([1], (1, 0, 1, 0)),
        ([1], (1, 1, 0, 0)),
        ([1], (1, 1, 1, -1)),
    ],
)
def test_what_is_no_run_without_rounds(steps, numbers):
    with pytest.raises(ValueError, match="a run needs|must be positive"):
        without_rounds(np.array(steps), *numbers)


def test_hosts_keep_most_of_their_speed():
    """It depends on the seed and varies less from meeting to meeting."""
    speeds = Speeds(hosts=0.1, meetings=0.05)
    step_MH = stragglers.step_times(50, 400, speeds, 3)
    assert step_MH.mean() == pytest.approx(1, abs=0.02)
    assert step_MH.mean(0).std() == pytest.approx(0.1, rel=0.15)
    assert step_MH.std(0).mean() == pytest.approx(0.05, rel=0.1)
    fixed = Speeds(hosts=0.1, meetings=0.0)
    step_1H = stragglers.step_times(1, 400, fixed, 3)
    np.testing.assert_allclose(step_MH.mean(0), step_1H[0], rtol=0.04)


def test_the_queue_of_a_run_without_rounds_has_lengths_of_rounds():
    length_N = stragglers.queue(100_000, SPREAD, 3, 6000)
    assert length_N.mean() == pytest.approx(1, abs=0.02)
    assert length_N.std() == pytest.approx(0.3625**0.5, rel=0.05)
    assert length_N.max() <= stragglers.LONGEST
