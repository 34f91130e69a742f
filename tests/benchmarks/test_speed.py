"""Every benchmark at a size that says nothing, without other systems."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "repeats": 1,
    "task.name": "arithmetic",
    "task.limit": 80,
    "peers.transformers_python": "nowhere/python",
    "peers.llama_python": "nowhere/python",
    "allocation.queries": 20,
    "allocation.policies": "uniform,ucb",
    "replay.questions": 6,
    "replay.depth": 8,
    "replay.replicates": 4,
    "replay.policies": "uniform,ucb",
    "replay.budgets": "(2,4)",
    "replay.loop_replicates": 1,
    "pages.questions": 3,
    "pages.samples": 4,
    "pages.new_tokens": 200,
    "pages.targets": "(('tiny', 1, 1e9),)",
    "decode.queries": 2,
    "decode.candidates": 4,
    "decode.prompt_tokens": 300,
    "decode.new_tokens": 8,
    "decode.settings": "((8,4),)",
    "decode.gemm_rows": "(2,)",
    "prefix.queries": 2,
    "prefix.candidates": 4,
    "prefix.prompt_tokens": 600,
    "prefix.new_tokens": 8,
    "prefix.settings": "((8,4),)",
    "long.queries": 2,
    "long.candidates": 4,
    "long.prompt_tokens": 300,
    "long.mean": 8.0,
    "long.rows": 8,
    "long.slots_per_group": 4,
    "short.queries": 2,
    "short.candidates": 4,
    "short.prompt_tokens": 300,
    "short.mean": 8,
    "short.most": 8,
    "short.rows": 8,
    "short.slots_per_group": 4,
    "short.turns": 2,
    "short.before": str(ROOT),
    "dynscaling.queries": 2,
    "dynscaling.samples_per_query": 5,
    "dynscaling.new_tokens": 8,
    "dynscaling.slots": 8,
    "dynscaling.slots_per_group": 4,
    "dynscaling.candidates": 4,
    "dynscaling.prompt_tokens": 300,
    "dynscaling.chains": 2,
    "dynscaling.chain_prompt": 400,
    "dynscaling.chain_tokens": 40,
    "workers.queries": 2,
    "workers.candidates": 2,
    "startup.slots": 8,
    "memory.queries": 20,
    "memory.candidates": 2,
    "memory.slots": 8,
    "accelerator.on_cpu": True,
    "accelerator.attention": "xla",  # from pages, as on an accelerator
    "accelerator.dtype": "float32",
    "accelerator.queries": 2,
    "accelerator.candidates": 4,
    "accelerator.prompt_tokens": 32,
    "accelerator.new_tokens": 8,
    "accelerator.settings": "((8,4),)",
    "accelerator.copy_bytes": 4000,
    "accelerator.product": 16,
    "accelerator.shape.vocab_size": 300,
    "accelerator.shape.hidden_size": 32,
    "accelerator.shape.num_hidden_layers": 2,
    "accelerator.shape.num_attention_heads": 4,
    "accelerator.shape.num_key_value_heads": 2,
    "accelerator.shape.head_dim": 16,
    "accelerator.shape.intermediate_size": 48,
}
# bench -> (name of a line, its numbers)
WANTED = {
    "allocation": [("allocation", "queries grants seconds goal")],
    "replay": [
        ("replay", "questions replicates policies seconds goal"),
        ("replay against NumPy", "seconds numpy_seconds ratio goal"),
    ],
    "pages": [
        (
            "pages",
            "rows pool_tokens live_tokens running held held_at_peak idle lost "
            "goal_held goal_idle",
        ),
        ("length classes", "rows held held_at_peak rows_in_memory goal_held"),
    ],
    "decode": [
        (
            "decode",
            "slots seconds tokens_per_second decode_tokens_per_second idle",
        ),
        (
            "breakdown of a decode step",
            "step_ms linears_ms head_ms sampler_ms norms_and_rotations_ms "
            "attention_ms host_ms",
        ),
        (
            "decode against its matrix products",
            "decode_tokens_per_second limit_tokens_per_second share goal",
        ),
        ("decode against transformers", ""),
        ("decode against llama.cpp", ""),
    ],
    "prefix": [
        ("prefix", "slots seconds tokens_per_second"),
        (
            "prefix, memory of keys and values",
            "held_bytes replicated_bytes share share_of_prompts goal",
        ),
        ("prefix against transformers", ""),
        ("prefix against llama.cpp", ""),
    ],
    "long": [
        ("long", "rows samples tokens longest"),
        (
            "long, this engine",
            "tokens seconds tokens_per_second idle compilations "
            "keys_held_bytes keys_live_bytes held_to_live",
        ),
        ("long against before", ""),
        ("long against llama_cpp", ""),
        ("long against transformers", ""),
    ],
    "short": [("short", "samples tokens ratio ratio_of_fastest goal")],
    "dynscaling": [
        (
            "dynscaling",
            "samples rounds chains tokens_per_second "
            "plain_tokens_per_second share goal "
            "at_once_tokens_per_second share_of_at_once",
        ),
        ("dynscaling, idle slots", "slot_steps active_steps idle goal"),
        (
            "dynscaling, a chain behind a cached prompt",
            "extended_ms fresh_ms share goal",
        ),
    ],
    "workers": [
        (
            "workers",
            "workers slots tokens_per_second one_worker_tokens_per_second "
            "ratio goal",
        )
    ],
    "startup": [
        ("startup, cold", "imports load compile sample seconds goal"),
        ("startup, kept", "imports load compile sample seconds goal"),
    ],
    "memory": [
        ("memory, loop", "mb_after_a_tenth mb_at_the_end growth_mb"),
        ("memory, engine", "mb_after_a_tenth mb_at_the_end growth_mb"),
    ],
    "accelerator": [
        ("accelerator", "weights_gb copy_gb_per_second product_tflops"),
        ("accelerator, prefill", "tflop share_of_product goal"),
        (
            "accelerator, decode",
            "step_ms step_gb step_tflop share_of_bandwidth share_of_limit",
        ),
    ],
}


def bench(*flags):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.speed",
            f"--config={ROOT}/benchmarks/config.py",
            *flags,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def done(tiny_model):
    small = [f"--config.{name}={value}" for name, value in TINY.items()]
    return bench(f"--config.model={tiny_model}", *small)


@pytest.fixture(scope="module")
def lines(done):
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["bench"]: line for line in found}


@pytest.mark.parametrize("name", WANTED)
def test_gives_its_lines(lines, name):
    for title, numbers in WANTED[name]:
        line = lines[title]
        for field in numbers.split():
            assert isinstance(line[field], (int, float)), (title, field)


def test_says_what_is_missing_and_how_to_get_it(lines):
    for name in ("decode", "prefix"):
        for other in ("transformers", "llama.cpp"):
            line = lines[f"{name} against {other}"]
            assert line["missing"] and "ratio" not in line
            assert line["install"]
    assert lines["decode against transformers"]["install"] == "make peers"


def test_an_engine_in_turn_does_the_whole_job_each_time(lines):
    line = lines["short"]
    for speeds in (line["tokens_per_second"], line["their_tokens_per_second"]):
        assert len(speeds) == 2 and min(speeds) > 0
    assert line["ratio"] > 0


def test_a_checkout_that_is_none_is_refused():
    """It measured the installed engine beside itself, and met the goal."""
    done = bench("--config.only=short", "--config.short.before=nowhere")
    assert done.returncode and "nowhere is no checkout" in done.stderr


def test_prompts_share_their_keys(lines):
    """Once taken when the slots were freed already, which left less than
    nothing for the prompts."""
    line = lines["prefix, memory of keys and values"]
    assert 0 < line["prompts_bytes"] < line["replicated_prompts_bytes"]
    assert line["held_bytes"] < line["replicated_bytes"]


def test_a_second_run_compiles_nothing(lines):
    """Rounds, chains and refilling, policy and vote included."""
    assert lines["dynscaling"]["compilations"] == 0


def test_is_quiet(done):
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.onyl=decode", "no field 'onyl'; Did you mean \"only\"?"),
        ("--config.only=decode,nothing", "unknown bench 'nothing'; known: "),
        ("--config.only=prefix", "nowhere.gguf"),
    ],
)
def test_mistakes_are_one_line(flag, said):
    done = bench("--config.model=nowhere.gguf", flag)
    assert done.returncode and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
