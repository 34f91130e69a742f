"""Every field of a run, with its type and default: configs start from here.

RunConfig and TrainingConfig are written once. get_config() makes of them what
flags can set, an ml_collections.ConfigDict, and typed() reads that back.
"""

import typing
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from dynscaling_jax.tasks import TaskConfig


class ChainConfig(NamedTuple):
    """Options of chains, for whatever method builds some; see chains.Chain.

    What is left out is the method's own.
    """

    explore: int | None = None
    k: int | None = None
    tail: int | None = None
    which: str = ""
    order: str = ""
    content: str = ""
    layout: str = ""


class BudgetConfig(NamedTuple):
    """Caps of a run, and how many samples are granted at a time."""

    # average over the queries; inf where another cap is to end the run
    samples_per_query: float = 8.0
    new_tokens: int | None = None
    total_tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    capacity: int | None = None  # of one query
    # samples of a round and of the first one, on average over the queries;
    # by default what the method says, or all at once for parallel x uniform,
    # which learns nothing in between
    round_per_query: float | None = None
    first_round_per_query: float | None = None
    # rounds that are still being generated when the next one is granted: 1
    # keeps slots busy, and hosts from waiting, at the ends of rounds
    stale_rounds: int = 0
    # rounds, or async: whenever one of so many concurrent samples ends, one
    # more is granted; by default what the method says
    schedule: str = ""
    concurrent: int = 64
    # decode steps between two polls of what has ended; an engine that polls
    # every 16 otherwise polls as often
    poll_steps: int = 16


class EngineConfig(NamedTuple):
    """How a local model generates; see inference.Engine."""

    max_new_tokens: int = 256
    # of a thought, which is ended there; 0 or nothing: no other limit
    max_thinking_tokens: int | None = None
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    slots: int = 64  # samples at a time
    groups: str = ""  # auto: not so many, but all that memory holds
    slots_per_group: int | None = None  # up to 8
    # reference, in groups of a prompt, on one CPU device; xla, tpu, pallas or
    # gpu, from pages; auto takes what suits the devices and the model
    attention: str = "auto"
    kv_dtype: str = ""  # int8: of the keys and values in pages
    # tokens of a slot while it samples, on average, its prompt included:
    # with groups=auto, how many slots the pages are for
    live: int | None = None


class EndpointConfig(NamedTuple):
    """How a server, model openai://..., is asked; see docs/endpoints.md."""

    concurrency: int = 64  # requests under way at once
    timeout: float = 600.0  # seconds for one try
    retries: int = 5  # further tries of what may pass
    logprobs: bool = True  # confidence, where the server has it
    seed: bool = True  # of each sample; some servers refuse it
    # further fields of a request, as JSON: {"top_logprobs": 5}; null removes
    extra_body: str = ""
    # the server goes on with a chain's own turn (vLLM, SGLang); else a turn
    # of the user asks it to
    continue_final_message: bool = False


class RunConfig(NamedTuple):
    """All of a run; fields left at None take the default of what reads them."""

    # smollm2-135m-instruct, a GGUF file, a Hugging Face directory,
    # hf://org/name@revision, or openai://model@base_url
    model: str = "smollm2-135m-instruct"
    dtype: str = "float32"  # or bfloat16
    adapter: str = ""  # a directory with a LoRA adapter of the model
    quantize: str = ""  # int8: of the weights of a local model
    # the devices of a local model, DATAxMODEL: 2x4 spreads slots over two parts
    # of four devices each, over which the parameters are split; auto takes all
    # devices for slots
    mesh: str = ""
    # tokens of a sequence at most, where not what the model was trained with
    context: int | None = None
    # of the chat template, as JSON: {"enable_thinking": false}. A template
    # that asks for the date is told {"today": "2024-07-26"} on every day, so
    # that a run goes on tomorrow with the prompts it began with.
    template_variables: str = ""
    seed: int = 0
    # a name of dynscaling_jax/methods.py; the three axes replace one part each
    method: str = "self_consistency"
    strategy: str = ""
    policy: str = ""
    vote: str = ""
    # what ends samples early where there are no rounds: lead, posterior,
    # deepconf or tail; none, or by default what the method says
    cancel: str = ""
    chain: ChainConfig = ChainConfig()
    # what ends a thought, such as </think>, where it is not what the model's
    # template and tokens or, of an endpoint, its texts tell; "" hides nothing
    end_of_thinking: str | None = None
    budget: BudgetConfig = BudgetConfig()
    task: TaskConfig = TaskConfig(name="gsm8k")
    engine: EngineConfig = EngineConfig()
    endpoint: EndpointConfig = EndpointConfig()


class ShapeConfig(NamedTuple):
    """The shape of a new model, in the words of config.json."""

    vocab_size: int = 640  # ids of a byte-level BPE, learnt first
    hidden_size: int = 160
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    intermediate_size: int = 448
    max_position_embeddings: int = 1024


class TrainingConfig(NamedTuple):
    """All of a training."""

    # what a run takes; empty begins a new model, of the shape below
    model: str = ""
    dtype: str = "float32"  # or bfloat16
    seed: int = 0  # of new parameters and of the order of examples
    # chat JSON Lines, as dynscaling_jax/training/sft_examples.py says
    examples: tuple[str, ...] = ()
    held_out: str = ""  # a file of examples to evaluate on
    steps: int = 1000
    batch: int = 32  # examples of a step
    parts: int = 1  # of a batch, computed one after another
    longest: int = 1024  # tokens; longer examples are left out
    warmup: int = 100  # steps
    learning_rate: float = 3e-4
    final: float = 0.1  # share of the learning rate at the end
    weight_decay: float = 0.1
    clip: float = 1.0
    b2: float = 0.95
    log_every: int = 10  # steps
    evaluate_every: int = 200
    save_every: int = 200
    shape: ShapeConfig = ShapeConfig()


# fields of config.engine that had other names: in version 0.1, and keys after
RENAMED = {
    "rows": "slots",
    "rows_per_group": "slots_per_group",
    "keys": "kv_dtype",
}
COLUMNS = ("question", "answer", "id", "choices")  # of a jsonl task


def get_config() -> Any:
    """Returns RunConfig() as a ConfigDict, whose fields flags can set."""
    config = _config_dict(RunConfig())
    config.task.fields = ml_collections.ConfigDict(dict.fromkeys(COLUMNS, ""))
    return config


def get_training_config() -> Any:
    """Returns TrainingConfig() as a ConfigDict, whose fields flags can set."""
    return _config_dict(TrainingConfig())


def typed(config: Any) -> RunConfig:
    """Returns what a ConfigDict of get_config holds.

    Of the columns of a task it holds those that are named.

    Raises:
      ValueError: a field that RunConfig lacks.
    """
    values = config.to_dict()
    columns = values["task"]["fields"]
    values["task"]["fields"] = {k: v for k, v in columns.items() if v}
    return _of_dict(RunConfig, values, "config")


def _config_dict(config: Any) -> Any:
    fields: Any = ml_collections.ConfigDict()
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hasattr(value, "_fields"):
            value = _config_dict(value)
        elif value is None:
            read_as, _ = typing.get_args(kind)  # such as int, of int | None
            value = config_dict.placeholder(read_as)
        fields[name] = value
    return fields


def _of_dict(kind: Any, values: dict[str, Any], path: str) -> Any:
    kinds = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in kinds:
            now = (
                f"is now {path}.{RENAMED[name]}"
                if name in RENAMED
                else ("is no field")
            )
            raise ValueError(
                f"{path}.{name} {now}; see dynscaling_jax/experiments/config.py"
            )
        if hasattr(kinds[name], "_fields"):
            values[name] = _of_dict(kinds[name], value, f"{path}.{name}")
    return kind(**values)


def renamed(config: Any) -> Any:
    """Returns the config of an older run with the names of today."""
    if not isinstance(config.get("engine"), dict):
        return config
    engine = {RENAMED.get(k, k): v for k, v in config["engine"].items()}
    return {**config, "engine": engine}
