"""What a device would hold and how fast it would decode, by formula alone.

Each host has a process with a mesh of its own (inference.mesh): `model` chips
share one copy of the parameters, `data` such copies decode side by side. Where
a host holds no copy, all share one mesh (inference.lockstep). Every figure is
predicted from what the maker publishes and none has been measured: real rates
are lower, for no chip reaches its peaks, and what chips and hosts send one
another is left out.
"""

import contextlib
import dataclasses
import functools
import math
import re
from typing import NamedTuple

from dynscaling_jax.inference import layout, memory
from dynscaling_jax.inference.memory import Memory, Size
from dynscaling_jax.models import flops
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import parameters

BFLOAT16 = 2  # bytes
KEPT = 2e9  # bytes of prefixes that an Engine keeps by default
SPLIT = (  # over the chips that share one copy, as are experts
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "vocab_size",
)


class Chip(NamedTuple):
    """What the maker of a chip publishes."""

    memory: float  # bytes
    bandwidth: float  # bytes/s of that memory
    peak: float  # operations/s in bfloat16, without sparsity
    cores: int = 1  # that the name of a slice counts
    taken: float = 1.0  # share of the memory that JAX takes

    @property
    def available(self) -> float:
        """Bytes that decoding may take, as of inference.memory."""
        return memory.SHARE * self.taken * self.memory


CHIPS = {
    # cloud.google.com/tpu/docs/v5e, v5p, v6e
    "v5e": Chip(16e9, 819e9, 197e12),
    "v5p": Chip(95e9, 2765e9, 459e12, cores=2),
    "v6e": Chip(32e9, 1638e9, 918e12),
    # NVIDIA's data sheets, A100 and H100 with SXM; XLA_CLIENT_MEM_FRACTION is
    # to be 0.95, of which docs/single_gpu.md tells
    "L4": Chip(24e9, 300e9, 121e12, taken=0.95),
    "A100-80": Chip(80e9, 2039e9, 312e12, taken=0.95),
    "H100": Chip(80e9, 3350e9, 989e12, taken=0.95),
    "H200": Chip(141e9, 4800e9, 989e12, taken=0.95),
}
TPUS = ("v5e", "v5p", "v6e")


class Device(NamedTuple):
    """A slice of TPUs, or GPUs."""

    chip: Chip
    chips: int
    host: int  # chips of one host


def device(name: str) -> Device:
    """Finds a TPU slice as Google names it, or GPUs.

    Names are v5e-8; v5p-64, whose number counts cores, two a chip; H100; or
    H100x8 for eight.

    Raises:
        ValueError: another name, or a number of chips that hosts cannot have.
    """
    tpu = re.fullmatch(rf"({'|'.join(TPUS)})-([1-9]\d{{0,3}})", name)
    gpu = re.fullmatch(r"(.+?)(?:x([1-9]\d{0,3}))?", name)
    if tpu:
        kind, count = tpu[1], int(tpu[2])
    elif gpu and gpu[1] in CHIPS and gpu[1] not in TPUS:
        kind, count = gpu[1], int(gpu[2] or 1)
    else:
        gpus = ", ".join(kind for kind in CHIPS if kind not in TPUS)
        raise ValueError(
            f"device {name!r} is not known; known: {', '.join(TPUS)} with a "
            f"number, as in v5e-8, and {gpus}, or several as in H100x8"
        )
    chip = CHIPS[kind]
    chips, rest = divmod(count, chip.cores)
    # a host of a TPU slice has four chips, but eight of v5e-8 and v6e-8
    most = 4 if tpu and (chips > 8 or chip.cores > 1) else 8
    host = min(chips, most)
    if rest or not host or chips % host:
        cores = f" of {chip.cores} cores" if chip.cores > 1 else ""
        raise ValueError(
            f"device {name!r}: its hosts have {most} chips{cores} each; "
            "expected a multiple, or fewer on one host"
        )
    return Device(chip, chips, host)


_published = functools.partial(
    ModelConfig, head_dim=128, max_position_embeddings=131_072
)
SHAPES = {
    # config.json of Qwen/Qwen2.5-7B, Qwen/Qwen2.5-32B, Llama-3.1-70B
    "qwen2.5-7b": _published(
        "qwen2", vocab_size=152_064, hidden_size=3584, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18_944, qkv_bias=True,
    ),
    "qwen2.5-32b": _published(
        "qwen2", vocab_size=152_064, hidden_size=5120, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8,
        intermediate_size=27_648, qkv_bias=True,
    ),
    "llama-3.1-70b": _published(
        "llama", vocab_size=128_256, hidden_size=8192, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28_672,
    ),
}  # fmt: skip


class Rate(NamedTuple):
    """Tokens a second of a whole device."""

    tokens_per_second: float
    bound: str  # what takes longer: bytes or operations


class Plan(NamedTuple):
    """Predictions for a whole device. Bytes are those of one chip."""

    processes: int  # one a host
    lockstep: bool  # whether they share one mesh
    data: int  # of each mesh
    model: int
    groups: int  # over all processes
    slots: int  # over all processes
    memory: Memory  # bytes
    prefix_keys: int  # bytes: of the groups and of the kept prefixes
    decode_keys: int  # bytes
    decode: Rate  # when all slots are active
    prefill: Rate


def parameter_bytes(config: ModelConfig, int8: bool = False) -> int:
    """Counts the bytes of all parameters in bfloat16 or int8.

    With int8, matrices are int8 and have a float32 scale for each of their
    rows, as models.quantization makes them.
    """
    total = 0
    for parameter in parameters(config).values():
        count = math.prod(parameter.shape)
        if int8 and parameter.quantised:
            total += count + memory.FLOAT * math.prod(parameter.shape[:-1])
        else:
            total += count * BFLOAT16
    return total


def read_bytes(config: ModelConfig, int8: bool = False) -> int:
    """Counts the bytes of the parameters that a step reads.

    Of a table of embeddings that is not the head as well it takes single
    rows, which are not counted; of a mixture all experts are.
    """
    return parameter_bytes(
        dataclasses.replace(config, tie_word_embeddings=True), int8
    )


def shard(config: ModelConfig, model: int) -> ModelConfig:
    """Returns what one of so many chips holds and computes.

    It has its part of heads, feed-forward and vocabulary, and all norms.

    Raises:
        ValueError: it cannot be split so.
    """
    if not _divides(model, config):
        raise ValueError(
            f"{config.num_attention_heads} heads, {config.num_key_value_heads} "
            f"key heads, {config.intermediate_size} units and "
            f"{config.vocab_size} tokens cannot all be split over {model} chips"
        )
    part = {name: getattr(config, name) // model for name in SPLIT}
    return dataclasses.replace(config, **part)


def propose(
    config: ModelConfig,
    on: Device,
    prompt: int,
    new: int,
    per_group: int,
    int8: bool = False,
) -> Plan:
    """Proposes a mesh, and predicts what it would do.

    What chips send one another is not in the formulas, so the parameters are
    split over as few of a host's as leave half of the memory to keys; where
    none do, over as few as hold one group; where a host does not, likewise
    over those of several.

    Args:
        config: of the model.
        on: the device.
        prompt: tokens of a prompt.
        new: completion tokens of a sample.
        per_group: slots of a group.
        int8: the weights, as of load_model(quantize="int8").

    Raises:
        ValueError: no mesh of this device holds one group, with what the
            widest split would take; or lengths past the model's context.
    """
    context = config.max_position_embeddings
    if min(prompt, new, per_group) < 1 or prompt + new > context:
        raise ValueError(
            f"a prompt of {prompt} tokens, {new} new ones and {per_group} "
            "slots a group: each must be at least 1, and the tokens at most "
            f"the context, {context}"
        )
    half = on.chip.available / 2

    def splits(chips: int, more_than: int) -> list[int]:
        even = [
            model
            for model in range(more_than + 1, chips + 1)
            if chips % model == 0 and _divides(model, config)
        ]
        fits = lambda m: parameter_bytes(shard(config, m), int8) <= half
        return [*filter(fits, even)] or even

    *narrower, widest = *splits(on.host, 0), *splits(on.chips, on.host)
    for model in narrower:
        with contextlib.suppress(ValueError):  # it holds no group
            return plan(config, on, model, prompt, new, per_group, int8)
    return plan(config, on, widest, prompt, new, per_group, int8)


def plan(
    config: ModelConfig,
    on: Device,
    model: int,
    prompt: int,
    new: int,
    per_group: int,
    int8: bool = False,
) -> Plan:
    """Predicts what a mesh with parameters over `model` chips would do.

    Other arguments are those of propose.

    Raises:
        ValueError: it does not hold one group, or cannot be split so.
    """
    part = shard(config, model)
    # inference.memory counts logits of the whole vocabulary on each chip
    held = dataclasses.replace(part, vocab_size=config.vocab_size)
    copies = on.chips // model
    weights = parameter_bytes(part, int8)
    bucket, suffix = layout.power_bucket(prompt), layout.suffix_bucket(new)
    kept = int(KEPT) // model

    def predict(groups: int) -> Memory:
        size = Size(groups, per_group, bucket, suffix)
        return memory.predicted(held, size, weights, BFLOAT16, kept)

    groups = memory.most_groups(per_group, on.chip.available, predict)
    token = memory.token_bytes(part, BFLOAT16)
    decode_keys = groups * per_group * suffix * token
    lockstep = model > on.host
    size = Size(groups, per_group, bucket, new)
    return Plan(
        on.chips // on.host,
        lockstep,
        (on.chips if lockstep else on.host) // model,
        model,
        copies * groups,
        copies * size.slots,
        predict(groups),
        groups * bucket * token + kept,
        decode_keys + decode_keys // 2,  # it doubles, as in inference.memory
        decode_rate(part, on.chip, copies, size, int8),
        prefill_rate(part, on.chip, copies, bucket, int8),
    )


def decode_rate(
    part: ModelConfig, chip: Chip, copies: int, size: Size, int8: bool = False
) -> Rate:
    """Predicts decoding with all slots active and samples half done.

    A step takes the longer of reading all bytes once and doing all operations.
    part is what one chip holds of the model; size is of one copy, and its
    suffix the tokens that a sample has at its end.
    """
    middle = size.suffix // 2
    keys = size.groups * size.prefix + size.slots * middle
    token = memory.token_bytes(part, BFLOAT16)
    seen = size.prefix + middle
    operations = size.slots * (
        flops.linear_flops(part)
        + flops.head_flops(part)
        + flops.attention_flops(part, seen - 1, seen)
    )
    moved = read_bytes(part, int8) + keys * token
    return _rate(chip, copies * size.slots, moved, operations)


def prefill_rate(
    part: ModelConfig, chip: Chip, copies: int, prompt: int, int8: bool = False
) -> Rate:
    """Predicts prefill of prompts, one after the other in each copy.

    A prompt has so many tokens, padding included.
    """
    token = memory.token_bytes(part, BFLOAT16)
    operations = (
        prompt * flops.linear_flops(part)
        + flops.head_flops(part)
        + flops.attention_flops(part, 0, prompt)
    )
    moved = read_bytes(part, int8) + prompt * token
    return _rate(chip, copies * prompt, moved, operations)


def _rate(chip: Chip, tokens: int, moved: float, operations: float) -> Rate:
    """The rate of all copies, in the time that one chip takes."""
    reading, computing = moved / chip.bandwidth, operations / chip.peak
    bound = "bytes" if reading >= computing else "operations"
    return Rate(tokens / max(reading, computing), bound)


def _divides(model: int, config: ModelConfig) -> bool:
    sizes = (getattr(config, name) for name in (*SPLIT, "num_experts"))
    return all(size % model == 0 for size in sizes)
