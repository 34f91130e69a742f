"""A model without weights, watched while it generates."""

import random
from collections import Counter

from dynscaling_jax.sampler import FunctionSampler, cancelled
from dynscaling_jax.types import Message, Query, Sample, Watch


def queries(n):
    return [Query(f"q{i}", (Message("user", f"{i}?"),)) for i in range(n)]


def reply(request, answer="1", new=10, **rest):
    sample = Sample(
        request.query.id,
        request.index,
        request.round,
        request.parents,
        text=f"It is {answer}.",
        answer=answer,
        finish_reason="stop",
        prompt_tokens=4,
        cached_tokens=4 if request.shared else 0,
        new_tokens=new,
        flops=1.0 * new,
    )
    return sample._replace(**rest)


def noisy(request):
    """Answers and lengths that the request alone decides."""
    drawn = random.Random(f"{request.query.id}/{request.index}")
    answer = drawn.choice(["1", "1", "1", "2", None])
    return reply(request, answer, drawn.randint(1, 30))


class Model:
    """A sampler of so many slots that generates at uneven speeds.

    Each step gives some of the samples in its slots some more tokens; what a
    sample is does not depend on that.
    """

    def __init__(self, slots, seed, answer=noisy):
        self._random, self._slots = random.Random(seed), slots
        self._answer, self._queue = answer, {}
        self.generated = Counter()
        self.sampler = FunctionSampler(
            self.sample, watch=Watch(self.under_way, self.step, self.cancelled)
        )

    def sample(self, requests):
        for request in requests:
            key = request.query.id, request.index
            self._queue[key] = [self._answer(request), 0]
        return _Taken(self, [(r.query.id, r.index) for r in requests])

    def under_way(self):
        return {
            key: so_far
            for key, (sample, so_far) in self._queue.items()
            if so_far < sample.new_tokens
        }

    def step(self):
        for key in [*self.under_way()][: self._slots]:
            if self._random.random() < 0.7:
                of = self._queue[key]
                of[1] += self._random.randint(1, 9)
                if self._random.random() < 0.05:
                    of[1] = 0  # it had to give way, and begins again

    def cancelled(self, request, new):
        return cancelled(request, 4, 4 if request.shared else 0, new)


class _Taken:
    def __init__(self, model, keys):
        self._model, self._keys = model, keys

    def __iter__(self):
        return self

    def __next__(self):
        if not self._keys:
            raise StopIteration
        key = self._keys.pop(0)
        sample, so_far = self._model._queue[key]
        assert so_far >= sample.new_tokens  # nobody waits here
        del self._model._queue[key]
        self._model.generated[key] += 1
        return sample

    def close(self):
        for key in self._keys:
            self._model._queue.pop(key, None)
        self._keys = []
