r"""Canonical forms: one spelling for an answer.

kind     what it reads                            examples
number   an exact rational                        "$1,000.00" -> "1000"
                                                  "1/2" -> "0.5"
math     LaTeX or plain mathematics, also lists,  "\dfrac12" -> "0.5"
         sets and intervals of it                 "3,\pi/2" -> "3, \pi/2"
choice   the letter of an option                  "(b)" -> "B"
boolean  true or false; yes, no: the same words   "yes." -> "True"
text     all else; case, spaces and dates made    "May 1, 2021" ->
         uniform                                  "2021-05-01"

Percent signs, currencies, degree signs and units are dropped: benchmarks ask
"what percentage" and want "50". A date in digits is month/day/year.
"""

import re
from collections.abc import Callable
from datetime import datetime
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

LONGEST = 2_000  # characters; what is longer is no answer
_LONGEST_NUMBER = 300
_DEEPEST = 20  # brackets within brackets
_ROUNDS = 8  # layers of markup, brackets and units that are peeled off


@lru_cache(maxsize=65_536)
def canonical(answer: str, kind: str) -> str | None:
    """The one spelling of `answer`; None where it cannot be read as `kind`.

    Idempotent: the canonical form of a canonical form is itself.

    Raises:
      ValueError: an unknown kind.
    """
    check_kind(kind)
    if len(answer) > LONGEST:
        return None
    read = _READERS[kind]
    for _ in range(_ROUNDS):
        before, answer = answer, read(answer) or ""
        if answer == before:
            return answer or None
    return None


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(
            f"unknown kind of answer {kind!r}; known: {', '.join(KINDS)}"
        )


# Numbers.

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([+-]?\d{{1,2}})(?!\d))?")
_SLASH = re.compile(rf"(?:(\d++)\s++)?({_DECIMAL})\s*+/\s*+({_DECIMAL})")
_FRAC = re.compile(
    rf"(?:(\d++)\s*+)?\\d?frac\s*+\{{\s*+(-?{_DECIMAL})\s*+\}}"
    rf"\s*+\{{\s*+(-?{_DECIMAL})\s*+\}}"
)
NUMBER = re.compile(  # a sign after a digit or a bracket is a subtraction
    r"(?:(?<![\w)\]}])[-\N{MINUS SIGN}]\s?)?(?:\\?\$\s?-?)?"
    rf"(?:{_FRAC.pattern}|{_SLASH.pattern}|{_PLAIN.pattern})"
)


def rational(text: str) -> Fraction | None:
    """The value of a text that is a number as a whole: integer, decimal,
    fraction, mixed number; None where it is none of these."""
    text = text.strip()
    if len(text) > _LONGEST_NUMBER or not text.isascii():
        return None
    sign = -1 if text.startswith("-") else 1
    if text.startswith(("+", "-")):
        text = text[1:].lstrip()
    if match := _PLAIN.fullmatch(text):
        value = Fraction(match[1].replace(",", ""))
        return sign * value * Fraction(10) ** int(match[2] or 0)
    match = _SLASH.fullmatch(text) or _FRAC.fullmatch(text)
    if match is None:
        return None
    whole, top, bottom = (
        Fraction((part or "0").replace(",", "")) for part in match.groups()
    )
    return sign * (whole + top / bottom) if bottom else None


def _show(value: Fraction) -> str | None:
    """An integer, a decimal of at most 20 places, or p/q."""
    places = next(
        (n for n in range(21) if 10**n % value.denominator == 0), None
    )
    if places:
        digits = str(abs(value.numerator) * 10**places // value.denominator)
        digits = digits.zfill(places + 1)
        sign = "-" if value < 0 else ""
        text = f"{sign}{digits[:-places]}.{digits[-places:]}"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST_NUMBER else None


def _number(text: str) -> str | None:
    """The text as a number, or else the first one after its last equals
    sign: "3 + 4 = 7 apples" gives 7."""
    text = _unwrap(_clean(_TEXT.sub(r" \1 ", text)))
    value = rational(text)
    if value is None:
        tail = text.rpartition("=")[2]
        match = NUMBER.search(tail) or NUMBER.search(text)
        value = rational(match[0]) if match else None
    return None if value is None else _show(value)


# Mathematics.

INLINE = re.compile(
    r"\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[([^\n]+?)\\\]", re.DOTALL
)
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*+\{([^{}]*)\}")
_SYMBOLS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{NO-BREAK SPACE}": " ",
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
        "\N{EURO SIGN}": "",
        "\N{POUND SIGN}": "",
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
_UNITS = (
    "degrees?",
    "cm",
    "mm",
    "km",
    "inch(?:es)?",
    "feet",
    "foot",
    "ft",
    "yards?",
    "miles?",
    "met(?:er|re)s?",
    "square",
    "cubic",
    "units?",
    "dollars?",
    "cents?",
    "percent",
    "hours?",
    "minutes?",
    "seconds?",
    "days?",
    "weeks?",
    "months?",
    "years?",
    "mph",
    "kg",
    "grams?",
    "pounds?",
    "lit(?:er|re)s?",
    "per",
    "points?",
    "people",
    "students?",
    "ways?",
)
_UNIT = re.compile(
    rf"\s*+(?:\\text\s*+\{{[^{{}}]*\}}|(?:\b|(?<=\d))(?:{'|'.join(_UNITS)})\b)"
    r"(?:\s*+(?:\^\d|\^\{\d\}))?$",
    re.IGNORECASE,
)
_NAME = r"\\?[A-Za-z]+(?:_\w)?\s*+"
_ASSIGNED = re.compile(rf"{_NAME}=\s*+([^=<>]+)")
_MEMBER = re.compile(rf"{_NAME}\\in\b\s*+")
_CONJUNCTION = re.compile(r"\s*+(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*+")
_WORD = re.compile(r"[A-Za-z][A-Za-z .'-]*")
_SPACE = re.compile(r"(\\[A-Za-z]+)\s++(?=[A-Za-z])|\s++")


_BRACKET = re.compile(r"\\[{}]|\\(?:begin|end)\b|[][(){},;]")


class Listing(NamedTuple):
    """A list "1, 2", a tuple or interval "(1, 2]", a set "\\{1, 2\\}"."""

    opening: str  # "" for a bare list
    items: tuple[str, ...]
    closing: str


def listing(text: str) -> Listing:
    """The parts between the commas at the top level of `text` and the
    brackets around them all. A single value is a bare list of one."""
    tokens = list(_BRACKET.finditer(text))
    depth, closes_at = 0, len(text)
    for token in tokens:  # where does the first bracket close?
        depth += _depth(token[0])
        if depth <= 0 and token[0] not in ",;":
            closes_at = token.end()
            break
    opening = tokens[0][0] if tokens and tokens[0].start() == 0 else ""
    if opening not in ("(", "[", r"\{") or closes_at != len(text):
        opening = ""
    closing = tokens[-1][0] if opening else ""
    if _depth(closing) >= 0:  # never closed
        opening = closing = ""
    level = 1 if opening else 0
    items, depth, start = [], 0, len(opening)
    for token in tokens:
        depth += _depth(token[0])
        if token[0] in ",;" and depth == level:
            items.append(text[start : token.start()].strip())
            start = token.end()
    items.append(text[start : len(text) - len(closing)].strip())
    return Listing(opening, tuple(items), closing)


def _depth(token: str) -> int:
    if token in ("(", "[", "{", r"\{", r"\begin"):
        return 1
    return -1 if token in (")", "]", "}", r"\}", r"\end") else 0


def is_word(text: str) -> bool:
    """A name or a phrase, no formula: letters alone, at least three."""
    return bool(_WORD.fullmatch(text)) and sum(map(str.isalpha, text)) >= 3


def _math(text: str) -> str | None:
    text = _unwrap(_clean(text))
    if whole := _TEXT.fullmatch(text):
        text = _unwrap(whole[1])
    text, value = _measured(text)
    if value is not None:
        return _show(value)
    if is_word(text):
        return _phrase(text)
    depths = accumulate(map(_depth, _BRACKET.findall(text)))
    if max(depths, default=0) > _DEEPEST:
        return None
    text = _MEMBER.sub("", text, count=1) if _MEMBER.match(text) else text
    opening, items, closing = listing(_CONJUNCTION.sub(", ", text))
    if len(items) == 1 and (opening, closing) in (("", ""), ("(", ")")):
        return _scalar(items[0])
    inner = ", ".join(filter(None, map(_scalar, items)))
    return opening + inner + closing if inner else None


def _scalar(text: str) -> str | None:
    text, value = _measured(text)
    if value is not None:
        return _show(value)
    return _SPACE.sub(lambda m: m[1] + " " if m[1] else "", text)


def _measured(text: str) -> tuple[str, Fraction | None]:
    """The text without its unit, and its value where it is a number or names
    one: "x = 5 \\text{ cm}" is 5, "y = 2x + 3" has none."""
    text = _UNIT.sub("", text) or text
    assigned = _ASSIGNED.fullmatch(text)
    return text, rational(assigned[1] if assigned else text)


def _clean(text: str) -> str:
    text = text.translate(_SYMBOLS)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return text


def _unwrap(text: str) -> str:
    """Without the markup and the punctuation around it."""
    text = text.strip(' \t\r\n*`"').rstrip('.,;: \t\r\n*`"')
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        text = text.removeprefix(opening).removesuffix(closing)
    return text


# Options, truth and free text.

TRUTH = re.compile(r"\b(true|false|yes|no)\b", re.IGNORECASE)
_MARKUP = re.compile(r"\\[A-Za-z]+|[{}$*`\\]")
_LETTER = re.compile(
    r"\(\s*+([A-Za-z])\s*+\)"  # (B); else a bare capital, which is neither
    r"|(?<![\w'])([B-HJ-Z]"  # the pronoun I nor the article A
    r"|A(?!\s+(?!(?:because|since|as|is|and|with)\b)[a-z]))(?![\w'])"
)
_DATES = (
    "%m/%d/%Y",
    "%Y-%m-%d",
    "%B %d, %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%d %b %Y",
)


def _choice(text: str) -> str | None:
    text = _MARKUP.sub(" ", text).strip()
    alone = text.strip("().:, ")
    if len(alone) == 1 and alone.isascii() and alone.isalpha():
        return alone.upper()
    match = _LETTER.search(text)
    return (match[1] or match[2]).upper() if match else None


def _boolean(text: str) -> str | None:
    match = TRUTH.search(text)
    return match and str(match[1].lower() in ("true", "yes"))


def _phrase(text: str) -> str:
    return " ".join(text.split()).casefold()


def _text(text: str) -> str | None:
    text = text.lstrip(_EDGES).rstrip(_EDGES + ".")
    value = rational(text)
    if value is not None:
        return _show(value)
    if 8 <= len(text) <= 20:
        for form in _DATES:
            try:
                day = datetime.strptime(text, form)
            except ValueError:
                continue
            return day.date().isoformat()
    return _phrase(text)


_EDGES = " \t\r\n*`\"',;:!\N{LEFT DOUBLE QUOTATION MARK}" + (
    "\N{RIGHT DOUBLE QUOTATION MARK}"
)

_READERS: dict[str, Callable[[str], str | None]] = {
    "number": _number,
    "math": _math,
    "choice": _choice,
    "boolean": _boolean,
    "text": _text,
}
KINDS = tuple(_READERS)
