"""Orbax and Hugging Face layouts, there and back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes  # noqa: F401, numpy knows bfloat16 through it
import numpy as np
import pytest
from safetensors import safe_open

from dynscaling_jax.checkpoints import export, hf_layout, load_model
from dynscaling_jax.checkpoints.model import stored_dtype

ROOT = Path(__file__).parents[2]


def convert(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "launch.convert", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def tensors(directory):
    found = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "numpy") as handle:
            for name in handle.keys():
                found[name] = handle.get_tensor(name)
    return found


def names(goldens):
    return sorted(file.parent.name for file in goldens.glob("*/config.json"))


def test_hf_to_orbax_to_hf_is_bit_exact(goldens, tmp_path):
    """For every family, fused and stacked tensors and shards included."""
    for name in names(goldens):
        source = goldens / name
        model = load_model(source, stored_dtype(source))
        there, back = tmp_path / f"{name}-orbax", tmp_path / f"{name}-hf"
        for folder in (there, back):
            folder.mkdir()
            export.save_side_files(folder, source, model.config, None)
        export.save_orbax(there, model.params)
        assert stored_dtype(there) == stored_dtype(source)
        again = load_model(there, stored_dtype(there))
        assert again.config == model.config
        export.save_hf(back, again.config, again.params, shard=8_000)
        before, after = tensors(source), tensors(back)
        if name.endswith("mxfp4"):  # comes back unpacked
            for key in [k for k in before if k.endswith("_blocks")]:
                whole = key.removesuffix("_blocks")
                scales = before.pop(f"{whole}_scales")
                unpacked = hf_layout.mxfp4(before.pop(key), scales)
                before[whole] = unpacked.swapaxes(1, 2)
            raw = json.loads((back / "config.json").read_text())
            assert "quantization_config" not in raw
        assert before.keys() == after.keys(), name
        for key, value in before.items():
            assert value.dtype == after[key].dtype
            assert value.tobytes() == after[key].tobytes(), (name, key)


def test_shards_have_an_index(goldens, tmp_path):
    model = load_model(goldens / "llama_grouped")
    export.save_hf(tmp_path, model.config, model.params, shard=4_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert files == {file.name for file in tmp_path.glob("*.safetensors")}
    export.save_side_files(
        tmp_path, goldens / "llama_grouped", model.config, None
    )
    ids = np.arange(12)[None]
    np.testing.assert_array_equal(
        load_model(tmp_path).logits(ids), model.logits(ids)
    )


def test_the_command(goldens, tmp_path):
    source, out = goldens / "phi3_grouped", tmp_path / "orbax"
    done = convert(f"--model={source}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    assert {file.name for file in out.iterdir()} == {
        "params",
        "config.json",
        "generation_config.json",
    }
    ids = np.arange(12)[None]
    np.testing.assert_array_equal(
        load_model(out).logits(ids), load_model(source).logits(ids)
    )
    again = convert(f"--model={source}", f"--out={out}")
    assert again.returncode == 1
    assert (
        again.stderr.strip()
        .splitlines()[-1]
        .endswith("exists; choose another directory")
    )


def test_what_fails_leaves_nothing(goldens, tmp_path):
    done = convert(f"--model={tmp_path}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "no *.safetensors file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_arrays_that_do_not_fit_are_named(goldens, tmp_path):
    source = goldens / "llama_grouped"
    model = load_model(source)
    params = {**model.params, "extra": model.params["norm"]}
    params["layers"] = [dict(layer) for layer in params["layers"]]
    params["layers"][0]["q"] = params["layers"][0]["q"][:-1]
    del params["norm"]
    export.save_orbax(tmp_path, params)
    export.save_side_files(tmp_path, source, model.config, None)
    with pytest.raises(ValueError, match="missing norm; unknown extra") as e:
        load_model(tmp_path)
    assert "layers.0.q: expected shape [16, 16], got [15, 16]" in str(e.value)


def test_a_cut_or_partly_copied_checkpoint_is_one_line(goldens, tmp_path):
    """Each of its arrays complained, in sixty lines, from its own thread."""
    source = goldens / "llama_grouped"
    model = load_model(source)
    whole = tmp_path / "whole"
    whole.mkdir()
    export.save_orbax(whole, model.params)
    export.save_side_files(whole, source, model.config, None)
    files = [f for f in (whole / "params").rglob("*") if f.is_file()]
    refused = 0
    for at, file in enumerate(files):
        for keep in (0.5, 0, None):
            there = shutil.copytree(whole, tmp_path / f"{at} {keep}")
            cut = there / file.relative_to(whole)
            if keep is None:
                cut.unlink()
            else:
                cut.write_bytes(cut.read_bytes()[: int(keep * 1e3)])
            try:
                loaded = load_model(there)
            except ValueError as error:
                assert "not a whole Orbax checkpoint" in str(error)
                assert "\n" not in str(error)
                refused += 1
            else:
                embed = loaded.params["embed"]
                np.testing.assert_array_equal(embed, model.params["embed"])
            shutil.rmtree(there)
    assert refused > len(files)


def test_what_is_written_is_not_for_its_owner_alone(goldens, tmp_path):
    """model.safetensors came out as -rw-------, whatever the umask."""
    model = load_model(goldens / "llama_grouped")
    before = os.umask(0o027)
    try:
        export.save_hf(tmp_path, model.config, model.params, shard=4_000)
        export.save_hf(tmp_path, model.config, model.params)
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {0o640}


def test_a_torn_checkpoint_is_refused(goldens, tmp_path):
    source = goldens / "llama_grouped"
    (tmp_path / "params").mkdir()
    export.save_side_files(tmp_path, source, load_model(source).config, None)
    with pytest.raises(ValueError, match="not a whole Orbax checkpoint"):
        load_model(tmp_path)
    # launch.convert asks for its types first
    with pytest.raises(ValueError, match="not a whole Orbax checkpoint"):
        export.orbax_dtypes(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model=x", "--out="],
            "--out is empty; was a variable not set?",
        ),
        (["--model=x", "--out=y", "z"], "what is 'z' for?"),
    ],
)
def test_a_slip_in_the_arguments_is_one_line(arguments, message):
    done = convert(*arguments)
    assert done.returncode == 1
    assert done.stderr == f"launch.convert: {message}\n"


SHARDED = """
import sys
from pathlib import Path
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dynscaling_jax.checkpoints import export
mesh = Mesh(jax.devices(), "x")
assert mesh.size == 4
spread = NamedSharding(mesh, PartitionSpec("x"))
_, params = export.load_orbax(Path(sys.argv[1]), "float32", spread)
q = params["layers"][0]["q"]
assert len(q.addressable_shards) == 4
assert q.addressable_shards[0].data.shape == (4, 16)
"""


def test_it_restores_onto_a_mesh(goldens, tmp_path):
    source = goldens / "llama_grouped"
    model = load_model(source)
    export.save_orbax(tmp_path, model.params)
    export.save_side_files(tmp_path, source, model.config, None)
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
    )
    assert done.returncode == 0, done.stderr
    assert jax.device_count() == 1
