"""Predictions against numbers that were worked out by hand."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dynscaling_jax.checkpoints import export
from dynscaling_jax.inference import memory, plan
from dynscaling_jax.inference.memory import Size
from dynscaling_jax.inference.plan import Chip, Device, Rate
from dynscaling_jax.models import quantization, transformer
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import parameters

# a layer has q and o of 8 x 8, k and v of 4 x 8, three matrices of 16 x 8 and
# two norms: 128 + 64 + 384 = 576 in matrices, 16 in vectors
SMALL = ModelConfig(
    "llama",
    vocab_size=32,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    intermediate_size=16,
    max_position_embeddings=4096,
)
MATRICES, VECTORS = 2 * 576 + 2 * 32 * 8, 2 * 16 + 8
TOKEN = 2 * 2 * 2 * 2 * 2  # keys and values, layers, heads, width, bytes


@pytest.mark.parametrize(
    ("name", "count"),
    [  # as their cards and the index of their files say
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_published_shapes_have_the_published_parameters(name, count):
    assert plan.parameter_bytes(plan.SHAPES[name]) == 2 * count


@pytest.mark.parametrize(
    ("name", "chips", "host", "memory_gb"),
    [
        ("v5e-1", 1, 1, 16),
        ("v5e-8", 8, 8, 16),
        ("v5e-16", 16, 4, 16),
        ("v5p-8", 4, 4, 95),
        ("v5p-64", 32, 4, 95),  # its number counts cores
        ("v6e-256", 256, 4, 32),
        ("H100", 1, 1, 80),
        ("H100x16", 16, 8, 80),
        ("A100-80x4", 4, 4, 80),
    ],
)
def test_devices_by_name(name, chips, host, memory_gb):
    assert plan.device(name)[1:] == (chips, host)
    assert plan.device(name).chip.memory == memory_gb * 1e9


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e-0", "v5ex8", "H100-8", "H100x0", "A100", "TPU"]
)
def test_what_is_no_device(name):
    with pytest.raises(ValueError, match="is not known; known: v5e, v5p, v6e"):
        plan.device(name)


@pytest.mark.parametrize("name", ["v5p-1", "v5p-7", "v5e-10", "H100x12"])
def test_chips_that_hosts_cannot_have(name):
    with pytest.raises(ValueError, match="its hosts have [48] chips"):
        plan.device(name)


def test_parameters_by_hand():
    assert plan.parameter_bytes(SMALL) == 2 * (MATRICES + VECTORS)
    # a scale for each row: of q, k, v, o, gate, up, down; of embed and head
    scales = 2 * (8 + 4 + 4 + 8 + 16 + 16 + 8) + 2 * 32
    assert plan.parameter_bytes(SMALL, int8=True) == (
        MATRICES + 4 * scales + 2 * VECTORS
    )
    # a step takes single rows of a table that is no head
    assert plan.read_bytes(SMALL) == 2 * (MATRICES + VECTORS - 32 * 8)
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    assert plan.read_bytes(tied) == plan.parameter_bytes(tied)


@pytest.mark.parametrize("int8", [False, True])
def test_parameters_are_as_large_as_their_arrays(int8):
    config = dataclasses.replace(
        SMALL,
        qkv_bias=True,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=6,
        expert_bias=True,
        mlp_only_layers=(0,),
    )
    params = transformer.init_params(jax.random.key(0), config, jnp.bfloat16)
    if int8:
        described = parameters(config)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                quantization.quantize(leaf)
                if described[export.steps(path)].quantised
                else leaf
            ),
            params,
        )
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert plan.parameter_bytes(config, int8) == taken


def test_a_shard_holds_its_share_and_all_norms():
    part = plan.shard(SMALL, 2)
    assert plan.parameter_bytes(part) == 2 * (MATRICES // 2 + VECTORS)
    assert memory.token_bytes(part, 2) == TOKEN // 2
    with pytest.raises(ValueError, match="2 key heads.* split over 4 chips"):
        plan.shard(SMALL, 4)


# linears of a token: 2 x 1152; its head: 2 x 8 x 32; a pair of query and key
# in all layers: 4 x 8 x 2
LINEAR, HEAD, PAIR = 2 * 2 * 576, 512, 64
SLOTS, PROMPT, NEW = 6, 128, 32
KEYS = 2 * PROMPT + SLOTS * NEW // 2  # two groups of three slots, half done
MOVED = plan.read_bytes(SMALL) + KEYS * TOKEN
DONE = SLOTS * (LINEAR + HEAD + (PROMPT + NEW // 2) * PAIR)


def test_decoding_bound_by_bytes():
    """10 steps a second of memory, and hardly any computing."""
    slow = Chip(1e9, 10 * MOVED, 1e6 * DONE)
    rate = plan.decode_rate(SMALL, slow, 1, Size(2, 3, PROMPT, NEW))
    assert rate == (pytest.approx(10 * SLOTS), "bytes")
    # four copies generate four times as much
    rate = plan.decode_rate(SMALL, slow, 4, Size(2, 3, PROMPT, NEW))
    assert rate == (pytest.approx(40 * SLOTS), "bytes")


def test_decoding_bound_by_operations():
    quick = Chip(1e9, 1e6 * MOVED, 10 * DONE)
    rate = plan.decode_rate(SMALL, quick, 1, Size(2, 3, PROMPT, NEW))
    assert rate == (pytest.approx(10 * SLOTS), "operations")


def test_reading_prompts():
    """4 tokens see 1, 2, 3 and 4 keys; the head runs once."""
    done = 4 * LINEAR + HEAD + 10 * PAIR
    moved = plan.read_bytes(SMALL) + 4 * TOKEN
    on = Chip(1e9, 1e6 * moved, 10 * done)
    assert plan.prefill_rate(SMALL, on, 1, 4) == (
        pytest.approx(40),
        "operations",
    )
    on = Chip(1e9, 10 * moved, 1e6 * done)
    assert plan.prefill_rate(SMALL, on, 3, 4) == (pytest.approx(120), "bytes")


def test_seven_billion_on_an_h100():
    """GB by hand: parameters 15.23; a token's keys and values 2 x 28 x 4 x
    128 x 2 bytes = 57,344; 32 groups of 512 positions 0.94, kept prompts 2; 256
    slots of 1,024 positions 15.03, with half as much beside it 22.55. Twice as
    many would take 66.4 with what is worked in; 64.6 are there."""
    found = plan.propose(
        plan.SHAPES["qwen2.5-7b"], plan.device("H100"), 512, 1000, 8
    )
    assert (found.processes, found.data, found.model) == (1, 1, 1)
    assert (found.groups, found.slots) == (32, 256)
    assert found.memory.weights == 15_231_233_024
    assert found.prefix_keys == 32 * 512 * 57_344 + 2_000_000_000
    assert found.decode_keys == 256 * 1024 * 57_344 * 3 // 2
    assert found.memory.total <= 0.85 * 0.95 * 80e9
    # a step: 14.14 GB of parameters and 32 x 512 + 256 x 500 keys, at 3.35
    # TB/s
    moved = 15_231_233_024 - 2 * 152_064 * 3584 + 144_384 * 57_344
    assert found.decode == (pytest.approx(256 / (moved / 3.35e12)), "bytes")


@pytest.mark.parametrize(
    ("shape", "device", "int8", "mesh"),
    [
        # at most 6.8 GB of parameters a chip of 16: 15.23 over 4
        ("qwen2.5-7b", "v5e-8", False, (1, 2, 4)),
        ("qwen2.5-7b", "v5e-8", True, (1, 4, 2)),
        # 65.5 GB over 8, as its 8 key heads allow: more than half, yet it fits
        ("qwen2.5-32b", "v5e-8", False, (1, 1, 8)),
        # at most 40.4 GB a chip of 95: 141.1 over 4
        ("llama-3.1-70b", "v5p-64", False, (8, 1, 4)),
        ("qwen2.5-7b", "v5p-64", False, (8, 4, 1)),
        # over three the heads cannot be split
        ("qwen2.5-32b", "A100-80x3", True, (1, 3, 1)),
        # a host of four holds 64 GB, not 65.5: two copies over four hosts
        ("qwen2.5-32b", "v5e-16", False, (4, 2, 8)),
    ],
)
def test_the_mesh_has_as_few_parts_as_leave_half_to_keys(
    shape, device, int8, mesh
):
    found = plan.propose(
        plan.SHAPES[shape], plan.device(device), 512, 1000, 8, int8
    )
    assert (found.processes, found.data, found.model) == mesh
    assert found.slots == 8 * found.groups
    assert found.lockstep == (found.model > plan.device(device).host)
    meshes = 1 if found.lockstep else found.processes
    assert found.groups % (meshes * found.data) == 0


def test_a_split_without_room_for_a_group_gives_way_to_a_wider():
    """Half of the memory is enough for the parameters whole, all of it not
    for the keys of a group."""
    chip, sizes = Chip(1e12, 1e9, 1e9), (2000, 2000, memory.MOST_SLOTS)
    whole, half = (
        plan.plan(SMALL, Device(chip, 2, 2), model, *sizes).memory.total
        for model in (1, 2)
    )
    chip = chip._replace(memory=(whole + half) / 2 / memory.SHARE)
    assert plan.parameter_bytes(SMALL) < 0.01 * chip.memory
    found = plan.propose(SMALL, Device(chip, 2, 2), *sizes)
    assert (found.data, found.model, found.groups) == (1, 2, 1)


def test_a_mesh_of_eight_devices_holds_and_generates_as_planned():
    """To the byte of parameters and the slot of groups=auto."""
    script = Path(__file__).with_name("plan_on_eight_devices.py")
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, **eight, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    for case in found:
        for taken, planned in case.values():
            assert taken == planned > 0
    assert len({case["slots"][0] for case in found}) > 1


def test_what_no_mesh_holds():
    config, on = plan.SHAPES["llama-3.1-70b"], plan.device("v5e-8")
    with pytest.raises(ValueError, match="one group of 8 slots takes 1.85e.10"):
        plan.propose(config, on, 512, 1000, 8)
    found = plan.propose(config, on, 512, 1000, 8, int8=True)
    assert (found.data, found.model) == (1, 8)
    assert isinstance(found.decode, Rate)


@pytest.mark.parametrize(
    "lengths", [(0, 8, 8), (8, 0, 8), (8, 8, 0), (4000, 97, 8)]
)
def test_lengths_that_cannot_be(lengths):
    with pytest.raises(ValueError, match="at most the context, 4096"):
        plan.propose(SMALL, plan.device("H100"), *lengths)
