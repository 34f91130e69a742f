"""A tiny model with a real tokenizer, as a Hugging Face directory, and commands
that run beside each other."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dynscaling_jax.checkpoints import export, hf_config
from dynscaling_jax.models import config as configs
from dynscaling_jax.models.transformer import init_params

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken("<|im_start|>"), AddedToken("<|im_end|>")]
    )
    backend.save(str(directory / "tokenizer.json"))
    config = configs.ModelConfig(
        family="llama",
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        max_position_embeddings=1024,
        eos_token_id=(257,),
    )
    params = init_params(jax.random.key(0), config)
    save_file(
        dict(export.hf_tensors(config, params)), directory / "model.safetensors"
    )
    (directory / "config.json").write_text(json.dumps(hf_config.write(config)))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE})
    )
    return directory


@pytest.fixture(scope="session")
def address() -> Callable[[], str]:
    """Gives a HOST:PORT that is free."""

    def free() -> str:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{one.getsockname()[1]}"

    return free


@pytest.fixture(scope="session")
def begin() -> Callable[..., list[subprocess.Popen]]:
    """Starts commands, with further variables of the environment."""
    root = str(Path(__file__).parents[1])

    def started(commands, **variables):
        return [
            subprocess.Popen(
                one,
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": root, **variables},
            )
            for one in commands
        ]

    return started


@pytest.fixture(scope="session")
def end() -> Callable[..., list[tuple[str, str, int]]]:
    """Waits for them: (stdout, stderr, exit status) of each."""

    def ended(processes, seconds=240):
        return [
            (*process.communicate(timeout=seconds), process.returncode)
            for process in processes
        ]

    return ended


@pytest.fixture(scope="session")
def launch(tiny_model) -> Callable[..., list[list[str]]]:
    """The commands of `count` processes that draw a small run together."""

    def commands(workdir, count=1, where="", *further):
        root = Path(__file__).parents[1]
        return [
            [
                sys.executable,
                "-m",
                "launch.run",
                f"--config={root}/configs/smollm2_arithmetic.py",
                f"--config.model={tiny_model}",
                "--config.method=dynscaling",
                "--config.task.limit=6",
                "--config.budget.samples_per_query=10.0",
                "--config.engine.max_new_tokens=64",
                "--config.engine.slots=8",
                *further,
                f"--workdir={workdir}",
                f"--coordinator={where}",
                f"--processes={count}",
                f"--process={number}",
            ]
            for number in range(count)
        ]

    return commands


@pytest.fixture(scope="session")
def until_drawn() -> Callable[..., None]:
    """Waits until a file has samples, while all processes run."""

    def wait(file, running, seconds=120):
        until = time.monotonic() + seconds
        while not (file.exists() and file.stat().st_size):
            assert time.monotonic() < until
            assert all(process.poll() is None for process in running)
            time.sleep(0.02)

    return wait
