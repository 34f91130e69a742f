"""launch.train as a user runs it, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dynscaling_jax.models import load_model
from dynscaling_jax.types import Message

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.shape.width=32",
    "--config.shape.layers=1",
    "--config.shape.head_dim=16",
    "--config.shape.ffn=48",
    "--config.shape.context=256",
    "--config.shape.vocab_size=300",
)


def command(module, *flags):
    return [sys.executable, "-m", f"launch.{module}", *flags]


def run(module, *flags, check=True, **environment):
    done = subprocess.run(
        command(module, *flags),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    file = tmp_path_factory.mktemp("lessons") / "plain.jsonl"
    run("lessons", f"--out={file}", "--problems=200", "--steps=1")
    return file


def test_lessons_show_attempts(tmp_path):
    """From 1 to 3 of them, and some of them wrong."""
    out = tmp_path / "chained.jsonl"
    run("lessons", f"--out={out}", "--problems=60", "--attempts=3")
    shown, wrong = set(), 0
    for line in out.read_text().splitlines():
        row = json.loads(line)
        user, assistant = row["prompt"]
        attempts = assistant["content"].split("\n\n")[1:-1]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        shown.add(len(attempts))
        right = row["completion"].split()[-1]
        wrong += sum(text.split()[-1] != right for text in attempts)
    assert shown == {1, 2, 3} and wrong > 20


def test_lessons_of_arithmetic_and_drills(tmp_path):
    out = tmp_path / "lessons.jsonl"
    run("lessons", f"--out={out}", "--problems=4", "--task=arithmetic")
    assert "begins with" in out.read_text()
    run("lessons", f"--out={out}", "--problems=4", "--drills=3")
    assert out.read_text().count("Work out:") == 4
    flags = (f"--out={out}", "--task=arithmetic", "--attempts=2")
    done = run("lessons", *flags, check=False)
    assert done.returncode == 1 and "--attempts are at problems" in done.stderr
    done = run("lessons", f"--out={out}", "--steps=12", check=False)
    assert done.returncode == 1 and "steps must be at most 11" in done.stderr
    assert out.read_text().count("Work out:") == 4  # what was there stays


def training(lessons, workdir, *more):
    return (
        "--config=configs/training.py",
        f"--config.lessons=('{lessons}',)",
        f"--config.held_out={lessons}",
        "--config.batch=8",
        "--config.steps=12",
        "--config.warmup=2",
        "--config.log_every=1",
        "--config.evaluate_every=6",
        "--config.save_every=3",
        f"--workdir={workdir}",
        *more,
    )


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    named = ("loss", "norm", "held_out_loss")
    return [
        (row["step"], name, row[name])
        for row in rows
        for name in named
        if name in row
    ]


@pytest.fixture(scope="module")
def trained(lessons, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run("train", *training(lessons, workdir, *SMALL))
    return workdir


def test_the_loss_falls_and_is_logged(trained):
    found = [row for row in losses(trained) if row[1] == "loss"]
    assert [step for step, _, _ in found] == list(range(1, 13))
    assert found[-1][2] < found[0][2]
    held_out = [row for row in losses(trained) if row[1] == "held_out_loss"]
    assert [step for step, _, _ in held_out] == [6, 12]


def test_a_killed_training_goes_on_with_the_same_losses(
    trained, lessons, tmp_path
):
    flags = training(lessons, tmp_path, *SMALL)
    child = subprocess.Popen(
        command("train", *flags), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    metrics, until = tmp_path / "metrics.jsonl", time.monotonic() + 200
    while time.monotonic() < until and child.poll() is None:
        if metrics.exists() and '"step": 7,' in metrics.read_text():
            break
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run("train", *flags)
    assert losses(tmp_path) == losses(trained)
    one, other = (
        load_model(workdir / "model") for workdir in (tmp_path, trained)
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_a_finished_training_is_not_begun_again(trained, lessons):
    before = (trained / "metrics.jsonl").read_text()
    run("train", *training(lessons, trained, *SMALL))
    assert (trained / "metrics.jsonl").read_text() == before


def test_two_devices_learn_the_same(trained, lessons, tmp_path):
    two = "--xla_force_host_platform_device_count=2"
    run("train", *training(lessons, tmp_path, *SMALL), XLA_FLAGS=two)
    about = json.loads((tmp_path / "config.json").read_bytes())["about"]
    assert about["devices"] == 2
    for one, other in zip(losses(tmp_path), losses(trained), strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-3)


def test_another_config_is_refused(trained, lessons):
    flags = training(lessons, trained, *SMALL, "--config.batch=4")
    done = run("train", *flags, check=False)
    assert done.returncode == 1
    assert "another batch (8, here 4)" in done.stderr


def test_the_model_tunes_on_and_reads_back(trained, lessons, tmp_path):
    flags = training(lessons, tmp_path, f"--config.model={trained}/model")
    run("train", *flags)
    model = load_model(tmp_path / "model")
    ids = model.tokenizer.encode_chat([Message("user", "Ada?")])
    assert np.isfinite(model.logits([ids])).all()
    first = next(row for row in losses(tmp_path) if row[1] == "loss")
    assert first[2] < losses(trained)[0][2]  # it did not begin anew


def test_parts_must_divide_the_batch(lessons, tmp_path):
    flags = training(lessons, tmp_path, *SMALL, "--config.parts=3")
    done = run("train", *flags, check=False)
    assert done.returncode == 1 and "multiple of config.parts" in done.stderr


def test_pairs_of_a_run(tiny_model, tmp_path):
    """No sample of an untrained model is right: solutions must be given."""
    run(
        "run",
        "--config=configs/reasoner.py",
        f"--config.model={tiny_model}",
        "--config.task.split=train",
        "--config.task.limit=4",
        "--config.budget.samples_per_query=2",
        "--config.engine.max_new_tokens=16",
        f"--workdir={tmp_path / 'run'}",
    )
    # what the model says is replaced: its letters hold no answer
    file = tmp_path / "run" / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row |= {"text": "The answer is 5000.", "answer": "5000"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'pairs.jsonl'}")
    done = run("pairs", *flags, check=False)
    assert done.returncode == 1 and "no question has right" in done.stderr
    solutions = tmp_path / "solutions.jsonl"
    like = ("--problems=4", "--steps=5", "--largest=400")  # as the run's
    run("lessons", f"--out={solutions}", *like)
    run("pairs", *flags, f"--solutions={solutions}", "--pairs=28")
    made = [
        json.loads(line)
        for line in (tmp_path / "pairs.jsonl").read_text().splitlines()
    ]
    known = [json.loads(line) for line in solutions.read_text().splitlines()]
    known = {row["prompt"][0]["content"]: row["completion"] for row in known}
    assert made
    for row in made:
        assert row["completion"] == known[row["prompt"][0]["content"]]
        assert "5000" in row["prompt"][1]["content"]
