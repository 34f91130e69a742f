"""Real processes that share one model, with two devices each."""

import json
import signal
import time
from pathlib import Path

import pytest

BOUND = 2e-5  # nats, of the mean log-probability of a sample
# What a process says that is left: we end it, or JAX does, which may be sooner.
LEFT = "another process has ended", "another task died"


@pytest.fixture(scope="module")
def together(launch, address, begin):
    """Starts `count` processes, which have four devices together."""

    def started(workdir, count, *further):
        where = address() if count > 1 else ""
        commands = launch(
            workdir,
            count,
            where,
            "--lockstep",
            "--config.mesh=2x2",
            "--config.task.limit=4",
            "--config.budget.samples_per_query=6.0",
            "--config.engine.max_new_tokens=24",
            *further,
        )
        flags = (
            f"--xla_force_host_platform_device_count={4 // count} "
            "--xla_backend_optimization_level=0"
        )
        return begin(commands, XLA_FLAGS=flags)

    return started


def samples(workdir: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (workdir / "samples.jsonl").read_text().splitlines()
    ]


def same(one: list[dict], other: list[dict]) -> None:
    """Texts, and the measures of them to BOUND."""
    assert len(one) == len(other) == 24
    for a, b in zip(one, other, strict=True):
        assert a["logprob"] == pytest.approx(b["logprob"], abs=BOUND)
        for name in ("query_id", "index", "parents", "text", "new_tokens"):
            assert a[name] == b[name]


@pytest.fixture(scope="module")
def alone(together, end, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    (done,) = end(together(workdir, 1))
    assert done[2] == 0, done
    return samples(workdir)


def test_two_processes_draw_what_one_does(together, end, tmp_path, alone):
    done = end(together(tmp_path, 2))
    assert [code for *_, code in done] == [0, 0], done
    assert "the vote" in done[0][0] and "process 1: done" in done[1][0]
    same(samples(tmp_path), alone)
    assert not [*tmp_path.glob("process-*")]  # the second keeps nothing


@pytest.mark.parametrize(
    ("ended", "by"), [(0, signal.SIGKILL), (1, signal.SIGTERM)]
)
def test_one_that_ends_ends_the_other_and_one_goes_on(
    together, end, until_drawn, tmp_path, alone, ended, by
):
    """JAX once took SIGTERM for itself, and the run went on to its end; and
    whoever is left may wait for what the other's devices do not send."""
    running = together(tmp_path, 2)
    own = tmp_path / "samples.jsonl"
    until_drawn(own, running, 200)
    running[ended].send_signal(by)
    begun = time.monotonic()
    ((_, said, code),) = end([running[1 - ended]], 60)
    assert code and any(why in said for why in LEFT), said
    assert time.monotonic() - begun < 60
    ((_, said, code),) = end([running[ended]], 60)
    assert code and (by == signal.SIGKILL or "stopped; the same" in said)
    before = own.read_bytes()
    assert 0 < before.count(b"\n") < 24

    (done,) = end(together(tmp_path, 1))
    assert done[2] == 0, done
    assert own.read_bytes().startswith(before)
    same(samples(tmp_path), alone)


def failed(done, why):
    """Each says why, or that another has ended, which does. JAX once aborted
    the second, here too, before it had said a word of its own."""
    said = [error for _, error, _ in done]
    assert all(code for *_, code in done), done
    assert any(why in one for one in said), done
    assert all(any(end in one for end in (why, *LEFT)) for one in said), said


def test_all_devices_must_be_taken(together, end, tmp_path):
    failed(
        end(together(tmp_path, 2, "--config.mesh=2x1")),
        "mesh=2x1 takes 2 of the 4 devices that the processes have together",
    )


def test_an_endpoint_is_no_model_to_share(together, end, tmp_path):
    model = "--config.model=openai://any@http://127.0.0.1:1/v1"
    failed(end(together(tmp_path, 2, model)), "shares a local model, not an")
