"""A sample that is being drawn, and when it is whole."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import confidence, sampling
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.types import Request, Sample


class Prompt(NamedTuple):
    """What a request makes the model read, as ids."""

    ids: tuple[int, ...]
    base: tuple[int, ...]  # of the query alone; ids may begin like it
    common: int  # length of that beginning, where it is worth reusing


class Asked(NamedTuple):
    """A request, by its number among all that an engine was asked for."""

    number: int
    request: Request


@dataclasses.dataclass(eq=False)
class Row:
    """A sample that is being drawn."""

    number: int  # of its request, as Asked has it
    request: Request
    prompt: Prompt
    limit: int  # tokens to draw at most
    draws: list = dataclasses.field(default_factory=list)
    count: int = 0  # tokens drawn

    def take(self, draws: sampling.Draw, column: int, steps: int) -> None:
        """Adds the first steps of a column of draws, each [C, GR]."""
        own = jax.tree.map(lambda x: x[:steps, column], draws)
        self.draws.append(own)
        self.count += steps


def finished(row: Row, model: Model, stop: Sequence[str]) -> Sample | None:
    """The sample of a row, if it is whole: by a stop id, a stop string or
    its limit.

    Raises:
        ValueError: the model gave logits that are not finite.
    """
    draws = jax.tree.map(lambda *parts: np.concatenate(parts), *row.draws)
    row.draws[:] = [draws]
    if not np.isfinite(draws.logprob).all():
        raise ValueError(
            f"query {row.request.query.id!r}: the model gives logits that "
            "are not finite; its weights are damaged or overflow its dtype"
        )
    ids = draws.token.tolist()
    decode_text = model.tokenizer.decode
    reason, text = None, ""
    if ids[-1] in model.eos_ids:
        reason, text = "stop", decode_text(ids[:-1])
    elif len(ids) >= row.limit:
        reason, text = "length", decode_text(ids)
    elif stop:
        text = decode_text(ids)
    if any(s in text for s in stop):
        # the tokens that spell the first stop string, and no more
        hit = lambda n: any(s in decode_text(ids[:n]) for s in stop)
        count = next(n for n in range(1, len(ids) + 1) if hit(n))
        draws = jax.tree.map(lambda x: x[:count], draws)
        text = decode_text(ids[:count])
        ends = [at for at in map(text.find, stop) if at >= 0]
        reason, text = "stop", text[: min(ends)]
    if reason is None:
        return None
    request, prompt = row.request, row.prompt
    cached = prompt.common if request.index else 0
    if request.shared:
        cached = len(prompt.ids)
    new = len(draws.token)
    return Sample(
        query_id=request.query.id,
        index=request.index,
        round=request.round,
        parents=request.parents,
        text=text,
        answer=None,
        finish_reason=reason,
        prompt_tokens=len(prompt.ids),
        cached_tokens=cached,
        new_tokens=new,
        flops=sample_flops(model.config, len(prompt.ids), cached, new),
        logprob=float(draws.logprob.mean()),
        confidence=float(draws.confidence.mean()),
        signals={
            **confidence.windowed(draws.confidence),
            "certainty": float(draws.certainty.mean()),
        },
    )
