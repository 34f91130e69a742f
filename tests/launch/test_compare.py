"""launch.compare with a tiny model: one draw of a sample serves all runs."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from dynscaling_jax.experiments import compare as comparing
from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.compare import cached
from dynscaling_jax.experiments.config import get_config
from dynscaling_jax.sampler import FunctionSampler
from dynscaling_jax.types import Message, Query, Request, Sample

ROOT = Path(__file__).parents[2]


def compare(tiny_model, workdir, *more):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.compare",
            "--config=configs/reasoner.py",
            f"--config.model={tiny_model}",
            "--config.task.limit=3",
            "--config.task.steps=1",
            "--config.engine.max_new_tokens=16",
            "--config.engine.slots=8",
            f"--workdir={workdir}",
            *more,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def compared(tiny_model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compared")
    flags = ("--budgets=2,5", "--methods=dynscaling,dynamic_only", "--seeds=2")
    done = compare(tiny_model, workdir, *flags)
    assert done.returncode == 0, done.stderr
    return workdir, done, flags


def rows(folder):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return {
        (row["query_id"], row["index"]): row for row in map(json.loads, lines)
    }


def test_prints_the_report_that_it_writes(compared):
    workdir, done, _ = compared
    page = workdir / "report.html"
    assert done.stdout == f"{(workdir / 'report.md').read_text()}\n{page}\n"
    for name in ("self_consistency", "dynscaling", "dynamic_only"):
        assert f"{name}-5" in page.read_text()
    assert "| between seeds |" in done.stdout
    for name in ("self_consistency", "dynscaling", "dynamic_only"):
        assert done.stdout.count(f"| {name} ") == 2 + 1  # and how steady
    assert (workdir / "samples.png").exists()
    found = json.loads((workdir / "report.json").read_bytes())
    assert all(row["questions"] == 6 for row in found)
    dear = max(row["tokens_per_question"] for row in found)
    baseline = [r for r in found if r["method"] == "self_consistency"]
    assert max(r["tokens_per_question"] for r in baseline) == dear


def test_runs_share_their_samples(compared):
    """A budget's samples are the first of a larger budget's, for every
    method; independent samples are those of every other method."""
    workdir, _, _ = compared
    for seed in ("seed-0", "seed-1"):
        drawn = {f.name: rows(f) for f in (workdir / seed).iterdir()}
        many = drawn["self_consistency-5"]
        for method in ("self_consistency", "dynscaling", "dynamic_only"):
            small, large = drawn[f"{method}-2"], drawn[f"{method}-5"]
            for key, row in small.items():
                assert row["text"] == large[key]["text"]
        for method in ("dynscaling-5", "dynamic_only-5"):
            for key, row in drawn[method].items():
                if not row["parents"] and key in many:
                    assert row["text"] == many[key]["text"]


def test_seeds_have_questions_of_their_own(compared):
    workdir, _, _ = compared
    one, other = (
        json.loads(
            (workdir / f"seed-{i}/self_consistency-5/answers.json").read_bytes()
        )
        for i in range(2)
    )
    assert one.keys() == other.keys()
    assert [a["reference"] for a in one.values()] != [
        a["reference"] for a in other.values()
    ]


def test_a_comparison_on_a_page_with_others(compared, tmp_path):
    """It was refused: its runs had to be named one by one."""
    workdir, _, _ = compared
    alone = workdir / "seed-1/dynamic_only-2"
    text = reporting.write([workdir, alone], tmp_path).read_text()
    for name in ("self_consistency-5", "dynscaling-5", "dynamic_only-2"):
        assert name in text
    (tmp_path / "report.json").write_text('[{"method": "a"}]')
    with pytest.raises(ValueError, match="not as launch.compare writes it"):
        reporting.write([tmp_path], tmp_path)


def test_questions_that_all_seeds_ask_count_once(tiny_model, tmp_path):
    """They counted once for each seed, as if they were others, and intervals
    came out too narrow."""
    questions = tmp_path / "own.jsonl"
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(4)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = compare(
        tiny_model,
        tmp_path / "compared",
        "--config.task.name=jsonl",
        f"--config.task.path={questions}",
        "--budgets=1",
        "--methods=dynamic_only",
        "--seeds=2",
    )
    assert done.returncode == 0, done.stderr
    assert "3 questions over 2 seeds" in done.stdout
    found = json.loads((tmp_path / "compared/report.json").read_bytes())
    assert {row["questions"] for row in found} == {3}


def test_done_again_it_says_the_same(tiny_model, compared):
    workdir, done, flags = compared
    assert compare(tiny_model, workdir, *flags).stdout == done.stdout


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--budgets=4,x", "expected samples a question"),
        ("--budgets=0", "expected samples a question"),
        ("--budgets=", "names none"),
        ("--methods=guess", "method"),
    ],
)
def test_refuses_what_it_cannot_compare(tiny_model, tmp_path, flag, says):
    done = compare(tiny_model, tmp_path, flag)
    assert done.returncode == 1
    assert done.stderr.startswith("launch.compare: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_remembered_sample_is_not_drawn_again():
    asked = []

    def model(requests):
        for r in requests:
            asked.append((r.query.id, r.index, r.messages))
            yield Sample(
                r.query.id,
                r.index,
                r.round,
                r.parents,
                "text",
                None,
                "stop",
                1,
                0,
                1,
                0.0,
            )

    query = Query("q", (Message("user", "?"),))
    first = Request(query, query.messages, 0)
    chain = first._replace(messages=(*query.messages, Message("assistant", "")))
    draw = cached({})(model)
    assert len(list(draw([first]))) == 1
    (again,) = draw([first._replace(round=3, parents=(1,))])
    assert (again.round, again.parents) == (3, (1,))
    list(draw([chain]))  # the same name, another prompt
    assert len(asked) == 2


def test_one_engine_is_there_at_a_time(tmp_path, monkeypatch):
    """A card has no room for two: each seed kept its own until the end."""
    there, most = weakref.WeakSet(), []

    def opened(fields):
        sampler = FunctionSampler(lambda requests: iter(()))
        gc.collect()
        there.add(sampler)
        most.append((fields.seed, len(there)))
        return sampler

    def run_config(config, folder, sampler, identity):
        folder.mkdir(parents=True)
        answer = {"right": True, "right_samples": 1.0}
        (folder / "answers.json").write_text(json.dumps({"q": answer}))
        (folder / "questions.json").write_text(json.dumps({"q": "?"}))
        counts = ("samples", "prompt_tokens", "cached_tokens", "new_tokens")
        return {"accuracy": 1.0, **dict.fromkeys(counts, 1)}

    monkeypatch.setattr(comparing, "open_sampler", opened)
    monkeypatch.setattr(comparing, "run_config", run_config)
    monkeypatch.setattr(comparing, "model_identity", lambda fields: {})
    runs = comparing.Runs(get_config(), tmp_path, 3)
    trials = runs.trials([("dynscaling", 4.0), ("esc", 4.0)])
    assert [trial.method for trial in trials] == ["dynscaling", "esc"]
    assert most == [(0, 1), (1, 1), (2, 1)]
    runs.trials([("esc", 8.0)])  # begins with the one that is there
    assert most[3:] == [(0, 1), (1, 1)]
