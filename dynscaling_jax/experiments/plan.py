"""Tables of what devices would hold and how fast they would sample."""

from collections.abc import Sequence
from pathlib import Path

from dynscaling_jax.analysis.tables import markdown
from dynscaling_jax.checkpoints.hf_checkpoint import read_config
from dynscaling_jax.inference import aot, memory, plan
from dynscaling_jax.inference.memory import Lengths
from dynscaling_jax.models import ModelConfig

HEAD = (
    "shape",
    "device",
    "processes",
    "mesh",
    "parameters",
    "pool",
    "working",
    "slots",
    "decode tokens/s",
    "prefill tokens/s",
)
LEGEND = """\
Predicted from published peaks; unmeasured, and real rates are lower.
processes: one a host, each with --config.mesh=DATAxMODEL; in lockstep, where
one such mesh is of the chips of all (--lockstep). parameters to working: GB of
one chip; pool is of keys in pages, working with logits. slots: sampled at a
time on all chips. decode: all slots active, weights and live keys read once a
step. decode and prefill: of all chips, in brackets what bounds them. Prompts
of {prompt} tokens, at most {new} generated, {mean:.0f} live tokens a slot
({source}), bfloat16{int8}{keys}."""


def table(
    shapes: Sequence[str],
    devices: Sequence[str],
    lengths: Lengths,
    int8: bool,
    keys: str = "",
) -> str:
    """Tabulates all shapes on all devices, as `inference.plan` predicts.

    Raises:
        ValueError: not one of them fits; says what the first would take. A
            shape or a device that is not known.
        OSError: a config.json that cannot be read.
    """
    configs = {name: shape(name) for name in shapes}
    found = {name: plan.device(name) for name in devices}
    rows, refused = [], []
    for name, config in configs.items():
        for where, device in found.items():
            try:
                one = plan.propose(config, device, lengths, int8, keys)
                rows.append((name, where, *_cells(one)))
            except ValueError as error:
                refused.append(f"{name} on {where}: {error}")
                rows.append((name, where, "", "does not fit", *[""] * 6))
    if len(refused) == len(rows):
        raise ValueError(refused[0])
    legend = LEGEND.format(
        prompt=lengths.prompt,
        new=lengths.new,
        mean=lengths.mean,
        source="--live" if lengths.live else "half done",
        int8=", weights in int8" * int8,
        keys=f", keys in {keys}" if keys else "",
    )
    return f"{markdown(HEAD, rows)}\n\n{legend}"


COMPILED = (
    "shape",
    "device",
    "mesh",
    "attention",
    "function",
    "arguments",
    "in place",
    "temporaries",
    "a step",
    "counted",
    "collectives",
)
COMPILED_LEGEND = """\
What the device's compiler says; nothing was run. GB of one chip. One call each:
prefill of {chunk} tokens of a prompt, start of slots, and decode, a chunk of
{steps} steps. arguments: parameters, state and what the host sends; in place:
of these, what is written where it lies; temporaries beside them. By formula
they are parameters, pool and logits, and working. a step: read and written in
main memory by one step of decoding, by the program's text, with {mean:.0f} live
tokens a slot; a kernel's own by formula. counted: XLA's count of the call, in
which loops run once and memory on the chip counts; it has none for GPUs.
collectives: by the text, of decode in one step."""


def compiled(
    shapes: Sequence[str],
    devices: Sequence[str],
    lengths: Lengths,
    int8: bool,
    keys: str = "",
) -> str:
    """Tabulates what compilers say of the plans that `table` has.

    Raises:
        ValueError: nothing fits; a compiler is not installed, or has no
            description of the device.
        OSError: a config.json that cannot be read.
    """
    rows = []
    for name in shapes:
        config = shape(name)
        for where in devices:
            on = plan.device(where)
            try:
                one = plan.propose(config, on, lengths, int8, keys)
            except ValueError:
                continue  # the table says that it does not fit
            work = aot.work(config, where, one, keys, int8)
            mesh = f"{one.data}x{one.model}"
            attention = aot.backend(work, aot.sizes(work)).name
            live = [int(lengths.mean)] * work.slots
            for function, compile_ in aot.programs(work).items():
                found = compile_()
                moved = 0.0
                if function == "decode":
                    moved, _ = aot.step_bytes(work, found, live)
                numbers = (
                    found.arguments,
                    found.aliased,
                    found.temporaries,
                    moved,
                    found.counted,
                )
                rows.append(
                    (
                        name,
                        where,
                        mesh,
                        attention,
                        function,
                        *(f"{n / 1e9:.2f}" if n else "" for n in numbers),
                        aot.sent(found.traffic),
                    )
                )
    legend = COMPILED_LEGEND.format(
        chunk=memory.PREFILL, steps=aot.STEPS, mean=lengths.mean
    )
    return f"{markdown(COMPILED, rows)}\n\n{legend}"


def shape(name: str) -> ModelConfig:
    """Reads the shape of a model: a name or a directory.

    Raises:
        ValueError, OSError: it is neither, or its config.json is wrong.
    """
    if name in plan.SHAPES:
        return plan.SHAPES[name]
    path = Path(name)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"shape {name!r}: no such directory with a config.json; known "
            f"names: {', '.join(plan.SHAPES)}"
        )
    return read_config(folder)


def _cells(found: plan.Plan) -> tuple[str, ...]:
    held = found.memory
    parts = held.weights, held.pool, held.logits + held.working
    return (
        f"{found.processes}{' in lockstep' * found.lockstep}",
        f"{found.data}x{found.model}",
        *(f"{part / 1e9:.2f}" for part in parts),
        f"{found.slots:,}",
        *(
            f"{rate.tokens_per_second:,.0f} ({rate.bound})"
            for rate in (found.decode, found.prefill)
        ),
    )
