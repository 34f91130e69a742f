"""What a run says of its own time."""

import sys
import time

import pytest

from dynscaling_jax.experiments.metrics import Metrics
from dynscaling_jax.types import Budget, Message, Query, Request, Sample

QUERY = Query("q", (Message("user", "?"),))
REQUESTS = [Request(QUERY, QUERY.messages, i) for i in range(4)]


def slow(requests):
    for r in requests:
        time.sleep(0.01)
        yield Sample("q", r.index, 0, (), "", "1", "stop", 1, 0, 5, 1.0)


def session(workdir, sample_fn, pause, points):
    """Draws twice two samples, with a pause between; the loop's share."""
    metrics = Metrics(
        workdir,
        Budget(samples=4),
        add_point=lambda step, values: points.append((step, *values)),
    )
    draw = metrics.with_progress(metrics.metered(sample_fn))
    assert len(list(draw(REQUESTS[:2]))) == 2
    time.sleep(pause)
    assert len(list(draw(REQUESTS[2:]))) == 2
    metrics.close()
    return metrics.loop_share()


def test_the_loops_share_is_that_of_the_sessions_that_drew(tmp_path):
    """A run that was finished and is started again reads its log alone; its
    share was taken for the run's, and three repetitions gave three figures."""
    points = []
    share = session(tmp_path, slow, 0.2, points)
    assert 0.5 < share < 1
    # once more, all of it from the log: nothing is counted as drawn
    again = Metrics(tmp_path, Budget(samples=4))
    list(again.with_progress(lambda requests: slow(requests))(REQUESTS))
    again.close()
    assert again.loop_share() == pytest.approx(share, abs=0.01)
    # curves count samples, on a terminal or not
    assert points[-1] == (4, "new_tokens_per_second")


@pytest.mark.parametrize(
    ("budget", "shown"),
    [
        (Budget(samples=8), "| 4/8 ["),
        (Budget(samples=99, new_tokens=40), "| 20.0/40.0 ["),
        (Budget(total_tokens=48), "| 24.0/48.0 ["),
        (Budget(flops=8.0), "| 4.00/8.00 ["),
        (Budget(), "run, 1 question: 4sample ["),
    ],
)
def test_a_terminal_shows_what_is_left_of_the_budget(
    tmp_path, monkeypatch, capsys, budget, shown
):
    """Under a cap of tokens it showed samples without an end."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("COLUMNS", raising=False)
    workdir = tmp_path / "run"
    workdir.mkdir()
    metrics = Metrics(workdir, budget, questions=1)
    list(metrics.with_progress(metrics.metered(slow))(REQUESTS))
    metrics.close()
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert last.startswith("run, 1 question: ") and shown in last
    assert "tokens/s]" in last
