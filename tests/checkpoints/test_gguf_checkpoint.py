"""GGUF files to parameters: what is read, and what is refused."""

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import quants

from dynscaling_jax.checkpoints import (
    export,
    hf_config,
    load_model,
)
from dynscaling_jax.models import transformer
from dynscaling_jax.models.parameters import parameters

F32, F16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16
HEAD_SCALE = {"query_pre_attn_scalar": 8}
# What a golden's file says beside what the converter writes, and the fields
# of its config.json that no GGUF file can say.
GOLDENS = {
    "llama_grouped": ({}, {}),
    "llama_multi_query": ({}, {}),
    "llama_full_heads_bf16": ({}, {}),
    "llama_rope_llama3": ({}, {}),
    "llama_rope_linear": ({}, {}),
    "llama_biases": ({}, {}),
    "llama_mlp_bias": ({}, {}),
    "mistral_window": ({}, {}),
    "mistral_no_window": ({}, {}),
    "mistral_multi_query_sharded": ({}, {}),
    "qwen2_grouped": ({}, {}),
    "qwen2_window_tied": (
        {},
        {"use_sliding_window": False, "layer_types": None},
    ),
    "qwen2_yarn": ({}, {}),
    "qwen3_grouped": ({}, {}),
    "qwen3_multi_query_tied": ({}, {}),
    "qwen3_moe": ({}, {"norm_topk_prob": True}),
    "smollm3_without_rope": (
        {},
        {"no_rope_layers": None, "no_rope_layer_interval": 4},
    ),
    "gemma2_grouped": ({}, HEAD_SCALE),
    "gemma2_multi_query": ({}, HEAD_SCALE),
    "gemma3_grouped": (
        {"gemma3.attention.sliding_window_pattern": 2},
        HEAD_SCALE,
    ),
    "gemma3_scaled": (
        {"gemma3.attention.sliding_window_pattern": [True, False, True]},
        HEAD_SCALE,
    ),
    "phi3_grouped": ({}, {}),
    "phi3_longrope": ({}, {}),
    "phi3_partial_window_tied": ({}, {}),
    "olmo2_grouped": ({}, {}),
    "olmo2_multi_query_tied": ({}, {}),
    "gpt_oss_grouped": ({}, {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}),
}


def edited(source: Path, out: Path, fields: dict) -> Path:
    shutil.copytree(source, out)
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**raw, **fields}))
    return out


@pytest.mark.parametrize("name", GOLDENS)
def test_gguf_gives_the_logits_of_the_same_safetensors(
    goldens, tmp_path, write_gguf, name
):
    metadata, fields = GOLDENS[name]
    source = edited(goldens / name, tmp_path / name, fields)
    file = write_gguf(tmp_path / "a.gguf", source, metadata=metadata)
    golden = np.load(source / "expected.npz")
    expected = np.asarray(load_model(source).logits(golden["ids"]))
    given = np.asarray(load_model(file).logits(golden["ids"]))
    assert np.abs(given - expected).max() < 1e-6 * np.abs(expected).max()


# Every type of tensor

WIDE = {  # widths that blocks of 256 values fit
    "model_type": "qwen3_moe",
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1e4},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A directory of a random model of these widths."""
    out = tmp_path_factory.mktemp("wide")
    raw = json.dumps(WIDE)
    (out / "config.json").write_text(raw)
    config = hf_config.read(json.loads(raw))
    params = transformer.init_params(jax.random.key(0), config)
    export.save_hf(out, config, params)
    return out


def finite_blocks(
    kind: gguf.GGMLQuantizationType, count: int, random: np.random.RandomState
) -> np.ndarray:
    """uint8 [count, size of a block]: random bytes whose scales, some of them
    bits of floats, are no infinities."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.randint(0, 256, (2 * count + 64, size), np.uint8)
    with np.errstate(all="ignore"):
        values = quants.dequantize(blocks, kind)
        sound = np.isfinite(values).all(-1) & (np.abs(values).max(-1) < 1e9)
    return np.resize(blocks[sound], (count, size))


@pytest.mark.parametrize(
    "kind", [F32, F16, *quants._type_traits], ids=lambda kind: kind.name
)
def test_every_type_that_gguf_dequantises(wide, tmp_path, write_gguf, kind):
    """Matrices, and the stacks of experts."""
    random = np.random.RandomState(int(kind))
    held = {}

    def encode(name, value):
        length, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = finite_blocks(kind, value.size // length, random)
        data = blocks.reshape(*value.shape[:-1], -1)
        held[name] = quants.dequantize(data, kind)
        assert held[name].shape == value.shape
        return data, kind

    model = load_model(write_gguf(tmp_path / "a.gguf", wide, encode))
    assert len(held) == 10
    for path, parameter in parameters(model.config).items():
        if parameter.gguf in held:
            node = model.params
            for step in path:
                node = node[step]
            np.testing.assert_array_equal(node, held[parameter.gguf])


def test_a_type_that_cannot_be_dequantised_is_named(wide, tmp_path, write_gguf):
    def encode(name, value):
        return value.astype(np.float64), gguf.GGMLQuantizationType.F64

    file = write_gguf(tmp_path / "a.gguf", wide, encode)
    with pytest.raises(ValueError, match="weight is stored as F64.*Q8_0"):
        load_model(file)


def test_half_precision_rounds_once(wide, tmp_path, write_gguf):
    """Norms are brought to our form in float32, whatever is asked for."""
    file = write_gguf(tmp_path / "a.gguf", wide)
    whole, half = load_model(file), load_model(file, "bfloat16")
    for a, b in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(half.params), strict=True
    ):
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)


# What else files hold


def test_projections_that_are_one_tensor(goldens, tmp_path, write_gguf):
    """As llama.cpp's converter writes them on request, of any family."""
    directory = goldens / "qwen3_moe"
    separate = write_gguf(tmp_path / "a.gguf", directory)
    reader = gguf.GGUFReader(separate)
    held = {t.name: np.array(t.data) for t in reader.tensors}
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "qwen3moe")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.")):
            writer.add_key_value(
                key,
                field.contents(),
                field.types[0],
                field.types[-1] if len(field.types) > 1 else None,
            )
    for layer in range(2):
        for whole, parts, axis in (
            ("attn_qkv", ("attn_q", "attn_k", "attn_v"), 0),
            ("ffn_gate_up_exps", ("ffn_gate_exps", "ffn_up_exps"), 1),
        ):
            values = [held.pop(f"blk.{layer}.{p}.weight") for p in parts]
            name = f"blk.{layer}.{whole}.weight"
            held[name] = np.concatenate(values, axis)
    for name, value in held.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = np.arange(24)[None]
    np.testing.assert_array_equal(
        load_model(tmp_path / "b.gguf").logits(ids),
        load_model(separate).logits(ids),
    )


def test_longrope_serves_the_context_of_its_short_factors(
    goldens, tmp_path, write_gguf
):
    file = write_gguf(tmp_path / "a.gguf", goldens / "phi3_longrope")
    config = load_model(file).config
    assert config.max_position_embeddings == 32
    assert config.rope_scaling.factors == (1.0, 1.5)


# Split files


@pytest.fixture
def split(goldens, tmp_path, write_gguf) -> Path:
    """The first of three files."""
    write_gguf(tmp_path / "m.gguf", goldens / "llama_grouped", shard=8)
    return tmp_path / "m-00001-of-00003.gguf"


def test_a_split_file_is_read_from_its_first(goldens, split):
    golden = np.load(goldens / "llama_grouped" / "expected.npz")
    logits = load_model(split).logits(golden["ids"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


def test_other_parts_of_a_split_file_are_refused(split):
    for other in ("00002", "00003"):
        file = split.with_name(f"m-{other}-of-00003.gguf")
        with pytest.raises(ValueError, match="ends in -00001-of-00003.gguf"):
            load_model(file)
    renamed = split.rename(split.with_name("renamed.gguf"))
    with pytest.raises(ValueError, match="ends in -00001-of-00003.gguf"):
        load_model(renamed)


def test_a_missing_part_of_a_split_file_is_named(split):
    split.with_name("m-00002-of-00003.gguf").unlink()
    with pytest.raises(FileNotFoundError, match="m-00002-of-00003.gguf is mis"):
        load_model(split)


def test_parts_of_another_file_are_refused(split):
    second = split.with_name("m-00002-of-00003.gguf")
    shutil.copyfile(split.with_name("m-00003-of-00003.gguf"), second)
    with pytest.raises(ValueError, match="m-00002.*not part 1"):
        load_model(split)


def test_a_damaged_part_of_a_split_file_is_refused(split, refusals):
    second = split.with_name("m-00002-of-00003.gguf")
    assert refusals(split, second, second.read_bytes()) > 100


# What is refused


@pytest.fixture(scope="module")
def whole(goldens, tmp_path_factory, write_gguf) -> bytes:
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(folder / "model.gguf", goldens / "llama_grouped")
    return file.read_bytes()


@pytest.mark.parametrize("part", [0, 3, 20, 300, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_gguf_file_is_refused(whole, tmp_path, part):
    size = int(part * len(whole)) if 0 < part < 1 else part
    file = tmp_path / "model.gguf"
    file.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="not a whole GGUF file"):
        load_model(file)


def test_a_damaged_gguf_header_loads_or_is_refused(whole, tmp_path, refusals):
    """Whatever flipped bytes and huge claims do to the reader, a ValueError
    comes out, in a moment."""
    file = tmp_path / "model.gguf"
    assert refusals(file, file, whole) > 100


@pytest.mark.parametrize("claim", [10**6, 2**63])
@pytest.mark.parametrize("kind", [6, 8])
def test_an_array_longer_than_its_file_is_refused(tmp_path, kind, claim):
    """gguf took what lies past the end of a file for empty numbers: a flipped
    bit in the length of an array kept a load busy for three minutes."""
    file = tmp_path / "model.gguf"
    key = b"tokenizer.ggml.scores"
    file.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
        + struct.pack(f"<Q{len(key)}sI", len(key), key, 9)
        + struct.pack("<IQ4f", kind, claim, *range(4))
    )
    with pytest.raises(
        ValueError, match="whole GGUF file.*ends within|an array of"
    ):
        load_model(file)


ARRAYS = {
    # followed by recursion, to its end
    "nested": (struct.pack("<IQ", 9, 1) * 5000, "an array of 1 items, ARRAY"),
    # half a minute and two gigabytes, read item by item
    "numbers": (struct.pack("<IQ", 0, 2**23) + bytes(2**23), "8388608 items"),
    "strings": (struct.pack("<IQ", 8, 2**23) + bytes(2**26), "8388608 items"),
    "half a character": (
        struct.pack("<IQQ", 8, 1, 3) + b"\xed\xa0\x80",
        "can't decode byte 0xed",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_takes_everything_is_refused(tmp_path, name):
    data, message = ARRAYS[name]
    file = tmp_path / "a.gguf"
    head = struct.pack("<4sIQQQcI", b"GGUF", 3, 0, 1, 1, b"a", 9)
    file.write_bytes(head + data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"not a whole GGUF file.*{message}"):
        load_model(file)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_header_is_not_read_for_ever(tmp_path):
    """A million tensors without values."""
    pack = struct.Struct("<Q8sIIQ").pack
    each = (pack(8, b"%08d" % i, 0, 0, 0) for i in range(2**17))
    file = tmp_path / "a.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 2**20, 0)
    file.write_bytes(head + b"".join(each))
    with pytest.raises(ValueError, match="more than a header holds"):
        load_model(file)


@pytest.mark.parametrize("part", ["", "-00001-of-00003"])
def test_more_than_the_file_holds_takes_no_memory(
    goldens, tmp_path, write_gguf, part
):
    """A header may claim a tensor of terabytes, in any of its files."""
    shard = 8 if part else 0
    write_gguf(tmp_path / "m.gguf", goldens / "llama_grouped", shard=shard)
    damaged = tmp_path / f"m{part.replace('00001', '00002')}.gguf"
    held = gguf.GGUFReader(damaged).tensors[-1]
    at, claim = held.field.offset, np.uint64(2**40)
    with damaged.open("r+b") as file:
        file.seek(at + 8 + len(held.name) + 4)  # its first dimension
        file.write(claim.tobytes())
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"{damaged.name}: not a whole GGUF"):
        load_model(tmp_path / f"m{part}.gguf")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_file_of_the_other_byte_order_is_refused(tmp_path):
    writer = gguf.GGUFWriter(
        tmp_path / "a.gguf", "llama", endianess=gguf.GGUFEndian.BIG
    )
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="order of another machine"):
        load_model(tmp_path / "a.gguf")


def test_other_files_are_no_gguf(goldens, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        load_model(tmp_path / "absent.gguf")
    with pytest.raises(ValueError, match="give its directory"):
        load_model(goldens / "llama_grouped" / "model.safetensors")
    with pytest.raises(ValueError, match="give its directory"):
        load_model(goldens / "llama_grouped" / "config.json")


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "odd", "a.b"])
def test_a_tensor_that_is_unknown_is_named(goldens, tmp_path, write_gguf, name):
    file = write_gguf(
        tmp_path / "a.gguf",
        goldens / "llama_grouped",
        tensors={name: np.ones(4, np.float32)},
    )
    with pytest.raises(ValueError, match=f"unknown {name}"):
        load_model(file)
