"""Chat templates: what transformers lets them use, in a sandbox.

The sandbox bounds what a template can reach; what it takes of memory and time
is bounded by the worker process in which it runs, tokenizer_worker.py.
"""

import datetime
import functools
import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import ext, meta, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The date that templates are told, unless the variable `today` is another.
# It stands still, so that a prompt is the same on every day: a run that goes
# on tomorrow goes on with the prompts it began with, and two runs compare.
TODAY = "2024-07-26"  # what Llama 3's template falls back on
UNREADABLE = (jinja2.TemplateError, RecursionError, SyntaxError, ValueError)
FAULTS = (  # what a template's expressions can raise
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,  # of a number such as 1e400
    RecursionError,
    TypeError,
    ValueError,
)
MOST = 2**24  # characters of a prompt
PROBE = "dynscaling"  # a content that no template writes by itself
Turns = Sequence[Sequence[str]]  # (role, content) of each
# Models without a template read the contents, a blank line between.
PLAIN = "{% for m in messages %}{{ m.content }}\n\n{% endfor %}"


class Template:
    """A chat template with the variables that it may read."""

    def __init__(
        self,
        text: str | None,
        variables: Mapping[str, Any],
        where: str = "chat template",
    ):
        """Compiles the template.

        Args:
            text: None is a template for base models.
            variables: what it may read beside the messages.
            where: it stands, for messages.

        Raises:
            ValueError: the text does not parse, or `today` is no date.
        """
        self._variables = dict(variables)
        self._where = where
        sandbox = _sandbox(_date(variables.get("today", TODAY)))
        try:
            self._compiled = sandbox.from_string(text or PLAIN)
        except UNREADABLE as error:
            raise ValueError(_message(where, error)) from error

    def render(self, messages: Turns, prompt: bool = True) -> str:
        """Writes the text of the turns.

        Args:
            messages: role and content of each.
            prompt: whether to open the assistant's turn too.

        Raises:
            ValueError: the template refuses these messages, or writes more
                than MOST characters.
        """
        try:
            text = self._render(messages, prompt, self._in_parts)
        except FAULTS as error:
            raise ValueError(_message(self._where, error)) from error
        if len(text) > MOST:
            raise ValueError(
                f"{self._where}: it writes {len(text)} characters; expected "
                f"{MOST} at most"
            )
        return text

    def _render(self, messages: Turns, prompt: bool, parts: bool) -> str:
        return self._compiled.render(
            messages=[
                {
                    "role": role,
                    "content": [{"type": "text", "text": content}]
                    if parts
                    else content,
                }
                for role, content in messages
            ],
            tools=None,
            documents=None,
            add_generation_prompt=prompt,
            **self._variables,
        )

    @functools.cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads only contents that are lists of parts.

        Those of models of images may: of a text they would write nothing.
        """

        def shown(parts: bool) -> bool:
            try:
                return PROBE in self._render([("user", PROBE)], True, parts)
            except FAULTS:
                return False

        return not shown(False) and shown(True)


def check_read(
    text: str | None, names: Sequence[str], where: str = "chat template"
) -> None:
    """Refuses variables that the template does not read: slips of the pen.

    Raises:
        ValueError: it names the variables that the template reads.
    """
    if not names:
        return
    environment = _sandbox(_date(TODAY))
    del environment.globals["strftime_now"]  # else it counts as declared
    try:
        read = meta.find_undeclared_variables(environment.parse(text or PLAIN))
    except UNREADABLE as error:
        raise ValueError(_message(where, error)) from error
    read -= {"messages", "add_generation_prompt"}
    if "strftime_now" in read:
        read = read - {"strftime_now"} | {"today"}
    for name in names:
        if name not in read:
            raise ValueError(
                f"the chat template reads no variable {name!r}; it reads: "
                f"{', '.join(sorted(read)) or 'none'}"
            )


def _message(where: str, error: BaseException) -> str:
    """The message for an error of a template, with its line."""
    line = getattr(error, "lineno", None)
    for frame, at in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "<template>":
            line = at
    message = str(error) or type(error).__name__
    if isinstance(error, MemoryError):  # of the worker, see workers.limit
        message = "it needs more than its limit of memory"
    return f"{where}: {f'line {line}: ' if line else ''}{message}"


class _Generation(ext.Extension):
    """{% generation %} marks the assistant's words; here it is a scope."""

    tags = {"generation"}

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(
            ("name:endgeneration",), drop_needle=True
        )
        return nodes.Scope(body, lineno=line)


def _sandbox(now: datetime.datetime) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, ext.loopcontrols],
    )
    # what differs from call to call would change the prompts of a run
    del environment.globals["lipsum"], environment.filters["random"]
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: now.strftime(form)
    environment.filters["tojson"] = _to_json
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own escapes HTML
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _date(text: Any) -> datetime.datetime:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d")
    except (TypeError, ValueError):
        raise ValueError(
            f"template variable today: expected a date such as {TODAY}, got "
            f"{text!r}"
        ) from None
