"""A tokenizer of our own: a small byte-level BPE, learnt from examples."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

END = "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (END, *(f"<|{role}|>" for role in ROLES))
# A digit is a token of its own, with the space before a number, so that
# digits of the same place look alike; words never join with marks.
PIECES = r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]|\s+"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save_tokenizer(
    directory: Path, texts: Iterable[str], vocab_size: int
) -> None:
    """Learns a vocabulary (arXiv 1508.07909), in Hugging Face's layout.

    Any text can be spelled by its bytes.

    Raises:
        ValueError: fewer ids than bytes and special tokens take.
    """
    least = 256 + len(SPECIAL)
    if vocab_size < least:
        raise ValueError(
            f"a vocabulary needs {least} ids at least, got {vocab_size}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre.Split(Regex(PIECES), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=1) + "\n"
    )
