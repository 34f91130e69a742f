"""One training, joined from its parts: a config and a directory to a model."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dynscaling_jax.models import export, hf_config, load_model
from dynscaling_jax.models import tokenizer as tokenizers
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.model import Model, resolve
from dynscaling_jax.training import step as learning
from dynscaling_jax.training.batches import Batch, batches, take
from dynscaling_jax.training.checkpoint import Checkpoints
from dynscaling_jax.training.initial import fresh_params
from dynscaling_jax.training.lessons import (
    Lesson,
    Lessons,
    encode,
    read_lessons,
)
from dynscaling_jax.training.vocabulary import save_tokenizer
from launch.board import Draw, board
from launch.environment import about, use_compilation_cache
from launch.files import write_json, write_text

Config = Any  # ml_collections.ConfigDict, as configs/training.py


def train(config: Config, workdir: Path, tensorboard: bool = False) -> Path:
    """Trains, or goes on with it, and returns the directory of the model;
    curves go into WORKDIR/tensorboard, where they are wanted.

    Raises:
        ValueError, OSError, RuntimeError: with what to do about it.
    """
    check(config)
    use_compilation_cache()
    claim(config, workdir)
    lessons = [
        one for path in config.lessons for one in read_lessons(Path(path))
    ]
    if not lessons:
        raise ValueError("config.lessons names no file")
    side = workdir / "tokenizer"
    model = open_model(config, side, lessons)
    data = encoded(lessons, model, config.longest, "config.lessons")
    held_out = None
    if config.held_out:
        held_out = encoded(
            list(read_lessons(Path(config.held_out))),
            model,
            config.longest,
            "held_out",
        )
    hyper = learning.Hyper(*(config[name] for name in learning.Hyper._fields))
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    with (
        Checkpoints(workdir / "state") as checkpoints,
        board(workdir / "tensorboard", tensorboard) as draw,
        Progress(workdir / "metrics.jsonl", config.steps, draw) as progress,
    ):
        state = checkpoints.restore(
            lambda: learning.init(model.params, hyper), everywhere
        )
        first = int(state.step)
        progress.start(first)
        ahead = batches(data, config.batch, config.seed, first)
        for number in range(first + 1, config.steps + 1):
            batch = next(ahead)
            state, loss, norm = learning.step(
                state, model.config, hyper, config.parts, placed(batch, mesh)
            )
            progress.step(batch)
            last = number == config.steps
            if number % config.log_every == 0 or last:
                progress.log(number, loss=float(loss), norm=float(norm))
            if held_out and (number % config.evaluate_every == 0 or last):
                value = mean_loss(
                    state.params, model.config, held_out, config.batch
                )
                progress.log(number, held_out_loss=value)
            if number % config.save_every == 0 or last:
                checkpoints.save(state)
    return save(workdir / "model", side, config, model, state.params)


def claim(config: Config, workdir: Path) -> None:
    """Writes the config into a new directory, or finds the same there.

    Raises:
        ValueError: the directory is of another training.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file, row = workdir / "config.json", json.loads(config.to_json())
    if not file.exists():
        write_json(file, {"config": row, "about": about()})
        return
    there = json.loads(file.read_bytes()).get("config", {})
    other = [name for name in row if there.get(name) != row[name]]
    if other:
        raise ValueError(
            f"{workdir} holds a training with another {other[0]} "
            f"({there.get(other[0])!r}, here {row[other[0]]!r}); choose "
            "another --workdir"
        )


def check(config: Config) -> None:
    """Raises ValueError for numbers that cannot be."""
    every = ("log_every", "evaluate_every", "save_every")
    for name in ("steps", "batch", "parts", *every):
        if config[name] < 1:
            raise ValueError(f"config.{name} must be at least 1")
    share = config.parts * jax.device_count()
    if config.batch % share:
        raise ValueError(
            f"config.batch={config.batch} must be a multiple of config.parts "
            f"x devices, {share}"
        )
    if not config.warmup < config.steps:
        raise ValueError(
            f"config.warmup={config.warmup} must be less than config.steps="
            f"{config.steps}"
        )


def open_model(config: Config, side: Path, lessons: list[Lesson]) -> Model:
    """The model to tune, or a new one, whose vocabulary is learnt first."""
    if config.model:
        return load_model(config.model, config.dtype)
    if not (side / "tokenizer_config.json").exists():
        texts = (
            " ".join([*(m.content for m in one.prompt), one.completion])
            for one in lessons[:20_000]
        )
        save_tokenizer(side, texts, config.shape.vocab_size)
    tokenizer = tokenizers.from_directory(side)
    shape = ModelConfig(
        "llama", tied=True, eos_ids=tokenizer.end_ids, **config.shape
    )
    key = jax.random.key(config.seed)
    params = fresh_params(key, shape, config.dtype)
    return Model(shape, params, lambda: tokenizer)


def encoded(
    lessons: list[Lesson], model: Model, longest: int, name: str
) -> Lessons:
    """Lessons as ids; says how many were left out."""
    longest = min(longest, model.config.context)
    if not model.eos_ids:
        raise ValueError("the model has no token that ends a turn")
    end_id = model.eos_ids[-1]  # of a turn, where that is another one
    data, dropped = encode(lessons, model.tokenizer, end_id, longest)
    if dropped:
        print(f"{name}: {dropped} of {len(lessons)} left out, over {longest}")
    return data


def placed(batch: Batch, mesh: Mesh) -> Batch:
    """A batch with its rows spread over the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def mean_loss(
    params: Any, config: ModelConfig, data: Lessons, size: int
) -> float:
    """Nats a token of the completions, over all whole batches of `data`."""
    order = np.argsort(data.lengths, kind="stable")
    count = max(1, len(order) // size)
    loss = tokens = 0.0
    for which in np.array_split(order[: count * size], count):
        one, counted = learning.evaluate(params, config, take(data, which))
        loss, tokens = loss + float(one), tokens + float(counted)
    return loss / tokens


def save(
    directory: Path, side: Path, config: Config, model: Model, params: Any
) -> Path:
    """Writes the model in Hugging Face layout, whole or not at all."""
    draft = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    if config.model:
        export.save_side_files(
            draft, resolve(config.model), model.config, lambda: model.tokenizer
        )
    else:
        shutil.copytree(side, draft, dirs_exist_ok=True)
        write_json(draft / "config.json", hf_config.write(model.config))
    export.save_hf(draft, model.config, params)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(draft, directory)
    return directory


class Progress(contextlib.AbstractContextManager):
    """The bar, and metrics.jsonl, which holds each step once."""

    def __init__(self, path: Path, steps: int, draw: Draw):
        self._path, self._draw = path, draw
        self._bar = tqdm(total=steps, unit="step", disable=None)
        self._tokens, self._begin = 0, time.monotonic()

    def start(self, first: int) -> None:
        """Drops the lines of steps that will be taken again."""
        kept = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # torn by a kill
                    if json.loads(line)["step"] <= first:
                        kept.append(line)
        write_text(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._bar.update(first)

    def step(self, batch: Batch) -> None:
        self._tokens += int(batch.length.sum())
        self._bar.update()

    def log(self, step: int, **values: float) -> None:
        seconds = time.monotonic() - self._begin
        line = {
            "step": step,
            **{name: round(value, 6) for name, value in values.items()},
            "seconds": round(seconds, 1),
            "tokens_per_second": round(self._tokens / seconds),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._draw(step, values)
        shown = {name: f"{value:.4f}" for name, value in values.items()}
        self._bar.set_postfix(shown, refresh=False)

    def __exit__(self, *_) -> None:
        self._bar.close()
