"""Many candidates for each of a few long prompts, which they share."""

import jax

from benchmarks import against, ours
from benchmarks.common import Config, Lines
from dynscaling_jax.types import Request


def lines(config: Config) -> Lines:
    size = config.prefix
    work = ours.make_work(config, size, ours.load(config))
    setting, tried = ours.best_setting(work, size.settings)
    first, engine = ours.full(work, setting)
    wave = ours.wave(work, setting, engine)
    yield ours.line(size, setting, tried, first, wave)
    yield memory_line(work, setting)
    yield from against.ratios(config, size, work, setting, first)


def memory_line(work: ours.Work, setting: ours.Setting) -> dict:
    """Keys and values that the engine holds while it decodes, and those of
    as many slots that each hold their prompt.

    What is held is what JAX says is alive when the first samples are finished,
    less what was before; the logits of the prompts are among it. As many
    samples wait for the slots, which are freed with the last one.
    """
    config = work.model.config
    before = alive()
    engine = ours.engine(work, setting)
    samples = engine.sample(
        [
            Request(query, query.messages, index)
            for query in work.queries
            for index in range(2 * work.candidates)
        ]
    )
    next(samples)
    held = alive() - before
    del samples, engine
    token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.head_dim
    )
    token *= work.model.params["norm"].dtype.itemsize
    length = max(
        len(work.model.tokenizer.encode_chat(query.messages))
        for query in work.queries
    )
    suffixes = setting.slots * work.new_tokens * token
    prompts = setting.slots * length * token
    return {
        "bench": "prefix, memory of keys and values",
        "slots": setting.slots,
        "held_bytes": held,
        "replicated_bytes": prompts + suffixes,
        "share": round(held / (prompts + suffixes), 4),
        "prompts_bytes": held - suffixes,
        "replicated_prompts_bytes": prompts,
        "share_of_prompts": round((held - suffixes) / prompts, 4),
        "goal": 0.125,
    }


def alive() -> int:
    return sum(array.nbytes for array in jax.live_arrays())
