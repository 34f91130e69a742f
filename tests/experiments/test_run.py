"""What a run is of, and how long it may take; models are stubs."""

import json
import math
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dynscaling_jax as ds
from configs import common
from dynscaling_jax.experiments import identity
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.bank import load_bank
from dynscaling_jax.experiments.configured import run_config
from dynscaling_jax.experiments.log import read_samples
from dynscaling_jax.experiments.shared import Processes
from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.tasks import Problem
from dynscaling_jax.types import Budget, Sample

OLD = Path(__file__).with_name("run_of_0_1")
MOST = Budget(new_tokens=64)
QUERY = ds.Query("q", (ds.Message("user", "3 + 4?"),))
FILES = ("samples.jsonl", "rounds.jsonl", "answers.json")


def model(requests):
    """It drew the run of version 0.1 that is kept."""
    for r in requests:
        drawn = random.Random(f"{r.query.id}/{r.index}")
        n = drawn.choice([7, 8, 9, 10])
        text = f"It is {n}, \u2028 so the answer is {n}."
        yield Sample(
            r.query.id, r.index, r.round, r.parents,
            text if n < 10 else "No idea", None, "stop", 12, 0,
            drawn.randint(5, 30), 100.0, -drawn.random(), None, {"tail": 0.25},
        )  # fmt: skip


def config_of(**task):
    config = common.get_config()
    config.model = "stub"
    config.method = "dynscaling"
    config.budget.schedule = "rounds"
    config.budget.samples_per_query = 6.0
    config.task.update({"name": "arithmetic", "limit": 4, **task})
    return config


def run(workdir, config=None, sample_fn=model, **named):
    most = Budget(new_tokens=64)
    sampler = FunctionSampler(sample_fn, max_cost=most)
    return run_config(config or config_of(), workdir, sampler, named)


def killed(requests):
    for number, sample in enumerate(model(requests)):
        if number == 3:
            raise KeyboardInterrupt
        yield sample


def contents(workdir):
    return {name: (workdir / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("rows", [24, 10, 0])
def test_a_run_of_0_1_goes_on_to_the_same_bytes(tmp_path, rows):
    """Its config.json has no schema and no fingerprints, and its config lacks
    what came later. Finished, killed, or with nothing drawn. Its chains held
    whole thoughts, unless a flag said what ends one: where any was drawn, the
    field has to say so, by --config.end_of_thinking= on the command line."""
    workdir = tmp_path / "run"
    shutil.copytree(OLD, workdir)
    log = workdir / "samples.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(True)[:rows]))
    (workdir / "rounds.jsonl").write_bytes(b"")
    for name in ("answers.json", "summary.json"):
        (workdir / name).unlink()
    if rows:
        with pytest.raises(ValueError, match=r"--config\.end_of_thinking= "):
            run(workdir)
    config = config_of()
    if rows:
        config.budget.schedule = ""  # goes on as it began
    config.end_of_thinking = ""
    run(workdir, config)
    assert contents(workdir) == contents(OLD)


def test_a_run_of_0_1_can_be_read(tmp_path):
    page = reporting.write([OLD], tmp_path)
    assert page.stat().st_size > 10_000
    bank = load_bank(OLD)  # four samples of each question read no chain
    assert bank.answer_QN.shape == (4, 4)


def test_what_changes_between_a_kill_and_a_start_is_named(tmp_path, tiny_model):
    """Weights or tokenizer replaced, or questions edited under the same ids:
    the run went on with both, and said nothing."""
    home, file = tmp_path / "model", tmp_path / "asked.jsonl"
    shutil.copytree(tiny_model, home)
    rows = [{"question": f"{i} + 1?", "answer": f"{i + 1}"} for i in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    config = config_of(name="jsonl", path=str(file))

    def start(sample_fn=model):
        return run(workdir, config, sample_fn, **identity.of_model(str(home)))

    workdir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start(killed)
    before = (workdir / "config.json").read_bytes()
    for path, old, new, said in [
        (home / "model.safetensors", b"", b"\0", "model.safetensors"),
        (home / "tokenizer.json", b"{", b"{ ", "tokenizer.json"),
        (home / "tokenizer_config.json", b"im_end", b"im_eos", "_config.json"),
        (file, b"2 + 1", b"1 + 2", "the questions"),
        (file, b'"3"', b'"4"', "the questions"),
    ]:
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new, 1) if old else content + new)
        with pytest.raises(ValueError, match=f"other contents of .*{said}: "):
            start()
        path.write_bytes(content)
    (home / "README.md").write_text("says nothing of the weights")
    start()
    assert (workdir / "config.json").read_bytes() == before
    run(tmp_path / "calm", config)
    assert contents(workdir) == contents(tmp_path / "calm")


def test_a_snapshot_of_the_hub_has_its_revision(tmp_path, monkeypatch):
    home = tmp_path / "snapshots" / "0a1b"
    home.mkdir(parents=True)
    (home / "config.json").write_text("{}")
    (home / ".gitattributes").write_text("")
    monkeypatch.setattr(identity, "resolve", lambda _: home)
    found = identity.of_model("hf://org/name")
    assert found.keys() == {"config.json", "revision"}
    assert found["revision"] == "0a1b"


def test_a_finished_run_whose_log_was_rewritten_is_refused(tmp_path):
    """Its summary and page were made anew from what anybody had put there."""
    summary = run(tmp_path)
    assert run(tmp_path) == summary
    log = tmp_path / "samples.jsonl"
    log.write_text(log.read_text().replace('"answer": "9"', '"answer": "8"'))
    for again in (run, lambda at: reporting.write([at], at)):
        with pytest.raises(ValueError, match="not what the run ended with"):
            again(tmp_path)


def slowly(requests):
    for sample in model(requests):
        time.sleep(0.02)
        yield sample


@pytest.mark.parametrize("method", ["self_consistency", "dynscaling"])
def test_a_cap_on_seconds_counts_all_sessions(tmp_path, method):
    """A run that has reached it takes all that it drew, draws nothing more and
    ends with the same bytes; so does one that was killed when it had."""
    config = config_of()
    config.method = method
    config.budget.samples_per_query = 100.0
    config.budget.seconds = 0.4
    summary = run(tmp_path, config, slowly)
    assert summary["stopped"] == "seconds"
    assert 0 < summary["samples"] < 100
    before = contents(tmp_path)
    for left in (("summary.json",), ("summary.json", "rounds.jsonl")):
        for name in left:
            (tmp_path / name).unlink()
        again = run(tmp_path, config, slowly)
        assert contents(tmp_path) == before
        summary.pop("loop_share", None), again.pop("loop_share")
        assert again == summary
    assert (
        len(list(read_samples(tmp_path / "samples.jsonl"))) == again["samples"]
    )


def test_processes_reach_a_cap_on_seconds_together(tmp_path):
    """Each has a clock of its own; whoever is late ends the round of all, and
    no sample that was drawn by then is lost. So it is when they start again,
    and one alone takes what they drew."""
    config = config_of()
    config.budget.samples_per_query = 100.0
    config.budget.seconds = 1.5
    meeting, brought = threading.Barrier(2), [b"", b""]

    def process(number):
        def exchange(own, _):
            brought[number] = own
            meeting.wait(60)
            parts = list(brought)
            meeting.wait(60)
            return parts

        def drawn(requests):
            for sample in (model if number else slowly)(requests):
                drew.append(sample)
                yield sample

        sampler = FunctionSampler(drawn, max_cost=MOST)
        together = Processes(number, 2, exchange)
        return run_config(config, tmp_path, sampler, processes=together)

    found, drew = [], []
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            one, other = pool.map(process, range(2))
        assert one["samples"] == other["samples"] == len(drew) < 400
        assert one["stopped"] == other["stopped"] == "seconds"
        assert not list(tmp_path.glob("process-*"))
        found.append(contents(tmp_path))
    alone = run(tmp_path, config)
    assert alone["samples"] == one["samples"]
    assert contents(tmp_path) == found[0] == found[1]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("budget.seconds", 0.0, "budget.seconds=0.0"),
        ("budget.seconds", -1.0, "budget.seconds=-1.0"),
        ("budget.seconds", math.nan, "budget.seconds=nan"),
        ("budget.seconds", math.inf, "budget.seconds=inf"),
        ("budget.flops", math.inf, "budget.flops=inf"),
        ("budget.new_tokens", 10**400, r"budget.new_tokens=10.* below"),
        ("budget.samples_per_query", math.nan, "budget.samples_per_query=nan"),
        ("budget.samples_per_query", 1e300, r"samples_per_query=1e\+300"),
        ("budget.round_per_query", math.nan, "budget.round_per_query=nan"),
        ("budget.round_per_query", 0.0, "budget.round_per_query=0.0"),
        ("budget.first_round_per_query", math.inf, "first_round_per_query=inf"),
        (
            "budget.capacity",
            10**12,
            "schedule.capacity=1000000000000: expected .* below 2.31",
        ),
        ("budget.stale_rounds", -1, "budget.stale_rounds=-1"),
        ("seed", -1, "config.seed=-1: expected"),
        ("seed", 2**63, "config.seed=9223372036854775808: expected"),
        ("policy", "ucb(c={[]:1})", "policy 'ucb.*' is malformed"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, field, value, said):
    config = config_of()
    config.update_from_flattened_dict({field: value})
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=said):
        run(workdir, config)
    assert not workdir.exists()


def test_a_field_of_0_1_in_a_config_file_says_its_name(tmp_path):
    config = config_of()
    config.engine.rows = 8
    with pytest.raises(ValueError, match="engine.rows is now .*engine.slots"):
        run(tmp_path / "run", config)


def test_a_run_from_python_goes_on_to_the_same_bytes(tmp_path):
    """As launch.run does, with values in place of flags."""
    task = ds.load_task("arithmetic", limit=4)
    budget = ds.Budget(samples_per_query=6)

    def start(name, sample, budget=budget):
        sampler = FunctionSampler(sample, max_cost=MOST, name="stub")
        method = ds.methods.dynscaling()
        return ds.run(task, sampler, method, budget, tmp_path / name, seed=3)

    done = start("whole", model)
    assert str(done).startswith("task        arithmetic, 4 questions")
    assert (done.summary["model"], done.summary["policy"]) == (
        "stub",
        "opportunity_cost",
    )
    assert done.result.ledger.samples == done.summary["samples"] == 24
    with pytest.raises(KeyboardInterrupt):
        start("killed", killed)
    start("killed", model)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="budget.samples_per_query"):
        start("killed", model, ds.Budget(samples_per_query=7))
    bank = ds.load_bank(tmp_path / "whole", depth=4)
    study = ds.replay(bank, [ds.policies.uniform()], [2], replicates=20)
    assert "uniform" in str(study)


def first_answer(candidates):
    return candidates.answer_QN[:, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "arithmetic"}, "the task is 'arithmetic': expected a Task"),
        ({"sampler": model}, "the sampler is <function model"),
        ({"method": ds.methods.esc}, "the method is <function esc"),
        (
            {"method": ds.methods.esc()._replace(vote=ds.Vote(first_answer))},
            "the vote has no name, by which a run that goes on is told from",
        ),
        (
            {"task": ds.Task("t", "number", (Problem(QUERY, "seven"),))},
            "query 'q': the reference 'seven' cannot be read whole as number",
        ),
        (
            {"task": ds.Task("t", "number", (Problem(QUERY, 7),))},
            "query 'q': the reference 7 cannot be read",
        ),
        ({"seed": "0"}, "seed='0': expected a whole number"),
        ({"workdir": "gs://bucket/run"}, "expected a local directory"),
        ({"workdir": ""}, "workdir='': expected a local directory"),
    ],
)
def test_what_python_gets_wrong_is_named_first(
    tmp_path, monkeypatch, arguments, message
):
    """A wrong reference was noticed when all was sampled; a run with another
    vote without a name overwrote the answers; a bucket became a directory
    "gs:"; "" filled the directory that one is in."""
    monkeypatch.chdir(tmp_path)
    usual = {
        "task": ds.load_task("arithmetic", limit=2),
        "sampler": FunctionSampler(model, max_cost=MOST),
        "method": ds.methods.esc(),
        "budget": ds.Budget(samples_per_query=2),
        "workdir": tmp_path / "run",
    }
    with pytest.raises(ValueError, match=message):
        ds.run(**usual | arguments)
    assert not any(tmp_path.iterdir())
