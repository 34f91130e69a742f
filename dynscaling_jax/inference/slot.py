"""The sample that a sequence slot is generating, and when it is finished."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.inference import sampling
from dynscaling_jax.models.flops import sample_flops
from dynscaling_jax.types import Request, Sample


class Prompt(NamedTuple):
    """The token ids of a request."""

    ids: tuple[int, ...]
    base: tuple[int, ...]  # of the query alone; ids may begin like it
    common: int  # length of that beginning, where it is worth reusing


class Numbered(NamedTuple):
    """A request, by its number among all that an engine was given."""

    number: int
    request: Request


@dataclasses.dataclass(eq=False)
class Slot:
    """A sample that is being generated."""

    number: int  # of its request
    request: Request
    prompt: Prompt
    limit: int  # completion tokens at most
    tokens: list = dataclasses.field(default_factory=list)
    count: int = 0  # of tokens

    def append(
        self, tokens: sampling.ScoredToken, column: int, steps: int
    ) -> None:
        """Adds the first steps of a column of tokens, each [C, GR].

        Raises:
            ValueError: the model gave logits that are not finite.
        """
        if not steps:
            return
        # a copy, or the whole of the tokens would be kept
        new = jax.tree.map(lambda x: x[:steps, column].copy(), tokens)
        if not np.isfinite(new.logprob).all():
            raise ValueError(
                f"query {self.request.query.id!r}: the model gives logits "
                "that are not finite; its weights are damaged or overflow its "
                "dtype"
            )
        self.tokens.append(new)
        self.count += steps


def finished(slot: Slot, model: Model, stop: Sequence[str]) -> Sample | None:
    """Returns the sample of a slot if it is finished.

    A stop id, a stop string or the slot's limit finishes it. One that goes on
    is told by its newest token, however long it is, unless there are stop
    strings.
    """
    ends = slot.tokens[-1].token[-1] in model.eos_ids
    if not ends and slot.count < slot.limit and not stop:
        return None
    tokens = jax.tree.map(lambda *parts: np.concatenate(parts), *slot.tokens)
    slot.tokens[:] = [tokens]
    request, prompt = slot.request, slot.prompt
    ids = tokens.token.tolist()
    decode_text = model.tokenizer.decode
    reason, text = None, ""
    if ends:
        reason, text = "stop", decode_text(ids[:-1])
    elif len(ids) >= slot.limit:
        reason, text = "length", decode_text(ids)
    elif stop:
        text = decode_text(ids)
    if any(s in text for s in stop):
        # the tokens that spell the first stop string, and no more
        hit = lambda n: any(s in decode_text(ids[:n]) for s in stop)
        count = next(n for n in range(1, len(ids) + 1) if hit(n))
        tokens = jax.tree.map(lambda x: x[:count], tokens)
        text = decode_text(ids[:count])
        found = [at for at in map(text.find, stop) if at >= 0]
        reason, text = "stop", text[: min(found)]
    if reason is None:
        return None
    read, new = len(prompt.ids), len(tokens.token)
    cached = prompt.common if request.index else 0
    cached = read if request.shared else cached
    return Sample(
        query_id=request.query.id,
        index=request.index,
        round=request.round,
        parents=request.parents,
        text=text,
        answer=None,
        finish_reason=reason,
        prompt_tokens=read,
        cached_tokens=cached,
        new_tokens=new,
        flops=sample_flops(model.config, read, cached, new),
        logprob=float(tokens.logprob.mean()),
        confidence=float(tokens.confidence.mean()),
        signals={
            **sampling.windowed(tokens.confidence),
            "certainty": float(tokens.certainty.mean()),
        },
    )
