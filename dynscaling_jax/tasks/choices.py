"""Options: the letter that an answer names."""

import re

_MARKUP = re.compile(r"\\[A-Za-z]+|[{}$*`\\]")
_LETTER = re.compile(
    r"\(\s*+([A-Za-z])\s*+\)"  # (B); else a bare capital, which is neither
    r"|(?<![\w'])([B-HJ-Z]"  # the pronoun I nor the article A
    r"|A(?!\s+(?!(?:because|since|as|is|and|with)\b)[a-z]))(?![\w'])"
)


def choice(text: str) -> str | None:
    text = _MARKUP.sub(" ", text).strip()
    alone = text.strip("().:, ")
    if len(alone) == 1 and alone.isascii() and alone.isalpha():
        return alone.upper()
    match = _LETTER.search(text)
    return (match[1] or match[2]).upper() if match else None
