"""Reports of runs without rounds, from their directories; models are stubs."""

import random
import re

import pytest

import dynscaling_jax as ds
from dynscaling_jax.analysis.graded import grade_run
from dynscaling_jax.analysis.report import report
from dynscaling_jax.experiments.report import read_run, write
from dynscaling_jax.tasks import Problem, Task
from tests.arriving import Model, queries, reply


def answer(request):
    drawn = random.Random(f"{request.query.id}/{request.index}")
    text = f"So the answer is {drawn.choice([7, 7, 8, 9])}."
    return reply(request, None, drawn.randint(1, 40), text=text)


def run(workdir, sampler):
    method = ds.Method(
        ds.strategies.integrated(explore=2),
        ds.policies.uniform(),
        ds.votes.majority(),
        ds.Schedule(first_round=2, concurrent=5),
        "made-up",
        ds.cancelling.posterior(0.8),
    )
    problems = tuple(Problem(query, "7") for query in queries(6))
    task = Task("made-up", "number", problems)
    return ds.run(task, sampler, method, ds.Budget(samples=40), workdir)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "async"
    return run(workdir, Model(5, 0, answer).sampler)


def compare(a, b, kind):
    return "equal" if a == b else "different"


def test_a_directory_says_what_the_run_did(tmp_path, done):
    page = write([done.workdir], tmp_path)
    assert page.read_bytes() == (done.workdir / "report.html").read_bytes()


def test_the_figures_of_a_run_add_up(done):
    recorded = read_run(done.workdir, "run")
    found = report([grade_run(recorded, compare)])
    figures, summary = found["runs"][0], done.summary
    time = figures["time"]
    assert time["unit"] == "decode steps" and time["steps"] == summary["steps"]
    assert time["most"] == 5 and time["left"] == 0
    assert time["cancelled"] == summary["cancelled"] > 0
    count = {
        name: sum(map(sum, time[name]))
        for name in ("grants", "chains", "ends", "cancels")
    }
    assert count["grants"] == len(time["bars"]) == summary["samples"] == 40
    assert count["cancels"] == time["cancelled"]
    assert count["ends"] + count["cancels"] == 40
    assert count["chains"] == sum(bar["chain"] for bar in time["bars"]) > 0
    under_way = sum(time["under_way"]) / len(time["under_way"])
    assert time["part"] == 1 and under_way == pytest.approx(time["mean"])
    # the majority of all that ended is the run's own vote
    for curve in (figures["curve"], time["curve"]):
        assert curve["accuracy"][-1] == pytest.approx(summary["accuracy"])
    assert figures["curve"]["samples"][-1] == pytest.approx(40 / 6, abs=1e-4)
    rows = [len(one["granted"]) for one in found["details"][0]]
    assert sum(rows) == 40


def test_a_run_on_an_endpoint_counts_samples_that_ended(tmp_path):
    made = Model(5, 0, answer).sampler
    untimed = made.watch._replace(in_steps=False)
    done = run(tmp_path, ds.FunctionSampler(made.sample, watch=untimed))
    recorded = read_run(done.workdir, "run")
    time = report([grade_run(recorded, compare)])["runs"][0]["time"]
    assert time["unit"] == "samples that ended"
    assert time["steps"] == 40 - time["cancelled"]
    accuracy = pytest.approx(done.summary["accuracy"])
    assert time["curve"]["accuracy"][-1] == accuracy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [b"{}\n", *rows], r"row 0 of events.jsonl is no event"),
        (lambda rows: [rows[0], *rows], r"row 1 of events.jsonl is no event"),
        (lambda rows: rows[:-1], r"events.jsonl has no end of sample"),
        (lambda rows: [b"grant\n", *rows], r"events.jsonl:1: malformed line"),
    ],
)
def test_events_that_are_none_of_the_run(tmp_path, done, change, says):
    for file in done.workdir.iterdir():
        if file.suffix in (".json", ".jsonl"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    events = tmp_path / "events.jsonl"
    rows = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join(change(rows)))
    with pytest.raises(ValueError, match=says) as caught:
        write([tmp_path], tmp_path / "page")
    assert not re.search("\n", str(caught.value))
