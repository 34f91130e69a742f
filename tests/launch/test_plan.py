"""The command, and the tables of the guides that it printed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 4096,
}


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.plan", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def said(*arguments):
    done = launch(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("launch.plan: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def table(text):
    """Rows of cells, the head first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if set("".join(row)) != {"-"}]


@pytest.mark.parametrize("file", ["", "/config.json"])
def test_a_directory_without_weights(tmp_path, file):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    done = launch(f"--shape={tmp_path}{file}", "--device=v5e-8,H100x2")
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = table(done.stdout)
    assert head[:4] == ["shape", "device", "processes", "mesh"]
    assert first[1:5] == ["v5e-8", "1", "8x1", "0.00"]
    assert second[1:4] == ["H100x2", "1", "2x1"]
    assert "Predicted from published peaks; unmeasured" in done.stdout


def test_what_does_not_fit_beside_what_does():
    done = launch("--shape=llama-3.1-70b", "--device=H100,H100x8")
    _, first, second = table(done.stdout)
    assert first[3] == "does not fit" and not any(first[4:])
    assert second[2:4] == ["1", "1x8"]


def test_hosts_that_share_a_mesh():
    done = launch("--shape=qwen2.5-32b", "--device=v5e-16")
    assert table(done.stdout)[1][2:4] == ["4 in lockstep", "2x8"]


def test_int8_is_said():
    done = launch("--shape=llama-3.1-70b", "--device=v5e-8", "--quantize=int8")
    assert table(done.stdout)[1][2:5] == ["1", "1x8", "8.83"]
    assert done.stdout.endswith("bfloat16, weights in int8.\n")
    assert "1012 live tokens a slot\n(half done)" in done.stdout


def test_live_tokens_and_keys_in_int8():
    """Nearly twice as many slots."""
    long = ["--shape=qwen3-8b", "--device=H100", "--prompt=300"]
    long += ["--new=32768", "--live=10000"]
    slots = []
    for keys in ([], ["--kv_dtype=int8"]):
        done = launch(*long, *keys)
        slots.append(int(table(done.stdout)[1][7]))
        assert "10000 live tokens a slot\n(--live)" in done.stdout
    assert done.stdout.endswith("bfloat16, keys in int8.\n")
    assert 28 <= slots[0] and 1.8 * slots[0] <= slots[1] <= 2 * slots[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --shape and --device, as in: python -m launch.plan"),
        (["--shape=x", "--device=v5e-8"], "shape 'x': no such directory"),
        (["--shape=qwen2.5-7b", "--device=TPU"], "device 'TPU' is not known"),
        (
            ["--shape=", "--device=v5e-8"],
            "--shape is empty; was a variable not set?",
        ),
        (
            ["--shape=llama-3.1-70b", "--device=v5e-8"],
            "llama-3.1-70b on v5e-8: one sample of 1512 tokens takes 1.7",
        ),
        (
            ["--shape=qwen2.5-7b", "--device=H100", "--new=0"],
            "each must be at least 1",
        ),
        (
            ["--shape=qwen2.5-7b", "--device=H100", "--quantize=int4"],
            "int4",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    assert message in said(*arguments)


def test_a_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "is missing" in said(f"--shape={tmp_path}", "--device=v5e-8")


@pytest.mark.parametrize("guide", ["cloud_tpu.md", "single_gpu.md"])
def test_the_guides_show_what_the_planner_prints(guide):
    """Each command of the planner there, with the output below it."""
    text = (ROOT / "docs" / guide).read_text()
    shown = re.findall(
        r"```\n(\.venv/bin/python -m launch\.plan (?:.*\\\n)*.*)\n```\n\n"
        r"((?:\|.*\n)+)",
        text,
    )
    assert shown and len(shown) == text.count(".venv/bin/python -m launch.plan")
    for command, printed in shown:
        done = launch(*shlex.split(command.replace("\\\n", " "))[3:])
        assert table(printed) == table(done.stdout), command
