"""Strict JAX, and the models that tests share."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation: processes share it, and the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).parents[1] / ".cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from dynscaling_jax.checkpoints import Model, load_model
from dynscaling_jax.checkpoints.tokenizer import Tokenizer, from_json
from dynscaling_jax.inference import Engine
from dynscaling_jax.models import ModelConfig, parameters

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

pytest_plugins = ("tests.commands",)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


# What runs whole commands, real weights, eight devices or many compilations:
# `make test` leaves it to `make test-all`. The parts of names of tests.
SLOW = (
    "tests/test_documents",
    "tests/test_smollm2",
    "tests/test_examples",
    "tests/test_reasoner",
    "tests/test_gemma3",
    "tests/test_wheel",
    "benchmarks/test_speed",
    "launch/test_run",
    "launch/test_train",
    "launch/test_compare",
    "launch/test_replay",
    "launch/test_report",
    "launch/test_plan",
    "experiments/test_processes",
    "experiments/test_run_lockstep",
    "experiments/test_remote",
    "experiments/test_report_page",
    "experiments/test_replay.py::test_policies_without_names",
    "test_async_replay.py::test_replay_and_the_live_loop_in_lock_step",
    "inference/test_mesh",
    "inference/test_width",
    "inference/test_lockstep",
    "inference/test_workers",
    "inference/test_memory",
    "inference/test_pools",
    "inference/paged/test_batch.py::test_samples_are_those_of_groups",
    "test_decode.py::test_sampled_tokens_have_their_plain_probabilities",
    "test_plan.py::test_a_mesh_of_eight_devices",
    "models/test_quantization",
    "test_parameters.py::test_a_training_loop_of_ones_own",
    "test_transformer.py::test_steps_through_the_grouped_cache",
    "test_families.py::test_every_parameter_learns",
    "test_export.py::test_the_command",
    "test_export.py::test_hf_to_orbax_to_hf_is_bit_exact",
    "test_attention.py::test_what_no_query_sees_can_be_left_out",
    "test_plan.py::test_parameters_are_as_large_as_their_arrays",
    "test_engine.py::test_a_run_stops_where_the_template_ends_turns",
    "test_engine.py::test_longer_prompts",
    "analysis/test_oracle",
    "training/test_step",
    "launch/test_arguments",
    "benchmarks/test_stragglers",
    "analysis/test_replay.py::test_seeds_draw_anew_and_again",
    "analysis/test_replay.py::test_uniform_replay_is_maj_at_k",
    "analysis/test_replay.py::test_chunks_change_nothing",
    "analysis/test_replay.py::test_a_bank_with_one_answer_for_all",
)


def pytest_collection_modifyitems(items):
    """Marks slow tests, and puts them first: no process ends alone with one."""
    for item in items:
        if any(part in item.nodeid for part in SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module", autouse=True)
def few_compiled():
    """Linux maps at most 65,530 pieces of memory for a process, and each
    compiled function takes some: a worker that kept all of them died of a
    segmentation fault within XLA, two thirds through the suite."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def goldens() -> Path:
    """What torch and transformers gave; see make_goldens.py."""
    home = os.environ.get("DYNSCALING_GOLDENS")
    return Path(home) if home else Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """The real model, once a session."""
    try:
        return load_model("smollm2-135m-instruct")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, ids 0 to 255, then SPECIALS; ChatML turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(s, special=True, normalized=False) for s in SPECIALS]
    )
    return from_json(backend.to_str(), CHATML)


@pytest.fixture(scope="session")
def tiny(byte_tokenizer) -> Callable[..., Model]:
    """Makes a random model of 2 layers; takes fields of ModelConfig.

    The vocabulary, 261, is no multiple of a sampling block and larger than
    the tokenizer's 259. Weights are so large that tokens depend on what the
    model attends to.
    """

    def make(seed: int = 0, scale: float = 0.25, **fields) -> Model:
        defaults = {
            "family": "llama",
            "vocab_size": 261,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "max_position_embeddings": 512,
        }
        config = ModelConfig(**{**defaults, **fields})
        random = np.random.RandomState(seed)  # compiles nothing
        params = jax.tree.map(
            lambda shape: jnp.asarray(
                np.ones(shape)
                if len(shape) == 1
                else scale * random.standard_normal(shape),
                jnp.float32,
            ),
            parameters.tree(config, lambda parameter: parameter.shape),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        return Model(config, params, lambda: byte_tokenizer)

    return make


class RecordingEngine(Engine):
    """Keeps (query id, index) -> (prompt ids, ScoredToken of arrays [T])."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.recorded = {}
        finished = self._setup.finished
        self._setup = self._setup._replace(
            finished=lambda slot: self._kept(slot, finished(slot))
        )

    def _kept(self, slot, sample):
        if sample:
            tokens = jax.tree.map(
                lambda x: x[: sample.new_tokens], slot.tokens[0]
            )
            key = sample.query_id, sample.index
            self.recorded[key] = (slot.prompt.ids, tokens)
        return sample


@pytest.fixture(scope="session")
def recording_engine() -> type[RecordingEngine]:
    return RecordingEngine
