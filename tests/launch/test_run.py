"""The command as a user runs it: real processes, a tiny model."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynscaling_jax.experiments.bank import load_bank

ROOT = Path(__file__).parents[2]
PER_QUERY, QUERIES = 12, 6
# A random model ends no text by itself, and what is cut off has no answer.
ENDS = "--config.engine.stop=('a', 'e', 'i', 'o', 'u', 'n', 'r', 's', 't')"


def command(tiny_model, workdir, *more):
    return [
        sys.executable,
        "-m",
        "launch.run",
        f"--config={ROOT}/configs/smollm2_arithmetic.py",
        f"--config.model={tiny_model}",
        f"--config.task.limit={QUERIES}",
        f"--config.budget.samples_per_query={PER_QUERY}",
        "--config.engine.max_new_tokens=48",
        "--config.engine.slots=8",
        "--config.engine.slots_per_group=4",
        ENDS,
        f"--workdir={workdir}",
        *more,
    ]


def run(tiny_model, workdir, *more):
    return subprocess.run(
        command(tiny_model, workdir, *more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(tiny_model, workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


def rows(workdir):
    file = workdir / "samples.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_writes_the_files_of_a_run(undisturbed):
    workdir, done = undisturbed
    summary = json.loads((workdir / "summary.json").read_text())
    wanted = """task model strategy policy vote queries samples prompt_tokens
    cached_tokens new_tokens flops seconds new_tokens_per_second accuracy
    accuracy_ci95 pass_at_1 unparsed"""
    assert set(wanted.split()) <= set(summary)
    drawn = rows(workdir)
    keys = [(r["query_id"], r["index"]) for r in drawn]
    assert len(set(keys)) == len(keys) == PER_QUERY * QUERIES
    assert summary["samples"] == len(keys)
    for field in ("new_tokens", "prompt_tokens", "cached_tokens", "flops"):
        assert summary[field] == pytest.approx(sum(r[field] for r in drawn))
    low, high = summary["accuracy_ci95"]
    assert low <= summary["accuracy"] <= high
    assert "the vote" in done.stdout
    assert done.stdout.endswith(f"report      {workdir}/report.html\n")
    assert (workdir / "report.html").exists()
    # the kind decides what is read as an answer: a wrong guess must be seen
    line = f"task        arithmetic, {QUERIES} questions, answers: number\n"
    assert done.stdout.startswith(line)
    granted = [
        json.loads(line)["grants"]
        for line in (workdir / "rounds.jsonl").read_text().splitlines()
    ]
    assert sum(sum(g.values()) for g in granted) == len(keys)


def test_quiet_when_not_a_terminal(undisturbed):
    _, done = undisturbed
    assert done.stderr == ""


IN_ROUNDS = ("--config.method=dynscaling", "--config.budget.schedule=rounds")


@pytest.fixture(scope="module")
def in_rounds(tiny_model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rounds")
    done = run(tiny_model, workdir, *IN_ROUNDS)
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture(scope="module")
def dynscaling(tiny_model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dynscaling")
    done = run(tiny_model, workdir, "--config.method=dynscaling")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_rounds_that_overlap_and_curves_of_them(tiny_model, tmp_path):
    """Rounds are granted while the last one is drawn; TensorBoard gets a
    curve of the rate and one of the uncertainty."""
    done = run(
        tiny_model,
        tmp_path,
        "--config.method=dynscaling",
        "--config.budget.stale_rounds=1",
        "--tensorboard",
    )
    assert done.returncode == 0, done.stderr
    drawn = rows(tmp_path)
    assert len(drawn) == PER_QUERY * QUERIES
    assert [r["round"] for r in drawn] == sorted(r["round"] for r in drawn)
    round_of = {(r["query_id"], r["index"]): r["round"] for r in drawn}
    read = [
        row["round"] - round_of[row["query_id"], parent]
        for row in drawn
        for parent in row["parents"]
    ]
    # but for the second round, which begins when the first is whole
    assert min(read) == 1 and sum(behind == 1 for behind in read) < len(read)
    (file,) = (tmp_path / "tensorboard").iterdir()
    written = file.read_bytes()
    assert b"uncertainty" in written and b"new_tokens_per_second" in written


def test_without_rounds_chains_hold_what_had_ended(dynscaling):
    workdir = dynscaling[0]
    drawn = {(r["query_id"], r["index"]): r for r in rows(workdir)}
    events = (workdir / "events.jsonl").read_text().splitlines()
    ended, granted, chained = set(), set(), 0
    for event in map(json.loads, events):
        key = event["query"], event["index"]
        if event["event"] == "grant":
            parents = {(event["query"], i) for i in event["parents"]}
            assert parents <= ended
            assert drawn[key]["parents"] == event["parents"]
            chained += bool(parents)
            granted.add(key)
        else:
            ended.add(key)
    assert ended == granted == drawn.keys() and chained
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["rounds"] == 0 and summary["steps"]


def test_integrated_samples_name_their_parents(in_rounds):
    drawn = rows(in_rounds[0])
    round_of = {(r["query_id"], r["index"]): r["round"] for r in drawn}
    chained = [r for r in drawn if r["parents"]]
    assert chained
    for row in chained:
        assert all(
            round_of[row["query_id"], parent] < row["round"]
            for parent in row["parents"]
        )
    lines = (in_rounds[0] / "rounds.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["grants"].keys() == line["uncertainty"].keys()
        assert all(0 <= u <= 1 for u in line["uncertainty"].values())


def test_options_of_chains(tiny_model, tmp_path):
    """They hold for what builds chains, and the summary says so."""
    options = ("--config.chain.explore=2", "--config.chain.k=1")
    done = run(tiny_model, tmp_path, "--config.method=dynscaling", *options)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["strategy"] == "integrated(explore=2, k=1)"
    drawn = rows(tmp_path)
    assert max(len(r["parents"]) for r in drawn) == 1
    assert any(r["parents"] for r in drawn if r["index"] in (2, 3))


@pytest.mark.parametrize(
    ("fixture", "chosen", "moments"),
    [
        (
            "undisturbed",
            ("--config.method=self_consistency",),
            (1, 5, 20, 50, 71),
        ),
        ("in_rounds", IN_ROUNDS, (12, 30, 37, 60)),
        ("dynscaling", ("--config.method=dynscaling",), (1, 12, 37, 60)),
    ],
)
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    tiny_model, request, tmp_path, fixture, chosen, moments
):
    """A kill -9 once that many rows are written, wherever the run is then:
    within a round or between two, or without rounds."""
    whole = request.getfixturevalue(fixture)[0]
    delay = random.Random(str(moments))
    for moment in moments:
        process = subprocess.Popen(
            command(tiny_model, tmp_path, *chosen),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        file = tmp_path / "samples.jsonl"
        while process.poll() is None:
            if file.exists() and file.read_bytes().count(b"\n") >= moment:
                time.sleep(delay.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.002)
    done = run(tiny_model, tmp_path, *chosen)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) == rows(whole)  # says what differs
    steps = "events" if fixture == "dynscaling" else "rounds"
    for name in ("samples.jsonl", f"{steps}.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (
        json.loads((d / "summary.json").read_text()) for d in (tmp_path, whole)
    )
    for clock in ("seconds", "new_tokens_per_second", "loop_share"):
        ours.pop(clock), theirs.pop(clock)
    assert ours == theirs


def test_started_again_when_whole_it_draws_nothing(tiny_model, undisturbed):
    workdir, _ = undisturbed
    files = ("samples.jsonl", "metrics.jsonl", "summary.json")
    before = {name: (workdir / name).read_bytes() for name in files}
    done = run(tiny_model, workdir)
    assert done.returncode == 0
    for name, bytes in before.items():
        assert (workdir / name).read_bytes() == bytes


def test_a_budget_may_be_tokens_alone(tiny_model, tmp_path):
    """The cap on samples can be taken away by a flag."""
    done = run(
        tiny_model,
        tmp_path,
        "--config.budget.samples_per_query=inf",
        "--config.budget.new_tokens=300",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stopped"] == "new_tokens"
    assert summary["new_tokens"] <= 300 + 48


def test_what_a_vote_asks_has_a_log_of_its_own(tiny_model, tmp_path):
    """Its rows once stood among the samples, under query ids that a task
    could have too, and a bank read them as questions."""
    chosen = ("--config.vote=universal", "--config.task.kind=text")
    done = run(tiny_model, tmp_path, *chosen)
    assert done.returncode == 0, done.stderr
    ids = {row["query_id"] for row in rows(tmp_path)}
    assert not any("#" in id for id in ids)
    asked = (tmp_path / "vote" / "samples.jsonl").read_bytes()
    assert asked.count(b"#universal") == len(ids)
    load_bank(tmp_path / "samples.jsonl")
    summary = (tmp_path / "summary.json").read_bytes()
    assert run(tiny_model, tmp_path, *chosen).returncode == 0
    assert (tmp_path / "vote" / "samples.jsonl").read_bytes() == asked
    assert (tmp_path / "summary.json").read_bytes() == summary


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_how_to_go_on(tiny_model, tmp_path, stop):
    process = subprocess.Popen(
        command(
            tiny_model, tmp_path, "--config.budget.samples_per_query=2000.0"
        ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "samples.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "the same command goes on" in error
    assert "Traceback" not in error


def one_line(done):
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model=nowhere.gguf", "no such file"),
        ("--config.task.name=riddles", "unknown task 'riddles'"),
        ("--config.method=guess", "unknown method 'guess'"),
        ("--config.policy=greedy", "unknown policy 'greedy'"),
        ("--config.policy=ucb(d=1)", "no argument 'd'"),
        ("--config.budget.samples_per_query=0.5", "less than one"),
        ("--config.budget.samples_per_query=0", "less than one sample for"),
        ("--config.engine.temperature=-1.0", "temperature must lie in"),
        ("--config.engine.groups=8", "groups='8': expected auto"),
        ("--config.dtype=float8", "dtype must be one of"),
        ("--config.task.system_prompt=" + "word " * 1200, "context"),
    ],
)
def test_bad_input_is_one_line_and_nothing_half_written(
    tiny_model, tmp_path, flag, message
):
    workdir = tmp_path / "run"
    assert message in one_line(run(tiny_model, workdir, flag))
    assert not workdir.exists()


def test_an_unknown_field_is_named(tiny_model, tmp_path):
    """It was three tracebacks."""
    done = run(tiny_model, tmp_path / "run", "--config.task.limits=3")
    assert "no field 'limits'; Did you mean \"limit\"?" in one_line(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ('{"thinking": false}', "no variable 'thinking'; it reads: none"),
        ("thinking=false", "'thinking=false' is not JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_template_variables_that_nothing_reads(
    tiny_model, tmp_path, value, error
):
    done = run(tiny_model, tmp_path, f"--config.template_variables={value}")
    assert error in one_line(done)


def test_a_workdir_of_another_config_is_refused(tiny_model, undisturbed):
    workdir, _ = undisturbed
    before = (workdir / "config.json").read_bytes()
    error = one_line(run(tiny_model, workdir, "--config.seed=7"))
    assert "seed" in error
    assert (workdir / "config.json").read_bytes() == before


def test_two_runs_on_one_workdir(tiny_model, tmp_path):
    first = subprocess.Popen(
        command(tiny_model, tmp_path),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (tmp_path / "samples.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        assert "another run" in one_line(run(tiny_model, tmp_path))
    finally:
        first.send_signal(signal.SIGCONT)
        first.kill()
        first.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(tiny_model, undisturbed, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        workdir = mount / "run"
        error = one_line(run(tiny_model, workdir))
        assert "No space left" in error
        subprocess.run(
            ["mount", "-o", "remount,size=8m", str(mount)], check=True
        )
        done = run(tiny_model, workdir)
        assert done.returncode == 0, done.stderr
        whole = (undisturbed[0] / "samples.jsonl").read_bytes()
        assert (workdir / "samples.jsonl").read_bytes() == whole
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
