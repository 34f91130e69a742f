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
from dynscaling_jax.inference.memory import Lengths
from dynscaling_jax.inference.plan import Chip, Device, Rate
from dynscaling_jax.models import quantization, transformer
from dynscaling_jax.models.config import FULL, SLIDING, ModelConfig
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
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gpt-oss-20b", 20_914_757_184),
        ("gemma-3-4b", 3_880_263_168),
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
    split = plan.parameter_bytes(SMALL, parts=2)
    assert split == 2 * (MATRICES // 2 + VECTORS)
    assert memory.paged_token_bytes(part, 2) == TOKEN // 2
    with pytest.raises(ValueError, match="2 key heads.* split over 4 chips"):
        plan.shard(SMALL, 4)


# linears of a token: 2 x 1152; its head: 2 x 8 x 32; a pair of query and key
# in all layers: 4 x 8 x 2
LINEAR, HEAD, PAIR = 2 * 2 * 576, 512, 64
SLOTS, LIVE = 6, 144
READ = plan.read_bytes(SMALL)
MOVED = READ + SLOTS * LIVE * TOKEN
DONE = SLOTS * (LINEAR + HEAD + LIVE * PAIR)


def test_decoding_bound_by_bytes():
    """10 steps a second of memory, and hardly any computing."""
    slow = Chip(1e9, 10 * MOVED, 1e6 * DONE)
    rate = plan.decode_rate(SMALL, slow, 1, SLOTS, LIVE, READ)
    assert rate == (pytest.approx(10 * SLOTS), "bytes")
    # four copies generate four times as much
    rate = plan.decode_rate(SMALL, slow, 4, SLOTS, LIVE, READ)
    assert rate == (pytest.approx(40 * SLOTS), "bytes")


def test_decoding_bound_by_operations():
    quick = Chip(1e9, 1e6 * MOVED, 10 * DONE)
    rate = plan.decode_rate(SMALL, quick, 1, SLOTS, LIVE, READ)
    assert rate == (pytest.approx(10 * SLOTS), "operations")


def test_what_a_step_reads_of_a_slot():
    """Keys in int8 have a scale of four bytes for each two features here; a
    layer with a window of 16 reads no more of 100 tokens."""
    assert plan.live_bytes(SMALL, 100, 2) == 100 * TOKEN
    assert plan.live_bytes(SMALL, 100, 2, "int8") == 100 * 2 * 2 * 2 * (2 + 4)
    local = dataclasses.replace(
        SMALL, sliding_window=16, layer_types=(SLIDING, FULL)
    )
    assert plan.live_bytes(local, 100, 2) == (16 + 100) * TOKEN / 2
    assert plan.live_bytes(local, 10, 2) == 10 * TOKEN


def test_reading_prompts():
    """4 tokens see 1, 2, 3 and 4 keys; the head runs once."""
    done = 4 * LINEAR + HEAD + 10 * PAIR
    moved = READ + 4 * TOKEN
    on = Chip(1e9, 1e6 * moved, 10 * done)
    assert plan.prefill_rate(SMALL, on, 1, 4, READ) == (
        pytest.approx(40),
        "operations",
    )
    on = Chip(1e9, 10 * moved, 1e6 * done)
    rate = plan.prefill_rate(SMALL, on, 3, 4, READ)
    assert rate == (pytest.approx(120), "bytes")
    # a chunk more reads the parameters and the keys of the first again
    long = memory.PREFILL + 4
    twice = 2 * READ + (memory.PREFILL + long) * TOKEN
    on = Chip(1e9, 10 * twice, 1e12 * done)
    rate = plan.prefill_rate(SMALL, on, 1, long, READ)
    assert rate == (pytest.approx(10 * long), "bytes")


def test_eight_billion_on_an_h100():
    """Qwen3-8B by hand, in GB: parameters 16.38; a token's keys and values
    2 x 36 x 8 x 128 x 2 bytes = 147,456; of 64.6 that may be taken 47.85 are
    the pool's: 2,535 pages, 324,480 tokens. A slot holds 10,000, and 7/8 of
    the pool are to be full."""
    found = plan.propose(
        plan.SHAPES["qwen3-8b"],
        plan.device("H100"),
        Lengths(300, 32_768, 10_000),
    )
    assert (found.processes, found.data, found.model) == (1, 1, 1)
    assert (found.slots, found.pages) == (28, 2535)
    assert found.memory.weights == 2 * 8_190_735_360
    assert found.memory.pool == 2535 * 128 * 147_456
    assert found.memory.logits == 28 * 151_936 * 4
    page = 128 * 147_456
    assert 0 <= 0.85 * 0.95 * 80e9 - found.memory.total < 1.02 * page
    # a step: 15.14 GB of parameters and 28 x 10,000 keys, at 3.35 TB/s
    moved = 2 * (8_190_735_360 - 151_936 * 4096) + 280_000 * 147_456
    assert found.decode == (pytest.approx(28 / (moved / 3.35e12)), "bytes")


@pytest.mark.parametrize(
    ("device", "live", "half", "rate"),
    [("H100", 28, 18, 1500), ("H200", 56, 38, 2500), ("v5e-8", 52, 36, 3400)],
)
def test_recorded_lengths_of_aime_fit(device, live, half, rate):
    """Samples of up to 32,768 tokens: 10,000 live ones a slot, or half."""
    config, on = plan.SHAPES["qwen3-8b"], plan.device(device)
    lengths = Lengths(300, 32_768, 10_000)
    met = plan.propose(config, on, lengths)
    assert met.slots >= live
    assert met.decode.tokens_per_second >= rate
    assert met.memory.total <= on.chip.available
    guessed = plan.propose(config, on, lengths._replace(live=0))
    assert guessed.slots >= half
    for told in (lengths, lengths._replace(live=0)):
        wide, int8 = (
            plan.propose(config, on, told, keys=keys) for keys in ("", "int8")
        )
        assert int8.slots >= 1.8 * wide.slots


LONG = Lengths(300, 32_768, 10_000)


@pytest.mark.parametrize(
    ("shape", "device", "int8", "mesh"),
    [
        # 15.8 GB of 16.4 over two chips leave no room; eight have a fifth more
        # to read keys with than two times four
        ("qwen3-8b", "v5e-8", False, (1, 1, 8)),
        # one chip of 95 GB would do; two read parameters for twice the slots
        ("qwen3-8b", "v5p-8", False, (1, 2, 2)),
        # its 4 key heads allow no more
        ("qwen2.5-7b", "v5e-8", False, (1, 2, 4)),
        # 65.5 GB over 8, as its 8 key heads allow
        ("qwen2.5-32b", "v5e-8", False, (1, 1, 8)),
        ("llama-3.1-70b", "v5p-64", False, (8, 1, 4)),
        # over three the heads cannot be split
        ("qwen2.5-32b", "A100-80x3", True, (1, 3, 1)),
        # a host of four holds 64 GB, not 65.5: two copies over four hosts
        ("qwen2.5-32b", "v5e-16", False, (4, 2, 8)),
    ],
)
def test_a_wider_split_must_be_faster(shape, device, int8, mesh):
    found = plan.propose(plan.SHAPES[shape], plan.device(device), LONG, int8)
    assert (found.processes, found.data, found.model) == mesh
    assert found.lockstep == (found.model > plan.device(device).host)
    meshes = 1 if found.lockstep else found.processes
    assert found.slots % (meshes * found.data) == 0


def test_a_split_without_room_for_a_sample_gives_way_to_a_wider():
    chip, lengths = Chip(1e12, 1e9, 1e9), Lengths(2000, 2000)
    half = dataclasses.replace(plan.shard(SMALL, 2), vocab_size=32)
    weights = [plan.parameter_bytes(SMALL, parts=parts) for parts in (1, 2)]
    least = [
        held(config, taken, 1e12, lengths)
        for config, taken in zip((SMALL, half), weights, strict=True)
    ]
    chip = chip._replace(memory=sum(least) / 2 / memory.SHARE)
    found = plan.propose(SMALL, Device(chip, 2, 2), lengths)
    assert (found.data, found.model) == (1, 2)


def held(config, weights, available, lengths):
    """Bytes of a pool of one slot."""
    found = memory.paged(config, 2, weights, available, lengths, slots=1)
    return found.memory.total


def test_a_mesh_of_eight_devices_holds_what_is_planned():
    """To the byte of parameters."""
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


def test_what_no_mesh_holds():
    config, on = plan.SHAPES["llama-3.1-70b"], plan.device("v5e-8")
    lengths = Lengths(512, 1000)
    with pytest.raises(ValueError, match="one sample of 1512 tokens takes 1.7"):
        plan.propose(config, on, lengths)
    found = plan.propose(config, on, lengths, int8=True)
    assert (found.data, found.model) == (1, 8)
    assert isinstance(found.decode, Rate)


@pytest.mark.parametrize("lengths", [(0, 8), (8, 0), (4000, 97)])
def test_lengths_that_cannot_be(lengths):
    with pytest.raises(ValueError, match="at most the context, 4096"):
        plan.propose(SMALL, plan.device("H100"), Lengths(*lengths))


@pytest.mark.parametrize("live", [-1, 99, 201])
def test_live_tokens_that_cannot_be(live):
    with pytest.raises(ValueError, match="expected from 100, the prompt, to 2"):
        plan.propose(SMALL, plan.device("H100"), Lengths(100, 100, live))
