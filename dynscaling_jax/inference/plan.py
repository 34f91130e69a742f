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

from dynscaling_jax.inference import memory
from dynscaling_jax.inference.memory import Lengths, PagedMemory
from dynscaling_jax.models import flops, sharding
from dynscaling_jax.models.config import (
    FULL,
    SLIDING,
    ModelConfig,
    RopeScaling,
)
from dynscaling_jax.models.parameters import parameters

BFLOAT16 = 2  # bytes
WIDER = 1.1  # how much faster a wider split must be predicted
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
_GEMMA_3 = ((*[SLIDING] * 5, FULL) * 6)[:34]
SHAPES = {
    # config.json of Qwen/Qwen2.5-7B and -32B, meta-llama/Llama-3.1-8B and
    # -70B, Qwen/Qwen3-8B and -30B-A3B, openai/gpt-oss-20b, and
    # google/gemma-3-4b-it, of which the text model
    "qwen2.5-7b": _published(
        "qwen2", vocab_size=152_064, hidden_size=3584, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
        intermediate_size=18_944, qkv_bias=True, rms_norm_eps=1e-6,
        rope_theta=1e6,
    ),
    "qwen2.5-32b": _published(
        "qwen2", vocab_size=152_064, hidden_size=5120, num_hidden_layers=64,
        num_attention_heads=40, num_key_value_heads=8,
        intermediate_size=27_648, qkv_bias=True, rope_theta=1e6,
    ),
    "qwen3-8b": _published(
        "qwen3", vocab_size=151_936, hidden_size=4096, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=12_288, max_position_embeddings=40_960,
        qk_norm="head", rms_norm_eps=1e-6, rope_theta=1e6,
    ),
    "qwen3-30b-a3b": _published(
        "qwen3_moe", vocab_size=151_936, hidden_size=2048,
        num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
        intermediate_size=6144, max_position_embeddings=40_960,
        qk_norm="head", rms_norm_eps=1e-6, rope_theta=1e6, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
    ),
    "gpt-oss-20b": _published(
        "gpt_oss", vocab_size=201_088, hidden_size=2880, num_hidden_layers=24,
        num_attention_heads=64, num_key_value_heads=8, head_dim=64,
        intermediate_size=2880, qkv_bias=True, o_bias=True, sinks=True,
        sliding_window=128, layer_types=(SLIDING, FULL) * 12,
        rope_theta=150_000.0,
        rope_scaling=RopeScaling(
            "yarn", 32.0, 1.0, 32.0, 4096,
            attention_factor=0.1 * math.log(32) + 1, truncate=False,
        ),
        num_experts=32, num_experts_per_tok=4, moe_intermediate_size=2880,
        norm_topk_prob=True, expert_bias=True, swiglu_limit=7.0,
        swiglu_alpha=1.702,
    ),
    "llama-3.1-8b": _published(
        "llama", vocab_size=128_256, hidden_size=4096, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14_336, rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0),
    ),
    "llama-3.1-70b": _published(
        "llama", vocab_size=128_256, hidden_size=8192, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8,
        intermediate_size=28_672, rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0),
    ),
    "gemma-3-4b": _published(
        "gemma3_text", vocab_size=262_208, hidden_size=2560,
        num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, intermediate_size=10_240, tie_word_embeddings=True,
        rms_norm_eps=1e-6, qk_norm="head", post_norm=True, norm_offset=1.0,
        hidden_act="gelu_pytorch_tanh", embed_scale=2560**0.5,
        query_pre_attn_scalar=256, sliding_window=1024, layer_types=_GEMMA_3,
        rope_theta=1e6, rope_local_base_freq=10_000.0,
        rope_scaling=RopeScaling("linear", 8.0),
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
    slots: int  # over all processes
    pages: int  # of one part of a mesh's data axis
    memory: PagedMemory  # bytes
    decode: Rate  # when all slots are active
    prefill: Rate


def parameter_bytes(
    config: ModelConfig, int8: bool = False, parts: int = 1
) -> int:
    """Counts the bytes of all parameters in bfloat16 or int8.

    With int8, matrices are int8 and have a float32 scale for each of their
    rows, as models.quantization makes them.

    Args:
        config: of the model.
        int8: whether matrices are.
        parts: chips that share one copy; what one of them holds is counted.
    """
    along, total = sharding.mesh_axes(config, parts), 0
    for parameter in parameters(config).values():
        shape = [
            size // parts if along[axis] and size % parts == 0 else size
            for size, axis in zip(parameter.shape, parameter.axes, strict=True)
        ]
        if int8 and parameter.quantised:
            total += math.prod(shape) + memory.FLOAT * math.prod(shape[:-1])
        else:
            total += math.prod(shape) * BFLOAT16
    return total


def read_bytes(config: ModelConfig, int8: bool = False, parts: int = 1) -> int:
    """Counts the bytes of the parameters that a step reads.

    Of a table of embeddings that is not the head as well it takes single
    rows, which are not counted; of a mixture all experts are. Arguments are
    those of parameter_bytes.
    """
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    return parameter_bytes(tied, int8, parts)


def live_bytes(
    config: ModelConfig, tokens: float, itemsize: int, keys: str = ""
) -> float:
    """Counts the bytes of keys and values that a step reads of a slot.

    A layer with a window reads no more tokens than that shows, though pages
    hold all.
    """
    layers = config.num_hidden_layers
    seen = sum(
        min(tokens, config.kind(layer).window or tokens)
        for layer in range(layers)
    )
    each = memory.paged_token_bytes(config, itemsize, keys) / layers
    return seen * each


def shard(config: ModelConfig, model: int) -> ModelConfig:
    """Returns what one of so many chips computes.

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
    lengths: Lengths,
    int8: bool = False,
    keys: str = "",
) -> Plan:
    """Proposes a mesh, and predicts what it would do.

    A split over more chips reads the parameters once for more slots, and
    leaves more memory to keys. Yet what chips send one another is not in the
    formulas, so a wider split of a host must be predicted WIDER times as fast
    as a narrower one. Where a host holds no sample, the chips of several
    share one copy, as few as hold one.

    Args:
        config: of the model.
        on: the device.
        lengths: of prompts and samples.
        int8: the weights, as of load_model(quantize="int8").
        keys: int8, or empty for bfloat16.

    Raises:
        ValueError: no mesh of this device holds one sample, with what the
            widest split would take; or lengths past the model's context.
    """
    context = config.max_position_embeddings
    prompt, new, live = lengths
    if min(prompt, new) < 1 or lengths.longest > context:
        raise ValueError(
            f"a prompt of {prompt} tokens and {new} new ones: each must be at "
            f"least 1, and both together at most the context, {context}"
        )
    if live and not prompt <= live <= lengths.longest:
        raise ValueError(
            f"{live} live tokens: expected from {prompt}, the prompt, to "
            f"{lengths.longest}, the prompt with all new ones"
        )

    def splits(chips: int, more_than: int) -> list[int]:
        return [
            model
            for model in range(more_than + 1, chips + 1)
            if chips % model == 0 and _divides(model, config)
        ]

    best = None
    for model in splits(on.host, 0):
        with contextlib.suppress(ValueError):  # it holds no sample
            found = plan(config, on, model, lengths, int8, keys)
            if best is None or _faster(found, best):
                best = found
    if best:
        return best
    *narrower, widest = splits(on.host, 0) + splits(on.chips, on.host)
    for model in narrower:
        with contextlib.suppress(ValueError):
            return plan(config, on, model, lengths, int8, keys)
    return plan(config, on, widest, lengths, int8, keys)


def plan(
    config: ModelConfig,
    on: Device,
    model: int,
    lengths: Lengths,
    int8: bool = False,
    keys: str = "",
) -> Plan:
    """Predicts what a mesh with parameters over `model` chips would do.

    Other arguments are those of propose.

    Raises:
        ValueError: it does not hold one sample, or cannot be split so.
    """
    part = shard(config, model)
    # inference.memory counts logits of the whole vocabulary on each chip
    held = dataclasses.replace(part, vocab_size=config.vocab_size)
    copies = on.chips // model
    weights = parameter_bytes(config, int8, model)
    pool = memory.paged(
        held, BFLOAT16, weights, on.chip.available, lengths, keys
    )
    lockstep = model > on.host
    read = read_bytes(config, int8, model)
    return Plan(
        on.chips // on.host,
        lockstep,
        (on.chips if lockstep else on.host) // model,
        model,
        copies * pool.slots,
        pool.pages,
        pool.memory,
        decode_rate(
            part, on.chip, copies, pool.slots, lengths.mean, read, keys
        ),
        prefill_rate(part, on.chip, copies, lengths.prompt, read, keys),
    )


def decode_rate(
    part: ModelConfig,
    chip: Chip,
    copies: int,
    slots: int,
    live: float,
    read: int,
    keys: str = "",
) -> Rate:
    """Predicts decoding with all slots active.

    A step takes the longer of reading parameters and live keys once and doing
    all operations.

    Args:
        part: what one chip computes of the model.
        chip: its peaks.
        copies: of the model.
        slots: of one copy.
        live: tokens of a slot, on average.
        read: bytes of the parameters that one chip reads.
        keys: int8, or empty for bfloat16.
    """
    seen = max(int(live), 1)
    operations = slots * (
        flops.linear_flops(part)
        + flops.head_flops(part)
        + flops.attention_flops(part, seen - 1, seen)
    )
    moved = read + slots * live_bytes(part, live, BFLOAT16, keys)
    return _rate(chip, copies * slots, moved, operations)


def prefill_rate(
    part: ModelConfig,
    chip: Chip,
    copies: int,
    prompt: int,
    read: int,
    keys: str = "",
) -> Rate:
    """Predicts prefill of prompts, one after the other in each copy.

    Each is computed in chunks, which read the parameters and the keys before
    them. Arguments are those of decode_rate.
    """
    operations = (
        prompt * flops.linear_flops(part)
        + flops.head_flops(part)
        + flops.attention_flops(part, 0, prompt)
    )
    ends = [*range(memory.PREFILL, prompt, memory.PREFILL), prompt]
    moved = sum(read + live_bytes(part, end, BFLOAT16, keys) for end in ends)
    return _rate(chip, copies * prompt, moved, operations)


def _rate(chip: Chip, tokens: int, moved: float, operations: float) -> Rate:
    """The rate of all copies, in the time that one chip takes."""
    reading, computing = moved / chip.bandwidth, operations / chip.peak
    bound = "bytes" if reading >= computing else "operations"
    return Rate(tokens / max(reading, computing), bound)


def _faster(one: Plan, other: Plan) -> bool:
    rates = (found.decode.tokens_per_second for found in (one, other))
    return next(rates) >= WIDER * next(rates)


def _divides(model: int, config: ModelConfig) -> bool:
    sizes = (getattr(config, name) for name in (*SPLIT, "num_experts"))
    return all(size % model == 0 for size in sizes)
