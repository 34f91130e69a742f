"""Numbers: their exact values, and the one spelling of each."""

import re
from fractions import Fraction

from dynscaling_jax.tasks.markup import TEXT, clean, unwrap

_LONGEST = 300  # characters
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
    if len(text) > _LONGEST or not text.isascii():
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


def show(value: Fraction) -> str | None:
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
    return text if len(text) <= _LONGEST else None


def number(text: str) -> str | None:
    """The text as a number, or else the first one after its last equals
    sign: "3 + 4 = 7 apples" gives 7."""
    text = unwrap(clean(TEXT.sub(r" \1 ", text)))
    value = rational(text)
    if value is None:
        tail = text.rpartition("=")[2]
        match = NUMBER.search(tail) or NUMBER.search(text)
        value = rational(match[0]) if match else None
    return None if value is None else show(value)
