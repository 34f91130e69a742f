"""What LaTeX and Markdown put around an answer, and its taking off."""

import re
from unicodedata import normalize

INLINE = re.compile(
    r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]", re.DOTALL
)
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
        (r"(?<![A-Za-z\\])sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"\\frac\s*+(\d)\s*+(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*+(\d)\s*+(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*+\{[^{}]*\})\s*+(\d)", r"\1{\2}"),
        (r"\\sqrt\s*+([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"([_^])\{(\w)\}(?![\w{])", r"\1\2"),
    )
]


def clean(text: str) -> str:
    """The text with its symbols and synonyms in LaTeX's plainest spelling."""
    text = text.translate(_SYMBOLS)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return text


def unwrap(text: str) -> str:
    """Without the markup and the punctuation around it."""
    text = text.strip(' \t\r\n*`"').rstrip('.,;: \t\r\n*`"')
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        text = text.removeprefix(opening).removesuffix(closing)
    return text


def phrase(text: str) -> str:
    return " ".join(text.split()).casefold()
