"""Writes a model in another layout.

    python -m launch.convert --model=MODEL --to=orbax --out=DIR
    python -m launch.convert --model=DIR --to=hf --out=OTHER

MODEL is what launch.run takes: a name, a GGUF file, a directory in Hugging
Face or Orbax layout, hf://org/name@revision. An Orbax directory restores
straight onto a mesh; transformers loads the hf one. Values are kept as the
source has them, in its float type, unless --dtype says otherwise.
"""

import os
import shutil
import sys
from pathlib import Path

from absl import flags

from launch.arguments import Command, quiet, start

COMMAND = Command(
    "launch.convert",
    ("model", "out"),
    "python -m launch.convert --model=smollm2-135m-instruct --out=smollm2",
)
MODEL = flags.DEFINE_string("model", None, "What to convert.")
TO = flags.DEFINE_enum("to", "orbax", ["orbax", "hf"], "The layout.")
OUT = flags.DEFINE_string("out", None, "A directory that is not there yet.")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "By default the source's."
)


def main(_) -> None:
    quiet("jax", "orbax", "absl")
    out = Path(str(OUT.value))
    if not out.name:
        sys.exit(f"launch.convert: --out={OUT.value} names no new directory")
    draft = out.with_name(f".{out.name}.tmp")
    try:
        convert(str(MODEL.value), TO.value, out, draft, DTYPE.value)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"launch.convert: {error}")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(out)


def convert(
    name: str, to: str, out: Path, draft: Path, dtype: str | None
) -> None:
    """Writes draft, and renames it to out when it is whole."""
    from dynscaling_jax.checkpoints import export, load_model
    from dynscaling_jax.checkpoints.model import resolve, stored_dtype

    if out.exists():
        raise ValueError(f"{out} exists; choose another directory")
    source = resolve(name)
    model = load_model(source, dtype or stored_dtype(source))
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    export.save_side_files(draft, source, model.config, lambda: model.tokenizer)
    if to == "orbax":
        export.save_orbax(draft, model.params)
    else:
        export.save_hf(draft, model.config, model.params)
    os.replace(draft, out)


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
