"""launch.train as a user runs it, killed and gone on with."""

import ast
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import training as fields
from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.experiments.training import encoded, mean_loss, train
from dynscaling_jax.experiments.workdir import locked
from dynscaling_jax.training.sft_examples import encode, read_examples
from dynscaling_jax.types import Message

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.shape.hidden_size=32",
    "--config.shape.num_hidden_layers=1",
    "--config.shape.head_dim=16",
    "--config.shape.intermediate_size=48",
    "--config.shape.max_position_embeddings=256",
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
def examples(tmp_path_factory):
    file = tmp_path_factory.mktemp("lessons") / "plain.jsonl"
    run("lessons", f"--out={file}", "--problems=200", "--steps=1")
    return file


def test_examples_show_attempts(tmp_path):
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


def test_examples_of_arithmetic_and_drills(tmp_path):
    out = tmp_path / "examples.jsonl"
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


def training(examples, workdir, *more):
    return (
        "--config=configs/training.py",
        f"--config.examples=('{examples}',)",
        f"--config.held_out={examples}",
        "--config.batch=8",
        "--config.steps=12",
        "--config.warmup=2",
        "--config.log_every=1",
        "--config.evaluate_every=6",
        "--config.save_every=3",
        f"--workdir={workdir}",
        *more,
    )


def in_process(flags):
    """As launch.train does it, without the seconds that a process takes."""
    config, workdir = fields.get_config(), ""
    for flag in flags:
        name, _, text = flag.removeprefix("--config.").partition("=")
        if flag.startswith("--workdir="):
            workdir = flag.removeprefix("--workdir=")
        elif flag.startswith("--config."):
            with contextlib.suppress(ValueError, SyntaxError):
                text = ast.literal_eval(text)
            config.update_from_flattened_dict({name: text})
    with (  # as a user's JAX is, who has not set what conftest.py sets
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return train(config, Path(workdir))


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
def trained(examples, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run("train", *training(examples, workdir, *SMALL))
    return workdir


def test_the_loss_falls_and_is_logged(trained):
    found = [row for row in losses(trained) if row[1] == "loss"]
    assert [step for step, _, _ in found] == list(range(1, 13))
    assert found[-1][2] < found[0][2]
    held_out = [row for row in losses(trained) if row[1] == "held_out_loss"]
    assert [step for step, _, _ in held_out] == [6, 12]


def test_a_killed_training_goes_on_with_the_same_losses(
    trained, examples, tmp_path
):
    flags = training(examples, tmp_path, *SMALL)
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
    kept = metrics.read_text().partition('{"step": 4,')[0]
    run("train", *flags)
    # saved after 3 steps: those are not taken again, their times would differ
    assert kept.count("\n") == 3 and metrics.read_text().startswith(kept)
    assert losses(tmp_path) == losses(trained)
    one, other = (
        load_model(workdir / "model") for workdir in (tmp_path, trained)
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_a_finished_training_is_not_begun_again(trained, examples):
    before = (trained / "metrics.jsonl").read_text()
    file = trained / "config.json"
    whole = json.loads(file.read_bytes())
    in_process(training(examples, trained, *SMALL))
    # as version 0.1 wrote it
    old = {name: whole[name] for name in ("config", "about")}
    file.write_text(json.dumps(old))
    in_process(training(examples, trained, *SMALL))
    assert json.loads(file.read_bytes()) == old
    file.write_text(json.dumps(whole))
    assert (trained / "metrics.jsonl").read_text() == before


def test_two_devices_learn_the_same(trained, examples, tmp_path):
    """In two parts, too, of which each device reads its own."""
    two = "--xla_force_host_platform_device_count=2"
    flags = (*SMALL, "--config.parts=2")
    run("train", *training(examples, tmp_path, *flags), XLA_FLAGS=two)
    about = json.loads((tmp_path / "config.json").read_bytes())["about"]
    assert about["devices"] == 2
    for one, other in zip(losses(tmp_path), losses(trained), strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-3)


def test_another_config_is_refused(trained, examples):
    flags = training(examples, trained, *SMALL, "--config.batch=4")
    with pytest.raises(ValueError, match="batch was 8, is 4"):
        in_process(flags)


def test_other_examples_in_the_same_file_are_refused(trained, examples):
    """A training whose examples had been written anew went on with them, or
    was taken for done."""
    before = examples.read_text()
    try:
        examples.write_text(before.partition("\n")[2])
        with pytest.raises(ValueError, match=f"another config: {examples} was"):
            in_process(training(examples, trained, *SMALL))
    finally:
        examples.write_text(before)


def test_a_config_that_failed_can_be_mended(examples, tmp_path):
    """A misspelt file was written into the directory's config, and the right
    one refused as another."""
    flags = training(f"{examples}.missing", tmp_path, *SMALL)
    with pytest.raises(FileNotFoundError, match="no file at"):
        in_process(flags)
    flags = training(examples, tmp_path, *SMALL, "--config.longest=9")
    with pytest.raises(ValueError, match="are longer than 9"):
        in_process(flags)
    flags = training(examples, tmp_path, *SMALL, "--config.steps=3")
    in_process(flags)
    assert load_model(tmp_path / "model").config.hidden_size == 32


def test_a_directory_of_something_else_is_left_alone(examples, tmp_path):
    """Its config.json was taken for one that had failed, and written over."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(ValueError, match="no config of a training"):
        in_process(training(examples, tmp_path, *SMALL))
    assert "llama" in (tmp_path / "config.json").read_text()
    assert (tmp_path / "tokenizer").is_dir()


def test_what_is_damaged_is_one_line(trained, examples, tmp_path):
    """Each was a traceback, or wrote over what it found."""
    whole = training(examples, tmp_path, *SMALL)

    def damaged(name, content):
        shutil.rmtree(tmp_path)
        shutil.copytree(trained, tmp_path)
        file = tmp_path / name
        file.write_bytes(content(file.read_bytes()))
        before = file.read_bytes()
        with pytest.raises(ValueError) as error:
            in_process(whole)
        assert file.read_bytes() == before
        return str(error.value)

    assert "is no config of a training" in damaged("config.json", lambda _: b"")
    cut = lambda data: data.replace(b'"step"', b'"stop"', 1)
    assert "metrics.jsonl:1: malformed line" in damaged("metrics.jsonl", cut)


def test_a_state_that_was_cut_gives_way_to_the_one_before(
    trained, examples, tmp_path
):
    """A machine that lost its power ended every start with a traceback."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    newest, before = tmp_path / "state" / "12", tmp_path / "state" / "9"
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    in_process(training(examples, tmp_path, *SMALL))
    assert losses(tmp_path) == losses(trained)
    assert sorted(at.name for at in newest.parent.iterdir()) == ["12", "9"]
    for file in (*newest.rglob("*"), *before.rglob("*")):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read, nor is there an"):
        in_process(training(examples, tmp_path, *SMALL))


def test_a_directory_in_use_or_of_a_run_is_left_alone(
    trained, examples, tmp_path
):
    """Two trainings in one directory tore each other's files; one in that of
    a run wrote over its config.json."""
    with locked(trained), pytest.raises(RuntimeError, match="in use"):
        in_process(training(examples, trained, *SMALL))
    old = Path(__file__).parents[1] / "experiments/run_of_0_1/config.json"
    row = json.loads(old.read_bytes())
    for content in (row, {"schema": 1, "kind": "run", **row}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is not of a training"):
            in_process(training(examples, tmp_path, *SMALL))
        assert json.loads((tmp_path / "config.json").read_bytes()) == content


def test_an_example_ends_as_the_template_ends_a_turn(trained, examples):
    """Where a config names more ends (Qwen's has the end of a document too),
    the last of those was taken, and the model learnt not to end its turn."""
    model = load_model(trained / "model")
    (end,) = model.tokenizer.end_ids
    config = dataclasses.replace(model.config, eos_token_id=(end, 5))
    other = Model(config, model.params, lambda: model.tokenizer)
    assert other.eos_ids[-1] == 5
    data = encoded(list(read_examples(examples))[:3], other, 256, "examples")
    assert (data.ids[data.ends - 1] == end).all()


def test_the_loss_held_out_is_of_all_examples(trained, examples):
    """Whole batches alone were read, and the longest examples left out."""
    model = load_model(trained / "model")
    read = list(read_examples(examples))[:13]
    end = model.tokenizer.end_ids[-1]
    data, _ = encode(read, model.tokenizer, end, 256)
    nats = tokens = 0.0
    for i in range(13):
        begin, start, stop = (
            data.ends[i - 1] * (i > 0),
            data.starts[i],
            data.ends[i],
        )
        ids = data.ids[begin:stop]
        logits = np.asarray(model.logits([ids])[0], np.float64)
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        for at in range(start, len(ids)):
            nats, tokens = nats - log_p[at - 1, ids[at]], tokens + 1
    found = mean_loss(model.params, model.config, data, 4)
    assert found == pytest.approx(nats / tokens, rel=1e-5)


def test_the_model_tunes_on_and_reads_back(trained, examples, tmp_path):
    flags = training(examples, tmp_path, f"--config.model={trained}/model")
    in_process(flags)
    model = load_model(tmp_path / "model")
    ids = model.tokenizer.encode_chat([Message("user", "Ada?")])
    assert np.isfinite(model.logits([ids])).all()
    first = next(row for row in losses(tmp_path) if row[1] == "loss")
    assert first[2] < losses(trained)[0][2]  # it did not begin anew


def test_parts_must_divide_the_batch(examples, tmp_path):
    flags = training(examples, tmp_path, *SMALL, "--config.parts=3")
    with pytest.raises(ValueError, match="multiple of config.parts"):
        in_process(flags)


@pytest.fixture(scope="module")
def attempts(tiny_model, tmp_path_factory):
    """A run of 4 samples each of 6 questions, two of which are made right:
    its letters hold no answer."""
    folder = tmp_path_factory.mktemp("attempts") / "run"
    run(
        "run",
        "--config=configs/reasoner.py",
        f"--config.model={tiny_model}",
        "--config.task.split=train",
        "--config.task.limit=6",
        "--config.budget.samples_per_query=4",
        "--config.engine.max_new_tokens=16",
        f"--workdir={folder}",
    )
    right = json.loads((folder / "references.json").read_bytes())
    file = folder / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        answer = right[row["query_id"]] if row["index"] < 2 else "5000"
        told = f"I tried number {row['index']}. The answer is {answer}."
        row |= {"text": told, "answer": answer, "finish_reason": "stop"}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_of_a_run(attempts, tmp_path):
    """As its chains are: two attempts at most, their last words. Of two right
    samples one is written, so that no pair shows both."""
    out = tmp_path / "pairs.jsonl"
    flags = (f"--run={attempts}", f"--out={out}", "--pairs=36")
    done = run("pairs", *flags)
    table = [line.split()[:4] for line in done.stdout.splitlines()[1:6]]
    counts = {(int(k), int(r)): (int(n), int(of)) for k, r, n, of in table}
    assert counts == {
        (1, 0): (6, 9),
        (1, 1): (6, 9),
        (2, 0): (6, 6),
        (2, 1): (6, 6),
        (2, 2): (0, 6),
    }
    assert done.stdout.count("too few questions have this mixture") == 3
    pairs = made(out)
    assert len(pairs) == 24
    for row in pairs:
        assert row["completion"].startswith("I tried number")
        assert row["completion"] not in row["prompt"][1]["content"]
        assert 1 <= row["prompt"][1]["content"].count("The answer is") <= 2


def test_pairs_with_given_solutions(attempts, tmp_path):
    out, solutions = tmp_path / "pairs.jsonl", tmp_path / "solutions.jsonl"
    flags = (f"--run={attempts}", f"--out={out}", f"--solutions={solutions}")
    like = ("--problems=6", "--steps=5", "--largest=400")  # as the run's
    run("lessons", f"--out={solutions}", *like)
    run("pairs", *flags, "--pairs=6")
    known = {
        row["prompt"][0]["content"]: row["completion"]
        for row in made(solutions)
    }
    pairs = made(out)
    assert len(pairs) == 3 * 1 + 2 * 1
    for row in pairs:
        assert row["completion"] == known[row["prompt"][0]["content"]]
    run("lessons", f"--out={solutions}", *like, "--seed=3")
    done = run("pairs", *flags, check=False)
    assert done.returncode == 1 and "is --solutions of another" in done.stderr
    done = run("pairs", *flags[:2], "--pairs=5", check=False)
    assert done.returncode == 1 and "at least 6 are needed" in done.stderr
