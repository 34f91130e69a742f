"""Questions with typing errors, to see what they cost a method."""

import random
import re

# commands of LaTeX with the name in their braces, formulas, words
_PARTS = re.compile(
    r"\\[A-Za-z]+(?:\{[A-Za-z*]+\})?|\$[^$]*\$|(?P<word>[^\W\d_]{4,})"
)


def misspelt(text: str, share: float, key: str) -> str:
    """Swaps two neighbouring letters in a share of a text's words.

    Words of four letters or more are changed; numbers, formulas and marks
    stay. Which words is a function of the key, and a larger share misspells
    the same words and more.
    """
    rng = random.Random(f"noise/{key}")

    def swapped(match: re.Match[str]) -> str:
        word, chance = match["word"], rng.random()
        if not word:
            return match[0]
        at = rng.randrange(1, len(word) - 1)
        if chance >= share:
            return word
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return _PARTS.sub(swapped, text)
