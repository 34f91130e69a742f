"""Every field of a run, with its default. Configs start from here."""

from typing import Any

import ml_collections
from ml_collections import config_dict


def get_config() -> Any:
    """Fields left at None take the default of what reads them."""
    config: Any = ml_collections.ConfigDict()
    # smollm2-135m-instruct, a GGUF file, a Hugging Face directory,
    # hf://org/name@revision, or openai://model@base_url
    config.model = "smollm2-135m-instruct"
    config.dtype = "float32"  # or bfloat16
    config.adapter = ""  # a directory with a LoRA adapter of the model
    config.quantize = ""  # int8: of the weights of a local model
    # the devices of a local model, DATAxMODEL: 2x4 spreads rows over two parts
    # of four devices each, over which the parameters are split; auto takes all
    # devices for rows
    config.mesh = ""
    # tokens of a sequence at most, where not what the model was trained with
    config.context = config_dict.placeholder(int)
    # of the chat template, as JSON: {"enable_thinking": false}. A template
    # that asks for the date is told {"today": "2024-07-26"} on every day, so
    # that a run goes on tomorrow with the prompts it began with.
    config.template_variables = ""
    config.seed = 0

    # a name of dynscaling_jax/methods.py; the three axes replace one part each
    config.method = "self_consistency"
    config.strategy = ""
    config.policy = ""
    config.vote = ""
    # of the chains of whatever method builds some, as chains.Chain says; what
    # is left out is the method's own
    config.chain = ml_collections.ConfigDict()
    for field in ("explore", "k", "tail"):
        config.chain[field] = config_dict.placeholder(int)
    for field in ("which", "order", "content", "layout"):
        config.chain[field] = ""
    # what ends a thought, such as </think>, where it is not what the model's
    # template and tokens or, of an endpoint, its texts tell; "" hides nothing
    config.end_of_thinking = config_dict.placeholder(str)

    config.budget = ml_collections.ConfigDict()
    # average over the queries; inf where another cap is to end the run
    config.budget.samples_per_query = 8.0
    config.budget.new_tokens = config_dict.placeholder(int)
    config.budget.total_tokens = config_dict.placeholder(int)
    config.budget.flops = config_dict.placeholder(float)
    config.budget.seconds = config_dict.placeholder(float)
    config.budget.capacity = config_dict.placeholder(int)  # of one query
    # samples of a round and of the first one, on average over the queries;
    # by default what the method says, or all at once for parallel x uniform,
    # which learns nothing in between
    config.budget.round_per_query = config_dict.placeholder(float)
    config.budget.first_round_per_query = config_dict.placeholder(float)
    # rounds that are still being drawn when the next one is granted: 1 keeps
    # rows busy, and hosts from waiting, at the ends of rounds
    config.budget.stale_rounds = 0

    # an empty field takes the default of the task
    config.task = ml_collections.ConfigDict()
    config.task.name = "gsm8k"
    config.task.path = ""  # a local file; empty takes the hub's
    config.task.revision = ""
    config.task.split = ""  # bbh: the subtask; aime: the year
    config.task.offset = 0
    config.task.limit = 0  # 0 takes all
    config.task.kind = ""  # of answer: number, math, choice, boolean, text
    config.task.system_prompt = ""
    config.task.template = ""  # holds {question}
    config.task.few_shot = 0
    config.task.seed = 0  # of shuffled options and generated problems
    config.task.steps = 4  # generated: from 1 to this many
    config.task.largest = 999  # generated: no number is larger
    config.task.noise = 0.0  # share of a question's words that are misspelt
    config.task.shuffled = False  # options in another order; gpqa's always are
    config.task.fields = ml_collections.ConfigDict()  # jsonl: names of fields
    for field in ("question", "answer", "id", "choices"):
        config.task.fields[field] = ""

    config.engine = ml_collections.ConfigDict()
    config.engine.max_new_tokens = 256
    config.engine.temperature = 0.7
    config.engine.top_k = 0
    config.engine.top_p = 1.0
    config.engine.min_p = 0.0
    config.engine.stop = ()
    config.engine.rows = 64  # samples at a time
    config.engine.groups = ""  # auto: not so many, but all that memory holds
    config.engine.rows_per_group = config_dict.placeholder(int)  # up to 8

    # of a server, model openai://..., see docs/endpoints.md
    config.endpoint = ml_collections.ConfigDict()
    config.endpoint.concurrency = 64  # requests under way at once
    config.endpoint.timeout = 600.0  # seconds for one try
    config.endpoint.retries = 5  # further tries of what may pass
    config.endpoint.logprobs = True  # confidence, where the server has it
    config.endpoint.seed = True  # of each sample; some servers refuse it
    # further fields of a request, as JSON: {"top_logprobs": 5}; null removes
    config.endpoint.extra_body = ""
    # the server goes on with a chain's own turn (vLLM, SGLang); else a turn
    # of the user asks it to
    config.endpoint.continue_final_message = False
    return config
