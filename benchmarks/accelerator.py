"""A model of 7 billion random parameters on one card, against what the card
can move and multiply.

Bytes and operations are counted by formula; what the card gives is measured
in the same process, by a copy and by one large product.
"""

import functools
import gc

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.common import (
    Config,
    Lines,
    median_seconds,
    rate,
    timed_calls,
)
from benchmarks.stubs import random_model
from dynscaling_jax.checkpoints import Model
from dynscaling_jax.models import ModelConfig
from dynscaling_jax.models.flops import (
    attention_flops,
    head_flops,
    linear_flops,
)
from dynscaling_jax.types import Message, Query


def lines(config: Config) -> Lines:
    size = config.accelerator
    device = jax.devices()[0]
    card = {"card": f"{device.platform}: {device.device_kind}"}
    if device.platform == "cpu" and not size.on_cpu:
        yield {
            "bench": "accelerator",
            **card,
            "missing": "a GPU or TPU that JAX sees",
            "install": "pip install 'dynscaling-jax[cuda]'",
        }
        return
    bandwidth = copy_rate(size.copy_bytes, config.repeats)
    peak = product_rate(size.product, size.dtype, config.repeats)
    card |= {
        "copy_gb_per_second": round(bandwidth / 1e9, 1),
        "product_tflops": round(peak / 1e12, 2),
    }
    model = random_model(size.shape.to_dict(), size.dtype)
    yield {"bench": "accelerator", **card, "weights_gb": _weights(model) / 1e9}
    work = made_work(size, model)
    yield {**prefill_line(work, size.attention, peak), **card}
    for setting in map(ours.Setting._make, size.settings):
        gc.collect()  # a card has no room for the pages of two engines
        one = decode_line(work, setting, size.attention, bandwidth, peak)
        yield {**one, **card}


def decode_line(
    work: ours.Work,
    setting: ours.Setting,
    attention: str,
    bandwidth: float,
    peak: float,
) -> dict:
    """Steps of slots that are all active. The limit is the longer of moving
    all bytes and doing all operations: with many slots it is the latter."""
    config = work.model.config
    engine = ours.engine(work, setting, attention)
    ours.wave(work, setting, engine)  # prefills, compiles
    wave = ours.wave(work, setting, engine)
    step = wave.seconds / wave.steps
    prompt = _length(work)
    middle = work.new_tokens // 2  # keys that a slot wrote, on average
    groups = setting.slots // setting.slots_per_group
    keys = groups * prompt + setting.slots * middle
    moved = _weights(work.model) + keys * _token_bytes(work.model)
    operations = setting.slots * (
        linear_flops(config)
        + head_flops(config)
        + attention_flops(config, prompt + middle - 1, prompt + middle)
    )
    limit = max(moved / bandwidth, operations / peak)
    return {
        "bench": "accelerator, decode",
        **setting._asdict(),
        "queries": len(work.queries),
        "candidates": work.candidates,
        "prompt_tokens": prompt,
        "tokens_per_second": rate(wave.tokens, wave.seconds),
        "step_ms": round(1e3 * step, 3),
        "device_step_ms": round(1e3 * wave.step, 3),
        "step_gb": round(moved / 1e9, 3),
        "step_tflop": round(operations / 1e12, 4),
        "share_of_bandwidth": round(moved / bandwidth / step, 3),
        "goal": 0.7,
        "share_of_limit": round(limit / step, 3),
        "bound": "bytes" if limit == moved / bandwidth else "operations",
    }


def prefill_line(work: ours.Work, attention: str, peak: float) -> dict:
    """Prefill of all prompts, by the calls that the engine makes for it."""
    config, prompt = work.model.config, _length(work)
    count = len(work.queries)
    engine = ours.engine(
        work._replace(new_tokens=1), ours.Setting(count, 1), attention
    )
    ours.generate(engine, work.warm_up, 1)  # compiles
    with timed_calls(ours.CALLS) as times:
        ours.generate(engine, work.queries, 1)
    seconds = sum(times["prefill"] or times["prefill_chunk"])
    operations = count * (
        prompt * linear_flops(config)
        + head_flops(config)
        + attention_flops(config, 0, prompt)
    )
    return {
        "bench": "accelerator, prefill",
        "queries": count,
        "prompt_tokens": prompt,
        "tokens_per_second": rate(count * prompt, seconds),
        "tflop": round(operations / 1e12, 4),
        "share_of_product": round(operations / seconds / peak, 3),
        "goal": 0.5,
    }


def made_work(size: Config, model: Model) -> ours.Work:
    """Prompts of exactly prompt_tokens tokens, a letter each, which differ."""
    empty = len(model.tokenizer.encode_chat((Message("user", ""),)))
    queries = [
        Query(
            str(at),
            (Message("user", f"{at} ".ljust(size.prompt_tokens - empty, "a")),),
        )
        for at in range(2 * size.queries)
    ]
    return ours.Work(
        model,
        queries[: size.queries],
        queries[size.queries :],
        size.candidates,
        size.new_tokens,
        0.7,
    )


def copy_rate(size: int, repeats: int) -> float:
    """Bytes a second that are read and written by a pass over a large array.

    The array is written in place: fresh memory would cost a CPU more than
    the pass.
    """
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = step(jnp.zeros(size // 4, jnp.float32))

    def once() -> None:
        nonlocal x
        x = step(x).block_until_ready()

    once()
    return 2 * x.nbytes / median_seconds(once, repeats)


def product_rate(size: int, dtype: str, repeats: int) -> float:
    """Operations a second of the product of two square matrices."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    once = functools.partial(multiply, x, x)
    seconds = median_seconds(lambda: once().block_until_ready(), repeats)
    return 2 * size**3 / seconds


def _length(work: ours.Work) -> int:
    return len(work.model.tokenizer.encode_chat(work.queries[0].messages))


def _weights(model: Model) -> int:
    """Bytes that a step reads: all but a table of embeddings of its own."""
    every = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    return every - ("head" in model.params) * model.params["embed"].nbytes


def _token_bytes(model: Model) -> int:
    """Of one token's keys and values."""
    config: ModelConfig = model.config
    each = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * config.head_dim
    )
    return each * model.params["norm"].dtype.itemsize
