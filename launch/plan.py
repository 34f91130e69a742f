r"""What a device would hold and how fast it would draw: predicted, unmeasured.

    python -m launch.plan --shape=qwen2.5-7b --device=v5e-8
    python -m launch.plan --shape=DIR,llama-3.1-70b --device=v5e-8,H100x8 \
        --quantize=int8 --prompt=2000 --new=4000

A shape is a name or a directory with a config.json, which need hold no
weights. The figures come from what makers publish of their chips, by the
formulas of dynscaling_jax/inference/plan.py; nothing is run. Real rates are
lower: no chip reaches its peaks, and what chips tell one another is left out.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from dynscaling_jax.analysis.tables import markdown
from launch.arguments import Command, quiet, start

if TYPE_CHECKING:
    from dynscaling_jax.inference.plan import Plan
    from dynscaling_jax.models import ModelConfig

COMMAND = Command(
    "launch.plan",
    ("shape", "device"),
    "python -m launch.plan --shape=qwen2.5-7b --device=v5e-8",
)
SHAPE = flags.DEFINE_list(
    "shape",
    None,
    "qwen2.5-7b, qwen2.5-32b, llama-3.1-70b, or directories with config.json.",
)
DEVICE = flags.DEFINE_list(
    "device",
    None,
    "Slices of TPUs (v5e-8, v5p-64, v6e-8) or GPUs (L4, A100-80, H100, H200; "
    "H100x8 is eight).",
)
PROMPT = flags.DEFINE_integer("prompt", 512, "Tokens of a prompt.")
NEW = flags.DEFINE_integer("new", 1000, "Completion tokens of a sample.")
PER = flags.DEFINE_integer("rows_per_group", 8, "Slots that share a prompt.")
QUANTIZE = flags.DEFINE_enum("quantize", "", ["", "int8"], "Of the weights.")
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


def main(_) -> None:
    quiet("jax")
    try:
        print(report())
    except (ValueError, OSError) as error:
        sys.exit(f"launch.plan: {error}")


def report() -> str:
    """The table of all shapes on all devices. Raises ValueError where not
    one of them fits, with what the first would take."""
    from dynscaling_jax.inference import plan

    configs = {name: shape(name) for name in SHAPE.value or ()}
    devices = {name: plan.device(name) for name in DEVICE.value or ()}
    sizes = PROMPT.value, NEW.value, PER.value
    rows, refused = [], []
    for name, config in configs.items():
        for where, device in devices.items():
            try:
                found = plan.propose(
                    config, device, *sizes, QUANTIZE.value == "int8"
                )
                rows.append((name, where, *cells(found)))
            except ValueError as error:
                refused.append(f"{name} on {where}: {error}")
                rows.append((name, where, "", "does not fit", *[""] * 8))
    if len(refused) == len(rows):
        raise ValueError(refused[0])
    legend = LEGEND.format(
        kept=plan.KEPT / 1e9,
        prompt=PROMPT.value,
        new=NEW.value,
        per=PER.value,
        int8=", weights in int8" * (QUANTIZE.value == "int8"),
    )
    return f"{markdown(HEAD, rows)}\n\n{legend}"


def shape(name: str) -> "ModelConfig":
    """Of a name or a directory.

    Raises:
        ValueError, OSError: it is neither, or its config.json is wrong.
    """
    from dynscaling_jax.checkpoints.hf_checkpoint import read_config
    from dynscaling_jax.inference.plan import SHAPES

    if name in SHAPES:
        return SHAPES[name]
    path = Path(name)
    folder = path.parent if path.name == "config.json" else path
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"shape {name!r}: no such directory with a config.json; known "
            f"names: {', '.join(SHAPES)}"
        )
    return read_config(folder)


def cells(found: "Plan") -> tuple[str, ...]:
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


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
