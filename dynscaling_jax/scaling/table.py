"""All samples of a run as arrays of one fixed shape, filled round by round.

The arrays have capacity N from the start, so that what reads them compiles
once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from dynscaling_jax.answer_index import AnswerIndex
from dynscaling_jax.scaling.votes import weight_of
from dynscaling_jax.types import Candidates, Query, Sample


class Table:
    """The samples of each query, in the order in which they were added.

    That is the order of their indices, where there are rounds, and else of
    their ends.

    same gives, for each query, the test of whether two canonical answers are
    one answer. weights names the measures of samples that readers will ask
    for.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        capacity: int,
        same: Callable[[Query], Callable[[str, str], bool]],
        weights: Iterable[str],
    ):
        shape = (len(queries), capacity)
        self.count_Q = np.zeros(len(queries), np.int32)
        self.samples: list[list[Sample]] = [[] for _ in queries]
        self._place = {query.id: q for q, query in enumerate(queries)}
        self._answer_QN = np.full(shape, -1, np.int32)
        self._tokens_QN = np.zeros(shape, np.int32)
        self._zeros_QN = np.zeros(shape, np.float32)
        self._weights = {name: np.zeros(shape, np.float32) for name in weights}
        self._index = [AnswerIndex(same(query)) for query in queries]
        # what readers were given since the last sample came
        self._seen: dict[str | None, Candidates] = {}

    @property
    def free_Q(self) -> np.ndarray:
        """Slots still empty, int32 [Q]."""
        return self._answer_QN.shape[1] - self.count_Q

    def add(self, samples: Sequence[Sample]) -> list[Sample]:
        """Adds the samples of a round, whatever order they came in.

        Returns them as they are kept, sorted by query and index, each with
        the first text of its class as answer.
        """
        self._seen.clear()
        kept = []
        order = [(self._place[s.query_id], s.index) for s in samples]
        for i in sorted(range(len(order)), key=order.__getitem__):
            q, sample = order[i][0], samples[i]
            n = self.count_Q[q]
            self.count_Q[q] += 1
            for name, weight_QN in self._weights.items():
                weight_QN[q, n] = weight_of(sample, name)
            self._tokens_QN[q, n] = sample.new_tokens
            if sample.answer is not None:
                index = self._index[q]
                answer = index.number(sample.answer)
                self._answer_QN[q, n] = answer
                sample = sample._replace(answer=index.answers[answer])
            self.samples[q].append(sample)
            kept.append(sample)
        return kept

    def candidates(
        self, weight: str | Sequence[Sequence[float]] | None = None
    ) -> Candidates:
        """Returns the packed arrays, with weight_QN as its reader wants it.

        weight is one of the named measures, or a row of values for each
        query; None stands for zeros.
        """
        if weight is None or isinstance(weight, str):
            if weight not in self._seen:
                self._seen[weight] = self._candidates(
                    self._weights[weight] if weight else self._zeros_QN
                )
            return self._seen[weight]
        weight_QN = self._zeros_QN.copy()
        for q, row in enumerate(weight):
            weight_QN[q, : len(row)] = row
        return self._candidates(weight_QN)

    def of(self, q: int, weight: str | None = None) -> Candidates:
        """Returns the packed arrays of one query, [1, N], on the host."""
        weight_QN = self._weights[weight] if weight else self._zeros_QN
        return Candidates(*self._copies(weight_QN, slice(q, q + 1)))

    def _candidates(self, weight_QN: np.ndarray) -> Candidates:
        return Candidates(*jax.device_put(self._copies(weight_QN)))

    def _copies(
        self, weight_QN: np.ndarray, rows: slice = slice(None)
    ) -> list[Any]:
        # copies: a device may alias what add() writes to
        parts = self._answer_QN, weight_QN, self._tokens_QN, self.count_Q
        return [part[rows].copy() for part in parts]

    def texts(self, answer_Q: jax.Array) -> tuple[str | None, ...]:
        """Answer ids, one for each query, as texts; None for -1."""
        return tuple(
            self._index[q].answers[answer] if answer >= 0 else None
            for q, answer in enumerate(np.asarray(answer_Q).tolist())
        )
