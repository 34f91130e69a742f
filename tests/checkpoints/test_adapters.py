"""LoRA adapters merged into weights, against PEFT's own logits."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dynscaling_jax.checkpoints import export, load_model

ADAPTERS = (
    "adapter_patterns",
    "adapter_fused_rslora",
    "adapter_embeddings",
    "adapter_saved",
)


@pytest.fixture
def adapter(goldens, tmp_path):
    """Copies a golden adapter, some fields and tensors of it changed."""

    def copy(name="adapter_patterns", change=lambda _: None, **fields):
        out = shutil.copytree(goldens / name, tmp_path / name)
        raw = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps({**raw, **fields}))
        tensors = load_file(out / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, out / "adapter_model.safetensors")
        return out

    return copy


def base_of(goldens, name):
    raw = json.loads((goldens / name / "adapter_config.json").read_text())
    return goldens / raw["base_model_name_or_path"]


def error(goldens, name, model):
    golden = np.load(goldens / name / "expected.npz")
    wrong = np.abs(np.asarray(model.logits(golden["ids"])) - golden["logits"])
    return wrong.max() / np.abs(golden["logits"]).max()


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_merged_model_has_the_logits_of_peft(goldens, name):
    base = base_of(goldens, name)
    model = load_model(base, adapter=goldens / name)
    assert error(goldens, name, model) < 1e-4
    assert error(goldens, name, load_model(base)) > 1e-2


def test_an_adapter_beside_the_model_is_merged(goldens, tmp_path):
    """As transformers does; two at once are refused, and so is an adapter
    in place of a model."""
    name = "adapter_patterns"
    both = shutil.copytree(base_of(goldens, name), tmp_path / "both")
    shutil.copytree(goldens / name, both, dirs_exist_ok=True)
    assert error(goldens, name, load_model(both)) < 1e-4
    with pytest.raises(ValueError, match="lies beside the model already"):
        load_model(both, adapter=goldens / name)
    with pytest.raises(ValueError, match="adapter of 'llama_grouped', without"):
        load_model(goldens / name)


def test_other_layouts_have_the_same_merged_weights(
    goldens, tmp_path, write_gguf
):
    name = "adapter_saved"
    base = base_of(goldens, name)
    file = write_gguf(tmp_path / "a.gguf", base)
    assert error(goldens, name, load_model(file, adapter=goldens / name)) < 1e-4
    model = load_model(base)
    export.save_orbax(tmp_path, model.params)
    export.save_side_files(tmp_path, base, model.config, None)
    again = load_model(tmp_path, adapter=goldens / name)
    assert error(goldens, name, again) < 1e-4


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def rename(tensors, old, new):
    for part in "AB":
        key = f".lora_{part}.weight"
        tensors[new + key] = tensors.pop(old + key)


@pytest.mark.parametrize(
    ("fields", "change", "message"),
    [
        ({"peft_type": "LOHA"}, None, "peft_type 'LOHA' is not supported"),
        ({"use_dora": True}, None, "use_dora=True cannot be merged"),
        ({"lora_bias": True}, None, "lora_bias=True cannot be merged"),
        ({"fan_in_fan_out": True}, None, "fan_in_fan_out=True cannot"),
        ({"layer_replication": [[0, 1]]}, None, "layer_replication=.* cannot"),
        ({"init_lora_weights": "pissa"}, None, "'pissa' changes the model's"),
        ({"r": 5}, None, r"lora_A \[5, in\] .* got \(4, 16\) and \(8, 4\)"),
        ({"lora_alpha": "x"}, None, "lora_alpha 'x'"),
        ({"lora_alpha": float("nan")}, None, "lora_alpha nan"),
        ({"rank_pattern": [1]}, None, "rank_pattern must be a map"),
        # took days of one regular expression on one name
        ({"alpha_pattern": {"(.*)*(.*)*x": 1}}, None, "is too complex"),
        ({"alpha_pattern": {"(": 1}}, None, "is too complex"),
        (
            {},
            lambda t: rename(t, Q, Q.replace("q_proj", "qkv_proj")),
            r"changes model.layers.0.self_attn.qkv_proj.weight, of shape "
            r"\[16, 16\]; the model has none of that name.*'llama_grouped'",
        ),
        (
            {},
            lambda t: t.update({f"{Q}.lora_A.weight": np.ones((4, 9), "f")}),
            r"q_proj.weight, of shape \[16, 9\]; the model has it in "
            r"\[16, 16\]",
        ),
        ({}, lambda t: t.pop(f"{Q}.lora_B.weight"), "q_proj expected.*None"),
        (
            {},
            lambda t: t.update({f"{Q}.lora_magnitude": np.ones(16, "f")}),
            "q_proj.lora_magnitude, of shape .*none of that name",
        ),
        (
            {},
            lambda t: t.update(
                {
                    "base_model.model.model.embed_tokens.weight": np.ones(
                        (50, 16)
                    )
                }
            ),
            r"embed_tokens.weight, of shape \[50, 16\]; the model has it in",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(
    goldens, adapter, fields, change, message
):
    directory = adapter(change=change or (lambda _: None), **fields)
    with pytest.raises(ValueError, match=message):
        load_model(goldens / "llama_grouped", adapter=directory)


def test_a_tied_head_cannot_go_another_way(goldens, adapter):
    """PEFT's embedding would change and its head would not."""
    embed = {"base_model.model.model.embed_tokens.weight": np.ones((48, 16))}
    directory = adapter(change=lambda t: (t.clear(), t.update(embed)))
    with pytest.raises(ValueError, match="not the head.*cannot be merged"):
        load_model(goldens / "llama_multi_query", adapter=directory)


def test_a_missing_or_pickled_adapter(goldens, adapter):
    directory = adapter()
    (directory / "adapter_model.safetensors").unlink()
    for name, message in (
        (directory, "safetensors is missing; an adapter in a pickle"),
        (goldens / "llama_grouped", "adapter_config.json is missing"),
        (directory / "none", "no such file or directory"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load_model(goldens / "llama_grouped", adapter=name)
