"""LoRA adapters (arXiv 2106.09685) in PEFT's layout, merged when loaded.

    DIR/adapter_config.json
    DIR/adapter_model.safetensors

A weight W [out, in] becomes W + s B A, in float32, with A [r, in], B [out, r]
and s = alpha / r, or alpha / sqrt(r) of rank-stabilised ones (arXiv
2312.03732). What an adapter holds whole, such as embeddings, is put in place.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynscaling_jax.checkpoints import hf_checkpoint, hf_layout
from dynscaling_jax.checkpoints.files import read_json
from dynscaling_jax.checkpoints.tensors import Tensor
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import parameters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Fields of adapter_config.json that make of it something else than W + s B A,
# if they are set.
OTHERWISE = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
# Beginnings that leave the model's own weights as they are; others, such as
# pissa, take from them what A and B begin with.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal", "lora_ga")
PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
Tensors = dict[str, Tensor]


def merged(directory: Path, config: ModelConfig, name: str, value: Any) -> Any:
    """Adds to a parameter what an adapter has, or puts it in its place.

    Args:
        directory: of the adapter.
        config: of the model.
        name: of the parameter, as Hugging Face's files have it.
        value: the parameter, an array.

    Raises:
        FileNotFoundError, ValueError: as hf_checkpoint.load; and an adapter
            that cannot be merged, or is of another model. Everything is
            checked at the first parameter.
    """
    added, placed = _changes(directory, config)
    if name in placed:
        value = placed[name].read()
    if name in added:
        value = value.astype(np.float32) + added[name].read()
    return value


@functools.lru_cache(1)
def _changes(directory: Path, config: ModelConfig) -> tuple[Tensors, Tensors]:
    """Reads what is added to parameters and what is put in their place."""
    raw = read_json(directory / CONFIG)
    _check(directory, raw)
    if not (directory / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{directory}: {WEIGHTS} is missing; an adapter in a pickle can "
            "run code when it is read, and is refused"
        )
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    placed: Tensors = {}
    held = hf_checkpoint.read_tensors(directory / WEIGHTS, np.float32)
    for key, tensor in held.items():
        name = key.removeprefix("base_model.model.")
        part = PART.fullmatch(name)
        if part:
            pairs.setdefault((part[1], part[2] or ""), {})[part[3]] = tensor
        else:
            name = re.sub(
                r"\.(modules_to_save\.default|base_layer)\.", ".", name
            )
            placed[name] = tensor
    added = {
        f"{module}.weight": _product(directory, raw, module, kind, pair)
        for (module, kind), pair in pairs.items()
    }
    wanted = {p.hf: p.shape for p in parameters(config).values()}
    added, placed = (hf_layout.unpack(t, config) for t in (added, placed))
    for name, tensor in (*added.items(), *placed.items()):
        if wanted.get(name) != tensor.shape:
            there = (
                f"has it in {list(wanted[name])}"
                if name in wanted
                else ("has none of that name")
            )
            raise ValueError(
                f"{directory}: the adapter changes {name}, of shape "
                f"{list(tensor.shape)}; the model {there}. Is it of another "
                f"model? It names {raw.get('base_model_name_or_path')!r}"
            )
    embed = "model.embed_tokens.weight"
    tying = embed in placed and raw.get("ensure_weight_tying")
    if (
        config.tie_word_embeddings
        and embed in {**added, **placed}
        and not tying
    ):
        raise ValueError(
            f"{directory}: the adapter changes {embed} and not the head, "
            "which the model has tied to it; it cannot be merged"
        )
    return added, placed


def _check(directory: Path, raw: Mapping[str, Any]) -> None:
    where = f"{directory}: {CONFIG}"
    if raw.get("peft_type") != "LORA":
        raise ValueError(
            f"{where}: peft_type {raw.get('peft_type')!r} is not supported; "
            "known: LORA"
        )
    for name in OTHERWISE:
        if raw.get(name):
            raise ValueError(
                f"{where}: {name}={raw[name]!r} cannot be merged into weights"
            )
    begin = raw.get("init_lora_weights")
    if begin not in BEGINNINGS:
        raise ValueError(
            f"{where}: init_lora_weights={begin!r} changes the model's own "
            "weights; convert the adapter (path_initial_model_for_weight_"
            "conversion of PEFT's save_pretrained)"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = raw.get(name) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{where}: {name} must be a map")
        for pattern in patterns:
            _check_pattern(f"{where}: {name}", pattern)


def _check_pattern(where: str, pattern: str) -> None:
    """Raises ValueError for what matches in more than polynomial time."""
    many = len(re.findall(r"[*+?{]", pattern)) > 3 or len(pattern) > 500
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        many = True
    if many or re.search(r"\)[*+?{]", pattern):
        raise ValueError(
            f"{where}: the pattern {pattern[:80]!r} is too complex"
        )


def _product(
    directory: Path,
    raw: Mapping[str, Any],
    module: str,
    kind: str,
    pair: Mapping[str, Tensor],
) -> Tensor:
    """Describes s B A, which of an embedding [V, width] is stored turned."""
    a, b = pair.get("A"), pair.get("B")
    shapes = [tensor and tensor.shape for tensor in (a, b)]
    rank = _for_module(raw, "r", "rank_pattern", module)
    fits = a and b and len(a.shape) == len(b.shape) == 2
    if not a or not b or not fits or not a.shape[0] == b.shape[1] == rank:
        raise ValueError(
            f"{directory}: lora_A [{rank}, in] and lora_B [out, {rank}] of "
            f"{module} expected, by {CONFIG}, got {shapes[0]} and {shapes[1]}"
        )
    alpha = _for_module(raw, "lora_alpha", "alpha_pattern", module)
    if not isinstance(alpha, int | float) or not abs(alpha) < 1e9 or not rank:
        raise ValueError(
            f"{directory}: {CONFIG}: lora_alpha {alpha!r} and rank {rank!r} "
            f"of {module}: positive numbers expected"
        )
    scale = alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)

    def read() -> np.ndarray:
        whole = np.float32(scale) * (b.read() @ a.read())
        return whole.T if kind else whole

    shape = (b.shape[0], a.shape[1])
    return Tensor(shape[::-1] if kind else shape, read)


def _for_module(
    raw: Mapping[str, Any], name: str, patterns: str, module: str
) -> Any:
    """A field, or what the first pattern that ends the module's name says."""
    for pattern, value in (raw.get(patterns) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return raw.get(name)
