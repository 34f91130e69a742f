"""The numbers of answers: what votes, grading, banks and reports count."""

from collections.abc import Callable


class AnswerIndex:
    """Numbers the different answers of one query, from 0 as first seen.

    An answer joins the first class whose first member it equals. `same` is
    called once for each new text and known class, and never for exact repeats.

        number("1/2")  number("0.5")  number("2")  number("1/2")
        0              0              1            0
    """

    def __init__(self, same: Callable[[str, str], bool]):
        """Takes the test of whether two answers are one."""
        self.answers: list[str] = []  # the first member of each class
        self._known: dict[str, int] = {}
        self._same = same

    def number(self, answer: str) -> int:
        """Returns the number of an answer's class."""
        if answer not in self._known:
            for i, first in enumerate(self.answers):
                if self._same(first, answer):
                    self._known[answer] = i
                    break
            else:
                self._known[answer] = len(self.answers)
                self.answers.append(answer)
        return self._known[answer]
