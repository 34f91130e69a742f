"""Rounds that were played by hand, and what lengths must be like."""

import numpy as np
import pytest

from benchmarks import straggler_model as stragglers
from benchmarks.straggler_model import Lengths, Lost, simulate
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
