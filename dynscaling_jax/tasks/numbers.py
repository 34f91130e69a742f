"""Numbers: their exact values, and the one spelling of each."""

import math
import re
from fractions import Fraction

from dynscaling_jax.tasks.markup import TEXT, clean, unwrap

_LONGEST = 300  # characters
_MOST_BITS = 4_096  # of a power
_MOST_FACTORIAL = 200
_DEEPEST = 20  # brackets within brackets
_WHOLE = (  # thousands in groups: 1,000 or 1 000; in India 1,00,000
    r"(?:(?<!\d)\d{1,3}(?:,\d{2,3}){0,12},\d{3}(?!\d)"
    r"|(?<!\d)\d{1,3}(?: \d{3}){1,12}(?![\d/])"
    r"|(?<![\d.])\d{1,3}(?:\.\d{3}){2,12}(?!\.?\d)|\d+)"
)
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([+-]?\d{{1,2}})(?!\d))?")
_SLASH = re.compile(rf"(?:(\d++) ++)?({_DECIMAL}) *+/ *+({_DECIMAL})(?!\s*/)")
_FRAC = re.compile(
    rf"(?:(\d++)\s*+)?\\d?frac\s*+\{{\s*+(-?{_DECIMAL})\s*+\}}"
    rf"\s*+\{{\s*+(-?{_DECIMAL})\s*+\}}"
)
_FRACTION = rf"(?:{_FRAC.pattern}|{_SLASH.pattern}|{_PLAIN.pattern})"
_SIGN = (  # none after a digit or a bracket, where it subtracts; no bullet
    r"(?:(?<![\w)\]}])[-\N{MINUS SIGN}](?=[\d.$\\])|(?<=[:=(,] )-\s?)"
)
NUMBER = re.compile(rf"{_SIGN}?(?:\\?\$\s?-?)?{_FRACTION}")


def rational(text: str) -> Fraction | None:
    r"""Returns the value of a text that is one number and nothing else.

    "1,000", "2.5e3", "3/4", "1 1/2" and "\frac{3}{4}" are; "7 apples" is
    not, and gives None.
    """
    text = text.strip()
    if len(text) > _LONGEST or not text.isascii():
        return None
    sign = -1 if text.startswith("-") else 1
    if text.startswith(("+", "-")):
        text = text[1:].lstrip()
    if match := _PLAIN.fullmatch(text):
        return sign * _decimal(match)
    match = _SLASH.fullmatch(text) or _FRAC.fullmatch(text)
    value = match and _mixed(*match.groups())
    return None if value is None else sign * value


def _decimal(literal: re.Match[str]) -> Fraction:
    return _ungrouped(literal[1]) * Fraction(10) ** int(literal[2] or 0)


def _ungrouped(text: str) -> Fraction:
    text = text.replace(",", "").replace(" ", "")
    return Fraction(text.replace(".", "") if text.count(".") > 1 else text)


def _mixed(*parts: str | None) -> Fraction | None:
    whole, top, bottom = (_ungrouped(part or "0") for part in parts)
    return whole + top / bottom if bottom else None


def show(value: Fraction) -> str | None:
    """Writes an integer, a decimal of at most 20 places, or p/q."""
    text = str(value)
    for places in range(1, 21):
        scaled = value * 10**places
        if value.denominator > 1 and scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            sign = "-" if value < 0 else ""
            text = f"{sign}{digits[:-places]}.{digits[-places:]}"
            break
    return text if len(text) <= _LONGEST else None


# The number that a text is about.

BOLD = re.compile(r"\*\*\s*+([^*\n]{1,80})\*\*")
_MONEY = re.compile(r"([$€£₹]\s?[\d.,]+)\s?([kKMB])\b")
_MINUS = re.compile(r"\b(?:minus|negative)\s(?=\d)", re.IGNORECASE)
_STARS = re.compile(r"(?<!\d)\*\*|\*\*(?!\d)|__")
_START = re.compile(
    rf"(?<!\b[A-Za-z])(?:{NUMBER.pattern}|-?\\(?:frac|sqrt|binom)\b"
    r"|-?\((?=[-(\\\d]))"
)
_BOUND = re.compile(  # x + 2, x > 2, \pm 2
    r"(?:(?<![A-Za-z])[A-Za-z]\s*[-+*/]|[\^_<>]"
    r"|\\(?:[lg]eq|pm|in|log|ln|exp))\s*$"
)
_NAMES = re.compile(r"\b[A-Za-z]\s?=[^=,;]*[,;]\s?[A-Za-z]\s?=")  # x=1, y=2
NONE = re.compile(
    r"\b(?:cannot|can't|could not|not) be |\b(?:cannot|can't|unable to)"
    r" (?:tell|determine|decide|answer|solve)\b"
    r"|\bundefined|\bno (?:real )?solution"
    r"|\bnot enough|\binsufficient|\bimpossible|\bnot possible"
    r"|(?:^|is |are )unknown\b"
)
CLOCK = re.compile(r"\d{1,2}:\d\d(?![\d:])")
_NOT = re.compile(rf"(?:\bnot|n't)\s++{NUMBER.pattern},?")
_SO = re.compile(r"\b(?:so|thus|hence|therefore|totals?|totalling)\b")
_CLAUSE = re.compile(  # what is said beside the answer
    r"(?<=[\d\s%}),])(?:when|where|if|since|because|as|for|so|which|assuming"
    r"|given|after|by|at|than|i\.e|that is)\b|;"
    r"|(?<!\\cdot)(?<!\\times)(?<=[\w%}.])\s\("
)
_JOINED = re.compile(  # a range, one of two, a list
    r"\s*(?:-|to|and|or|,\s?(?:or|and)|,|:(?=\d)|/)\s*(?:[a-zA-Z]\s?=\s?)?"
    rf"(?={NUMBER.pattern})"
)
_RANGE = re.compile(r"(\d+)-(\d+)(?!\s*[-+*/^\d=.])")
_FORMULA = re.compile(
    r"[ienxyz]\b|\s*(?:[\^_<>]|\\(?:[lg]eq|pi|sqrt|sin|cos|tan|log|ln|infty"
    r"|overline|dots)(?!\w))"
)


def number(text: str) -> str | None:
    """Returns the number that a text is, or is about.

    "3 + 4 = 7 apples" gives 7, "2^3" 8, "3 or 4" nothing.
    """
    bold = [part for part in BOLD.findall(text) if re.search(r"\d", part)]
    if bold and not re.match(r"[^\w*]*\d", text):
        text = bold[-1]
    text = _MONEY.sub(lambda m: f"{m[1]} {_SHORT[m[2].upper()]}", text)
    text = _MINUS.sub("-", _STARS.sub("", TEXT.sub(r" \1 ", text)))
    text = unwrap(clean(text))
    value = rational(text)
    if value is None:
        found = _about(_NOT.sub(" ", text))
        if found is None or isinstance(found, str):
            return found
        value = found
    return show(value)


def _about(text: str) -> Fraction | str | None:
    first = _START.search(text)
    if NONE.search(text) or _NAMES.search(text):
        return None
    if first is None:
        return _in_words(text)
    if re.search("[a-z]", text[: first.start()]):
        parts = [part for part in _SO.split(text) if re.search(r"\d", part)]
        text = parts[-1] if parts else text
        first = _START.search(text) or first
    if clause := _CLAUSE.search(text, first.end()):
        text = text[: clause.start()]
    tail = text.rpartition("=")[2]
    text = tail if re.search(r"\d", tail) else text
    start = _START.search(text)
    if start is None or _BOUND.search(text[: start.start()]):
        return None
    at = start.start()
    if clock := CLOCK.match(text, at):
        return clock[0]
    if (ends := _RANGE.match(text, at)) and int(ends[1]) < int(ends[2]):
        return None
    found = _sum(text.replace("$", " "), at, 0)
    if found is None:
        return None
    value, end = found
    while scale := SCALE.match(text, end):
        value, end = value * _SCALES[scale[1].lower()], scale.end()
    if _FORMULA.match(text, end):
        return None
    if other := _JOINED.match(text, end):
        same = _sum(text, other.end(), 0)
        return value if same and same[0] == value else None
    return value


# Arithmetic. Each function reads what starts at `at` as far as it goes, and
# returns its value and its end; None where nothing of its kind starts there.

_Found = tuple[Fraction, int] | None
_FACTORIAL = re.compile(r"\s?!(?!\w)")
_MIXED = re.compile(
    rf"\s*(?:(?:(\d+)\s*)?\\frac\{{({_DECIMAL})\}}\{{({_DECIMAL})\}}"
    rf"|(\d+) +(\d+) ?/ ?(\d+)(?!\d))"
)
_LITERAL = re.compile(rf"\s*{_PLAIN.pattern}")
_PLUS = re.compile(r"\s*([-+])\s*")
_TIMES = re.compile(
    r"\s*(?:\*(?!\*)|\\(?:times|cdot)(?![A-Za-z])"
    r"|[x\N{MIDDLE DOT}](?=\s*[\d(]))\s*"
    r"|\s*(/|\\div(?![A-Za-z]))\s*|(?=\(|\\sqrt|\\frac|\\binom)"
)
_POWER = re.compile(r"\s*(?:\^|\*\*)\s*(?:(-?\d+)|(?=[{(]))")
_FUNCTION = re.compile(r"\s*\\(frac|sqrt|binom)\s*(?:\[(\d)\])?\s*(?=\{)")
_OPENING = {"(": ")", "[": "]", "{": "}"}


def _sum(text: str, at: int, depth: int, level: int = 0) -> _Found:
    """What operators join that bind tighter than `level`: 1 + -, 2 * /.

    Of "2 + 3 * 4 - 5", level 0 reads all, level 1 from the 3 on reads
    "3 * 4", and level 2 reads "3".
    """
    sign = _PLUS.match(text, at)
    found = _unsigned(text, sign.end() if sign else at, depth)
    if found and sign and sign[1] == "-":
        found = -found[0], found[1]
    while found:
        value, end = found
        if level < 1 and (plus := _PLUS.match(text, end)):
            other = _sum(text, plus.end(), depth, 1)
            if other is None:
                break
            term = other[0] if plus[1] == "+" else -other[0]
            found = value + term, other[1]
        elif level < 2 and (times := _TIMES.match(text, end)):
            other = _sum(text, times.end(), depth, 2)
            if other is None or (times[1] and not other[0]):
                break
            factor = 1 / other[0] if times[1] else other[0]
            found = value * factor, other[1]
        else:
            break
    return found


def _unsigned(text: str, at: int, depth: int) -> _Found:
    found = _atom(text, at, depth)
    if found and (mark := _FACTORIAL.match(text, found[1])):
        value = found[0]
        if value.denominator != 1 or not 0 <= value <= _MOST_FACTORIAL:
            return None
        found = Fraction(math.factorial(int(value))), mark.end()
    if found and (mark := _POWER.match(text, found[1])):
        base, exponent = found[0], (Fraction(mark[1] or 0), mark.end())
        if not mark[1]:
            exponent = _atom(text, mark.end(), depth + 1)
        if exponent is None:
            return found
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        power, end = exponent
        if (
            power.denominator != 1
            or abs(power) * bits > _MOST_BITS
            or (power < 0 and not base)
        ):
            return None
        found = base ** int(power), end
    return found


def _atom(text: str, at: int, depth: int) -> _Found:
    if depth > _DEEPEST:
        return None
    if mixed := _MIXED.match(text, at):
        parts = mixed.groups()
        value = _mixed(*(parts[:3] if mixed[2] else parts[3:]))
        return None if value is None else (value, mixed.end())
    if literal := _LITERAL.match(text, at):
        if len(literal[0]) > _LONGEST:
            return None
        return _decimal(literal), literal.end()
    if function := _FUNCTION.match(text, at):
        return _function(function, text, depth)
    return _group(text, at, depth)


def _group(text: str, at: int, depth: int) -> _Found:
    closing = _OPENING.get(text[at : at + 1])
    found = _sum(text, at + 1, depth + 1) if closing else None
    if found is None:
        return None
    end = re.compile(rf"\s*\{closing}").match(text, found[1])
    return (found[0], end.end()) if end else None


def _function(function: re.Match[str], text: str, depth: int) -> _Found:
    first = _group(text, function.end(), depth)
    if first is None or function[1] == "sqrt":
        root = first and _root(first[0], int(function[2] or 2))
        return None if first is None or root is None else (root, first[1])
    second = _group(text, first[1], depth)
    if second is None:
        return None
    a, (b, end) = first[0], second
    if function[1] == "frac":
        return (a / b, end) if b else None
    if a.denominator * b.denominator != 1 or not 0 <= b <= a <= 1_000:
        return None
    return Fraction(math.comb(int(a), int(b))), end


def _root(value: Fraction, degree: int) -> Fraction | None:
    """The root where it is rational."""
    parts = []
    for part in (value.numerator, value.denominator):
        if part < 0 or degree < 1 or part.bit_length() > 1_000:
            return None
        root = round(part ** (1 / degree))
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(*parts)


# Numbers in words.

_SMALL = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve "
        "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
    )
} | {
    word: 10 * value
    for value, word in enumerate(
        "twenty thirty forty fifty sixty seventy eighty ninety".split(), 2
    )
}
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_SHORT = {"K": "thousand", "M": "million", "B": "billion"}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5}
SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b", re.IGNORECASE)
_WORD = rf"(?:{'|'.join(sorted((*_SMALL, *_SCALES), key=len)[::-1])})"
_WORDS = re.compile(
    rf"\b(?:(minus|negative)\s)?({_WORD}(?:(?:-|,?\s(?:and\s)?){_WORD})*)\b"
    rf"(?:(?:-|\s)({'|'.join(_PARTS)})s?\b)?(\s(?:of|or|to)\b)?"
)


def _in_words(text: str) -> Fraction | None:
    """Reads "two hundred and six thousand one hundred", word by word.

    word    two  hundred  six  thousand  one      hundred
    part    2    200      206  0         1        100
    total   0    0        0    206,000   206,000  206,000    sum: 206,100

    `part` is what the next scale multiplies; "hundred" stays within it.
    """
    match = _WORDS.search(text.lower())
    if match is None or match[4]:
        return None
    total = part = 0
    for word in re.findall(_WORD, match[2]):
        if word == "hundred":
            part = (part or 1) * 100
        elif word in _SCALES:
            total, part = total + (part or 1) * _SCALES[word], 0
        else:
            part += _SMALL[word]
    value = Fraction(total + part, _PARTS[match[3]] if match[3] else 1)
    return -value if match[1] else value
