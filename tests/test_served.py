"""Against a real server of a real model: `transformers serve`.

It needs torch, which `make parity` installs, and is skipped without.
DYNSCALING_TRANSFORMERS names its command where it is in another environment.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVER = Path(
    os.environ.get("DYNSCALING_TRANSFORMERS")
    or Path(sys.executable).with_name("transformers")
)
MODEL = "smollm2-135m-instruct"
STARTING = 120  # seconds

pytestmark = pytest.mark.skipif(
    not SERVER.exists(), reason="no `transformers serve`; see make parity"
)


def launch(name, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def run(model, workdir, *flags):
    return launch(
        "run",
        "--config=configs/smollm2_arithmetic.py",
        f"--config.model={model}",
        f"--workdir={workdir}",
        "--config.task.limit=2",
        "--config.budget.samples_per_query=2.0",
        "--config.engine.max_new_tokens=24",
        *flags,
    )


def rows(workdir):
    lines = (workdir / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The URL of the model, as launch.convert writes it, behind the server."""
    folder = tmp_path_factory.mktemp("served") / "smollm2"
    done = launch("convert", f"--model={MODEL}", "--to=hf", f"--out={folder}")
    assert done.returncode == 0, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        server = subprocess.Popen(
            [SERVER, "serve", folder, "--host=127.0.0.1", f"--port={port}",
             "--device=cpu", "--dtype=float32"],
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        until = time.monotonic() + STARTING
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                url = f"http://127.0.0.1:{port}"
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"openai://{folder}@{url}/v1"
    finally:
        server.kill()
        server.wait()


def test_what_a_server_draws_is_what_the_engine_draws(served, tmp_path):
    """The likeliest tokens of the same prompts, of the same weights."""
    greedy = "--config.engine.temperature=0.0"
    done = run(served, tmp_path / "served", greedy)
    assert done.returncode == 0, done.stderr
    done = run(MODEL, tmp_path / "own", greedy)
    assert done.returncode == 0, done.stderr
    theirs, ours = rows(tmp_path / "served"), rows(tmp_path / "own")
    names = ("query_id", "index", "text", "finish_reason", "new_tokens")
    assert len(ours) == 4
    for one, other in zip(theirs, ours, strict=True):
        assert [one[n] for n in names] == [other[n] for n in names]
        assert one["prompt_tokens"] == other["prompt_tokens"]


def test_a_method_of_chains_runs_at_a_server(served, tmp_path):
    done = run(
        served,
        tmp_path,
        "--config.method=dynscaling",
        "--config.budget.samples_per_query=3.0",
        "--config.budget.first_round_per_query=2.0",
    )
    assert done.returncode == 0, done.stderr
    assert "the vote" in done.stdout
    drawn = rows(tmp_path)
    assert len(drawn) == 6
    assert {row["finish_reason"] for row in drawn} <= {"stop", "length"}
    assert all(row["text"] for row in drawn)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.engine.top_k=5", "HTTP 422: Unexpected fields"),
        ('--config.endpoint.extra_body={"model": "x"}', "HTTP 400: Server is"),
    ],
)
def test_what_a_server_refuses_is_told_in_its_words(
    served, tmp_path, flag, said
):
    done = run(served, tmp_path, flag)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not rows(tmp_path)
