"""A bank: the recorded samples of many questions, as arrays."""

from typing import NamedTuple

import numpy as np


class Bank(NamedTuple):
    """Recorded samples of Q questions, N each.

    Answers are ids of classes within their question, numbered in the order
    first seen; -1 is an unreadable sample. reference_Q is the class of the
    reference, -2 where no sample gave it.
    """

    name: str
    ids: tuple[str, ...]
    answer_QN: np.ndarray  # int32
    tokens_QN: np.ndarray  # int32
    logprob_QN: np.ndarray | None  # float32
    reference_Q: np.ndarray  # int32
    kind: str = ""  # of answers: number, math, choice, boolean or text
