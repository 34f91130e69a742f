"""The engine's functions, compiled for accelerators that are not here.

`make aot` runs these, but for the slow ones: they need the compilers that it
installs. Sizes are those of the plan, and layers those of `repeated`.
"""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynscaling_jax.checkpoints.model import resolve
from dynscaling_jax.inference import aot, memory, plan
from dynscaling_jax.inference.paged.attention import Layout, pallas, sharded
from dynscaling_jax.inference.paged.attention.tpu import View
from dynscaling_jax.models import parameters
from dynscaling_jax.models.sharding import AXES, MODEL, mesh_axes

COMPILERS = ("libtpu", "jax_cuda12_plugin")
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, COMPILERS)),
    reason="make aot installs the compilers of accelerators",
)
LENGTHS = memory.Lengths(300, 32_768, 10_000)
SHAPES = (
    "qwen2.5-7b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "llama-3.1-8b",
    "gemma-3-4b",
    "gpt-oss-20b",
)
EVERY = "v5e-8 v6e-8 v5p-8 H100 H200"
DEVICES = os.environ.get("AOT_DEVICES", EVERY).split()
TIGHT = {("qwen3-30b-a3b", "v5e-8"), ("qwen3-30b-a3b", "H100")}


@pytest.fixture(autouse=True)
def no_cache():
    """What another process compiled is not what is asked here."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def planned(shape, device, keys=""):
    int8 = (shape, device) in TIGHT  # in bfloat16 no sample would fit
    config, on = plan.SHAPES[shape], plan.device(device)
    return config, plan.propose(config, on, LENGTHS, int8, keys), int8


def repeated(config, device):
    """A model whose layers are one of each kind, in turn; on GPUs its own.

    A layer is its kind and its arrays, so a further one of a kind is the same
    code again. On TPUs a loop runs them, as often as makes the model's own
    depth: that of Gemma, of which six in a row and four behind compile as ten,
    has 17 sliding layers and 17 full ones here. On GPUs layers are a list, and
    all are compiled: with one of each kind it went unseen that the empty states
    of all layers were held at once.
    """
    if not device.startswith("v"):
        return config
    layers = range(config.num_hidden_layers)
    kinds = [(config.kind(at), config.sparse(at)) for at in layers]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    rounds = len(layers) // len(first)
    types = config.layer_types
    return dataclasses.replace(
        config,
        num_hidden_layers=rounds * len(first),
        layer_types=types and rounds * tuple(types[at] for at in first),
    )


def weight_shapes(config, parts):
    """Shapes of whole matrices of which a chip has a part.

    A chip that gathered one would have it in its result, with axes of one
    or transposed.
    """
    along = mesh_axes(config, parts)
    return {
        tuple(sorted(parameter.shape))
        for parameter in parameters.parameters(config).values()
        if len(parameter.shape) > 1
        and any(along[axis] == MODEL for axis in parameter.axes)
    }


def gathered(found, weights):
    """Which of these shapes collectives give; all-reduce is of activations."""
    return {
        shape
        for kind, each in found.collectives.items()
        if kind != "all-reduce"
        for whole in each.shapes
        if (shape := tuple(sorted(n for n in whole if n > 1))) in weights
    }


def spread(slots):
    """Tokens of slots, from few to twice what LENGTHS has on average."""
    each = 2 * LENGTHS.mean / slots
    return [int(each * (slot + 0.5)) for slot in range(slots)]


class Case(NamedTuple):
    """A shape on a device."""

    work: aot.Work
    found: plan.Plan
    pool: int  # bytes of it, for the layers that are compiled
    weights: set  # shapes of what may not be gathered


@functools.cache
def case(shape, device, keys=""):
    config, found, int8 = planned(shape, device, keys)
    short = repeated(config, device)
    return Case(
        aot.work(short, device, found, keys, int8),
        found,
        found.memory.pool * short.num_hidden_layers // config.num_hidden_layers,
        weight_shapes(config, found.model),
    )


def compiled(here, name):
    """A function whose state is written in place and that gathers no weight."""
    program = aot.programs(here.work, (name,))[name]()
    assert program.aliased >= here.pool
    assert program.outputs < 0.01 * here.pool
    assert program.temporaries <= here.found.memory.working
    assert not gathered(program.traffic, here.weights)
    return program


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill(shape, device):
    """Whatever the length of the prompt: the table has room for 16,384."""
    here = case(shape, device)
    assert aot.sizes(here.work).longest * memory.PAGE > 16_384
    assert compiled(here, "prefill").temporaries <= 1e9


@pytest.mark.parametrize(
    "device",
    [
        device
        if device in ("v5e-8", "H100")
        # the sampler again, for chips that differ in speed and memory
        else pytest.param(device, marks=pytest.mark.slow)
        for device in DEVICES
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_start(shape, device):
    compiled(case(shape, device), "start")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decode(shape, device):
    """All steps are one call; a step reads weights and live keys once."""
    here = case(shape, device)
    program = compiled(here, "decode")
    # one program, with a loop of unknown length around everything
    assert program.text.count("\nENTRY ") == 1
    assert program.traffic.loops >= 1
    # no logits leave their part
    sent = program.traffic.collectives.get("all-gather")
    assert sent is None or sent.bytes < 1e6
    slots = here.work.slots
    moved, least = aot.step_bytes(here.work, program, spread(slots))
    # on GPUs the states of pages go through main memory
    most = 1.3 if device.startswith("v") else 1.7
    assert 0.95 < moved / least <= most


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape",
    [
        "qwen3-8b",
        pytest.param("gemma-3-4b", marks=pytest.mark.slow),
        "gpt-oss-20b",
    ],
)
def test_int8_keys(shape, device):
    """No call copies the pool. What the kernel reads of it is a formula."""
    here = case(shape, device, "int8")
    compiled(here, "prefill")
    program, slots = compiled(here, "decode"), here.work.slots
    moved, least = aot.step_bytes(here.work, program, spread(slots))
    most = 1.3
    if (shape, device) == ("gpt-oss-20b", "v5p-8"):
        most = 1.45  # of 867 slots, whose logits count too
    if not device.startswith("v"):
        # XLA:GPU copies some pages at a time: docs/single_gpu.md
        most = 10 if device == "H200" else 5
    assert 0.95 < moved / least <= most


@pytest.mark.parametrize(
    ("slots", "pages", "kv_heads", "dim"), [(540, 256, 8, 256), (8, 2, 32, 256)]
)
def test_the_scalars_and_blocks_of_the_kernel_fit_on_the_chip(
    slots, pages, kv_heads, dim
):
    """Blocks of two pages have more scalars for each page than larger ones:
    those of 540 slots of 256 pages were more than the chip has room for. A
    page of 32 heads has the most bytes that `refuses` allows, and is a block
    alone."""
    config = dataclasses.replace(
        plan.SHAPES["gemma-3-4b"],
        num_hidden_layers=1,
        num_attention_heads=kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        layer_types=(),
        sliding_window=0,
    )
    layout = Layout(1, slots, 512, memory.PAGE, "bfloat16", pages)
    assert not pallas.refuses(config, layout, 1)
    chip = jax.sharding.SingleDeviceSharding(aot.devices("v5e-8")[0])
    shape = lambda sizes, dtype: jax.ShapeDtypeStruct(
        sizes, dtype, sharding=chip
    )
    backend = pallas.backend()

    def step(cache, table, position, active, q, k, v):
        at = View(table[None])
        seen = sharded.step(backend, config, cache, at, position, active)
        return sharded.decode(
            backend,
            config.kind(0),
            config,
            cache,
            jnp.int32(0),
            seen,
            position,
            active,
            q,
            k,
            v,
        )

    cache = tuple(
        shape((1, *sizes), dtype)
        for sizes, dtype, _ in backend.init(config, layout, "bfloat16")
    )
    heads = shape((slots, kv_heads, dim), "bfloat16")
    jax.jit(step, donate_argnums=0).lower(
        cache,
        shape((slots, pages), "int32"),
        shape((slots,), "int32"),
        shape((slots,), "bool"),
        *[heads] * 3,
    ).compile()


def test_a_weight_that_is_gathered_is_caught():
    chips = np.array(aot.devices("v5e-8")).reshape(1, 8)
    mesh = Mesh(chips, AXES)
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(MODEL))

    def product(x, weight):
        whole_weight = jax.lax.with_sharding_constraint(weight, whole)
        return jnp.sin(x @ whole_weight.T)

    shape = lambda sizes, on: jax.ShapeDtypeStruct(
        sizes, "bfloat16", sharding=on
    )
    lowered = jax.jit(product, out_shardings=whole).lower(
        shape((8, 2048), whole), shape((4096, 2048), split)
    )
    found = aot.program(lowered.compile()).traffic
    assert gathered(found, {(2048, 4096)}) == {(2048, 4096)}
    assert not gathered(found, {(1024, 4096)})


@functools.cache
def toy():
    """A product in a loop of four, of which XLA counts one."""
    chip = jax.sharding.SingleDeviceSharding(aot.devices("v5e-8")[0])
    shape = lambda *sizes: jax.ShapeDtypeStruct(
        sizes, "bfloat16", sharding=chip
    )

    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    lowered = jax.jit(scanned).lower(shape(64, 2048), shape(4, 2048, 2048))
    return lowered.compile()


def test_a_loop_is_counted_as_often_as_it_runs():
    """Weights of 8.4 MB each, read once; the rest stays on the chip."""
    found = aot.program(toy())
    weights = 4 * 2048 * 2048 * 2
    assert weights <= found.traffic.bytes <= 1.05 * weights
    assert found.counted < 0.5 * weights
    once = aot.hlo.traffic(found.text, everywhere=True, once=True)
    assert once.bytes == pytest.approx(found.counted, rel=0.1)


@pytest.mark.parametrize("device", ["v5e-8", "H100"])
def test_the_command(device):
    """Without JAX_PLATFORMS, as a person has it: JAX's plugin for CUDA looks
    for a device, and the command ended in a traceback for want of one."""
    command = [sys.executable, "-m", "launch.plan", "--compile"]
    command += [f"--shape={resolve('reasoner')}", f"--device={device}"]
    command += ["--prompt=100", "--new=200"]
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "What the device's compiler says" in done.stdout


def test_an_unknown_device():
    with pytest.raises(ValueError, match="no compiler has a description of L4"):
        aot.devices("L4")
