"""The real functions, compiled for devices that are not here.

The compilers of accelerators are programs of their own, and need no device:
libtpu for TPUs, jax's CUDA plugin for GPUs (`make .venv-aot/.done` installs
both). What they compile is what an engine would run: prefill_chunk, start and
decode_chunk of inference.paged.runner, with the shapes and shardings of a plan,
and no array. None of this says how long anything takes.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from dynscaling_jax.inference import hlo, memory, sampling
from dynscaling_jax.inference.paged import runner
from dynscaling_jax.inference.paged.attention import (
    Backend,
    Layout,
    gpu,
    layout_of,
    xla,
)
from dynscaling_jax.inference.paged.attention.select import select
from dynscaling_jax.inference.paged.attention.states import pages_met
from dynscaling_jax.inference.paged.runner import State
from dynscaling_jax.inference.paged.turn import Chunk
from dynscaling_jax.inference.plan import (
    BFLOAT16,
    TPUS,
    Plan,
    live_bytes,
    read_bytes,
    shard,
)
from dynscaling_jax.inference.slot import Prompt
from dynscaling_jax.models import parameters, quantization
from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.sharding import AXES, param_sharding
from dynscaling_jax.models.stacked import Stacked, period

INSTALL = "make .venv-aot/.done installs it; then run .venv-aot/bin/python"
STEPS = runner.CHUNK
STOPS = 8  # ids that end a sample, as an engine pads them
TPU_ENVIRONMENT = {  # libtpu is not to look for its machine, or to lock it
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# chips -> topology; a smaller slice takes the first chips of the least one
FLAT = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
# NVIDIA's data sheets and the tuning guide of Hopper: memory in bytes, its
# bandwidth in bytes/s
HOPPER = {
    "H100": (80 * 2**30, 3_350_000_000_000),
    "H200": (141 * 10**9, 4_800_000_000_000),
}
HOPPER_TARGET = """\
platform_name: "CUDA"
device_description_str: "NVIDIA {name}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
}}
"""


class Work(NamedTuple):
    """What is compiled: a model, where it lies, and what is decoded."""

    config: ModelConfig
    devices: Sequence[Any]
    data: int  # of the mesh
    model: int
    slots: int  # of one part of the data axis
    pages: int
    keys: str = ""
    int8: bool = False  # the weights
    attention: str = "auto"
    chunk: int = memory.PREFILL  # tokens of a prompt that are computed at once


class Program(NamedTuple):
    """What a compiler says of one function; bytes of one device."""

    arguments: int
    outputs: int  # those that are no argument again
    aliased: int  # arguments that are written in place
    temporaries: int
    counted: float  # bytes accessed, as XLA counts: loops once; 0 unknown
    traffic: hlo.Traffic
    text: str


def devices(name: str) -> tuple[Any, ...]:
    """Describes the chips of a device, as inference.plan names it.

    Raises:
        ValueError: the compilers of this device are not installed, were not
            loaded, or have no description of it.
    """
    kind, _, count = name.replace("x", "-").partition("-")
    if kind in HOPPER:
        _check_installed(name, "jax_cuda12_plugin")
        size, bandwidth = HOPPER[kind]
        target = HOPPER_TARGET.format(
            name=kind, memory=size, bandwidth=bandwidth
        )
        more = {"target_config": target, "topology": f"1 x 1 x {count or 1}"}
        return _topology("cuda", kind, **more)
    sizes, chips = CUBES if kind == "v5p" else FLAT, 0
    if kind in TPUS:
        chips = int(count) // (2 if kind == "v5p" else 1)
    least = next((size for size in sizes if size >= chips), 0)
    if not chips or not least:
        known = ", ".join(("v5e-8", "v6e-8", "v5p-8", *HOPPER))
        raise ValueError(
            f"no compiler has a description of {name}; known: {known}"
        )
    _check_installed(name, "libtpu")
    for variable, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    return _topology("tpu", f"{kind}:{sizes[least]}")[:chips]


def _check_installed(device: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"the compiler for {device}, {package}, is not installed: {INSTALL}"
        )


def _topology(platform: str, name: str, **more: str) -> tuple[Any, ...]:
    # it is imported where it is needed: an experimental module may go
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform=platform, topology_name=name, **more
        )
    except NotImplementedError as error:
        raise ValueError(
            f"the compiler for {name} was not loaded: JAX looked for a device "
            "and found none; set JAX_PLATFORMS=cpu"
        ) from error
    return tuple(found.devices)


def work(
    config: ModelConfig,
    name: str,
    found: Plan,
    keys: str = "",
    int8: bool = False,
    attention: str = "auto",
) -> Work:
    """Describes what one mesh of a plan would run.

    Args:
        config: of the model; of its layers there may be fewer than planned.
        name: of the device.
        found: the plan.
        keys: int8, or empty for bfloat16.
        int8: the weights.
        attention: as of Engine.

    Raises:
        ValueError: the compilers of this device are not installed.
    """
    meshes = 1 if found.lockstep else found.processes
    return Work(
        config,
        devices(name)[: found.data * found.model],
        found.data,
        found.model,
        found.slots // (meshes * found.data),
        found.pages,
        keys,
        int8,
        attention,
    )


def backend(work: Work, layout: Layout) -> Backend:
    """The backend that an engine would take on these devices."""
    platform: str = work.devices[0].platform
    platform = "gpu" if platform == "cuda" else platform
    with _as_hopper():
        return select(work.attention, platform, work.config, layout, work.model)


@contextlib.contextmanager
def _as_hopper() -> Iterator[None]:
    """JAX asks its first device which heads cuDNN takes; here there is none."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    asked = fused.check_compute_capability
    fused.check_compute_capability = lambda capability: (
        tuple(map(int, capability.split("."))) <= (9, 0)
    )
    try:
        yield
    finally:
        fused.check_compute_capability = asked


def sizes(work: Work) -> Layout:
    """The layout of the cache."""
    keys = work.keys or "bfloat16"
    return layout_of(work.config, work.data, work.slots, work.pages, keys)


def programs(
    work: Work, names: Sequence[str] = ("prefill", "start", "decode")
) -> dict[str, Callable[[], Program]]:
    """Returns a compilation for each of the functions.

    The prefill is of a chunk that ends a prompt as long as the context allows,
    the decode of slots that have all of the pool.
    """
    config, mesh, layout = work.config, mesh_of(work), sizes(work)
    attend = backend(work, layout)
    stacked = work.devices[0].platform == "tpu"
    lone = SingleDeviceSharding(work.devices[0])

    def placed(tree: Any) -> Any:
        """On the one device, where there is no mesh."""
        if mesh is not None:
            return tree
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lone),
            tree,
        )

    params = placed(abstract_params(config, mesh, stacked, work.int8))
    state: State = placed(
        runner.described(
            config, attend, layout, work.slots, jnp.bfloat16, stacked, mesh
        )
    )
    slots, parts = layout.slots, layout.parts
    array = lambda dtype, *shape: np.zeros(shape, dtype)
    number, settings = np.int32(0), sampling.settings()
    settings = jax.tree.map(np.asarray, settings)
    stops = array(np.int32, STOPS)
    tables, shared = full_tables(layout)
    chunks = [
        Chunk(part, Prompt((), (), 0), 0, work.chunk, tuple(range(4)), 0)
        for part in range(parts)
    ]
    lengths = [array(np.int32, parts) for _ in range(3)]
    copies = [array(np.int32, parts, work.slots) for _ in range(2)]
    calls: dict[str, tuple[Callable, tuple]] = {
        "prefill": (
            runner.prefill_chunk.lower,
            (
                params,
                config,
                attend,
                state,
                attend.chunk_view(layout, chunks),
                array(np.int32, parts, work.chunk),
                *lengths,
            ),
        ),
        "start": (
            runner.start.lower,
            (
                attend,
                state,
                np.uint32(0),
                array(bool, slots),
                array(np.uint32, slots, 3),
                *[array(np.int32, slots) for _ in range(3)],
                *copies,
                number,
                stops,
                settings,
            ),
        ),
        "decode": (
            runner.decode_chunk.lower,
            (
                params,
                config,
                attend,
                state,
                attend.view(layout, tables, shared),
                array(bool, slots),
                stops,
                settings,
                number,
                number,
            ),
        ),
    }

    def run(name: str) -> Program:
        lower, arguments = calls[name]
        on = jax.set_mesh(mesh) if mesh else contextlib.nullcontext()
        with on, _as_hopper():
            return program(lower(*arguments).compile())

    return {name: lambda name=name: run(name) for name in names}


def program(compiled: Any) -> Program:
    """Reads what a compiler says."""
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    cost = compiled.cost_analysis() or {}
    return Program(
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes,
        cost.get("bytes accessed", 0.0),
        hlo.traffic(text),
        text,
    )


def step_bytes(
    work: Work, decode: Program, live: Sequence[int], everywhere: bool = False
) -> tuple[float, float]:
    """Counts what a step of decoding reads and writes on one device.

    The loop over steps counts once. Loops of the XLA form over blocks of the
    pool count for each block that `live` fills, as if pages lay without gaps
    and none were shared. A kernel reads the pages that its layer sees and the
    queries, and writes as much as these. No cutoff of top-k, top-p or min-p
    is counted.

    Args:
        work: what was compiled.
        decode: its decode_chunk.
        live: tokens of each slot of one part that have keys.
        everywhere: counts memory on the chip too, as XLA does.

    Returns:
        What is counted; and the least that it could be: the parameters that
        this device holds, and the keys that its slots see.
    """
    part = shard(work.config, work.model)
    layers, page = part.num_hidden_layers, memory.PAGE
    token = memory.paged_token_bytes(part, BFLOAT16, work.keys) / layers
    blocks = -(-sum(-(-tokens // page) for tokens in live) // xla.BLOCK)
    kind = backend(work, sizes(work)).name
    if kind != "xla":
        blocks = 0  # its loops are over shared pages alone

    def repeats(depth: int, body: hlo.Traffic) -> int:
        if depth == 0:
            return 1  # the loop over steps
        own = xla.BLOCK * page * token  # a smaller one is over shared pages
        return blocks if body.bytes > own / 2 else 0

    found = hlo.traffic(
        decode.text, repeats=repeats, cheapest=True, everywhere=everywhere
    )
    kernels = 0.0
    for layer in range(layers):
        window = part.kind(layer).window
        met = pages_met(window, page) if window else sum(live)
        pages = sum(min(-(-tokens // page), met) for tokens in live)
        if found.kernels.get(hlo.TPU_KERNEL):
            q = len(live) * part.num_attention_heads * part.head_dim * BFLOAT16
            kernels += pages * page * token + 2 * q
        elif kind == "gpu" and window and met > gpu.FEW_PAGES:
            # cuDNN is given the pool, and how many keys there are of each page
            kernels -= (work.pages - pages) * page * token
    least = read_bytes(work.config, work.int8, work.model) + sum(
        live_bytes(part, tokens, BFLOAT16, work.keys) for tokens in live
    )
    return found.bytes + kernels, least


def full_tables(
    layout: Layout,
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Makes tables that divide all pages of a pool among its slots."""
    each = layout.slots // layout.parts
    count = min(layout.pages // each, layout.longest)
    tables = [
        tuple(range(slot * count, slot * count + count)) for slot in range(each)
    ]
    return tables * layout.parts, [0] * layout.slots


def abstract_params(
    config: ModelConfig, mesh: Mesh | None, stacked: bool, int8: bool = False
) -> Params:
    """Describes parameters in bfloat16 by jax.ShapeDtypeStruct.

    Args:
        config: of the model.
        mesh: that they lie on; None is one device.
        stacked: whether layers are, as of models.stacked.
        int8: the weights.
    """

    def leaf(parameter: parameters.Parameter) -> Any:
        whole = jax.ShapeDtypeStruct(parameter.shape, jnp.bfloat16)
        if int8 and parameter.quantised:
            whole = jax.eval_shape(quantization.quantize, whole)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape,
                x.dtype,
                sharding=mesh
                and param_sharding(mesh, config, parameter, x.shape),
            ),
            whole,
        )

    params = parameters.tree(config, leaf)
    if not stacked:
        return params
    count = period(config)
    rounds = config.num_hidden_layers // count

    def above(x: Any) -> Any:
        """A stack of it, whole along its first axis."""
        where = x.sharding
        if where is not None:
            spec = PartitionSpec(None, *where.spec)
            where = NamedSharding(where.mesh, spec)
        return jax.ShapeDtypeStruct((rounds, *x.shape), x.dtype, sharding=where)

    layers = params["layers"]
    places = tuple(jax.tree.map(above, layers[at]) for at in range(count))
    return {**params, "layers": Stacked(places, (*layers[rounds * count :],))}


def mesh_of(work: Work) -> Mesh | None:
    """Makes the mesh of what is compiled; None is one device."""
    count = work.data * work.model
    if count == 1:
        return None
    chips = np.array(work.devices[:count]).reshape(work.data, work.model)
    return Mesh(chips, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sent(found: hlo.Traffic) -> str:
    """Says which collectives there are: `36 all-reduce of 18.87 MB`."""
    return ", ".join(
        f"{each.count} {kind} of {each.bytes / 1e6:.2f} MB"
        for kind, each in sorted(found.collectives.items())
    )
