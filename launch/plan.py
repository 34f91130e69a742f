r"""What a device would hold and how fast it would decode, as predicted.

    python -m launch.plan --shape=qwen3-8b --device=v5e-8
    python -m launch.plan --shape=DIR,gpt-oss-20b --device=v5e-8,H100 \
        --prompt=300 --new=32768 --live=10000 --kv_dtype=int8

--live is what decides how many samples fit: the mean number of tokens of a
slot while it samples, prompt included, which is E[L^2] / 2 E[L] of samples of
L tokens. Without it samples are taken as half done.

A shape is a name or a directory with a config.json, which need hold no
weights. The figures come from what makers publish of their chips, by the
formulas of dynscaling_jax/inference/plan.py; nothing is run. --compile adds
what the compilers of the devices say of the real functions (`make
.venv-aot/.done` installs them, beside the project's own environment). Real
rates are lower: no chip reaches its peaks, and what chips tell one another is
left out.
"""

import os
import sys

from absl import flags

from launch.arguments import Command, quiet, start

COMMAND = Command(
    "launch.plan",
    ("shape", "device"),
    "python -m launch.plan --shape=qwen3-8b --device=v5e-8",
)
SHAPE = flags.DEFINE_list(
    "shape",
    None,
    "qwen3-8b, qwen3-30b-a3b, gpt-oss-20b, llama-3.1-8b, llama-3.1-70b, "
    "gemma-3-4b, qwen2.5-7b, qwen2.5-32b, or directories with config.json.",
)
DEVICE = flags.DEFINE_list(
    "device",
    None,
    "Slices of TPUs (v5e-8, v5p-64, v6e-8) or GPUs (L4, A100-80, H100, H200; "
    "H100x8 is eight).",
)
PROMPT = flags.DEFINE_integer("prompt", 512, "Tokens of a prompt.")
NEW = flags.DEFINE_integer(
    "new", 1000, "Completion tokens of a sample, at most."
)
LIVE = flags.DEFINE_integer(
    "live",
    0,
    "Tokens of a slot while it samples, on average, prompt included; 0 takes "
    "samples as half done.",
)
QUANTIZE = flags.DEFINE_enum("quantize", "", ["", "int8"], "Of the weights.")
KV_DTYPE = flags.DEFINE_enum(
    "kv_dtype", "", ["", "int8"], "Of keys and values; empty is bfloat16."
)
COMPILE = flags.DEFINE_bool(
    "compile",
    False,
    "Compiles the engine's functions for each device, and prints what its "
    "compiler says beside the formulas. `make .venv-aot/.done` installs the "
    "compilers.",
)


def main(_) -> None:
    quiet("jax")
    # No device is needed, and without one JAX's plugin for CUDA does not load.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        from dynscaling_jax.experiments import plan
        from dynscaling_jax.inference.memory import Lengths

        lengths = Lengths(PROMPT.value or 0, NEW.value or 0, LIVE.value or 0)
        int8, keys = QUANTIZE.value == "int8", KV_DTYPE.value or ""
        shapes, devices = SHAPE.value or (), DEVICE.value or ()
        print(plan.table(shapes, devices, lengths, int8, keys), flush=True)
        if COMPILE.value:
            said = plan.compiled(shapes, devices, lengths, int8, keys)
            print(f"\n{said}")
    except (ValueError, OSError) as error:
        sys.exit(f"launch.plan: {error}")


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
