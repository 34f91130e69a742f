"""The engine's functions, compiled for accelerators that are not here.

`make aot` runs these: they need the compilers that it installs. Models have
as many layers as repeat, twice, since a scan, or a list, of more compiles to
the same; every other size is that of the plan.
"""

import dataclasses
import functools
import importlib.util

import jax
import pytest

from dynscaling_jax.inference import aot, memory, plan
from dynscaling_jax.models import parameters, stacked
from dynscaling_jax.models.sharding import MODEL, mesh_axes

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
DEVICES = ("v5e-8", "v6e-8", "v5p-8", "H100", "H200")
TIGHT = {("qwen3-30b-a3b", "v5e-8"), ("qwen3-30b-a3b", "H100")}
FUNCTIONS = ("prefill", "start", "decode")


@pytest.fixture(autouse=True)
def no_cache():
    """What another process compiled is not what is asked here."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def planned(shape, device):
    int8 = (shape, device) in TIGHT  # in bfloat16 no sample would fit
    config, on = plan.SHAPES[shape], plan.device(device)
    return config, plan.propose(config, on, LENGTHS, int8), int8


def shortened(config, device):
    """One layer of each kind, and on TPUs, where a loop runs them, two.

    A layer is its kind and its arrays: a further one of a kind is the same
    code again, in a loop the same run once more. Gemma's ten different places
    of five sliding layers and a full one are two kinds.
    """
    layers = range(config.num_hidden_layers)
    kinds = dict.fromkeys((config.kind(at), config.sparse(at)) for at in layers)
    first = [
        next(at for at in layers if (config.kind(at), config.sparse(at)) == one)
        for one in kinds
    ]
    rounds = 2 if device.startswith("v") else 1
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_functions_compile(shape, device):
    config, found, int8 = planned(shape, device)
    short = shortened(config, device)
    work = aot.work(short, device, found, int8=int8)
    pool = found.memory.pool * short.num_hidden_layers
    pool //= config.num_hidden_layers
    weights = weight_shapes(config, found.model)
    # experts in int8 are bfloat16 where they are multiplied
    working = found.memory.working
    if int8:
        size = short.num_experts * short.moe_intermediate_size
        working += plan.BFLOAT16 * size * short.hidden_size // found.model
    made = aot.programs(work, FUNCTIONS)
    programs = {name: compile_() for name, compile_ in made.items()}
    for name, program in programs.items():
        # the state is written in place: neither pages nor weights are copied
        assert program.aliased >= pool, name
        assert program.outputs < 0.01 * pool, name
        assert program.temporaries <= working, name
        for kind, each in program.traffic.collectives.items():
            if kind != "all-reduce":  # which is of activations
                shapes = {
                    tuple(sorted(size for size in shape if size > 1))
                    for shape in each.shapes
                }
                assert not shapes & weights, (name, kind)
    # whatever the length of the prompt, of which the table has room for 40,960
    assert work.pages * memory.PAGE > 16_384
    assert programs["prefill"].temporaries <= 1e9
    # all steps in one call: a loop of unknown length around everything
    assert programs["decode"].text.count("\nENTRY ") == 1
    assert programs["decode"].traffic.loops >= 1


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


def test_an_unknown_device():
    with pytest.raises(ValueError, match="no compiler has a description of L4"):
        aot.devices("L4")
