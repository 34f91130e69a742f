r"""Mathematics: LaTeX or plain formulas, lists, sets and intervals of them.

What is a convention of writing is settled here, on the text; whether two
formulas are equal is for equivalence.py. A single value loses its unit and
its name ("x = 5 \text{ cm}" is 5), several values keep names that differ
("x=1, y=2"), and an equation keeps both its sides.
"""

import re
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

from dynscaling_jax.tasks.markup import (
    END,
    TEXT,
    WIDE,
    argument,
    clean,
    commands,
    phrase,
    rewriter,
    unwrap,
)
from dynscaling_jax.tasks.numbers import rational, show

_DEEPEST = 20  # brackets within brackets
_GROUP = r"\{[^{}]*\}"

# Signs that are written as one character.
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789-n0123456789")
_SIGNS = (
    WIDE
    | commands(
        "α β γ δ ε θ λ μ π ρ σ τ φ ω Δ Ω ∅ ≠ ≈ ∩ ∧ ∨ ⌊ ⌋ ⌈ ⌉ ℝ ℤ ℕ",
        "alpha beta gamma delta epsilon theta lambda mu pi rho sigma tau phi "
        "omega Delta Omega emptyset neq approx cap land lor lfloor rfloor "
        "lceil rceil mathbb{R} mathbb{Z} mathbb{N}",
    )
    | str.maketrans({"¥": "", "￥": "", "\u2212": "-", "，": ", "})
)
_FUNCTIONS = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp"
    "|lcm|gcd|max|min|det"
)
_SIDE = rf"(?:[^{{}}\\]|\\(?!over{END})|{_GROUP})*+"
_rewrite = rewriter(
    r"""
# style, colour and layout
\\(?:text)?color\s*+<GROUP> => ''
\\(?:boldsymbol|bm|pmb|mathbf|mathit|mathsf|mathtt|mathnormal|underline
  |uline|boxed|fbox|ensuremath)(?=\s*+\{) => ''
\\(?:mathbf|boldsymbol|bm)\s++(?=\w) => ''
(?<![\w^}\]\\\s])\{\s*+(\w++)\s*+\} => '\1'
\\(?:textstyle|scriptstyle|limits|nolimits|mathstrut|nonumber|rm|bf|it|tiny
  |small|normalsize|[lL]arge|LARGE|[hH]uge)<END>\s*+ => ''
\\(?:tag|label|hspace|vspace|phantom)\*?\s*+<GROUP> => ''
\\middle<END> => ''
\\lbrace<END> => '\\{'
\\rbrace<END> => '\\}'
(\\\\)\[[\d.]++\s*+[a-z]{2}\] => '\1'
\\lbrack<END> => '['
\\rbrack<END> => ']'
\\langle<END> => '('
\\rangle<END> => ')'
\\[lr]vert<END> => '|'
# upright letters and names
\\(?:mathrm|text|textrm|operatorname|mathit)\s*+\{\s*+([eid])\s*+\} => ' \1'
\\(?:mathrm|text|textrm|operatorname\*?)\s*+\{\s*+(<FUNCTION>)\s*+\} => '\\\1 '
<START>(<FUNCTION>)(?=\s*+[\d(\\^_]|\s++[A-Za-z]<END>) => '\\\1 '
<START>(pi|theta|alpha|beta|lambda|infinity|infty)<END> => '\\\1 '
\\infinity<END> => '\\infty'
\\[dt]binom<END> => '\\binom'
\{?\s*+([^{}\\\s]++)\s*+\\choose\s*+([^{}\\\s]++)\s*+\}? => '\\binom{\1}{\2}'
\{(<SIDE>)\\over<END>(<SIDE>)\} => '\\frac{\1}{\2}'
^(<SIDE>)\\over<END>(<SIDE>)$ => '\\frac{\1}{\2}'
(?:\{\})?\^\{?(\d++)\}?\s*+C_\{?(\d++)\}? => '\\binom{\1}{\2}'
<START>C\((\d++),\s*+(\d++)\) => '\\binom{\1}{\2}'
# signs
\*\* => '^'
\\(?:ne|not\s*+=)<END> => '\\neq '
\\leq(?:slant|q)<END> => '\\leq'
\\geq(?:slant|q)<END> => '\\geq'
\\lt<END> => '<'
\\gt<END> => '>'
\\(?:simeq|thickapprox|doteq)<END> => '\\approx'
\\([RZNQC])<END> => '\\mathbb{\1}'
\\mathbb\s*+([A-Z]) => '\\mathbb{\1}'
\\(?:varnothing|O)<END>|\\\{\s*+\\\} => '\\emptyset '
(?<=[\[(,=])\s*+\+\s*+(?=\\infty) => ''
# digits and bases
(?<=\d)\{,\}(?=\d{3})|(?<=\d)\\!,\\!(?=\d) => ''
(?<=\d),(?=0\d\d(?![\d.])) => ''
(?<=\d)\\[,;: ](?=\d{3}(?!\d)) => ''
\\text\s*+\{\s*+\(?\s*+(?:in\s++)?base[\s-]++(\d++)\s*+\)?\s*+\} => '_{\1}'
(?<=\d)\s*+\(?(?:in\s++)?base[\s-]++(\d++)\)? => '_{\1}'
# ordinals: 12th, 12^{\mathrm{th}}
(?<=\d)\s*+(?:\^\s*+\{?\s*+)?(?:\\(?:text|mathrm|textrm)\s*+\{)?\s*+(?:st
  |nd|rd|th)<END>[\s}]*+ => ' '
# half of a space
(?<!\\)\\(?=[-+\d]) => ' '
# 0.2727... repeats
(?<=\.)(\d*?)(\d{1,6}?)\2+(?:\.\.\.|\u2026|\\[lc]?dots) => '\1\\overline{\2}'
# degrees, of angles within functions and of temperature
\\(sin|cos|tan|cot|sec|csc)\s*+[({]?\s*+(\d++(?:\.\d++)?)\s*+(?:\^
  \s*+\{?\s*+\\circ\s*+\}?|°|\\degree)\s*+[)}]? => '\\\1(\\frac{\2\\pi}{180})'
(?:°|\^?\s*+\{?\\circ\s*+\}?)\s*+(?:\\(?:text|mathrm)\s*+\{\s*+[CF]\s*+\}
  |[CF]<END>) => ''
# remainders
\(?\s*+(?:\\[bp]?mod|<START>mod)<END>\s*+(?:\{\s*+([^{}]*+)\}
  |([^\s{}()\\,]++))\s*+\)? => '\\pmod{\1\2}'
# logic
\\text\s*+\{\s*+(and|or)\s*+\} => ' \\l\1 '
\\(?:vee|lor)<END>|<START>or<END> => ' \\lor '
\\(?:wedge|land)<END>|<START>and<END> => ' \\land '
""",
    SIDE=_SIDE,
    GROUP=_GROUP,
    FUNCTION=_FUNCTIONS,
)


# Units. One letter alone can be a variable, so it is a unit only where the
# writing says so: upright, in a compound, or the metre.
_LONG = (
    "deg|cm|mm|km|nm|dm|in|ft|yd|sq|mph|kph|kg|mg|lbs?|oz|ml|mL|mol|kJ|kW|kWh"
    "|MeV|eV|Hz|kHz|MHz|Pa|kPa|atm|kN|min|hr|sec|inch|inches|degrees?|units?"
    "|feet|meters?|metres?|square|cubic|percent|dollars?|cents?|per|seconds?"
    "|minutes?|hours?|days?|years?"
)
_SHORT = "[msghlLJNWVAKCFT]"
_POWER = r"(?:\s*+\^\s*+(?:-?\d|\{\s*+-?\d++\s*+\}))?+"
_UPRIGHT = r"\\text\s*+\{(?:[^{}]|\{[^{}]*+\})*+\}"
_KNOWN = rf"(?:{_LONG}){END}"
_ANY = rf"(?:{_UPRIGHT}|{_KNOWN}|{_SHORT}{END}){_POWER}"
_AFTER = r"(?<=[\d\s)}])"
_UNIT = re.compile(
    r"\s*+(?:"
    rf"(?:{_AFTER}|\b)(?:{_UPRIGHT}|{_KNOWN}){_POWER}"
    rf"(?:\s*+(?:/|\\cdot{END}|\*)?\s*+{_ANY})*+"  # kg m^2
    rf"|(?<=[\d}}])\s*+m{_POWER}"  # 10m
    rf"|{_AFTER}{_SHORT}{_POWER}\s*+/\s*+\(?{_ANY}\)?"  # 10 m/s
    rf"|{_AFTER}{_SHORT}{_POWER}\s*+(?:\\cdot{END})?\s*+{_SHORT}"
    r"\s*+\^\s*+\{\s*+-\d++\s*+\}"  # 10 m s^{-1}
    rf"|{_AFTER}[NJWAC]\s*+\\cdot\s*+[msh]"
    r"|(?<=\d)\s++[a-z]{3,}(?:\s[a-z]{2,})*+"  # 12 red chairs
    r")$"
)
_QUANTITY = re.compile(r"\d|\\pi|\\infty")
_SCALED = re.compile(
    r"(.*\d)\s*+(?:\\text\s*+\{\s*+)?(thousand|million|billion|trillion)"
    r"(?:\s[a-z ]*+)?(?:\s*+\})?",
    re.DOTALL,
)
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# Names and the relations between names and values.
_LETTER = (
    r"(?:\\(?!text|frac|sqrt|mathbb|pi|infty)[A-Za-z]+|[A-Za-z]|[A-Z]{2,4}"
    r"|[A-Za-z]{4,}|\\text\s*+" + _GROUP + ")"
)
_INDEX = r"(?:_(?:\w|\{[^{}]*\}))?'*"
_NAME = re.compile(
    rf"(?:m?\s*+\\(?:angle|triangle)\s*+|\\(?:overline|vec|hat|bar)\s*+)?"
    rf"(?:\{{{_LETTER}\}}|\[{_LETTER}\]|\|{_LETTER}\||{_LETTER}){_INDEX}"
)
_CALLED = re.compile(
    rf"{_LETTER}{_INDEX}(?:\^\{{-1\}})?"
    r"\((?:[A-Za-z]|-?\d{1,9})(?:,(?:[A-Za-z]|-?\d{1,9}))*\)"
    r"|(?:P|E|\\Pr)\s*+(?:\([^()]*\)|\[[^][]*\])"  # P(A \cap B)
)
_TUPLE_NAMES = re.compile(
    r"\(\s*+[A-Za-z](?:_\w)?(?:\s*+,\s*+[A-Za-z](?:_\w)?)++\s*+\)\s*+=\s*+(?=\()"
)
_MEMBER = re.compile(rf"{_NAME.pattern}\s*+\\in{END}\s*+")
_CONGRUENT = re.compile(rf"{_NAME.pattern}\s*+\\equiv{END}\s*+(?=.*\\pmod)")
_INTRODUCED = re.compile(
    r"\s*+\\text\s*+\{[^{}]*?(?:\bis|:|=)\s*+\}\s*+:?(?=.)"
)
_EQUALS = re.compile(r"(?<![<>=\\])=(?!=)")
_APPROXIMATELY = re.compile(rf"\\approx{END}")
_ORDER = re.compile(rf"[<>]|\\(?:leq|geq|neq){END}")
_CONSTANT = re.compile(
    rf"\\(?:pi|infty|frac|binom|sqrt|cdot|times|left|right|pm|mp|{_FUNCTIONS}){END}"
    r"|[ei](?![A-Za-z])"
)
_LOGIC = re.compile(rf"\s*+\\(lor|land){END}\s*+")
_BUILDER = re.compile(
    r"\\\{\s*+[A-Za-z](?:\s*+\\in\s*+\\mathbb\{R\})?\s*+(?:\\mid\b|\||:)"
    r"(.*)\\\}",
    re.DOTALL,
)
_FRENCH = re.compile(r"([\[\]])([^][(){},;]*+[,;][^][(){},;]*+)([\[\]])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})++(?![\d,])")
_REPEATING = re.compile(
    r"(-?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*+\{?(\d+)\}?|\((\d+)\))"
)
_ARRAY = re.compile(
    r"[(\[]\s*+\\begin\s*+\{array\}\s*+\{[lcr|]*+\}"
    r"((?:[^\\]|\\(?!end))*+)\\end\s*+\{array\}\s*+[)\]]"
)
_CELL = re.compile(r"\s*+,?\s*+&\s*+")
_ROWS = re.compile(
    r"\\begin\s*+\{(cases|aligned|align\*?|array|gathered|split)\}"
    r"(?:\s*+\{[lcr|]*\})?(.*)\\end\s*+\{\1\}",
    re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z][A-Za-z .'-]*")
_HOUR = re.compile(r"(\d{1,2}(?::\d\d)?)\s*([ap])\.?\s?m\.?", re.IGNORECASE)
_CLOSED = re.compile(rf"\\(?:int|sum|prod|lim){END}")  # no name is free in it
_NUMBERED = re.compile(r"([A-Za-z]{3,}) (\d++)(?:, (\d{4}))?")  # June 20
_INDEXED = re.compile(r"([_^])(\w)\s++(?=\d)")  # \log_2 8
_SPACE = re.compile(r"(\\[A-Za-z]+)\s++(?=[A-Za-z])|\s++")
_BRACKET = re.compile(
    rf"\\[{{}}]|\\(?:begin|end)\b|[][(){{}},;]|{_EQUALS.pattern}"
)


class Listing(NamedTuple):
    r"""A list "1, 2", a tuple or interval "(1, 2]", a set "\{1, 2\}"."""

    opening: str  # "" for a bare list
    items: tuple[str, ...]
    closing: str


def listing(text: str) -> Listing:
    r"""Splits at the commas that stand outside all brackets but the outermost.

    "(1, [2, 3])" has the items "1" and "[2, 3]"; a single value is a bare
    list of one.
    """
    tokens = list(_BRACKET.finditer(text))
    opening = tokens[0][0] if tokens and tokens[0].start() == 0 else ""
    if opening in ("(", "[", r"\{"):
        depths = accumulate(_depth(token[0]) for token in tokens)
        closed = (
            token
            for token, depth in zip(tokens, depths, strict=True)
            if depth <= 0 and token[0] not in ",;="
        )
        last = next(closed, tokens[-1])  # closes the first bracket
        if last.end() == len(text) and _depth(last[0]) < 0:
            inner = text[len(opening) : last.start()]
            return Listing(opening, tuple(_split(inner, ",;")), last[0])
    return Listing("", tuple(_split(text, ",;")), "")


def _split(text: str, marks: str) -> list[str]:
    """The parts between marks that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for token in _BRACKET.finditer(text):
        depth += _depth(token[0])
        if token[0] in marks and depth == 0:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


def _depth(token: str) -> int:
    if token in ("(", "[", "{", r"\{", r"\begin"):
        return 1
    return -1 if token in (")", "]", "}", r"\}", r"\end") else 0


def is_word(text: str) -> bool:
    """Whether the text is a name or a phrase, and no formula.

    It has letters alone, at least three, and a vowel among them: mgh is a
    product.
    """
    return bool(
        _WORD.fullmatch(text)
        and sum(map(str.isalpha, text)) >= 3
        and re.search("[aeiou]", text, re.IGNORECASE)
    )


def named(item: str) -> tuple[str, str]:
    """Returns the name and the value of "x=1"; of others the name is ""."""
    parts = _EQUALS.split(item)
    if len(parts) == 2 and _NAME.fullmatch(parts[0]):
        return parts[0], parts[1]
    return "", item


def formula(text: str) -> str | None:
    """Returns the canonical form of LaTeX or plain mathematics."""
    text = _plain(text)
    if wrapped := TEXT.fullmatch(text):
        text = unwrap(wrapped[1])
        option = re.fullmatch(r"\(?\s*+([A-Za-z])\s*+\)?", text)
        if option:  # of a question with options
            return option[1].upper()
    spoken = _LOGIC.sub(lambda m: " or " if m[1] == "lor" else " and ", text)
    if is_word(spoken):
        return phrase(spoken)
    bare = " ".join(TEXT.sub(r" \1 ", text).split())
    if (numbered := _NUMBERED.fullmatch(bare)) and is_word(numbered[1]):
        return phrase(bare)
    if hour := _HOUR.fullmatch(bare):
        return f"{hour[1].removesuffix(':00')} {hour[2]}m".lower()
    depths = accumulate(map(_depth, _BRACKET.findall(text)))
    if max(depths, default=0) > _DEEPEST:
        return None
    for pattern in (_MEMBER, _CONGRUENT, _TUPLE_NAMES):
        if name := pattern.match(text):
            text = text[name.end() :]
    builder = _BUILDER.fullmatch(text)
    if builder and _ORDER.search(builder[1]):
        text = builder[1].strip()
    if _ORDER.search(text) and _LOGIC.search(text):
        return _compressed(text)
    text = _FRENCH.sub(_english, text)
    opening, items, closing = listing(_LOGIC.sub(", ", _ungrouped(text)))
    named_items = [_item(item) for item in items]
    if len(items) == 1 and (opening, closing) in (("", ""), ("(", ")")):
        return _joined(*named_items[0]) or None
    if not opening and len(set(named_items)) == 1:  # "5, 5"
        return _joined(*named_items[0]) or None
    names = {name for name, _ in named_items}
    keep = len(names - {""}) > 1
    inner = ", ".join(
        f"{name}={value}" if name and keep else value
        for name, value in named_items
        if value
    )
    return opening + inner + closing if inner else None


def _plain(text: str) -> str:
    """The text in ASCII and in one dialect of LaTeX."""
    text = text.translate(_SIGNS)
    if r"\begin" not in text:  # no row of a matrix: an escape too many
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)
    for mark, signs in (("^", "[⁰¹²³⁴-⁹⁻ⁿ]+"), ("_", "[₀-₉]+")):
        raised = lambda m: f"{mark}{{{m[0].translate(_DIGITS)}}}"  # noqa: B023
        text = re.sub(signs, raised, text)
    text = _rewrite(text)
    text = _ARRAY.sub(r"\\begin{pmatrix}\1\\end{pmatrix}", clean(text))
    text = unwrap(_ROWS.sub(_listed, text))
    inside, rest = argument(text) if text.startswith("{") else ("", "")
    return text if rest else inside or text


def _listed(rows: re.Match[str]) -> str:
    """A system of equations as a list, the cases of a function as a set."""
    lines = [line.strip() for line in rows[2].split(r"\\") if line.strip()]
    if rows[1] in ("cases", "array") and all("&" in line for line in lines):
        cells = [_CELL.sub(", ", line).rstrip(" ,") for line in lines]
        if not any("=" in line.partition("&")[0] for line in lines):
            return r"\{" + ", ".join(f"({cell})" for cell in cells) + r"\}"
    return ", ".join(line.replace("&", "").rstrip(" ,") for line in lines)


def _english(interval: re.Match[str]) -> str:
    """]1, 2[ as (1, 2)."""
    opening = "(" if interval[1] == "]" else "["
    return opening + interval[2] + (")" if interval[3] == "[" else "]")


def _ungrouped(text: str) -> str:
    """Without the commas of thousands, where these are all its commas."""
    grouped = _GROUPED.findall(text)
    if len(grouped) != 1 or text.count(",") != grouped[0].count(","):
        return text
    if listing(text).opening:
        return text
    return text.replace(grouped[0], grouped[0].replace(",", ""))


def _item(text: str) -> tuple[str, str]:
    """A value and the name that it was given; "" where it has none."""
    if introduced := _INTRODUCED.match(text):
        text = text[introduced.end() :]
    exact, *rounded = _APPROXIMATELY.split(text, maxsplit=1)
    if rounded and not _NAME.fullmatch(exact.strip()):
        text = exact.strip() or rounded[0]
    elif rounded:
        text = f"{exact}={rounded[0]}"
    parts = _split(text, "=")
    if len(parts) == 1 or _ORDER.search(text) or not all(parts):
        return "", _value(text)
    closed = _CLOSED.match(parts[0]) and _is_constant(parts[-1])
    computed = len(parts) > 2 and all(map(_is_constant, parts[1:]))
    closed = computed or closed or all(map(_is_constant, parts))
    if closed or _CALLED.fullmatch(parts[0]):
        return "", _value(parts[-1])
    if _NAME.fullmatch(parts[0]):
        return _compressed(parts[0]), _value(parts[-1])
    if len(parts) == 2 and _NAME.fullmatch(parts[1]) and _is_constant(parts[0]):
        return _compressed(parts[1]), _value(parts[0])
    return "", _compressed(text)


def _joined(name: str, value: str) -> str:
    """A single value needs no name, but for the equation of a curve."""
    return value if not name or _is_constant(value) else f"{name}={value}"


def _is_constant(text: str) -> bool:
    return not re.search(r"[A-Za-z]", _CONSTANT.sub(" ", text))


def _value(text: str) -> str:
    """A number in its one spelling, or the formula without its unit."""
    text = text.strip()
    if scaled := _SCALED.fullmatch(text):
        value = rational(scaled[1])
        if value is not None:
            return show(value * 10 ** _SCALES[scaled[2]]) or text
    if unit := _UNIT.search(text):
        left = text[: unit.start()].strip()
        if _QUANTITY.search(left) or (left and re.search(_KNOWN, unit[0])):
            text = left
    value = rational(text)
    if value is None:
        value = _repeating(text)
    return (show(value) if value is not None else None) or _compressed(text)


def _repeating(text: str) -> Fraction | None:
    r"""0.1\overline{6} is 1/6."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    sign, integer, start, period = *match.groups()[:3], match[4] or match[5]
    start_digits = integer + start
    value = Fraction(int(start_digits + period) - int(start_digits or "0"))
    value /= (10 ** len(period) - 1) * 10 ** len(start)
    return -value if sign else value


def _compressed(text: str) -> str:
    text = text.strip().lstrip("+").strip()
    text = _INDEXED.sub(r"\1{\2}", text)
    return _SPACE.sub(lambda m: m[1] + " " if m[1] else "", text)
