r"""Where in a model's text the answer stands.

Looked for in this order, and of each sort the last one that can be read:

1. \boxed{...}; of nested boxes the inner one. Boxes that only "and", "or" or
   a comma parts are one answer.
2. "the answer is ...", "Answer: ...", <answer>...</answer> and the like, in
   a dozen languages; #### ..., the mark of GSM8K's solutions
3. a line "Solution: ...", "Result: ..."
4. where nothing is announced, and the text was not cut off, by kind: the
   last number that gives no reason and was not given; the option on which
   the text ends; the last true, false, yes or no; the last line of a free
   text; the formula that the last sentence of a mathematical text gives as
   a value, if the text ends with it

An announcement which says more than one thing, "A and C", is no answer, and
nothing else is read in its place. The text is untrusted: nothing here raises
on it, and every step takes time linear in its length.
"""

import itertools
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

from dynscaling_jax.tasks.choices import concluded, named, options
from dynscaling_jax.tasks.forms import (
    EITHER,
    LONGEST,
    TRUTH,
    canonical,
    check_kind,
)
from dynscaling_jax.tasks.markup import INLINE, WIDE, inside
from dynscaling_jax.tasks.numbers import BOLD, NONE, NUMBER, SCALE, rational
from dynscaling_jax.thinking import Thinking, visible
from dynscaling_jax.types import Request, Sample, SampleFn

_CONTENT = {"number": re.compile(r"\d"), "boolean": TRUTH}  # of an answer
_TRIED = 20  # announcements of one sort, from the last one back

_ANSI = re.compile(  # what colours a terminal: its digits are no answer
    r"(?:\x1b\[|\x9b)[\d;?]*+[A-Za-z]"
    r"|\x1b\][^\x07\x1b\n]*+(?:\x07|\x1b\\)"
)
_TURN = re.compile(
    r"<\|(?:im_end|eot_id|endoftext|end|end_of_text|return|user|im_start)\|>"
    r"|<(?:end_of_turn|\uff5cend\u2581of\u2581sentence\uff5c|/s)>"
)
_NEXT = re.compile(  # a model goes on to questions that it makes up
    r"^[ \t#*]*+(?:Question|Problem|Q)\**:", re.MULTILINE
)
_CONFIDENCE = re.compile(  # how sure the model is, beside its answer
    r"[\s(\[*_,;-]{0,10}+\b(?:confidence|certainty)\b[^\w\n]{0,5}"
    r"(?:(?:level|score|is|of)\W{1,5})?\d[\d./]{0,9}\s?%?[^\w\n]*+$"
    r"|[(\[*_]{0,5}+\b\d{1,3}(?:\.\d{1,4})?\s?%\s"
    r"(?:confiden\w+|certain\w*|sure)\b[)\]*_]{0,5}",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"</?(?:b|i|u|em|strong|p|br|center)\s?/?>")
_OFFER = re.compile(  # the last line of a polite model
    r"\n[ ]*(?:Let me know|Would you like|Do you want|Feel free|I hope|Hope)\b"
    r"[^\n]*+\s*+\Z"
)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*+(\{?)|\\.|[{}]", re.DOTALL)
_BARE = re.compile(  # \boxed 7
    r"(?=[-\d\\]|[A-Za-z]\b)(?:\\[A-Za-z]+(?:\{[^{}]{0,60}\}){0,2}"
    r"|[^\s\\{}$]){1,60}"
)
_BLANK = r"(?:[\s$~]|\\[,;: ]|\\q?quad|\\[()])*"
_JOINT = re.compile(
    rf"{_BLANK}(?:,?\s*(?:and|or|\\text\s?\{{\s*(?:and|or)\s*\}})|[,;]){_BLANK}"
)
_PART = re.compile(r"\s*(?:[\^_]|\\(?:d?frac|sqrt|pi|times|cdot)(?![A-Za-z]))")
_NOUN = (
    r"(?:(?<!\bthis\s)\b(?:answers?|ans)\b|答(?=:)|r[ée]ponse\b|respuesta\b"
    r"|resposta\b|risposta\b|antwoo?r[dt]\b|odpowied[źz]\b|svaret\b"
    r"|\b(?:opci[oó]n|opção|alternativa)\scorr?e[ct]?ta\b|\brichtige\soption\b|cevap\b|jawaban(?:nya)?\b"
    r"|đáp án\b|ответ(?:ом)?\b|відповідь|答案|选项|答え|正解|정답|답|الجواب"
    r"|الإجابة|उत्तर)"
)
_COMMAS = re.compile(  # 3,5 after these is a decimal
    r"r[ée]p|resp|risp|antw|odpo|svar|cevap|jawab|ответ|відп", re.IGNORECASE
)
_COMMA = re.compile(r"(?<=\d),(?=\d\d?(?!\d))")
_POINTS = re.compile(r"resp|risp|antw|cevap|jawab", re.IGNORECASE)
_POINT = re.compile(r"(?<![\d.,])([1-9]\d{0,2})\.(?=\d{3}(?![\d.]))")  # 1.430
_IS = (
    r"(?:[:=]|\b(?:is|are|was|(?<!not )be|est|es|é|è|ist|lautet|adalah|là"
    r"|jest)\b:?"
    r"|\s[-\u2013\u2014](?=\s)|是|为|為|は|은|는|】|-->?|=>)"
)
_GAP = r"(?:[\s*_`]|(?<=\n)[-+>\u2022\u2013]\s)*+"
_HEADING = (
    r"^[ \t#*_>]*+(?:(?:the|final|correct|my|short)\s)*answer[*_ #]*+$"
    r"|<(?:final_?)?answer>"
)
_ANSWER = re.compile(
    rf"(?:{_NOUN}(?:[^\n.:=<(]|\([^()\n]{{0,40}}\)){{0,60}}?{_IS}|{_HEADING}"
    r"|\banswer\s(?:choice\s|option\s)?(?=[*(]*+(?-i:[A-Z])\b[^\s\w'-]*+\s*+$)"
    rf"|(?<!#)\#{{4}}(?!\#)[ \t]){_GAP}",
    re.IGNORECASE | re.MULTILINE,
)
_LABEL = re.compile(
    r"^[ \t#*_>-]*+(?:(?:the|my|final|correct|right|best)\s)*"
    r"(?:result|solution|response|choice|option|letter|conclusion|correct)"
    rf"(?:\s(?:answer|option|choice|letter))?[*_ ]*+(?::|\bis\b:?){_GAP}",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAY = re.compile(r"\s*(?:\\\[(.*?)\\\]|\$\$(.*?)\$\$)", re.DOTALL)
_STARTER = (
    r"(?:It|This|The|That|These|In|He|She|They|We|An?|So|Because|However|But"
    r"|There|Thus|Therefore|Hence|Here|If|Since|Note|Let|I|You|Its)\b"
)
_SENTENCE_END = re.compile(  # none after an initial or a title
    r"(?<!\bSt)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bMt)(?<!\bFt)"
    r"(?<!\bRs)(?<!\bVol)(?<!\bProf)(?<!\bCol)(?<!\bGen)(?<!\bJr)(?<!\bSr)"
    r"(?<!\bNo)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)"
    rf"(?:(?<!\b[A-Z])|(?=\.\s+{_STARTER}))"
    r"[.!?][*\"')\]]*+(?:\s(?!\s*=)|$)|(?:です|입니다)[.。]|。"
)
_TEXT_MACRO = re.compile(r"\\text\s*+\{[^{}]*\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}\s+[A-Za-z]{2,}")
_VERB = re.compile(r"\b(?:is|are|equals?|be|becomes)(?:\s\w+)?\s*$")
_BECAUSE = re.compile(r",?\s(?:because|since)\b|,\s(?:who|which|where|as)\b")
_QUOTED = re.compile(
    r"\s*(?:\"([^\"]+)\"|\u201c([^\u201d]+)\u201d|`([^`]+)`|\*\*([^*]+)\*\*)"
)
_COUNTED = re.compile(
    rf"(?<![Ss]tep )(?<![Ss]tep \d){NUMBER.pattern}"
    rf"(?i:{SCALE.pattern}|\s?[KMB]\b)*+"
)
_ASIDE = re.compile(  # (2 hours and 40 minutes), and a line in brackets
    r"(?:(?<=[a-z%] )|(?<=\n)|(?<=[\w*$.] )(?=\([^()\n]*[A-Za-z]{3}))"
    r"\([^()\n]*+\)\.?"
)
_CALLED = re.compile(
    r"-?\d[^\n]{0,40}?\sis\s(?:the|my)\s(?:\w{1,20}\s)?answer\b"
)
_SHOWN = re.compile(
    r"\\\[((?:(?!\\[][]).)*+)\\\]\.?\Z|\$\$([^$]++)\$\$\.?\Z", re.DOTALL
)
_OPEN = re.compile(  # a sentence that concludes nothing
    r"\b(?:let|suppose|assume|consider|define|wait|maybe|perhaps|whether)\b"
    r"|^(?:if|note)\b",
    re.IGNORECASE,
)
_GIVEN = re.compile(
    rf"(?:{_IS}|=|\b(?:equals?|get|becomes|\w{{2,20}}(?:s|al)\sto)\b)[\s*:]*+",
    re.IGNORECASE,
)
_SO = re.compile(r"\W*(?:so|thus|hence|therefore)\b", re.IGNORECASE)
_WHEN = re.compile(
    rf"{_BECAUSE.pattern}|,?\s(?:attained|achieved|when|for\s(?:all|every|any))\b"
    r"|(?<=[$)\]])\s(?:by|as)\s[^$=\\]{1,80}\Z"
)
_CONCLUDED = re.compile(  # $n = 11$ is the least one
    r"\s(?:is|are)\s(?:the|our)\s[^$\\\d]{1,80}"
)
_THERE = re.compile(  # there are $3! = 6$ ways to choose them
    rf"(?:{_SO.pattern}[\s,]{{1,3}})?there\s(?:is|are)\b", re.IGNORECASE
)
_UNFINISHED = re.compile(
    rf"(?:[+\u00d7\u00f7=(]|\b(?:and|or|the|of|to)|{_GIVEN.pattern})\s*\Z",
    re.IGNORECASE,
)
_PLAIN_END = (  # up to the end without a verb that gives a value
    r"(?:(?!\b(?:is|are|was|were|makes|gives|leav\w+|equals?|total)\b)"
    r"[^=:,\n]){0,80}\Z"
)
_REASON = re.compile(  # why; a number of the question, or an aside
    r",?\s(?:because|since|if)\b|,\swith\s"
    r"|,\s\d{1,9}\s(?:more|less|fewer)\sthan\b"
    r"|\s(?:over|during|for|in|on|of|among|between|from|to|at|with|by)\s"
    rf"(?:the|all|these|those)\s(?:[a-z]{{1,12}}\s(?:of\s)?)?\d{_PLAIN_END}"
)
_PURPOSE = re.compile(  # after a verb and its number: to read 210 pages
    r"(?:\sto\s[a-z]{2,}\s|\safter\s"
    rf"|:\s(?=[^\d]{{0,20}}[\d.,]{{1,9}}[^\d=]{{1,30}}\d)){_PLAIN_END}"
)
_STATED = re.compile(
    r"\b(?:be|is|are|was|were|has|have|had|will|gets?|takes?|needs?|costs?)\b"
    r"[^\d\n]{0,40}\d"
)
_PLACED = re.compile(r"\bthe\s\w{1,20}\s$")  # the interval $(1, 2)$
_LEADING = re.compile(  # is at (1, 2)
    r"\A\s*+(?!(?:sin|cos|tan|log|ln|sqrt|exp|arc\w+)\s)(?:[a-z]{2,}\s){1,3}"
    r"(?=[(\[\\])"
)
_AND = ("", "and", "or")
_BESIDE = re.compile(r"[\s*.:]*(?:[A-Za-z]+[\s*.]*){0,2}")  # a unit
_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+")
_ENTRY = re.compile(r"(?:\w{1,2}[.):]|\(\w{1,2}\))\s*+[A-Za-z]")  # a heading
_MEASURED = re.compile(
    rf"(?:[A-Za-z]\w*\s?=\s?)?\(?{NUMBER.pattern}[\s%]*\S*"
    r"(?:\s[a-zA-Z]+){0,2}\.?"
)


def extract(
    text: str,
    kind: str,
    thinking: Thinking = Thinking(),  # noqa: B008, immutable
    turn_start: str = "",
    cut: bool = False,
    letters: str = "",
) -> str | None:
    """Returns the canonical answer that a text gives, None if none is readable.

    Only what stands outside the thoughts of the model is searched.

    Args:
      text: what the model wrote.
      kind: of the answer; see `canonical`.
      thinking: how the model marks its thoughts.
      turn_start: how its prompt began the turn; see `thinking.visible`.
      cut: whether the token limit ended the text. Its last number may then
        answer nothing: only an announced answer is read.
      letters: the letters of the question's options; "" if they are unknown.

    Raises:
      ValueError: an unknown kind.
    """
    check_kind(kind)
    shown = visible(_ANSI.sub("", text), thinking, turn_start)
    if shown is None:
        return None
    text = _TURN.split(shown, maxsplit=1)[0].translate(WIDE)
    text = _OFFER.sub("", _CONFIDENCE.sub("", _TAG.sub("", text)))
    before_next = _NEXT.split(text, maxsplit=1)[0]
    for part in dict.fromkeys((before_next, text)):
        boxes = _boxed(part)
        for segment in itertools.chain(reversed(boxes), _announced(part, kind)):
            if kind == "choice":
                several = named(segment, letters)
                answer = several if len(several) == 1 else None
            else:
                answer = _read(segment, kind)
                several = kind in _CONTENT and _CONTENT[kind].search(segment)
            if answer is not None or several:
                return answer
    if cut or (kind in ("number", "math") and boxes):
        return None
    return _unannounced(text, kind, letters)


def with_answers(
    sample_fn: SampleFn,
    kind: str | Mapping[str, str],
    thinking: Thinking = Thinking(),  # noqa: B008
) -> SampleFn:
    """Wraps a sampler so that each sample has its canonical answer.

    Failed samples have none, nor have those that ended because the model was
    not sure of them: they have no vote (DeepConf, arXiv 2508.15260). A choice
    is one of the options that its question lists.

    Args:
      sample_fn: the sampler.
      kind: of all answers, or of those of each query, by its id.
      thinking: how the model marks its thoughts.

    Raises:
      ValueError: an unknown kind.
    """
    kinds = defaultdict(lambda: kind) if isinstance(kind, str) else kind
    for known in {kind} if isinstance(kind, str) else {*kind.values()}:
        check_kind(known)

    def with_answer(request: Request, sample: Sample) -> Sample:
        reason = sample.finish_reason
        if reason == "confidence" or reason.startswith("error"):
            return sample
        kind_here = kinds[sample.query_id]
        answer = extract(
            sample.text,
            kind_here,
            thinking,
            thinking.turn_start(request.messages),
            reason == "length",
            options(request.query) if kind_here == "choice" else "",
        )
        return sample._replace(answer=answer)

    def sample(requests: Sequence[Request]) -> Iterator[Sample]:
        by_key = {(r.query.id, r.index): r for r in requests}
        # who asked refuses a sample that is of no request
        return (
            with_answer(request, sample) if request else sample
            for sample in sample_fn(requests)
            for request in [by_key.get((sample.query_id, sample.index))]
        )

    return sample


def _announced(text: str, kind: str) -> Iterator[str]:
    for mark in (_ANSWER, _LABEL):
        found = deque(mark.finditer(text), maxlen=_TRIED)
        for match in reversed(found):
            segment = _segment(text, match.end(), kind, match[0])
            sure = mark is _ANSWER and not match[0].startswith("####")
            if sure or _is_all(segment, kind, text[match.end() :]):
                yield segment


def _segment(text: str, start: int, kind: str, mark: str) -> str:
    """What is announced at `start`: a displayed formula, or a sentence."""
    rest = text[start : start + LONGEST]
    if display := _DISPLAY.match(rest):
        return display[1] or display[2] or ""
    line = rest.partition("\n")[0].partition("</")[0]
    if kind == "number" and _COMMAS.match(mark):
        line = _POINT.sub(r"\1", line) if _POINTS.match(mark) else line
        line = _COMMA.sub(".", line)
    if kind == "choice":  # "C. 12 m/s" is no sentence
        return line
    return _SENTENCE_END.split(line, maxsplit=1)[0]


def _is_all(segment: str, kind: str, rest: str) -> bool:
    """Whether an answer follows #### or a label: no heading, no solution."""
    if kind == "number":
        alone = _MEASURED.fullmatch(segment.strip(" *"))
        return bool(alone) and not _ENTRY.match(rest)
    last = "\n" not in rest.strip()
    return last or (kind == "choice" and not _ENTRY.match(rest))


def _boxed(text: str) -> list[str]:
    r"""The contents of boxes, ordered by where they open.

    Those that are never closed come first. Neighbours are one answer, and a
    box that is only a part of a formula, "\boxed{3}\frac12", holds none.
    """
    spans: list[tuple[int, int, int]] = []  # from the macro; the contents
    opened: list[tuple[int, int] | None] = []  # None opens no box
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{":
            opened.append(None)
        elif token == "}":
            start = opened.pop() if opened else None
            if start is not None:
                spans.append((*start, match.start()))
        elif match[1]:
            opened.append((match.start(), match.end()))
        elif match[1] == "" and (bare := _BARE.match(text, match.end())):
            spans.append((match.start(), match.end(), bare.end()))
    open_boxes = [start for _, start in filter(None, opened)][-_TRIED:]
    found = [
        re.split(r"[$\n]|\\[])]", text[start : start + LONGEST], maxsplit=1)[0]
        for start in open_boxes
    ]
    # A nest of boxes repeats its text once a level: copy only what is tried.
    last = len(text)
    for macro, start, end in sorted(spans)[-_TRIED:]:
        content = text[start:end] if end - start <= LONGEST else ""
        if (
            found
            and last < macro < last + 40
            and (_JOINT.fullmatch(text, last, macro) and content != found[-1])
        ):
            found[-1] += ", " + content
        elif content.strip():
            after = end + (text[end : end + 1] == "}")
            found.append("" if _PART.match(text, after) else content)
        last = end + 1
    return found


def _read(segment: str, kind: str) -> str | None:
    """The answer at the head of an announced segment.

    Of a sentence about mathematics it is the first formula, with those that
    are listed beside it, or else the number.
    """
    if kind == "math":
        formulas = _listed(segment)
        if formulas:
            segment = ", ".join(formulas)
        elif _PROSE.search(_TEXT_MACRO.sub("", segment)):
            number = canonical(segment, "number")
            return number or canonical(segment, kind)
    elif kind == "text":
        segment = _BECAUSE.split(segment, maxsplit=1)[0]
        if quoted := _QUOTED.match(segment):
            segment = next(filter(None, quoted.groups()))
    return canonical(segment, kind)


def _listed(segment: str) -> list[str]:
    """The formulas that a sentence gives: one, or a list of them.

    The first is the one that follows "is" where the sentence begins with its
    subject; the others are parted by "or", "and" or a comma alone.
    """
    found = list(INLINE.finditer(segment))
    if found and re.search("[A-Za-z]", segment[: found[0].start()]):
        given = [m for m in found if _VERB.search(segment[: m.start()])]
        found = found[found.index(given[0]) :] if given else found
    formulas: list[str] = []
    end = 0
    for match in found:
        between = segment[end : match.start()].strip(" ,")
        if formulas and between not in _AND:
            break
        formulas.append(inside(match))
        end = match.end()
    return formulas


def _unannounced(text: str, kind: str, letters: str) -> str | None:
    if kind == "choice":
        return concluded(text, letters)
    if kind == "number":
        without_asides = _ASIDE.sub("", text)
        text = without_asides if _COUNTED.search(without_asides) else text
        line = text.rstrip().rpartition("\n")[2]
        if NONE.search(line) or _UNFINISHED.search(line[-40:]):
            return None
        bold = BOLD.findall(line)
        found = (
            _last(_COUNTED, _last(_CALLED, text))
            or _last(_COUNTED, bold[-1] if bold else "")
            or _last(_COUNTED, _before_reason(line[-LONGEST:]))
            or _last(_COUNTED, text)
        )
        if not found and len(text) < 40:  # "Eight."
            found = text
        return canonical(found, kind)
    if kind == "boolean":
        found = _last(TRUTH, EITHER.sub(" ", text))
        return canonical(found, kind) if found else None
    if kind == "text":
        line = text.rstrip("`- \t\r\n").rpartition("\n")[2]
        bold = re.findall(r"\*\*([^*]+)\*\*", line)
        line = bold[0] if len(bold) == 1 else _ITEM.sub("", line)
        return _read(line, kind)
    return _ended(text[-LONGEST:].rstrip())


def _last_sentence(line: str) -> str:
    sentences = [s for s in _SENTENCE_END.split(line) if s.strip(" *$")]
    return sentences[-1] if sentences else ""


def _before_reason(line: str) -> str:
    """The last sentence up to a reason or a purpose; "" where it has none.

    "It takes 7 days to read 210 pages": "It takes 7 days".
    """
    sentence = _last_sentence(line)
    for mark, needed in ((_REASON, _COUNTED), (_PURPOSE, _STATED)):
        reason = mark.search(sentence)
        before = sentence[: reason.start()] if reason else ""
        if needed.search(before):
            return before
    return ""


def _ended(text: str) -> str | None:
    """The formulas that the last sentence gives as a value and ends with."""
    if text.count("$$") % 2 or text.rfind(r"\[") > text.rfind(r"\]"):
        return None
    line = text.rpartition("\n")[2]
    if shown := _SHOWN.search(text):
        line = text[: shown.start()].rstrip().rpartition("\n")[2]
        formula = (shown[1] or shown[2]).replace("\n", " ").strip(" .,=")
        line += f" ${formula}$"
    last = _last_sentence(line)
    sentence = _WHEN.split(last)[0].strip(" *")
    shortened = sentence != last.strip(" *")
    broken = r"[A-Za-z]\Z" if shortened else _UNFINISHED  # ", which gives"
    if "?" in line or _OPEN.search(sentence) or re.search(broken, line[-40:]):
        return None
    formulas = list(INLINE.finditer(sentence))
    rest = sentence[formulas[-1].end() :] if formulas else sentence
    *_, value = _GIVEN.split(rest)
    if value != rest and re.search(r"[\dπ√]", value):
        value = _LEADING.sub("", value)
        words = re.findall("[A-Za-z]{3,}", value)
        counted = words and not re.search(r"[π√^\\(]", value)
        answer = canonical(value, "number" if counted else "math")
        return answer if len(words) < 5 else None
    if not formulas:  # "42.", and nothing else
        bare = sentence.rstrip(" .")
        return None if rational(bare) is None else canonical(bare, "math")
    concludes = (_SO.match(sentence) and _CONCLUDED.fullmatch(rest)) or (
        _THERE.match(sentence) and not re.search(r"[\d,]", rest)
    )
    single = len(formulas) == 1 and re.search(r"\d", formulas[0][0])
    if not (single and concludes) and not _BESIDE.fullmatch(rest):
        return None
    first = len(formulas) - 1
    while first:
        between = sentence[formulas[first - 1].end() : formulas[first].start()]
        if between.strip(" ,") not in _AND:
            break
        first -= 1
    value = ", ".join(map(inside, formulas[first:]))
    before = sentence[: formulas[first].start()]
    ends = [mark.end() for mark in _GIVEN.finditer(before)]
    located = value[-1] in ")]}" and value[0] in "([\\"
    is_value = (
        not before
        or "=" in value
        or ends[-1:] == [len(before)]
        or (located and _PLACED.search(before))
        or (_SO.match(before) and re.search(r"[\d\\]", value))
    )
    return canonical(value, "math") if is_value else None


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0][0] if found else ""
