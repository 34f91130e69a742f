r"""What benchmarks.speed measures, and at which size.

    make peers   # what decode, prefix and long are compared with
    python -m benchmarks.speed --config=benchmarks/config.py
    python -m benchmarks.speed --config=benchmarks/config.py \
        --config.only=decode,prefix
    python -m benchmarks.speed --config=benchmarks/config.py \
        --config.only=pages --config.pages.banks="BANKS/aime2025__*.jsonl"

Times depend on the machine; ratios, which compare two sides measured in turn
in one run, much less. allocation and replay take two minutes on 2 cores,
decode and prefix half an hour each with the peers. pages computes on one core
and measures no time: some 30 s for 30 questions of 64 samples, on each target.
"""

from typing import Any

import ml_collections

from configs import common


def get_config():
    config: Any = ml_collections.ConfigDict()
    config.only = ""  # names, with commas; empty is all
    config.repeats = 5
    config.model = "smollm2-135m-instruct"
    config.dtype = "float32"
    # questions that prompts are made of, as in configs/common.py
    config.task = common.get_config().task
    for name, fields in SIZES.items():
        config[name] = ml_collections.ConfigDict(fields)
    return config


_TRANSFORMERS = {
    "rows": (32, 64, 128, 256),  # drawn at once
    "copied": (False, True),  # prompts read once, their keys copied to rows
    "probe_steps": 6,  # of each of these settings; the best is measured whole
}
_LLAMA_CPP = {
    "weights": ("file", "float32"),  # as the GGUF file has them, and widened
    "rows": (8, 16, 32, 64),
    "unified": (True, False),  # keys in one buffer, or in one for each row
    "draws": ("host", "graph"),  # where its samplers run
    "probe_steps": 6,
}
SIZES: dict[str, dict[str, Any]] = {
    # interpreters that have the packages of other systems
    "peers": {
        "transformers_python": ".venv-peers/bin/python",
        "llama_python": ".venv-peers/bin/python",
    },
    # one round of as many grants as queries, for every policy
    "allocation": {"queries": 100_000, "capacity": 16, "policies": "all"},
    # all replicates of all policies, budgets as marks of one run
    "replay": {
        "bank": "",  # a bank file in place of made-up samples
        "questions": 198,
        "depth": 80,
        "budgets": (2, 4, 8, 16, 32),  # samples a question
        "replicates": 1000,
        "policies": (
            "uniform,random,ucb,ucb(c=0.2),thompson,posterior_gain,pets,lead_k"
        ),
        "loop_replicates": 2,  # of ucb in the NumPy loop; scaled
    },
    # whole runs of long samples without a model; Qwen3-8B in bfloat16
    "pages": {
        "banks": "",  # bank files, with commas and *; made-up lengths if none
        "questions": 30,  # of made-up lengths
        "samples": 64,
        "new_tokens": 32_768,
        "context": 40_960,
        "page": 128,
        "chunk": 512,
        "steps": 64,
        "rows_of_logits": 16,
        "first_class": 1024,
        "token_bytes": 147_456,
        # name, parts, and bytes of a part that are left for keys: of the
        # memory 85%, of 95% on GPUs, less the weights
        "targets": (
            ("h100", 1, 0.85 * 0.95 * 80e9 - 16.4e9),
            ("h200", 1, 0.85 * 0.95 * 141e9 - 16.4e9),
            ("v5e-8", 1, 0.85 * 8 * 16e9 - 16.4e9),
            ("v5e-8, data=2", 2, 0.85 * 4 * 16e9 - 16.4e9),
        ),
    },
    # many samples for each of some short prompts
    "decode": {
        "name": "decode",
        "queries": 16,
        "candidates": 16,
        "prompt_tokens": 128,
        "new_tokens": 128,
        "temperature": 0.7,
        "settings": ((64, 16), (128, 16), (256, 16)),  # slots, slots per group
        "gemm_rows": (16, 32, 64, 128, 256),
        "gemm_libraries": ("xla", "numpy"),
        "transformers": {**_TRANSFORMERS, "goal": 2.5},
        "llama_cpp": {**_LLAMA_CPP, "goal": 1.6},
    },
    # many samples for each of a few long prompts
    "prefix": {
        "name": "prefix",
        "queries": 4,
        "candidates": 32,
        "prompt_tokens": 1024,
        "new_tokens": 128,
        "temperature": 0.7,
        "settings": ((64, 32), (128, 32)),
        "transformers": {**_TRANSFORMERS, "rows": (32, 64, 128), "goal": 3.0},
        "llama_cpp": {**_LLAMA_CPP, "rows": (16, 32, 64), "goal": 0.0},
    },
    # samples of very different lengths; before is a checkout to compare with
    "long": {
        "queries": 16,
        "candidates": 8,
        "prompt_tokens": 128,
        "bank": "",  # a bank file, whose lengths the samples have, scaled
        "mean": 400.0,  # tokens of a sample
        "most": 3_000,
        "rows": 32,
        "slots_per_group": 8,
        "temperature": 0.7,
        "peers": "before,llama_cpp,transformers",
        "before": "",
        "llama_weights": ("file", "float32"),  # the faster in a probe
        "transformers_queries": 16,
        "goals": {"before": 1.5, "llama_cpp": 1.3, "transformers": 3.0},
    },
    # samples of one length, in turn with a checkout to compare with
    "short": {
        "queries": 16,
        "candidates": 16,
        "prompt_tokens": 128,
        "bank": "",
        "mean": 64,
        "most": 64,
        "rows": 256,
        "slots_per_group": 8,
        "temperature": 0.7,
        "turns": 8,
        "before": "",
        "goal": 0.97,
    },
    # a run of launch.run's kind
    "dynscaling": {
        "method": "dynscaling",
        "queries": 64,  # two samples a slot and round
        "samples_per_query": 8,
        "stale_rounds": 0,  # as config.budget.stale_rounds
        "poll_steps": 8,  # of the run without rounds
        "new_tokens": 128,
        "temperature": 0.7,
        "slots": 32,
        "slots_per_group": 8,
        # of the plain decoding that it is held against
        "candidates": 16,
        "prompt_tokens": 128,
        # a chain of so many tokens behind a cached prefix
        "chains": 4,
        "chain_prompt": 880,
        "chain_tokens": 100,
    },
    # the bundled reasoner on its own problems
    "workers": {"queries": 100, "candidates": 8, "slots": 128},
    # processes that load, compile and sample
    "startup": {"slots": 32, "new_tokens": 16},
    # samples without a model, and by a model that hardly computes
    "memory": {
        "queries": 10_000,
        "candidates": 16,
        "characters": 400,  # of a sample of the stub
        "new_tokens": 2,
        "slots": 512,
        "prefix_bytes": 2e6,
        "shape": {
            "family": "llama",
            "vocab_size": 256,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 16,
            "max_position_embeddings": 256,
        },
    },
    # bytes of a step, as compilers count them; with .venv-aot/bin/python
    "traffic": {
        "bank": "",  # a bank file, whose lengths slots have
        "shapes": (
            "qwen2.5-7b,qwen3-8b,qwen3-30b-a3b,llama-3.1-8b,gemma-3-4b,"
            "gpt-oss-20b"
        ),
        "devices": "v5e-8,v6e-8,v5p-8",
        "slots": 64,
        "prompt_tokens": 300,
        "cap": 32_768,
        "goal": 1.3,
        "groups": True,  # by formula, what groups moved on the same mesh
    },
    # Qwen2.5-7B's shape, random
    "accelerator": {
        "on_cpu": False,
        "attention": "auto",  # as config.engine.attention
        "dtype": "bfloat16",
        "queries": 32,
        "candidates": 16,
        "prompt_tokens": 512,
        "new_tokens": 128,
        "settings": ((64, 16), (128, 16), (256, 16), (512, 16)),
        "copy_bytes": 2**32,
        "product": 8192,  # rows and columns
        "shape": {
            "family": "qwen2",
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 18_944,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "qkv_bias": True,
        },
    },
}
