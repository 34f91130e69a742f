"""What LaTeX and Markdown put around an answer, and its taking off."""

import re
from unicodedata import normalize

INLINE = re.compile(
    r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]", re.DOTALL
)


def inside(inline: re.Match[str]) -> str:
    """Returns the formula of a match of INLINE."""
    return inline[1] or inline[2] or inline[3]


TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*+\{([^{}]*)\}")
_BLANKS = "\N{NO-BREAK SPACE}\u2006\u2007\u2009\u200a\u202f\u3000"
WIDE = {0xFEE0 + i: i for i in range(0x21, 0x7F)}  # fullwidth forms
_SYMBOLS = WIDE | str.maketrans(
    dict.fromkeys(_BLANKS, " ")
    | {  # one half
        sign: r"\frac{{{}}}{{{}}}".format(
            *normalize("NFKC", sign).split("\u2044")
        )
        for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
    }
    | {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{SQUARE ROOT}": r"\sqrt ",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{DIVISION SIGN}": "/",
        "\N{DOT OPERATOR}": r"\cdot ",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{LESS-THAN OR EQUAL TO}": r"\leq ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\geq ",
        "\N{UNION}": r"\cup ",
        "\N{ELEMENT OF}": r"\in ",
        "\N{DEGREE SIGN}": "",
        "\N{SUPERSCRIPT TWO}": "^2",
        "\N{SUPERSCRIPT THREE}": "^3",
        "\N{EURO SIGN}": "",
        "\N{POUND SIGN}": "",
        "\N{YEN SIGN}": "",
        "\N{FULLWIDTH YEN SIGN}": "",
        "\N{INDIAN RUPEE SIGN}": "",
    }
)
_END = r"(?![A-Za-z])"
_REWRITES = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\?[$%]", ""),
        (rf"\\[dtc]frac{_END}", r"\\frac"),
        (r"\\(?:left|right)\s*+\.", ""),
        (rf"\\(?:left|right|displaystyle|[bB]igg?[lr]?){_END}", ""),
        (r"\\!\s*+", ""),
        (r"\{,\}", ","),
        (rf"(?<!\\)\\[,;: ]|~|\\q?quad{_END}", " "),
        (rf"\\(?:mbox|mathrm|textbf|mathbf|textrm|textit){_END}", r"\\text"),
        (rf"\^\s*+(?:\\circ{_END}|\{{\s*+\\circ\s*+\}})", ""),
        (rf"\\degree{_END}", ""),
        (rf"\\le{_END}|<=", r"\\leq"),
        (rf"\\ge{_END}|>=", r"\\geq"),
        (r"\b([bBv])matrix\b", "pmatrix"),
        (r"\\text\s*+\{\s*+(?:and|or|,)\s*+\}", ","),
        (r"(?<![A-Za-z\\])sqrt(?=\s?[({\d])", r"\\sqrt"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
    )
]


def clean(text: str) -> str:
    """Spells symbols and synonyms in LaTeX's plainest way."""
    text = text.translate(_SYMBOLS)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = braced(text)
    return _ONE_TOKEN.sub(r"\1\2", text)


_ONE_TOKEN = re.compile(r"([_^])\{(\w)\}(?![\w{])")
_TAKES = re.compile(rf"\\(frac|binom|sqrt){_END}\s*+|\^\s*+(?=\()")


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
