r"""What a device would hold and how fast it would decode, as predicted.

    python -m launch.plan --shape=qwen2.5-7b --device=v5e-8
    python -m launch.plan --shape=DIR,llama-3.1-70b --device=v5e-8,H100x8 \
        --quantize=int8 --prompt=2000 --new=4000

A shape is a name or a directory with a config.json, which need hold no
weights. The figures come from what makers publish of their chips, by the
formulas of dynscaling_jax/inference/plan.py; nothing is run. Real rates are
lower: no chip reaches its peaks, and what chips tell one another is left out.
"""

import sys

from absl import flags

from launch.arguments import Command, quiet, start

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
PER = flags.DEFINE_integer(
    "slots_per_group", 8, "Sequence slots that share a prompt."
)
QUANTIZE = flags.DEFINE_enum("quantize", "", ["", "int8"], "Of the weights.")


def main(_) -> None:
    quiet("jax")
    try:
        from dynscaling_jax.experiments import plan

        sizes = PROMPT.value or 0, NEW.value or 0, PER.value or 0
        int8 = QUANTIZE.value == "int8"
        print(plan.table(SHAPE.value or (), DEVICE.value or (), *sizes, int8))
    except (ValueError, OSError) as error:
        sys.exit(f"launch.plan: {error}")


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
