"""Bytes of a step of decoding on TPUs, beside the least that they could be.

The engine's decode_chunk is compiled for each device, on the mesh that the
planner proposes, with slots in the middle of samples of recorded lengths.
What its text says that a step reads and writes is compared with the weights
and live keys of a device. Nothing is run.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Config, Lines
from dynscaling_jax.inference import aot, memory
from dynscaling_jax.inference import plan as planner

PER_GROUP = 8


def lines(config: Config) -> Lines:
    """One line for each shape and device."""
    size = config.traffic
    for shape in size.shapes.split(","):
        for device in size.devices.split(","):
            yield line(size, shape, device)


def line(size: Any, shape: str, device: str) -> dict[str, Any]:
    model = planner.SHAPES[shape]
    work, found = planned(size, model, device)
    live = middles(size, np.random.default_rng(0))
    part = [int(n) for n in live[: len(live) // work.data]]
    pages = lambda: sum(-(-(n + 1) // memory.PAGE) for n in part)
    while pages() > found.pages:
        part.pop()  # a device may have no room for as many
    work = work._replace(slots=len(part))
    program = aot.programs(work, ("decode",))["decode"]()
    moved, least = aot.step_bytes(work, program, part)
    made = {
        "bench": "traffic",
        "shape": shape,
        "device": device,
        "mesh": f"{work.data}x{work.model}",
        "attention": aot.backend(work, aot.sizes(work)).name,
        "int8": work.int8,
        "slots": len(part) * work.data,
        "live": float(np.mean(part)),
        "step_gb": moved / 1e9,
        "least_gb": least / 1e9,
        "ratio": moved / least,
        "goal": size.goal,
        "on_chip_ratio": aot.step_bytes(work, program, part, True)[0] / least,
        # loops once, so one layer; and as XLA counts, by the text
        "xla_once_gb": program.counted / 1e9,
        "once_gb": aot.hlo.traffic(
            program.text, everywhere=True, once=True, cheapest=True
        ).bytes
        / 1e9,
    }
    if size.groups:
        rows = len(part) * work.data // PER_GROUP * PER_GROUP
        made |= {"groups_ratio": grouped_bytes(size, work, rows) / least}
    return made


def planned(size: Any, model, device: str) -> tuple[aot.Work, planner.Plan]:
    """In int8 where no sample of bfloat16 fits."""
    lengths = memory.Lengths(size.prompt_tokens, size.cap, 10_000)
    on = planner.device(device)
    for int8 in (False, True):
        try:
            found = planner.propose(model, on, lengths, int8)
        except ValueError:
            if int8:
                raise
            continue
        return aot.work(model, device, found, int8=int8), found
    raise AssertionError


def middles(size: Any, rng: np.random.Generator) -> np.ndarray:
    """Tokens that slots have at any moment: long samples are met more often.

    A slot is in a sample with a chance that grows with its length, and
    anywhere in it.
    """
    lengths = np.array([10_000])
    if size.bank:
        rows = Path(size.bank).read_text().splitlines()
        recorded = [json.loads(row)["new_tokens"] for row in rows]
        lengths = np.clip(np.concatenate(recorded), 1, size.cap)
    met = rng.choice(lengths, size.slots, p=lengths / lengths.sum())
    return size.prompt_tokens + (rng.random(size.slots) * met).astype(int)


def grouped_bytes(size: Any, work: aot.Work, slots: int) -> float:
    """The least that a step of as many slots moved in groups.

    That is how meshes decoded before pages: each slot with as many positions
    as the longest sample may come to, doubled from 32 on, and each group with
    a prompt padded to a power of two. Padding was read like keys.
    """
    model = work.config
    part = planner.shard(model, work.model)
    prefix = memory.doubled(128, size.prompt_tokens)
    suffix = memory.doubled(32, size.cap + 15)
    groups = slots // PER_GROUP
    positions = (groups * prefix + slots * suffix) / work.data
    keys = positions * memory.token_bytes(part, planner.BFLOAT16)
    return planner.read_bytes(model, work.int8, work.model) + keys
