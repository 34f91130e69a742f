"""Records samples of several pages' length, to be compared with.

    python -m tests.inference.grouped.record_long OUT.npz

long.npz beside it was written so by the engine before pages (commit ee0f577),
into whose checkout this file and tests/conftest.py were copied.
"""

import sys
from pathlib import Path

import numpy as np

from dynscaling_jax.types import Message, Query, Request

FILE = Path(__file__).with_name("long.npz")
LENGTHS = (20, 230, 500)  # of prompts
SETTINGS = {"slots": 8, "slots_per_group": 4, "max_new_tokens": 700}
MODELS = {
    "grouped": {"eos_token_id": (258,)},
    "full_heads": {
        "family": "mistral",
        "num_key_value_heads": 4,
        "sliding_window": 300,
        "eos_token_id": (258,),
    },
}


def samples(model, engine_type, **settings) -> dict:
    """(query id, index) -> ScoredToken of arrays [T]."""
    engine = engine_type(model, **{**SETTINGS, **settings})
    work = [
        Request(query, query.messages, index)
        for query in [
            Query(str(n), (Message("user", "x" * n),)) for n in LENGTHS
        ]
        for index in range(4)
    ]
    assert len(list(engine.sample(work))) == len(work)
    return {name: tokens for name, (_, tokens) in engine.recorded.items()}


def main(out: str) -> None:
    from tests import conftest

    bare = lambda fixture: fixture.__wrapped__  # what pytest would call
    tokenizer = bare(conftest.byte_tokenizer)()
    tiny = bare(conftest.tiny)(tokenizer)
    arrays = {}
    for name, fields in MODELS.items():
        model = tiny(
            num_hidden_layers=1, max_position_embeddings=2048, **fields
        )
        for (query, index), tokens in samples(
            model, conftest.RecordingEngine
        ).items():
            key = f"{name}/{query}/{index}"
            arrays[f"{key}/token"] = tokens.token.astype(np.int16)
            arrays[f"{key}/logprob"] = tokens.logprob
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
