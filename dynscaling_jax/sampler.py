"""Samplers made of functions, and middleware for samplers."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from dynscaling_jax.lines import shown
from dynscaling_jax.thinking import Thinking
from dynscaling_jax.types import (
    Budget,
    Message,
    Reader,
    Request,
    Sample,
    SampleFn,
    Sampler,
    Watch,
    count_words,
)

CANCELLED = "cancelled"

Middleware = Callable[[SampleFn], SampleFn]


@dataclasses.dataclass(frozen=True)
class FunctionSampler:
    """A sampler made of a function; see types.Sampler for its members.

    Without a watch each sample is generated when it is asked for.
    """

    sample: SampleFn
    count_tokens: Callable[[Sequence[Message]], int] = count_words
    max_prompt_tokens: int | None = None
    max_cost: Budget = Budget()
    thinking: Thinking = Thinking()
    name: str = ""
    watch: Watch | None = None


def tap(sampler: Sampler, *middleware: Middleware) -> FunctionSampler:
    """Puts middleware between a sampler and whoever asks it.

    Each is given the function that answers requests and returns one that
    does: with a progress bar, from a log, with answers read. The first is the
    nearest to the sampler.
    """
    sample = sampler.sample
    for wrap in middleware:
        sample = wrap(sample)
    return FunctionSampler(
        sample,
        sampler.count_tokens,
        sampler.max_prompt_tokens,
        sampler.max_cost,
        sampler.thinking,
        sampler.name,
        watch_of(sampler),
    )


def watch_of(sampler: Sampler) -> Watch | None:
    """How the samples of a sampler are watched, if they can be."""
    return getattr(sampler, "watch", None)


def empty(request: Request) -> Sample:
    """Makes a sample of a request without text and tokens."""
    return Sample(
        request.query.id,
        request.index,
        request.round,
        request.parents,
        text="",
        answer=None,
        finish_reason="",
        prompt_tokens=0,
        cached_tokens=0,
        new_tokens=0,
        flops=0.0,
    )


def cancelled(request: Request, read: int, cached: int, new: int) -> Sample:
    """Makes the sample of a request that was ended after so many tokens.

    Args:
        request: that was under way.
        read: tokens of its prompt.
        cached: of these.
        new: completion tokens by then.
    """
    return empty(request)._replace(
        finish_reason=CANCELLED,
        prompt_tokens=read,
        cached_tokens=cached,
        new_tokens=new,
    )


def each(observe: Callable[[Sample], object]) -> Middleware:
    """Calls observe with each sample as it comes.

    Work begins with the call, as that of the sampler does, and not with the
    first sample that is taken.
    """

    def observed(samples: Iterator[Sample]) -> Iterator[Sample]:
        for sample in samples:
            observe(sample)
            yield sample

    return lambda sample: lambda requests: observed(sample(requests))


def check(sampler: Sampler) -> None:
    """Raises ValueError where this is no sampler."""
    members = [n for n in FunctionSampler.__dataclass_fields__ if n != "watch"]
    lacks = [name for name in members if not hasattr(sampler, name)]
    if lacks or isinstance(sampler, type) or not callable(sampler.sample):
        raise ValueError(
            f"the sampler is {shown(sampler)}"
            + f", without {', '.join(lacks)}" * bool(lacks)
            + ": expected an Engine, an Endpoint or a FunctionSampler"
        )


def reader_of(sampler: Sampler) -> Reader:
    """Returns what a strategy may know of a sampler."""
    return Reader(
        sampler.count_tokens, sampler.max_prompt_tokens, sampler.thinking
    )
