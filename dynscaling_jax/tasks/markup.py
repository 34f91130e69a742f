"""What LaTeX and Markdown put around an answer, and its taking off."""

import re
from collections.abc import Callable
from unicodedata import normalize

INLINE = re.compile(
    r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]", re.DOTALL
)


def inside(inline: re.Match[str]) -> str:
    """Returns the formula of a match of INLINE."""
    return inline[1] or inline[2] or inline[3]


TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*+\{([^{}]*)\}")
WIDE = {0xFEE0 + i: i for i in range(0x21, 0x7F)}  # fullwidth forms


def commands(signs: str, names: str) -> dict[int, str]:
    """Makes a table for str.translate: signs to the commands of these names."""
    pairs = zip(signs.split(), names.split(), strict=True)
    return {ord(sign): rf"\{name} " for sign, name in pairs}


def _fraction(sign: str) -> str:
    top, bottom = normalize("NFKC", sign).split("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


_SYMBOLS = (
    WIDE
    | commands(
        "π ∞ √ × ⋅ ± ≤ ≥ ∪ ∈", "pi infty sqrt times cdot pm leq geq cup in"
    )
    | {ord(sign): _fraction(sign) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
    | {ord(blank): " " for blank in "\xa0\u2006\u2007\u2009\u200a\u202f\u3000"}
    | {ord(sign): "" for sign in "°€£¥￥₹"}
    | str.maketrans(
        {"\u2212": "-", "\u2013": "-", "÷": "/", "²": "^2", "³": "^3"}
    )
)
END = r"(?![A-Za-z])"  # of a command or a word
START = r"(?<![A-Za-z\\])"  # of a word


def rewriter(table: str, **parts: str) -> Callable[[str], str]:
    """Makes a function of a table of rewrites, which it applies in turn.

    Args:
      table: a rewrite a line: a pattern, =>, its replacement in quotes. A
        pattern may go on in an indented line; # begins a line of comment.
      parts: what <NAME> stands for in a pattern; <END> and <START> are known.
    """
    parts = {"END": END, "START": START, **parts}
    rewrites, pattern = [], ""
    for line in table.strip().splitlines():
        head, arrow, replacement = line.strip().partition(" => ")
        pattern += "" if line.startswith("#") else head
        if arrow:
            for name, part in parts.items():
                pattern = pattern.replace(f"<{name}>", part)
            rewrites.append((re.compile(pattern), replacement[1:-1]))
            pattern = ""

    def rewrite(text: str) -> str:
        for pattern, replacement in rewrites:
            text = pattern.sub(replacement, text)
        return text

    return rewrite


_rewrite = rewriter(r"""
\\?[$%] => ''
\\[dtc]frac<END> => '\\frac'
\\(?:left|right)\s*+\. => ''
\\(?:left|right|displaystyle|[bB]igg?[lr]?)<END> => ''
\\!\s*+ => ''
\{,\} => ','
(?<!\\)\\[,;: ]|~|\\q?quad<END> => ' '
\\(?:mbox|mathrm|textbf|mathbf|textrm|textit)<END> => '\\text'
\^\s*+(?:\\circ<END>|\{\s*+\\circ\s*+\}) => ''
\\degree<END> => ''
\\le<END>|<= => '\\leq'
\\ge<END>|>= => '\\geq'
\b([bBv])matrix\b => 'pmatrix'
\\text\s*+\{\s*+(?:and|or|,)\s*+\} => ','
<START>sqrt(?=\s?[({\d]) => '\\sqrt'
<START>pi<END> => '\\pi '
""")


def clean(text: str) -> str:
    """Spells symbols and synonyms in LaTeX's plainest way."""
    text = text.translate(_SYMBOLS)
    text = braced(_rewrite(text))
    return _ONE_TOKEN.sub(r"\1\2", text)


_ONE_TOKEN = re.compile(r"([_^])\{(\w)\}(?![\w{])")
_TAKES = re.compile(rf"\\(frac|binom|sqrt){END}\s*+|\^\s*+(?=\()")


def braced(text: str) -> str:
    r"""Puts braces around what \frac, \binom, \sqrt and ^( take."""
    for match in reversed(list(_TAKES.finditer(text))):
        head, rest = match[0].strip(), text[match.end() :]
        if head == r"\sqrt" and rest.startswith("["):
            root, bracket, rest = rest.partition("]")
            head += root + bracket
        for _ in range(2 if head in (r"\frac", r"\binom") else 1):
            taken, rest = argument(rest, head)
            head += "{" + taken + "}"
        if taken:
            text = text[: match.start()] + head + rest
    return text


_TOKEN = re.compile(r"\s*+(\\[A-Za-z]+|[^\s\\}])")


def argument(text: str, head: str = "") -> tuple[str, str]:
    """Splits a text into what a command takes from it, and the rest."""
    token = _TOKEN.match(text)
    if token is None:
        return "", text
    if token[1] == "{" or (token[1] == "(" and "frac" not in head):
        level = 0
        for bracket in re.finditer(r"(?<!\\)[{}()]", text):
            level += 1 if bracket[0] in "{(" else -1
            if level == 0:
                inside = text[token.end() : bracket.start()]
                return inside.strip(), text[bracket.end() :]
        return "", text
    if head.startswith(r"\sqrt") and (digits := re.match(r"\s*+\d++", text)):
        return digits[0].strip(), text[digits.end() :]
    taken, rest = token[1], text[token.end() :]
    while taken.startswith("\\") and rest.startswith("{"):  # \sqrt{2}
        inside, rest = argument(rest)
        if not inside:
            return "", text
        taken += "{" + inside + "}"
    return taken, rest


def unwrap(text: str) -> str:
    """Takes off the markup and the punctuation around a text."""
    text = text.strip(' \t\r\n*`"').rstrip('.,;: \t\r\n*`"')
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        text = text.removeprefix(opening).removesuffix(closing)
    return text


def phrase(text: str) -> str:
    """Makes spaces and case uniform."""
    return " ".join(text.split()).casefold()
