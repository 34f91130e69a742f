"""The command as a user runs it: real processes on small banks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynscaling_jax.types import Sample

ROOT = Path(__file__).parents[2]
BANKS = (
    Path(os.environ.get("DYNSCALING_DATA", ROOT.parent / "shared" / "data"))
    / "banks"
)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.replay", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def write_bank(path, *, answers=None, queries=4, slots=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        {
            "query_id": f"q/{q}",
            "reference": "7",
            "answers": answers
            or rng.choice(["7", "8", "9"], slots, p=[0.5, 0.3, 0.2]).tolist(),
            "new_tokens": rng.integers(5, 90, slots).tolist(),
        }
        for q in range(queries)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Two banks, one with a single answer for all; a policy with commas; a
    rule that stops; a budget that ends within a round."""
    home = tmp_path_factory.mktemp("replay")
    varied = write_bank(home / "varied.jsonl")
    same = write_bank(home / "same.jsonl", answers=["7"] * 40)
    process = command(
        f"--bank={varied},{same}",
        "--policies=ucb(uncertainty=beta,c=0.2),lead_k(lead=1),oracle",
        "--budgets=8,2,2.5",
        "--round=1",
        "--replicates=20",
        "--chunk=10",
        f"--out={home / 'out'}",
    )
    assert process.returncode == 0, process.stderr
    report = strict((home / "out" / "replay.json").read_text())
    return home / "out", process, report


def test_every_policy_at_every_budget(done):
    _, _, report = done
    assert [bank["bank"] for bank in report["banks"]] == ["varied", "same"]
    names = {"ucb(uncertainty=beta,c=0.2)", "lead_k(lead=1)", "oracle"}
    for bank in report["banks"]:
        rows = bank["results"]
        assert {(row["policy"], row["budget"]) for row in rows} == {
            (name, budget) for name in names for budget in (2, 2.5, 8)
        }
        for row in rows:
            low, high = row["accuracy_ci95"]
            assert 0 <= low <= row["accuracy"] <= high <= 1
            assert row["stderr"] >= 0
            if row["policy"].startswith("ucb"):
                assert row["samples_per_query"] == row["budget"]
            else:
                assert 1 <= row["samples_per_query"] <= row["budget"]
        assert all(r["regret"] == 0 for r in rows if r["policy"] == "oracle")


def test_a_rule_that_stops_says_what_it_spent(done):
    rows = [
        row
        for row in done[2]["banks"][1]["results"]
        if row["policy"] == "lead_k(lead=1)"
    ]
    assert {row["samples_per_query"] for row in rows} == {1}


def test_sample_efficiency_at_each_target(done):
    varied, same = done[2]["banks"]
    assert {row["target"] for row in varied["savings"]} == {0.8, 0.9, 0.95}
    best = [r for r in varied["savings"] if r["policy"] == "oracle"]
    for row in best:
        assert row["ratio"] == pytest.approx(
            row["uniform_samples"] / row["policy_samples"]
        )
        low, high = row["ratio_ci95"]
        assert 1 < low <= row["ratio"] <= high
    # one answer for all: nothing to gain, and no number is made up
    assert {row["ratio"] for row in same["savings"]} == {None}


def test_figures_and_a_table(done):
    out, process, _ = done
    assert {path.name for path in out.iterdir()} == {
        "replay.json",
        *(
            f"{bank}-{axis}.png"
            for bank in ("varied", "same")
            for axis in ("samples", "tokens")
        ),
    }
    for figure in out.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
    assert "ucb(uncertainty=beta,c=0.2)" in process.stdout
    assert "@2.5" in process.stdout
    assert "4 questions, answers: number, pass@1" in process.stdout
    assert process.stderr == ""  # no progress bar where no terminal is


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--policies=best", "unknown policy 'best'; known: .*uniform"),
        ("--policies=ucb(c=high)", "c='high' is not float"),
        ("--budgets=2,x", "budget 'x': expected"),
        (
            "--budgets=41",
            "41 samples a question is over the 40 that the bank holds; "
            "give --budgets=2,4,8,16,32$",
        ),
        ("--budgets=", "budgets: expected at least one"),
        ("--vote=loudest", "unknown vote 'loudest'; known: .*majority"),
        ("--bank=nowhere.jsonl", "nowhere.jsonl"),
        ("--kind=maths", "unknown kind of answer 'maths'; known: number"),
        ("--bank=BAD", r"bad\.jsonl:2: expected a JSON object"),
        ("--bank=RAGGED", "'b' has 1 answers, 'a' has 2"),
        ("--bank=NAMELESS", "no reference for question|without a reference"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, argument, message):
    row = {"query_id": "a", "reference": "1", "answers": ["1", "2"]}
    row["new_tokens"] = [3, 4]
    short = row | {"query_id": "b", "answers": ["1"], "new_tokens": [3]}
    unknown = {key: row[key] for key in row if key != "reference"}
    texts = {
        "BAD": json.dumps(row) + "\n{oops\n",
        "RAGGED": json.dumps(row) + "\n" + json.dumps(short) + "\n",
        "NAMELESS": json.dumps(unknown) + "\n",
    }
    for name, text in texts.items():
        path = tmp_path / f"{name.lower()}.jsonl"
        path.write_text(text)
        argument = argument.replace(f"={name}", f"={path}")
    good = write_bank(tmp_path / "good.jsonl")
    process = command(
        f"--bank={good}",
        "--policies=uniform",
        "--budgets=1",
        "--replicates=2",
        f"--out={tmp_path / 'out'}",
        argument,
    )
    assert process.returncode == 1
    assert not (tmp_path / "out").exists()
    (line,) = process.stderr.splitlines()
    assert line.startswith("launch.replay: ")
    assert re.search(message, line)


def test_a_run_of_ones_own(tmp_path):
    """Its 8 samples a question were under the budgets of 16 and 32 that
    nobody had asked for."""
    run = tmp_path / "demo"
    run.mkdir()
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            query_id=f"q/{q}",
            index=i,
            round=0,
            parents=(),
            text="",
            answer=str(rng.choice(["7", "8"])),
            finish_reason="stop",
            prompt_tokens=3,
            cached_tokens=0,
            new_tokens=5,
            flops=1.0,
        )
        for q in range(3)
        for i in range(8)
    ]
    rows = [sample._asdict() for sample in samples]
    (run / "samples.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    references = {sample.query_id: "7" for sample in samples}
    (run / "references.json").write_text(json.dumps(references))
    process = command(
        f"--bank={run}",
        "--policies=uniform",
        "--replicates=2",
        f"--out={tmp_path / 'out'}",
    )
    assert process.returncode == 0, process.stderr
    (report,) = strict((tmp_path / "out" / "replay.json").read_text())["banks"]
    assert report["bank"] == "demo"
    assert [row["budget"] for row in report["results"]] == [2, 4, 8]
    assert {row["ratio"] for row in report["savings"]} == {None}
    assert re.search(
        "^- +no such number: .* fewer than 40", process.stdout, re.M
    )


def test_a_real_bank(tmp_path):
    """On AIME the bandit reaches the goal of 0.95 with fewer samples."""
    bank = BANKS / "aime2025__qwen3-14b.jsonl"
    if not bank.exists():
        pytest.skip("no recorded banks here")
    process = command(
        f"--bank={bank}",
        "--policies=uniform,ucb(uncertainty=beta,c=0.2)",
        "--budgets=4",
        "--replicates=100",
        f"--out={tmp_path}",
    )
    assert process.returncode == 0, process.stderr
    (report,) = strict((tmp_path / "replay.json").read_text())["banks"]
    assert report["questions"] == 30
    ratios = {
        row["policy"]: row["ratio"]
        for row in report["savings"]
        if row["target"] == 0.95
    }
    assert ratios["uniform"] == 1
    assert ratios["ucb(uncertainty=beta,c=0.2)"] > 1
