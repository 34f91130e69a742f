"""What a config makes of a run: its schedule, its engine."""

import json
import math
import shutil
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from dynscaling_jax.experiments.config import (
    get_config,
    get_training_config,
    typed,
)
from dynscaling_jax.experiments.configured import (
    endpoint_sampler,
    method_axes,
    method_of,
    polls_every,
    run_config,
)
from dynscaling_jax.methods import METHODS, ROUNDS, WITHOUT_ROUNDS
from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.types import Schedule, Watch
from tests.arriving import reply


def schedule(method, parts=(), **budget):
    config = get_config()
    config.method = method
    config.update(dict(parts))
    for name, value in budget.items():
        config.budget[name] = value
    fields = typed(config)
    return method_of(fields, method_axes(fields)).schedule


@pytest.mark.parametrize("name", METHODS)
def test_by_default_a_method_has_its_own_schedule(name):
    assert schedule(name) == METHODS[name]().schedule


def test_rounds_are_an_option_and_the_papers():
    assert schedule("dynscaling") == WITHOUT_ROUNDS
    assert schedule("dynscaling_ucb") == ROUNDS
    # as before there was another schedule
    assert schedule("dynamic_only", schedule="rounds") == Schedule()
    assert schedule("dynscaling", schedule="rounds") == ROUNDS
    assert schedule("dynscaling_ucb", schedule="async") == WITHOUT_ROUNDS
    # fields of rounds ask for them
    assert schedule("dynscaling", stale_rounds=1) == ROUNDS._replace(stale=1)
    found = schedule("dynscaling", round_per_query=0.25)
    assert found == ROUNDS._replace(later_rounds=0.25)
    with pytest.raises(ValueError, match="are of rounds"):
        schedule("dynscaling", schedule="async", stale_rounds=1)


def test_the_first_round_is_that_of_the_preset():
    """As in 0.1, whose runs go on, whatever part of it is replaced."""
    of = {"strategy": "parallel"}
    assert schedule("dynscaling", of, schedule="rounds") == ROUNDS
    of = {"strategy": "integrated"}
    assert schedule("dynamic_only", of, schedule="rounds") == Schedule()


def test_a_server_cannot_end_samples_by_confidence():
    config = get_config()
    config.model = "openai://m@http://localhost:1/v1"
    config.strategy = "deepconf(warmup=4)"
    with pytest.raises(ValueError, match="a server cannot end samples"):
        endpoint_sampler(typed(config))


def test_without_rounds_a_method_keeps_what_it_learns_nothing_for():
    found = schedule("self_consistency", schedule="async", concurrent=8)
    assert found.first_round == math.inf and found.concurrent == 8


def test_a_run_begun_in_rounds_goes_on_in_rounds(tmp_path):
    """Of an earlier version, whose `dynscaling` had rounds: the same command
    would have taken its samples for those of a run without."""
    config = get_config()
    config.method = "dynscaling"
    config.chain.content = "answer_only"
    config.task.name = "arithmetic"
    config.task.limit = 3
    config.budget.samples_per_query = 4

    def sample(requests):
        return (reply(r, None, 5, text="It is 7.") for r in requests)

    def run(workdir, config):
        watch = Watch(dict, lambda: None, reply)
        sampler = FunctionSampler(sample, watch=watch)
        return run_config(config, workdir, sampler)

    config.budget.schedule = "rounds"
    kept = run(tmp_path / "b", config)
    config.budget.schedule = ""
    row = json.loads((tmp_path / "b" / "config.json").read_text())
    row["config"]["budget"]["schedule"] = ""
    (tmp_path / "b" / "config.json").write_text(json.dumps(row))
    shutil.copytree(tmp_path / "b", tmp_path / "a")
    begun = run(tmp_path / "a", config)
    assert begun["rounds"] == kept["rounds"] and "steps" not in begun
    assert not (tmp_path / "a" / "events.jsonl").exists()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "rounds.jsonl").touch()  # nothing was begun
    assert run(tmp_path / "c", config)["steps"]


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"poll_steps": 3}, 3),
        ({"poll_steps": 64}, 64),  # an engine takes 16 at most
        ({"poll_steps": 3, "schedule": "rounds"}, 16),
    ],
)
def test_an_engine_polls_as_often_as_a_run_without_rounds(fields, steps):
    config = get_config()
    config.method = "dynscaling"
    config.budget.update(fields)
    assert polls_every(typed(config)) == steps


@pytest.mark.parametrize("config", [get_config(), get_training_config()])
def test_every_field_can_be_a_flag(config):
    """config.engine.keys=int8 was refused: keys is a method of ConfigDict."""
    for name, value in config.items():
        assert not hasattr(ConfigDict, name), name
        if isinstance(value, ConfigDict):
            test_every_field_can_be_a_flag(value)


def test_keys_in_int8_by_a_flag(tmp_path):
    command = [sys.executable, "-m", "launch.run"]
    command += ["--config=configs/reasoner.py", "--config.engine.keys=int8"]
    command += [
        "--config.engine.attention=xla",
        "--config.task.limit=1",
        f"--workdir={tmp_path / 'a'}",
    ]
    command += ["--config.engine.max_new_tokens=2"]
    command += ["--config.method=self_consistency"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config.engine.keys is now --config.engine.kv_dtype" in done.stderr
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["config"]["engine"]["kv_dtype"] == "int8"


def test_polls_are_some_steps_apart():
    config = get_config()
    config.method = "dynscaling"
    config.budget.poll_steps = 0
    with pytest.raises(ValueError, match=r"config\.budget\.poll_steps=0"):
        polls_every(typed(config))
