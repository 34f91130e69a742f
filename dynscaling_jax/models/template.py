"""Chat templates: what transformers lets them use, in a sandbox."""

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jinja2
from jinja2 import ext, meta, nodes, parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dynscaling_jax.types import Message

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
MOST_TURNS = 10_000  # of loops, ranges and calls in one rendering
LONGEST = 100_000  # bits or items that one product may have
# Models without a template read the contents, a blank line between.
PLAIN = "{% for m in messages %}{{ m.content }}\n\n{% endfor %}"


class Template:
    """A chat template with the variables that it may read."""

    def __init__(self, text: str | None, variables: Mapping[str, Any]):
        """
        Raises:
            ValueError: the text does not parse, or `today` is no date.
        """
        self._variables = dict(variables)
        self._sandbox = _sandbox(_date(variables.get("today", TODAY)))
        try:
            self._compiled = self._sandbox.from_string(text or PLAIN)
        except UNREADABLE as error:
            raise ValueError(f"chat template: {error}") from error

    def render(self, messages: Sequence[Message], prompt: bool = True) -> str:
        """The text of the turns; where it is to be a prompt, the opening of
        the assistant's turn too.

        Raises:
            ValueError: the template refuses these messages.
        """
        self._sandbox.turns = 0
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._compiled.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except FAULTS as error:
            raise ValueError(f"chat template: {error}") from error


def check_read(text: str | None, names: Sequence[str]) -> None:
    """Raises ValueError, with the variables that the template does read,
    where it reads none of this name: a slip of the pen would change nothing
    and say nothing."""
    if not names:
        return
    environment = _sandbox(_date(TODAY))
    del environment.globals["strftime_now"]  # else it is not told of
    try:
        read = meta.find_undeclared_variables(environment.parse(text or PLAIN))
    except UNREADABLE as error:
        raise ValueError(f"chat template: {error}") from error
    read -= {"messages", "add_generation_prompt"}
    if "strftime_now" in read:
        read = read - {"strftime_now"} | {"today"}
    for name in names:
        if name not in read:
            raise ValueError(
                f"the chat template reads no variable {name!r}; it reads: "
                f"{', '.join(sorted(read)) or 'none'}"
            )


class _Generation(ext.Extension):
    """{% generation %} marks what the assistant wrote, for training; here it
    is a scope and no more."""

    tags = {"generation"}

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(
            ("name:endgeneration",), drop_needle=True
        )
        return nodes.Scope(body, lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come with checkpoints and are not trusted: what they can
    reach, how often they turn and how much they multiply is bounded."""

    intercepted_binops = frozenset(("*", "**"))
    turns = 0  # of the rendering that goes on

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.filters["counted"] = self._counted
        self.globals["range"] = lambda *args: [*self._counted(range(*args))]

    def _parse(self, *args: Any, **kwargs: Any) -> nodes.Template:
        """Every loop goes over a filter that counts its turns."""
        tree = super()._parse(*args, **kwargs)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, "counted", [], [], None, None, lineno=loop.lineno
            )
        return tree

    def _turn(self) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS:
            _refuse(f"it takes more than {MOST_TURNS} turns")

    def _counted(self, items: Iterable) -> Iterator:
        for item in items:
            self._turn()
            yield item

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._turn()
        return super().call(*args, **kwargs)

    def call_binop(self, context, operator: str, left: Any, right: Any) -> Any:
        if _product_size(operator, left, right) > LONGEST:
            _refuse(f"{operator} gives more than {LONGEST} bits or items")
        return super().call_binop(context, operator, left, right)


def _product_size(operator: str, left: Any, right: Any) -> int:
    """Bits of left * right or left ** right, or items where one of them is
    a sequence; 0 of other numbers."""
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**":
            return left.bit_length() * abs(right)
        return left.bit_length() + right.bit_length()
    if isinstance(left, int) and isinstance(right, Sized):
        left, right = right, left
    if isinstance(left, Sized) and isinstance(right, int):
        return len(left) * abs(right)
    return 0


def _sandbox(now: datetime.datetime) -> _Sandbox:
    environment = _Sandbox(
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
