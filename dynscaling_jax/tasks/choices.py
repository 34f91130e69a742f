r"""Options: the letter that an answer names.

Every mention of an option is first marked: \x02 before the letter of one in
brackets, \x03 of one that is called an option, \x04 of a bare capital that
stands where a letter of an option can: not in "300 K", "T cells", "E. coli"
or "A mutation". Then the rejected ones are taken out, and what is left is
read: the one that opens the text, or else the only one.

    text                                    marked, without the rejected ones
    "Not A: (B) is best, as C fails."       "  :  \x02B  is best, as   ."
    "A mutation in E. coli, so option C"    "A mutation in E. coli, so \x03C"
"""

import re
from functools import lru_cache
from string import ascii_uppercase

from dynscaling_jax.types import Query

USUAL = ascii_uppercase[:10]  # of a question whose options are unknown
_SCANNED = 20_000  # characters: the end of a text without an announcement

_MARKUP = re.compile(
    r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|mathsf|boldsymbol"
    r"|boxed|fbox|bf|rm|left|right)(?![A-Za-z])|\\[][()!,;: ]|__"
    r"|[{}$*`\x02-\x04]"
)
_SPECIES = (  # an initial of one is no option
    "coli|elegans|cerevisiae|subtilis|aureus|melanogaster|thaliana|musculus"
    "|pneumoniae|difficile|botulinum|tuberculosis|albicans|falciparum"
)
_FOLLOWING = (  # words after a bare letter that is an answer: "A because"
    "is|are|was|the|because|since|as|and|with|while|only|which|where|when|but"
    "|from|for|if|due|given|by|in|or|would|should|seems|must|looks|then|that"
    "|this|it|we|I|most|on|has|makes|works|fits|matches|wins|fails|over|rather|not|after|based|according"
)
_NAME = (
    r"(?:options?|choices?|letters?|answer\schoices?|opci[oó]n|opção"
    r"|opzione|r[ée]ponse|respuesta|resposta|risposta|antwort|letra|lettre|lettera|Buchstabe|вариант)"
)
_BRACKETED = re.compile(
    r"(?<![\w\\)^_])\(\s*+([A-Za-z])\s*+\)(?!\()"
    r"|[\[\u3010]\s*+([A-Za-z])\s*+[\]\u3011]|\A\W*+([A-Za-z])\W*+\Z"
    r"|^[\s\"'>#-]*+([A-Za-z])(?:\)|\.(?=\s+[^a-z]|\s*+$|[A-Z][a-z]"
    r"|\s(?:is|was)\s))"
    r"|(?<=\s)([A-Z])\)",
    re.MULTILINE,
)
_CALLED = re.compile(
    rf"\b(?:[Oo]nly|(?i:{_NAME}))\s++[\"'(\[]*+(?:([A-Z])(?![\w-]|'\w)"
    r"|([a-z])(?=[\"')\]]*+(?:$|[.,;:]|\s++[a-z]*ly\b)))",
    re.MULTILINE,
)
_BARE = re.compile(
    r"(?<![A-Za-z\d'.^_\\+=\x02\x03-])([A-HJ-Z])(?="
    r"[\"')\] \t]*+"
    r"(?:$|[^\x00-\u024f]|[,;:/&(\u2013\u2014]|-+\s|[=-]>"
    rf"|[!?]|\.(?!\s?+(?:{_SPECIES})\b|\w|\s?+[A-Z]\.))"
    rf"|\s++(?:{_FOLLOWING})\b)(?!\s++=)",
    re.MULTILINE,
)
_MENTIONS = {"\x02": _BRACKETED, "\x03": _CALLED, "\x04": _BARE}
_ONE = r"(?:[\x02-\x04][A-Z])"
_MORE = rf"(?:[\s,;]*+(?:or|nor|and)?\s*+{_ONE})*+"
_REJECTED = re.compile(
    r"\b(?:(?:can)?not|neither|nor|none\sof|rather\sthan|instead\sof|unlike|except"
    r"|parts?|steps?|figures?|cases?|sections?"
    r"|(?:eliminat|exclud|reject|discard|rul)\w*(?:\sout)?)"
    rf"\s++(?:be\s|both\s|either\s)?{_ONE}{_MORE}"
    rf"|n't\s++(?:be\s)?{_ONE}{_MORE}"
    rf"|{_ONE}{_MORE}[^\S\n]*+"
    r"(?:[:\u2013\u2014=→-]|is|are|was|were|can\sbe|would\sbe|seems?|looks?)?+"
    r"[^\S\n]*+(?:(?:clearly|also|both|all|definitely|therefore|thus)\s)*+"
    r"(?:wrong|incorrect|false|no\b|not\b|eliminated|out\b|ruled|excluded"
    r"|invalid|impossible|fails?\b|too\b|cannot\b|can't|\w{2,6}n't\b|[\u2717\u2718\u274c])",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    rf"{_ONE}(?:\s*+(?:,\s?+(?:and|or)\b|,|/|&|and\b|or\b)\s*+{_ONE})++"
)
_HEAD = re.compile(
    r"[^\w\x02-\x04]*+(?:(?:the|la|is|be|either|correct|right|probably|therefore"
    r"|thus|hence|so|clearly|most|likely|simply|still)\b[^\w\x02-\x04]*+)*+"
    rf"({_ONE})"
)
_PRAISED = re.compile(
    rf"(?<!\bif\s)({_ONE})[\"']?+\s*+(?:[:\u2013\u2014→-]|is|must\sbe|seems"
    r"|looks|would\sbe)?+\s*+(?:(?:therefore|thus|indeed|clearly|the|only|most"
    r"|single|definitely)\s){0,4}"
    r"(?:correct|right|best|true|yes|answer|works\b|fits\b|the\s(?:only|most)\b"
    r"|[\u2713\u2714\u2705])",
    re.IGNORECASE,
)
_POINTED = re.compile(
    r"(?:\b(?:is|be|it's|hence|thus|therefore|so|only|conclusion|choose|chose|pick|select|leav(?:es|ing)|with"
    r"|prefer|towards?|\w+ly|say|match\w*|corresponds?\sto|equals)\b|[∴⇒→选選]择?|:|[=-]>)"
    rf"[\s,:\"']*+(?:(?:the|with|for)\s)?({_ONE})",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?:\d+[.)])?\W*?[\x02-\x04]([A-Z])[^\w\x02-\x04]*+")
_OPENS = re.compile(
    r"\W*?(?:\x02([A-Z])|\x04([A-Z])\s*+(?:[.:]|[-–—]\s|(?:is (?:it|most|more"
    r"|likely|probably|my|our)|makes|fits|works|matches|wins)\b))"
    r"|[^\x02-\x04]*[,;] *\x04([A-Z])\W*$"
)
_OPTION = re.compile(  # of a question
    r"^[ \t]*+([A-Z])[).:]\s|(?:^|(?<=\s))\(([A-Z])\)\s", re.MULTILINE
)
_PENDING = re.compile(  # what is still being looked at
    r"\b(?:consider|look|check|evaluat|analy|examin|test|try|let)",
    re.IGNORECASE,
)
_LISTED = re.compile(r"^[\s>-]*+[\x02\x04]([A-Z])[^\n]*+$", re.MULTILINE)


def choice(text: str, letters: str = "") -> str | None:
    """Returns the one option that the text names; None for none or several.

    Args:
      text: an answer, or what announces one.
      letters: of the question's options; "" if they are unknown.
    """
    found = named(text, letters)
    return found if len(found) == 1 else None


def named(text: str, letters: str = "") -> str:
    """Returns the options that an announcement names, of equal standing."""
    text = _marked(text, letters)
    several = "".join(_SEVERAL.findall(text))
    text = _SEVERAL.sub(" ", text)
    if head := _HEAD.match(text):
        return head[1][1]
    for mark in ("[\x02\x03]", "\x04"):
        found = set(re.findall(rf"{mark}([A-Z])", text))
        if found and (mark != "\x04" or _POINTED.search(text)):
            return "".join(sorted(found))
    return "".join(sorted(set(re.findall("[A-Z]", several))))


def concluded(text: str, letters: str = "") -> str | None:
    """Returns the option on which a text ends that announces none.

    It is the last one that is called right, stands alone on its line, or
    follows a word that points to it; or else the only one in the last line.
    """
    text = _marked(text[-_SCANNED:].strip(), letters)
    praised = [match[1][1] for match in _PRAISED.finditer(text)]
    if praised:
        return praised[-1]
    if len(set(_LISTED.findall(text))) > 1:
        text = _LISTED.sub("", text)
    text = _SEVERAL.sub(" ", text)
    lines = [line for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if alone := _ALONE.fullmatch(line):
            return alone[1]
        if pointed := _POINTED.findall(line):
            return pointed[-1][1]
        if _PENDING.search(line):
            continue
        opens = _OPENS.match(line)
        if opens and (line is lines[-1] or line is lines[0]):
            return next(filter(None, opens.groups()))
        found = set(re.findall("[\x02\x03]([A-Z])", line))
        if line is lines[-1] and len(found) == 1:
            headed = _OPENS.match(lines[0])  # "A) Gold", and more on others
            return headed[1] if headed and headed[1] else found.pop()
    return None


def options(query: Query) -> str:
    """Returns the letters of a question's options; "" if it lists none."""
    return _options(query.messages[-1].content if query.messages else "")


@lru_cache(4_096)
def _options(question: str) -> str:
    most = 0
    for match in _OPTION.finditer(question):
        letter = match[1] or match[2]
        most = most + 1 if letter == ascii_uppercase[most : most + 1] else 0
        most = most or int(letter == "A")
    return ascii_uppercase[:most] if most > 1 else ""


def _marked(text: str, letters: str) -> str:
    """The text with its mentions marked, but for those that it rejects."""
    text = _MARKUP.sub(" ", text)

    def mark(match: re.Match[str]) -> str:
        letter = next(filter(None, match.groups())).upper()
        alone = not letters and len(text.strip()) < 8
        known = letters or (ascii_uppercase if alone else USUAL)
        return f" {sign}{letter} " if letter in known else match[0]

    for sign, pattern in _MENTIONS.items():  # noqa: B007, mark reads it
        text = pattern.sub(mark, text)
    return _REJECTED.sub(" ", text)
