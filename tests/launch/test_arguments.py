"""A mistake in the flags of a command is one line that says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/reasoner.py"
EXAMPLES = {
    "launch.run": "--config=configs/reasoner.py --workdir=runs/a",
    "benchmarks.speed": "--config=benchmarks/config.py",
    "launch.replay": "--bank=runs/a --out=runs/replay",
    "launch.convert": "--model=smollm2-135m-instruct --out=smollm2",
}


def launch(name, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def said(name, *arguments, **environment):
    done = launch(name, *arguments, **environment)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    start, end = f"{name}: ", "\n"
    assert done.stderr.startswith(start) and done.stderr.endswith(end)
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix(start).removesuffix(end)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("launch.run", "--config and --workdir"),
        ("benchmarks.speed", "--config"),
        ("launch.replay", "--bank and --out"),
        ("launch.convert", "--model and --out"),
    ],
)
def test_without_arguments_it_shows_a_command(name, missing):
    example = f"python -m {name} {EXAMPLES[name]}"
    assert said(name) == f"give {missing}, as in: {example}"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=x", "no flag --model; did you mean --config.model?"),
        ("--limit=3", "no flag --limit; did you mean --config.task.limit?"),
        ("--workdri=x", "no flag --workdri; did you mean --workdir?"),
        ("--nothing=x", "no flag --nothing; --help lists all"),
        ("--config.modl=x", "no field 'modl'; Did you mean \"model\"?"),
        (
            "--config.task.limit=four",
            "flag --config.task.limit=four: expected a whole number",
        ),
        (
            "--config.engine.temperature=hot",
            "flag --config.engine.temperature=hot: expected a number",
        ),
        ("model=x", "what is 'model=x' for?"),
    ],
)
def test_a_slip_is_one_line(flag, message):
    assert message in said("launch.run", CONFIG, "--workdir=x", flag)


@pytest.mark.parametrize(
    ("name", "flags", "empty"),
    [
        ("launch.run", (CONFIG, "--workdir="), "workdir"),
        ("launch.replay", ("--bank=a", "--out="), "out"),
    ],
)
def test_an_unset_variable_is_no_directory(name, flags, empty):
    """--workdir=$RUN of an unset RUN wrote into the current directory."""
    error = said(name, *flags)
    assert error == f"--{empty} is empty; was a variable not set?"


@pytest.mark.parametrize("more", [(), ("--config.task.limit=4",)])
def test_a_config_that_is_not_there(more):
    missing = "--config=configs/nonexistent.py"
    error = said("launch.run", missing, "--workdir=x", *more)
    assert "No such file or directory: 'configs/nonexistent.py'" in error
    assert error.endswith(
        f"expected a file as in: python -m launch.run {EXAMPLES['launch.run']}"
    )


def test_a_field_without_its_config():
    error = said("launch.run", "--config.task.limit=4", "--workdir=x")
    assert error.startswith("give --config, as in: ")


@pytest.mark.parametrize("name", ["launch.run", "launch.convert"])
def test_a_model_of_the_hub_without_a_network(name, tmp_path):
    """No warning for each try, either."""
    model, out = "hf://nobody/nothing", tmp_path / "out"
    flags = {
        "launch.run": (CONFIG, f"--config.model={model}", f"--workdir={out}"),
        "launch.convert": (f"--model={model}", f"--out={out}"),
    }[name]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    error = said(name, *flags, **nowhere)
    assert f"model {model}: could not fetch it from the" in error
    assert error.endswith("Or give a local file or directory.")
    assert not out.exists()


def test_a_run_is_no_model(tmp_path):
    (tmp_path / "samples.jsonl").touch()
    (tmp_path / "config.json").write_text("{}")
    error = said(
        "launch.convert", f"--model={tmp_path}", f"--out={tmp_path / 'out'}"
    )
    assert "this is the directory of a run" in error


def test_help_is_no_mistake():
    assert "--workdir" in launch("launch.run", "--help").stdout


STOPPED = """
import os, signal, sys, threading, time
from launch.arguments import Command, resumable

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.{})
        time.sleep(0)  # where the interrupt is raised, and lost

def work():
    threading.Thread(target=time.sleep, args=(60,)).start()
    Callback()
    time.sleep(60)

resumable(Command("t", (), ""), work)
"""


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
def test_a_stop_is_not_lost_and_waits_for_nothing(stop):
    """One of twenty came within JAX's callback of garbage collection, where
    an exception is printed and forgotten: the run went on. Threads that look
    up a host were waited for."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED.format(stop)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr == "t: stopped; the same command goes on from here\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("launch.bench", "benchmarks.speed"),
        ("launch.pairs", "launch.chain_examples"),
    ],
)
def test_a_command_of_old_says_its_new_name(old, new):
    error = launch(old).stderr
    assert error.startswith(f"{old} is now {new}\n{new}: give --")


def test_names_of_0_1_are_still_read(tmp_path):
    """For one release, with a line that says the name of today. A directory
    of an old name was read as one of the new name."""
    done = launch(
        "launch.run",
        CONFIG,
        f"--workdir={tmp_path}/dynscaling_planted",
        "--config.task.limit=2",
        "--config.engine.rows",
        "8",
        "--config.engine.max_new_tokens=8",
        "--config.method=dynscaling_planted",
        "--config.budget.samples_per_query=3",
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "--config.engine.rows is now --config.engine.slots",
        "dynscaling_planted is now dynscaling_corrupted",
    ):
        assert line in done.stderr
    assert (
        '"slots": 8'
        in (tmp_path / "dynscaling_planted/config.json").read_text()
    )
