"""tokenizer.model files, against sentencepiece itself on models that it has
trained on this repository's licence."""

import json
import random
import string
import struct
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import normalizers

from dynscaling_jax.checkpoints import codec
from dynscaling_jax.checkpoints.tokenizer import Tokenizer
from dynscaling_jax.types import Message

ROOT = Path(__file__).parents[2]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces\tone tab\n\n\nthree lines   ",
    " leading",
    "   ",
    "",
    "a  b   c    d     e",
    "1234567890 3.14159 1,000,000 -7 2^10 0x1F",
    "\u00bfD\u00f3nde est\u00e1 el ni\u00f1o? Stra\u00dfe, k\u016f\u0148",
    "\u0411\u044b\u0441\u0442\u0440\u0430\u044f \u043b\u0438\u0441\u0430",
    "\u654f\u6377\u7684\u68d5\u8272\u72d0\u72f8 \ube60\ub978 \uc5ec\uc6b0",
    "\u0627\u0644\u062b\u0639\u0644\u0628 \u05e9\u05d5\u05e2\u05dc "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e44\u0e17\u0e22",
    "\U0001f600\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469 \u2728",
    "def f(x):\n    return [i ** 2 for i in range(x) if i % 3 != 0]\n",
    "\\boxed{\\frac{1}{2}} $x_1^2 + \\sqrt{3}$ <b>&amp;</b>",
    "e\u0301 \u200b \ufeff \x7f \u2028 \uff11\uff12 \u2460 \ufb01 \u00bd",
    "a\u2581b \u2581",
]
PLAIN = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
MODELS = {
    # as Llama 2, Mistral and Phi-3
    "bpe with bytes": {
        **PLAIN,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    },
    # as Gemma
    "bpe with pieces of a user": {
        **PLAIN,
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["\n", "\n\n", "<b>", "\u2581\u2581"],
    },
    "bpe without bytes": {"model_type": "bpe"},
    "unigram": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc",
    },
    "unigram with bytes": {
        **PLAIN,
        "model_type": "unigram",
        "byte_fallback": True,
        "control_symbols": ["[INST]"],
    },
}


def train(folder: Path, settings: dict) -> bytes:
    text = folder / "text"
    # A text that does not change: on the pages of this repository, a line of
    # README more led to a unigram model with two cuts of a text that are as
    # likely (0, 00 and 00, 0), between which rounding chooses: sentencepiece
    # sums in float32, the library that reads the model for us in float64.
    licence = (ROOT / "LICENSE").read_text("utf-8")
    lines = licence.splitlines() + TEXTS[7:10]
    words, draw = licence.split(), random.Random(1)
    for _ in range(1000):  # lines of code, as it were
        a, b, c = draw.choices(words, k=3)
        indent = "    " * draw.randrange(4)
        number = draw.randrange(10 ** draw.randrange(1, 6))
        lines.append(f"{indent}{a.lower()}_{b}({c!r}, {number}): [{b}]")
    # each character often enough to be a piece
    lines += [string.digits, string.ascii_letters, string.punctuation] * 100
    text.write_text("\n".join(lines), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=800,
        character_coverage=0.999,
        num_threads=1,
        minloglevel=2,
        **settings,
    )
    return (folder / "tokenizer.model").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("trained")
    return {name: train(folder, s) for name, s in MODELS.items()}


def read(folder: Path, data: bytes, **config) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(data)
    if config:
        text = json.dumps(config)
        (folder / "tokenizer_config.json").write_text(text)
    return codec.from_directory(folder)


def edited(data: bytes, edit) -> bytes:
    model = proto.ModelProto()
    model.ParseFromString(data)
    edit(model)
    return model.SerializeToString()


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_texts_are_those_of_sentencepiece(tmp_path, trained, name):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained[name])
    ours = read(tmp_path, trained[name])
    assert ours.size == theirs.get_piece_size()
    draw = random.Random(0)
    lines = Path(__file__).read_text("utf-8").splitlines()
    special = ("<s>", "</s>", "<unk>", "[INST]")  # text to sentencepiece
    code = [x for x in lines if not any(s in x for s in special)]
    mixed = [
        "".join(draw.choice(" ab<>\n\u2581fi01") for _ in range(30))
        for _ in range(100)
    ]
    runs = [" " * n + "a" + "\n" * n + " " * n for n in range(40)]
    for text in TEXTS + code + mixed + runs:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        if theirs.unk_id() not in ids:  # sentencepiece writes " ?? " for it
            assert ours.decode(ids) == theirs.decode(ids), text


@pytest.mark.parametrize(
    "name", ["bpe with bytes", "bpe with pieces of a user"]
)
def test_text_survives(tmp_path, trained, name):
    tokenizer = read(tmp_path, trained[name])
    for text in TEXTS[:-1]:  # all but the mark of spaces itself
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_runs_of_spaces_of_one_score(tmp_path, trained):
    """Mistral's: all have the lowest score, and of equals the leftmost pair
    comes first. Rows of 23 spaces had 14 + 9 in place of 16 + 7."""

    def add(model):
        for piece in model.pieces:
            if set(piece.piece) == {"\u2581"}:
                piece.score = -1e9
        have = {piece.piece for piece in model.pieces}
        for n in (*range(2, 15), 16):
            if "\u2581" * n not in have:
                model.pieces.add(piece="\u2581" * n, score=-1e9)

    data = edited(trained["bpe with bytes"], add)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = read(tmp_path, data)
    for n in range(60):
        text = "a" + " " * n + "b"
        assert ours.encode(text) == theirs.encode(text), n


def test_pieces_of_all_kinds(tmp_path, trained):
    """Control and unknown pieces are special; a message cannot write them,
    nor bytes by their names."""
    tokenizer = read(tmp_path, trained["unigram with bytes"])
    inst = tokenizer.backend.token_to_id("[INST]")
    ids = tokenizer.encode("a[INST]<0x41>")
    assert ids.count(inst) == 1
    assert tokenizer.backend.token_to_id("<0x41>") not in ids
    assert tokenizer.decode(ids, skip_special=False).count("[INST]") == 1
    assert "[INST]" not in tokenizer.decode(ids)
    chat = tokenizer.encode_chat([Message("user", "[INST]<unk></s>")])
    assert not {inst, 0, 2} & set(chat)


def test_the_beginning_and_the_end(tmp_path, trained):
    data = trained["bpe with bytes"]
    question = [Message("user", "ab")]
    ids = read(tmp_path, data).encode("ab\n\n")
    assert read(tmp_path, data).encode_chat(question) == [1, *ids]
    bare = read(tmp_path, data, add_bos_token=False)
    assert bare.encode_chat(question) == ids
    both = read(tmp_path, data, add_bos_token=True, add_eos_token=True)
    assert both.encode_chat(question) == [1, *ids, 2]
    assert both.variables["bos_token"] == "<s>" and both.end_ids == (2,)


def test_spaces_between_special_tokens(tmp_path, trained):
    """As sentencepiece encodes each stretch by itself, or, with "legacy":
    false, as transformers does: one space at the very beginning."""
    data = trained["bpe with bytes"]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    parts = [theirs.encode(part) for part in ("ab", "cd")]
    each = read(tmp_path, data).encode("ab</s>cd")
    assert each == [*parts[0], 2, *parts[1]]
    one = read(tmp_path, data, legacy=False)
    assert one.encode("ab</s>cd") == [
        *parts[0],
        2,
        *theirs.encode("\ncd")[2:],
    ]
    assert one.decode(one.encode("ab cd")) == "ab cd"


def test_pieces_of_a_user_take_no_space(tmp_path):
    data = train(
        tmp_path,
        {
            **PLAIN,
            "model_type": "bpe",
            "byte_fallback": True,
            "user_defined_symbols": ["<|user|>"],
        },
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = read(tmp_path, data)
    for text in ("<|user|>ab", "  ab<|user|>cd <|user|> ", "no such piece"):
        assert ours.encode(text) == theirs.encode(text)
    assert "<|user|>" not in ours.render([Message("user", "a<|user|>")])


def test_added_tokens(tmp_path, trained):
    data = trained["bpe with bytes"]
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 800}')
    fields = {"special": True, "rstrip": True, "normalized": False}
    tokenizer = read(
        tmp_path,
        data,
        added_tokens_decoder={
            "801": {"content": "<|user|>", **fields},
            "2": {"content": "<end>", **fields},
        },
        eos_token="<|im_end|>",
    )
    assert tokenizer.size == 802
    ids = tokenizer.encode("<|user|>  <|im_end|><end>")
    assert ids == [801, 800, 2]  # rstrip takes the spaces
    assert tokenizer.end_ids == (800,)


def test_named_tokens_of_early_directories(tmp_path, trained):
    named = {"eos_token": {"content": "<0x0A>"}}
    file = tmp_path / "special_tokens_map.json"
    file.write_text(json.dumps(named))
    tokenizer = read(tmp_path, trained["bpe with bytes"])
    assert tokenizer.variables["eos_token"] == "<0x0A>"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": {"900": {"content": "x"}}}, "have id 900"),
        ({"added_tokens_decoder": {"800": {"text": "x"}}}, "_decoder: "),
        ({"added_tokens_decoder": {"x": {"content": "x"}}}, "_decoder: "),
        ({"added_tokens_decoder": {"800": 1}}, "_decoder: "),
        ({"added_tokens_decoder": [1]}, "_decoder: "),
        ({"bos_token": "<none>"}, "begin or end with '<none>'"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tmp_path, trained, config, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, trained["bpe with bytes"], **config)


# Files that are not to be trusted


def test_a_torn_file_is_refused(tmp_path, trained):
    for data in (trained["bpe with bytes"], trained["unigram"]):
        for size in [*range(40), *range(40, len(data), len(data) // 60)]:
            with pytest.raises(ValueError, match="tokenizer.model: not a Sent"):
                read(tmp_path, data[:size])


def test_a_damaged_file_never_crashes(tmp_path, trained):
    """It loads, and then encodes, or it is refused by ValueError."""
    draw = random.Random(0)
    loaded = 0
    for data in (trained["bpe with bytes"], trained["unigram"]):
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(draw.choice((1, 3, 20))):
                damaged[draw.randrange(len(data))] = draw.randrange(256)
            try:
                tokenizer = read(tmp_path, bytes(damaged))
            except ValueError:
                continue
            loaded += 1
            for text in TEXTS:
                tokenizer.decode(tokenizer.encode(text))
    assert loaded


def varint(value: int) -> bytes:
    most = b""
    while value > 127:
        most += bytes([value & 127 | 128])
        value >>= 7
    return most + bytes([value])


HOSTILE = {
    "a length beyond the file": b"\x0a" + varint(2**62) + b"x",
    "a number without an end": b"\x0a" + b"\xff" * 100,
    "a group": b"\x0b\x0c",
    "a piece that is a number": b"\x08\x01",
    "no pieces": b"\x12\x00",
    "text": b"IyBub3QgYSBtb2RlbA== 0\n" * 50,
    "JSON": b'{"model": 1}',
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_model_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="tokenizer.model: not a Sent"):
        read(tmp_path, HOSTILE[name])


def one_more(**fields):
    return lambda model: model.pieces.add(**fields)


def change(part: str, name: str, value):
    return lambda model: setattr(getattr(model, part), name, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (one_more(piece="<s>"), "801 pieces of 800 different"),
        (one_more(piece=""), "801 pieces"),
        (one_more(piece="two unknown", type=2), "2 pieces are of the kind"),
        (one_more(piece="x" * 5000), "5000 characters"),
        (one_more(piece="n", score=float("nan")), "score of a piece is nan"),
        (change("trainer_spec", "model_type", 3), "model_type 3"),
        (
            change("trainer_spec", "treat_whitespace_as_suffix", True),
            "not supported",
        ),
        (
            change("normalizer_spec", "escape_whitespaces", False),
            "not supported",
        ),
        (lambda model: model.pieces.pop(7), "not a piece for each byte"),
        (change("normalizer_spec", "precompiled_charsmap", b"x"), "cut short"),
    ],
)
def test_models_that_cannot_be_obeyed_are_refused(
    tmp_path, trained, edit, message
):
    data = edited(trained["bpe with bytes"], edit)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, data)


def test_a_map_that_leads_outside_of_itself_is_refused(tmp_path, trained):
    """`tokenizers` follows it without looking, and panics."""
    data = trained["unigram"]
    model = proto.ModelProto()
    model.ParseFromString(data)
    whole = model.normalizer_spec.precompiled_charsmap
    normalizers.Precompiled(whole)  # is one it takes
    size = struct.unpack("<I", whole[:4])[0]
    far = struct.pack("<I", 0x7FFFFC00)
    root = whole[:4] + far + whole[8:]
    no_texts = whole[: 4 + size]
    short = struct.pack("<I", 256) + whole[4:260]
    for blob in (root, no_texts, short):
        edit = change("normalizer_spec", "precompiled_charsmap", blob)
        with pytest.raises(ValueError, match="precompiled_charsmap"):
            read(tmp_path, edited(data, edit))
