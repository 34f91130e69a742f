"""One training, joined from its parts: a config and a directory to a model."""

import contextlib
import hashlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from dynscaling_jax.checkpoints import export, hf_config, load_model
from dynscaling_jax.checkpoints import tokenizer as tokenizers
from dynscaling_jax.checkpoints.model import Model, resolve
from dynscaling_jax.experiments import identity
from dynscaling_jax.experiments.environment import about, use_compilation_cache
from dynscaling_jax.experiments.metrics import AddPoint, board
from dynscaling_jax.experiments.workdir import claim, locked, read_config
from dynscaling_jax.files import write_json
from dynscaling_jax.lines import Lines, dumps
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.training import step as learning
from dynscaling_jax.training.batches import Batch, batches, take
from dynscaling_jax.training.checkpoint import Checkpoints
from dynscaling_jax.training.initial import fresh_params
from dynscaling_jax.training.sft_examples import (
    Example,
    Examples,
    encode,
    read_examples,
)
from dynscaling_jax.training.vocabulary import save_tokenizer

Config = Any  # ml_collections.ConfigDict, as configs/training.py


def train(config: Config, workdir: Path, tensorboard: bool = False) -> Path:
    """Trains, or goes on with it, and returns the directory of the model.

    Curves go into WORKDIR/tensorboard, where they are wanted.

    Raises:
        ValueError, OSError, RuntimeError: with what to do about it.
    """
    check(config)
    use_compilation_cache()
    files = [Path(path) for path in config.examples]
    examples = [one for file in files for one in read_examples(file)]
    if not examples:
        raise ValueError("config.examples names no file")
    others: list[Example] = []
    if config.held_out:
        files.append(Path(config.held_out))
        others = list(read_examples(files[-1]))
    with locked(workdir):
        claim_training(config, workdir, files)
        return _train(config, workdir, examples, others, tensorboard)


def _train(
    config: Config,
    workdir: Path,
    examples: list[Example],
    others: list[Example],
    tensorboard: bool,
) -> Path:
    side, draft = workdir / "tokenizer", workdir / ".model.tmp"
    model = open_model(config, side, examples)
    data = encoded(examples, model, config.longest, "config.examples")
    held_out = None
    if others:
        held_out = encoded(others, model, config.longest, "config.held_out")
    begin_model(draft, side, config, model)
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
                    state.params,
                    model.config,
                    held_out,
                    config.batch // config.parts,
                )
                progress.log(number, held_out_loss=value)
            if number % config.save_every == 0 or last:
                checkpoints.save(state)
    export.save_hf(draft, model.config, state.params)
    shutil.rmtree(workdir / "model", ignore_errors=True)
    return draft.rename(workdir / "model")


def claim_training(config: Config, workdir: Path, files: list[Path]) -> None:
    """Claims a directory for a config, its examples and its model.

    Raises:
        ValueError: the directory is of something else.
    """
    row = json.loads(config.to_json())
    for path in files:
        row[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    there = read_config(workdir)
    state = workdir / "state"
    begun = state.is_dir() and any(at.name.isdigit() for at in state.iterdir())
    claim(
        workdir,
        "training",
        row,
        begun=begun,
        unversioned=there is not None and "examples" in there["config"],
        identity=identity.of_model(config.model) if config.model else {},
        about=about(),
    )
    if there and not begun:  # one that failed before a step was saved
        shutil.rmtree(workdir / "tokenizer", ignore_errors=True)


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


def open_model(config: Config, side: Path, examples: list[Example]) -> Model:
    """The model to tune, or a new one, whose vocabulary is learnt first."""
    if config.model:
        return load_model(config.model, config.dtype)
    if not (side / "tokenizer_config.json").exists():
        texts = (
            " ".join([*(m.content for m in one.prompt), one.completion])
            for one in examples[:20_000]
        )
        save_tokenizer(side, texts, config.shape.vocab_size)
    tokenizer = tokenizers.from_directory(side)
    shape = ModelConfig(
        "llama",
        tie_word_embeddings=True,
        eos_token_id=tokenizer.end_ids,
        **config.shape,
    )
    key = jax.random.key(config.seed)
    params = fresh_params(key, shape, config.dtype)
    return Model(shape, params, lambda: tokenizer)


def encoded(
    examples: list[Example], model: Model, longest: int, name: str
) -> Examples:
    """Examples as ids; says how many were left out."""
    longest = min(longest, model.config.max_position_embeddings)
    # the template's own end of a turn comes last; a config may name others
    ends = model.tokenizer.end_ids or model.eos_ids
    if not ends:
        raise ValueError("the model has no token that ends a turn")
    data, dropped = encode(examples, model.tokenizer, ends[-1], longest)
    if dropped:
        print(f"{name}: {dropped} of {len(examples)} left out, over {longest}")
    return data


def placed(batch: Batch, mesh: Mesh) -> Batch:
    """A batch with its rows spread over the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def mean_loss(
    params: Any, config: ModelConfig, data: Examples, size: int
) -> float:
    """Nats a token of the completions of all examples, `size` at a time."""
    order = np.argsort(data.lengths, kind="stable")
    loss = tokens = 0.0
    for at in range(0, len(order), size):
        batch = take(data, order[at : at + size])
        one, counted = learning.evaluate(params, config, batch)
        loss, tokens = loss + float(one), tokens + float(counted)
    return loss / tokens


def begin_model(draft: Path, side: Path, config: Config, model: Model) -> None:
    """Writes all files of a model but its weights, in Hugging Face layout.

    A model that the layout cannot hold is refused before it is trained.
    """
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    if config.model:
        export.save_side_files(
            draft, resolve(config.model), model.config, lambda: model.tokenizer
        )
    else:
        shutil.copytree(side, draft, dirs_exist_ok=True)
        write_json(draft / "config.json", hf_config.write(model.config))


class Progress(contextlib.AbstractContextManager):
    """The bar, and metrics.jsonl, which holds each step once."""

    def __init__(self, path: Path, steps: int, draw: AddPoint):
        self._draw = draw
        self._file = Lines(path)
        self._bar = tqdm(total=steps, unit="step", disable=None)
        self._tokens, self._begin = 0, time.monotonic()

    def start(self, first: int) -> None:
        """Drops the lines of steps that will be taken again."""
        for at, step in self._file.read_all(_step):
            if step > first:
                self._file.truncate(at)
                break
        self._bar.update(first)

    def step(self, batch: Batch) -> None:
        """Counts a step."""
        self._tokens += int(batch.length.sum())
        self._bar.update()

    def log(self, step: int, **values: float) -> None:
        """Writes the line of a step."""
        seconds = time.monotonic() - self._begin
        line = {
            "step": step,
            **{  # JSON has no nan, which a loss can be
                name: round(value, 6) if math.isfinite(value) else None
                for name, value in values.items()
            },
            "seconds": round(seconds, 1),
            "tokens_per_second": round(self._tokens / seconds),
        }
        self._file.append(dumps(line))
        self._draw(step, values)
        shown = {name: f"{value:.4f}" for name, value in values.items()}
        self._bar.set_postfix(shown, refresh=False)

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._file.close()


def _step(row: Any) -> int:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError('expected an object with a whole "step"')
    return row["step"]
