"""Questions with typing errors, to see what they cost a method."""

import random
import re

_WORD = re.compile(r"[^\W\d_]{4,}")


def misspelt(text: str, share: float, key: str) -> str:
    """The text with two neighbouring letters swapped in a share of its words
    of four letters or more; numbers, short words and marks stay. Which ones
    is a function of the key, and a larger share misspells the same words and
    more."""
    rng = random.Random(f"noise/{key}")

    def swapped(match: re.Match[str]) -> str:
        word, chance = match[0], rng.random()
        at = rng.randrange(1, len(word) - 1)
        if chance >= share:
            return word
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return _WORD.sub(swapped, text)
