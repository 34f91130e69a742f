"""Every field of launch.train, with its default. Configs start from here."""

from typing import Any

import ml_collections


def get_config() -> Any:
    config: Any = ml_collections.ConfigDict()
    # what launch.run takes; empty begins a new model, of the shape below
    config.model = ""
    config.dtype = "float32"  # or bfloat16
    config.seed = 0  # of new parameters and of the order of lessons

    # chat JSON Lines, as dynscaling_jax/training/sft_examples.py says
    config.lessons = ()
    config.held_out = ""  # a file of lessons to evaluate on

    config.steps = 1000
    config.batch = 32  # lessons of a step
    config.parts = 1  # that a batch is read in, one after another
    config.longest = 1024  # tokens; longer lessons are left out
    config.warmup = 100  # steps
    config.learning_rate = 3e-4
    config.final = 0.1  # share of the learning rate at the end
    config.weight_decay = 0.1
    config.clip = 1.0
    config.b2 = 0.95

    config.log_every = 10  # steps
    config.evaluate_every = 200
    config.save_every = 200

    config.shape = ml_collections.ConfigDict()  # of a new model
    config.shape.vocab_size = 640  # ids of a byte-level BPE, learnt first
    config.shape.hidden_size = 160
    config.shape.num_hidden_layers = 5
    config.shape.num_attention_heads = 4
    config.shape.num_key_value_heads = 2
    config.shape.head_dim = 32
    config.shape.intermediate_size = 448
    config.shape.max_position_embeddings = 1024
    return config
