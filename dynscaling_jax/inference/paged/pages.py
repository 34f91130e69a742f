"""Which pages of a pool are free, shared, or kept for reuse.

A full page of a prompt is found by the token ids that it holds and by the page
before it, so a chain of pages spells a beginning of one prompt alone. The ids
are compared themselves: no two beginnings are ever taken for each other.
"""

import collections
import heapq
from collections.abc import Iterable, Iterator, Sequence

_ROOT = 0  # the name of what comes before the first page


class Pool:
    """Pages by number, their owners, and what the full ones hold.

    A page is free, or it has owners, or it is kept: its last owner left it,
    and it may be found again until its memory is needed.
    """

    def __init__(self, pages: int, page: int):
        """Starts with all pages free; `page` positions each."""
        self._page = page
        self._free = [*range(pages)]  # a heap: the lowest number comes first
        self._owners = [0] * pages
        self._kept: collections.OrderedDict[int, None] = (
            collections.OrderedDict()  # the least recently used first
        )
        # (name of the page before, ids) -> page. A name is used once, so
        # those of pages that were evicted find nothing
        self._index: dict[tuple[int, tuple[int, ...]], int] = {}
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._names: dict[int, int] = {}
        self._next_name = _ROOT + 1

    @property
    def available(self) -> int:
        """How many pages can be taken: free ones and kept ones."""
        return len(self._free) + len(self._kept)

    @property
    def held(self) -> int:
        """How many pages have owners."""
        return len(self._owners) - self.available

    @property
    def kept(self) -> int:
        """How many pages have no owner and may be found again."""
        return len(self._kept)

    def owners(self, page: int) -> int:
        """Returns how many owners a page has."""
        return self._owners[page]

    def take(self, count: int) -> tuple[int, ...]:
        """Gives pages to a new owner.

        They are free ones, lowest numbers first, then kept ones, the least
        recently used first.

        Raises:
            ValueError: fewer are available.
        """
        if count > self.available:
            raise ValueError(
                f"{count} pages were asked for; {self.available} are available"
            )
        taken = []
        for _ in range(count):
            if self._free:
                page = heapq.heappop(self._free)
            else:
                page, _ = self._kept.popitem(last=False)
                del self._index[self._keys.pop(page)], self._names[page]
            self._owners[page] = 1
            taken.append(page)
        return tuple(taken)

    def share(self, pages: Iterable[int]) -> None:
        """Gives pages one more owner; kept ones are in use again."""
        for page in pages:
            self._kept.pop(page, None)
            self._owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Takes an owner from pages, which are in the order of a sequence.

        The last page is released first, so of those that are kept the end of
        a chain is evicted before its beginning, without which it is not found.
        """
        for page in reversed(pages):
            self._owners[page] -= 1
            if self._owners[page]:
                continue
            if page in self._names:
                self._kept[page] = None
            else:
                heapq.heappush(self._free, page)

    def find(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Returns the pages that hold the longest known beginning of ids.

        With pages of two tokens, and [1 2 3 4] known in pages 5 and 7:

            1 2 3 4 9    5, 7
            1 2 3        5      no page is found by a part of what it holds
            3 4          none   7 holds them behind [1 2] alone
        """
        found, name = [], _ROOT
        for key in self._spell(ids):
            page = self._index.get((name, key))
            if page is None:
                break
            found.append(page)
            name = self._names[page]
        return tuple(found)

    def name(self, ids: Sequence[int], pages: Sequence[int]) -> None:
        """Makes full pages known by the ids they hold, from the first on.

        Where another page holds the same, that one stays known.
        """
        name = _ROOT
        for key, page in zip(self._spell(ids), pages, strict=False):
            known = self._index.setdefault((name, key), page)
            if known == page and page not in self._names:
                self._keys[page] = name, key
                self._names[page] = self._next_name
                self._next_name += 1
            name = self._names[known]

    def _spell(self, ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The ids of each full page."""
        whole = len(ids) - len(ids) % self._page
        for at in range(0, whole, self._page):
            yield tuple(ids[at : at + self._page])
