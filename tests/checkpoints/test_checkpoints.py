"""Files to parameters: what is read, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dynscaling_jax.checkpoints import export, hf_config, load_model
from dynscaling_jax.checkpoints.model import stored_dtype
from dynscaling_jax.models import ModelConfig, transformer
from dynscaling_jax.models.parameters import parameters


@pytest.fixture
def hf(goldens, tmp_path):
    """Copies a golden model to where it may be damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(goldens / name, tmp_path / name))

    return copy


def resave(directory: Path, change) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(directory: Path, **fields) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def golden_error(directory: Path, model) -> float:
    golden = np.load(directory / "expected.npz")
    difference = np.abs(
        np.asarray(model.logits(golden["ids"])) - golden["logits"]
    )
    return difference.max() / np.abs(golden["logits"]).max()


# What is read


def test_every_tensor_of_the_file_is_placed(goldens):
    directory = goldens / "llama_grouped"
    model = load_model(directory)
    with safe_open(directory / "model.safetensors", "numpy") as file:
        names = set(file.keys())
        for path, parameter in parameters(model.config).items():
            node = model.params
            for step in path:
                node = node[step]
            names.remove(parameter.hf)
            assert node.shape == parameter.shape
            np.testing.assert_array_equal(node, file.get_tensor(parameter.hf))
    assert not names


def test_a_tied_head_may_be_repeated_but_not_differ(hf):
    directory = hf("llama_multi_query")

    def repeat(tensors):
        embed = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = embed.copy()

    resave(directory, repeat)
    assert golden_error(directory, load_model(directory)) < 1e-4

    def alter(tensors):
        tensors["lm_head.weight"] += 1

    resave(directory, alter)
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        load_model(directory)


def test_rows_without_values_take_no_time(hf):
    """10^15 of them are a valid header; each was once filled."""
    directory = hf("llama_multi_query")
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    end = len(whole) - 8 - size
    header["lm_head.weight"] = {
        "dtype": "F32",
        "shape": [10**15, 0],
        "data_offsets": [end, end],
    }
    made = json.dumps(header).encode()
    data = whole[8 + size :]
    file.write_bytes(len(made).to_bytes(8, "little") + made + data)
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        load_model(directory)


def test_model_safetensors_goes_before_other_files(hf):
    """Mistral's repositories hold the same weights a second time, in
    consolidated.safetensors and under other names."""
    directory = hf("llama_grouped")
    other = {"layers.0.attention.wq.weight": np.zeros((2, 2), np.float32)}
    save_file(other, directory / "consolidated.safetensors")
    assert golden_error(directory, load_model(directory)) < 1e-4


def test_buffers_of_early_files_are_skipped(hf):
    directory = hf("llama_grouped")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    resave(directory, lambda t: t.update({buffer: np.ones(2, np.float32)}))
    assert golden_error(directory, load_model(directory)) < 1e-4


# What it takes

PEAK = """
import sys
import jax.numpy as jnp
from dynscaling_jax.checkpoints import load_model

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

jnp.ones(2).block_until_ready()
before = peak()
model = load_model(sys.argv[1], "bfloat16")
print(peak() - before)
"""
SLACK = 48 * 2**20  # what the interpreter and the allocator keep beside


@pytest.fixture(scope="module")
def large(tmp_path_factory, write_gguf) -> tuple[Path, Path, int, int]:
    """A directory and a GGUF file, sharded, in float32; the bytes of the
    model and of its largest tensor in bfloat16."""
    out = tmp_path_factory.mktemp("large")
    config = ModelConfig(
        "llama", 16_000, 512, 8, 8, 4, 64, 1_536, 64, rope_theta=1e4
    )
    params = transformer.init_params(jax.random.key(0), config)
    raw = hf_config.write(config)
    raw["rope_parameters"] = {"rope_theta": raw["rope_theta"]}
    (out / "config.json").write_text(json.dumps(raw))
    export.save_hf(out, config, params, shard=64 * 2**20)
    write_gguf(out / "m.gguf", out, shard=30)
    sizes = [2 * leaf.size for leaf in jax.tree.leaves(params)]
    (first,) = out.glob("m-00001-of-*.gguf")
    return out, first, sum(sizes), max(sizes)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is Linux's"
)
@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_loading_takes_the_model_and_one_tensor(large, form):
    """Files were mapped: their pages counted until the last was read."""
    directory, file, model, largest = large
    path = directory if form == "safetensors" else file
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert model < 2 * int(done.stdout)  # it was read at all
    assert int(done.stdout) < model + largest + SLACK


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.norm.weight"),
            "missing model.norm.weight",
        ),
        (
            lambda t: t.update({"model.extra": np.zeros(3, np.float32)}),
            "unknown model.extra",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)}),
            r"model.norm.weight: expected shape \[16\], got \[3\]",
        ),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((48, 16), np.int8)}),
            "lm_head.weight is stored as I8; expected one of F64, F32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(hf, change, message):
    directory = hf("llama_grouped")
    resave(directory, change)
    with pytest.raises(ValueError, match=message):
        load_model(directory)


def test_all_faults_are_counted(hf):
    directory = hf("llama_grouped")
    edit_config(directory, num_hidden_layers=4)
    with pytest.raises(ValueError, match="missing model.layers.2.*10 more"):
        load_model(directory)


def test_pickled_weights_are_refused(hf):
    directory = hf("llama_grouped")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    message = "pytorch_model.bin is a pickle.*safe_serialization=True"
    with pytest.raises(ValueError, match=message):
        load_model(directory)
    with pytest.raises(ValueError, match="pickled weights can run code"):
        load_model(directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", r"no \*.safetensors file"),
    ],
)
def test_a_missing_file_is_named(hf, file, message):
    directory = hf("llama_grouped")
    (directory / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_model(directory)


def test_a_missing_shard_is_named(hf):
    directory = hf("mistral_multi_query_sharded")
    (directory / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00003.*is missing"):
        load_model(directory)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": ["a"]}'])
def test_an_index_without_files_is_refused(hf, index):
    directory = hf("mistral_multi_query_sharded")
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="weight_map names no file"):
        load_model(directory)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_a_corrupt_config_is_refused(hf, text):
    directory = hf("llama_grouped")
    file = directory / "config.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="config.json.*(JSON|not text)"):
        load_model(directory)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b[:100],
        lambda b: b[:4],
        lambda b: b"",
        lambda b: b"\xff" * 8 + b[8:],  # a header longer than the file
        lambda b: b[:8] + b"x" + b[9:],  # a header that is not JSON
        lambda b: b.replace(b'"F32"', b'"F99"', 1),
        lambda b: b.replace(b'"data_offsets":[', b'"data_offsets":[9', 1),
    ],
)
def test_a_corrupt_safetensors_file_is_refused(hf, damage):
    directory = hf("llama_grouped")
    file = directory / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        stored_dtype(directory)  # launch.convert asks this first
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(directory)


def test_a_damaged_safetensors_header_loads_or_is_refused(hf, refusals):
    directory = hf("llama_grouped")
    file = directory / "model.safetensors"
    assert refusals(directory, file, file.read_bytes()) > 100


def test_more_layers_than_there_can_be(hf):
    """A billion layers took all memory before a tensor was missed."""
    directory = hf("llama_grouped")
    edit_config(directory, num_hidden_layers=10**9)
    with pytest.raises(ValueError, match="layers must be at most 1000"):
        load_model(directory)
