"""The command as a user runs it, on runs of the bundled reasoner."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynscaling_jax.experiments import report as reporting
from dynscaling_jax.experiments.bank import load_bank

ROOT = Path(__file__).parents[2]


def command(name, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def report(out, *workdirs):
    return command(
        "report", f"--workdirs={','.join(map(str, workdirs))}", f"--out={out}"
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods on six questions."""
    home = tmp_path_factory.mktemp("runs")
    for method in ("self_consistency", "dynscaling"):
        done = command(
            "run",
            "--config=configs/reasoner.py",
            "--config.task.limit=6",
            "--config.budget.samples_per_query=6",
            "--config.engine.slots=16",
            f"--config.method={method}",
            f"--workdir={home / method}",
        )
        assert done.returncode == 0, done.stderr
    return home / "self_consistency", home / "dynscaling"


def blocks(file):
    found = re.findall(
        r'<script type="application/json" id="([\w-]+)">(.*?)</script>',
        file.read_text(encoding="utf-8"),
    )
    return {name: json.loads(block) for name, block in found}


def test_every_run_has_a_page(runs):
    for workdir in runs:
        found = blocks(workdir / "report.html")
        summary = json.loads((workdir / "summary.json").read_bytes())
        (run,) = found["report"]["runs"]
        assert run["name"] == workdir.name
        assert run["summary"] == summary
        # the vote is the majority, so the curve ends where the run does
        curve = run["curve"]
        assert curve["samples"][-1] == 6
        assert curve["accuracy"][-1] == pytest.approx(summary["accuracy"])
        assert curve["flops"][-1] == pytest.approx(
            summary["flops"] / 6, rel=1e-5
        )
        asked = json.loads((workdir / "questions.json").read_bytes())
        shown = found["report"]["questions"]
        assert {q["id"]: q["text"] for q in shown} == asked
        assert all(len(text) > 20 for text in asked.values())


def test_lays_runs_side_by_side(runs, tmp_path):
    done = report(tmp_path / "page", *runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "page" / "report.html")
    assert done.stderr == ""
    found = blocks(tmp_path / "page" / "report.html")
    first, second = found["report"]["runs"]
    assert (first["name"], second["name"]) == ("self_consistency", "dynscaling")
    assert second["difference"]["shared"] == 6
    one, other = (q["runs"] for q in found["report"]["questions"][:2])
    assert one[0] and one[1] and other[0] and other[1]
    drawn = [
        json.loads(line)
        for line in (runs[1] / "samples.jsonl").read_text().splitlines()
    ]
    for q, question in enumerate(found["report"]["questions"]):
        own = [row for row in drawn if row["query_id"] == question["id"]]
        own.sort(key=lambda row: row["index"])
        shown = found[f"samples-1-{q}"]
        assert shown["text"] == [row["text"] for row in own]
        assert shown["parents"] == [row["parents"] for row in own]


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    report(tmp_path, *runs)
    first = (tmp_path / "report.html").read_bytes()
    report(tmp_path, *runs)
    assert (tmp_path / "report.html").read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for seed in ("seed-0", "seed-1"):
        shutil.copytree(runs[0], tmp_path / seed / "run")
    workdirs = [tmp_path / seed / "run" for seed in ("seed-0", "seed-1")]
    assert report(tmp_path, *workdirs).returncode == 0
    shown = blocks(tmp_path / "report.html")["report"]["runs"]
    assert [run["name"] for run in shown] == ["seed-0/run", "seed-1/run"]


def test_a_run_without_texts_of_questions(runs, tmp_path):
    """Runs of earlier versions recorded none."""
    shutil.copytree(runs[0], tmp_path / "old")
    (tmp_path / "old" / "questions.json").unlink()
    assert report(tmp_path, tmp_path / "old").returncode == 0


def damaged(runs, tmp_path, name, text):
    workdir = tmp_path / "run"
    shutil.copytree(runs[0], workdir)
    if text is None:
        (workdir / name).unlink()
    else:
        (workdir / name).write_text(text)
    return workdir


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("summary.json", None, "no summary.json: expected the workdir of a"),
        ("summary.json", "{", "expected JSON"),
        ("summary.json", '{"task": "x"}', "lacks kind, model"),
        ("answers.json", "[]", "not as launch.run writes it"),
        ("answers.json", "{}", "no answer to question"),
        ("references.json", '{"a": 1}', "not as launch.run writes it"),
        ("references.json", None, "references.json"),
        ("samples.jsonl", "{}\n", "samples.jsonl:1"),
        ("rounds.jsonl", "{}\n", "round 0 of rounds.jsonl"),
        ("rounds.jsonl", "[]\n", "round 0 of rounds.jsonl"),
    ],
)
def test_a_damaged_run_is_refused(runs, tmp_path, name, text, says):
    workdir = damaged(runs, tmp_path, name, text)
    with pytest.raises((ValueError, OSError), match=re.escape(says)):
        reporting.write([workdir], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_of_several_runs_names_one(runs, tmp_path):
    """launch.compare's directories were refused without a word on what lies
    in them."""
    for name in ("a-4", "b-4"):
        shutil.copytree(runs[0], tmp_path / "seed-0" / name)
    says = "it holds a run in seed-0/a-4, one of 2"
    with pytest.raises(ValueError, match=says):
        reporting.write([tmp_path], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=says):
        load_bank(tmp_path)


def test_a_refusal_is_one_line(runs, tmp_path):
    done = report(tmp_path, damaged(runs, tmp_path, "samples.jsonl", "{}\n"))
    assert done.returncode == 1
    assert done.stderr.startswith("launch.report: ")
    assert "samples.jsonl:1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "give --workdirs and --out, as in: python -m launch.report"),
        (("--workdirs=", "--out=x"), "--workdirs is empty; was a variable"),
        (("--workdirs=nowhere", "--out=x"), "nowhere: no such directory"),
        (("--workdirs=launch,launch", "--out=x"), "launch is given twice"),
        (("--workdir=launch", "--out=x"), "did you mean --workdirs?"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(flags, says):
    done = command("report", *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("launch.report: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_page_that_cannot_be_written_is_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    done = report(tmp_path / "file", runs[0])
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "cannot write" in done.stderr
