"""Tables of what devices would hold and how fast they would sample."""

from collections.abc import Sequence
from pathlib import Path

from dynscaling_jax.analysis.tables import markdown
from dynscaling_jax.checkpoints.hf_checkpoint import read_config
from dynscaling_jax.inference import plan
from dynscaling_jax.models import ModelConfig

HEAD = (
    "shape",
    "device",
    "processes",
    "mesh",
    "parameters",
    "prefix keys",
    "decode keys",
    "working",
    "groups",
    "slots",
    "decode tokens/s",
    "prefill tokens/s",
)
LEGEND = """\
Predicted from published peaks; unmeasured, and real rates are lower.
processes: one a host, each with --config.mesh=DATAxMODEL; in lockstep, where
one such mesh is of the chips of all (--lockstep). parameters to working: GB of
one chip; prefix keys with {kept:.0f} GB of kept prefixes a copy, working with
logits. groups and slots: at a time on all chips. decode: all slots active,
samples half done. decode and prefill: of all chips, in brackets what bounds
them. Prompts of {prompt} tokens, {new} generated, {per} slots a group,
bfloat16{int8}."""


def table(
    shapes: Sequence[str],
    devices: Sequence[str],
    prompt: int,
    new: int,
    slots_per_group: int,
    int8: bool,
) -> str:
    """Tabulates all shapes on all devices, as `inference.plan` predicts.

    Raises:
        ValueError: not one of them fits; says what the first would take. A
            shape or a device that is not known.
        OSError: a config.json that cannot be read.
    """
    configs = {name: shape(name) for name in shapes}
    found = {name: plan.device(name) for name in devices}
    sizes = prompt, new, slots_per_group
    rows, refused = [], []
    for name, config in configs.items():
        for where, device in found.items():
            try:
                one = plan.propose(config, device, *sizes, int8)
                rows.append((name, where, *_cells(one)))
            except ValueError as error:
                refused.append(f"{name} on {where}: {error}")
                rows.append((name, where, "", "does not fit", *[""] * 8))
    if len(refused) == len(rows):
        raise ValueError(refused[0])
    legend = LEGEND.format(
        kept=plan.KEPT / 1e9,
        prompt=prompt,
        new=new,
        per=slots_per_group,
        int8=", weights in int8" * int8,
    )
    return f"{markdown(HEAD, rows)}\n\n{legend}"


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
    rest = found.memory.total - sum(
        (found.memory.weights, found.prefix_keys, found.decode_keys)
    )
    held = found.memory.weights, found.prefix_keys, found.decode_keys, rest
    return (
        f"{found.processes}{' in lockstep' * found.lockstep}",
        f"{found.data}x{found.model}",
        *(f"{part / 1e9:.2f}" for part in held),
        f"{found.groups:,}",
        f"{found.slots:,}",
        *(
            f"{rate.tokens_per_second:,.0f} ({rate.bound})"
            for rate in (found.decode, found.prefill)
        ),
    )
