"""What a compiled program reads, writes and sends, by its text.

XLA's own cost analysis counts the body of a loop once, adds what fusions move
within the chip, and gives nothing on a GPU. So its text is read here: each
instruction's operands and outputs count where they lie in the device's main
memory, as often as loops repeat it. Of an array that an instruction only takes
slices of, the slices count; of one that is updated in place, the update.
tests/aot compares both counts where they should agree.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

WIDTH = {  # bytes of an element
    **dict.fromkeys(("pred", "s8", "u8"), 1.0),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2.0),
    **dict.fromkeys(("s32", "u32", "f32"), 4.0),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8.0),
    **dict.fromkeys(("s4", "u4"), 0.5),
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
NOTHING = {  # moves no bytes by itself
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
    "after-all", "partition-id", "replica-id", "while", "conditional", "call",
    "iota", "rng-get-and-update-state", "opt-barrier", "add-dependency",
}  # fmt: skip
# within a fusion also another layout is nothing that lies in memory
ALIASES = ("bitcast", "copy")
KERNEL = "custom-call"
TPU_KERNEL = "tpu_custom_call"  # of Pallas; its bytes are its own affair

_LEAF = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|condition|async_computation"
    r"|true_computation|false_computation)=%?([\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count"?[:=]\s*\{"?n"?:\s*"?(\d+)')


class Array(NamedTuple):
    """An output of an instruction."""

    shape: tuple[int, ...]
    bytes: float
    main: bool  # whether it lies in the device's main memory


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    root: bool
    arrays: tuple[Array, ...]
    operation: str
    operands: tuple[str, ...]
    rest: str  # attributes
    number: int  # of a parameter; the value of a constant

    @property
    def size(self) -> float:
        """Bytes of all outputs."""
        return sum(array.bytes for array in self.arrays)

    def called(self) -> tuple[str, ...]:
        """Names of the computations that it calls."""
        found = _CALLED.findall(self.rest)
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if branches:
            found += re.findall(r"%?([\w.\-]+)", branches[1])
        return tuple(found)


Computation = dict[str, Instruction]


class Sent(NamedTuple):
    """The collectives of one kind."""

    count: int
    bytes: float
    shapes: frozenset[tuple[int, ...]]  # of what they give


class Traffic(NamedTuple):
    """Counts of one run of a program; bytes are those of one device."""

    bytes: float = 0.0  # read and written
    kernels: Mapping[str, int] = {}  # calls of custom kernels, by target
    collectives: Mapping[str, Sent] = {}
    loops: int = 0  # of unknown length


def traffic(
    text: str,
    *,
    repeats: Callable[[int, "Traffic"], int] = lambda depth, body: 1,
    cheapest: bool = False,
    everywhere: bool = False,
    once: bool = False,
) -> Traffic:
    """Counts what a program moves.

    Of a choice the dearest branch counts.

    Args:
        text: of a compiled program, as of compiled.as_text().
        repeats: how often a loop runs whose text does not say so, by the
            number of loops around it and what its body moves in one run.
        cheapest: takes the cheapest branch of a choice instead.
        everywhere: counts memory on the chip too, as XLA does.
        once: counts every loop once, as XLA does.
    """
    program, entry = parse(text)

    def visit(name: str, depth: int) -> Traffic:
        """One run of a computation."""
        computation, found = program[name], Traffic()
        for one in computation.values():
            called = one.called()
            if one.operation == "while":
                trips = _trips(program, computation, one)
                runs = [visit(name, depth + 1) for name in called]
                inner = functools.reduce(_sum, runs)
                repeat = repeats(depth, inner) if trips is None else trips
                repeat = 1 if once else repeat
                found = _sum(found, _repeated(inner, repeat))
                found = found._replace(loops=found.loops + (trips is None))
            elif one.operation == "conditional":
                pick = min if cheapest else max
                runs = [visit(name, depth) for name in called]
                inner = pick(runs, key=lambda x: x.bytes)
                found = _sum(found, inner)
            elif one.operation == "call":
                runs = [visit(name, depth) for name in called]
                found = functools.reduce(_sum, runs, found)
            else:
                moved = _moved(program, computation, one, everywhere)
                found = _sum(found, _single(one, moved))
        return found

    return visit(entry, 0)


def _single(one: Instruction, moved: float) -> Traffic:
    """What one instruction does."""
    kind = one.operation.removesuffix("-start")
    kernels: dict[str, int] = {}
    collectives: dict[str, Sent] = {}
    if kind == KERNEL:
        kernels[_target(one)] = 1
    if kind in COLLECTIVES:
        # what was started gives its operand back too
        arrays = one.arrays
        if one.operation != kind:
            arrays = [max(arrays, key=lambda array: array.bytes)]
        size = sum(array.bytes for array in arrays)
        shapes = frozenset(array.shape for array in arrays)
        collectives[kind] = Sent(1, size, shapes)
    return Traffic(moved, kernels, collectives)


def _sum(a: Traffic, b: Traffic) -> Traffic:
    kernels = {
        name: a.kernels.get(name, 0) + b.kernels.get(name, 0)
        for name in {**a.kernels, **b.kernels}
    }
    none = Sent(0, 0.0, frozenset())
    collectives = {}
    for kind in {**a.collectives, **b.collectives}:
        x = a.collectives.get(kind, none)
        y = b.collectives.get(kind, none)
        collectives[kind] = Sent(
            x.count + y.count, x.bytes + y.bytes, x.shapes | y.shapes
        )
    return Traffic(a.bytes + b.bytes, kernels, collectives, a.loops + b.loops)


def _repeated(one: Traffic, times: int) -> Traffic:
    return Traffic(
        times * one.bytes,
        {name: times * count for name, count in one.kernels.items()},
        {
            kind: Sent(times * x.count, times * x.bytes, x.shapes)
            for kind, x in one.collectives.items()
        },
        one.loops,
    )


def _trips(
    program: Mapping[str, Computation],
    computation: Computation,
    loop: Instruction,
) -> int | None:
    """How often a loop runs, if its text says so.

    XLA:GPU notes it. XLA:TPU does not, so the condition is read: a counter in
    the loop's tuple is compared with a constant, in the condition or in the
    tuple, and goes up by one.
    """
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1])
    named = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    if named is None:
        return None
    condition = program[named[1]]
    root = next(one for one in condition.values() if one.root)
    if root.operation != "compare" or "direction=LT" not in root.rest:
        return None
    start = computation.get(loop.operands[0])

    def value(name: str, outside: bool) -> int | None:
        where = computation if outside else condition
        one = where.get(name)
        while one and one.operation in ("copy", "bitcast") and one.operands:
            one = where.get(one.operands[0])
        if one is None:
            return None
        if one.operation == "constant":
            return one.number
        place = re.search(r"index=(\d+)", one.rest)
        if outside or one.operation != "get-tuple-element" or not place:
            return None
        if start is None or start.operation != "tuple":
            return None
        return value(start.operands[int(place[1])], True)

    first, last = (value(name, False) for name in root.operands)
    if first is None or last is None:
        return None
    return max(last - first, 0)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Reads the computations of a program, and the name of the first one.

    Raises:
        ValueError: there is none.
    """
    program: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is None:
            head = _HEAD.match(line)
            if head:
                current = program.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif found := _LINE.match(line):
            one = _instruction(found[2], bool(found[1]), found[3])
            current[one.name] = one
    if not entry:
        raise ValueError("the text has no entry: it is no compiled program")
    return program, entry


def _instruction(name: str, root: bool, text: str) -> Instruction:
    """Reads `type operation(operands), attributes`."""
    kind, rest = _first_group(text) if text[0] == "(" else _word(text)
    operation, _, rest = rest.strip().partition("(")
    operands, attributes = _first_group("(" + rest)
    inner = operands[1:-1]
    numbered = operation in ("parameter", "constant")
    return Instruction(
        name,
        root,
        tuple(_arrays(kind)),
        operation,
        tuple(re.findall(r"%([\w.\-]+)", inner)),
        attributes,
        int(inner) if numbered and inner.lstrip("-").isdigit() else 0,
    )


def _word(text: str) -> tuple[str, str]:
    """Cuts behind a type, whose layout may hold brackets but no space."""
    kind, _, rest = text.partition(" ")
    return kind, rest


def _first_group(text: str) -> tuple[str, str]:
    """Cuts behind the bracket that closes the first one."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: at + 1], text[at + 1 :]
    raise ValueError(f"unbalanced brackets: {text[:80]}")


def _arrays(kind: str) -> Iterator[Array]:
    for name, shape, layout in _LEAF.findall(kind):
        sizes = tuple(map(int, shape.split(","))) if shape else ()
        width = WIDTH.get(name, 1.0 if name.startswith("f8") else 0.0)
        yield Array(
            sizes, math.prod(sizes) * width, not re.search(r"S\([1-9]", layout)
        )


def _target(one: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', one.rest)
    return found[1] if found else ""


def _moved(
    program: Mapping[str, Computation],
    computation: Computation,
    one: Instruction,
    everywhere: bool,
) -> float:
    """Bytes that one instruction reads and writes."""
    operation = one.operation
    if operation in NOTHING or operation.endswith("-done"):
        return 0.0
    if operation.endswith("-update"):  # of what was started
        return 0.0
    if operation == KERNEL and _target(one) == TPU_KERNEL:
        return 0.0
    counts = lambda array: everywhere or array.main
    if operation.startswith("async-start") or operation == "fusion":
        (called,) = one.called()[:1]
        inner = program[called]
        arguments = sorted(
            (i for i in inner.values() if i.operation == "parameter"),
            key=lambda i: i.number,
        )
        read = sum(
            _uses(program, inner, argument.name, counts(source.arrays[0]))
            for argument, name in zip(arguments, one.operands, strict=False)
            if (source := computation.get(name)) and source.arrays
        )
        root = next(i for i in inner.values() if i.root)
        if operation == "fusion":
            return read + _written(program, inner, root, one.arrays, counts)
        return read + counts(one.arrays[-1]) * root.size
    sources = [computation[n] for n in one.operands if n in computation]
    shown = [counts(s.arrays[0]) if s.arrays else False for s in sources]
    if operation in ("copy-start", "slice-start", "dynamic-slice-start"):
        # copies give (to, from, context), slices ((from), to, context)
        out = one.arrays[operation != "copy-start"]
        return out.bytes * (counts(out) + any(shown[:1]))
    if operation in ("slice", "dynamic-slice", "gather"):
        rest = sum(
            s.size
            for s, yes in zip(sources[1:], shown[1:], strict=True)
            if yes and operation == "gather"
        )
        return one.size * (counts(one.arrays[0]) + shown[0]) + rest
    if operation == "dynamic-update-slice":
        return sources[1].size * (counts(one.arrays[0]) + shown[1])
    if operation == "scatter":
        updates = sources[-1].size
        return updates * (2 * counts(one.arrays[0]) + shown[-1])
    if operation.removesuffix("-start") in COLLECTIVES:
        read = sum(s.size for s, yes in zip(sources, shown, strict=True) if yes)
        return 2 * read
    written = sum(a.bytes for a in one.arrays if counts(a))
    return written + sum(
        s.size for s, yes in zip(sources, shown, strict=True) if yes
    )


def _users(inner: Computation, name: str) -> list[tuple[Instruction, int]]:
    return [
        (one, at)
        for one in inner.values()
        for at, operand in enumerate(one.operands)
        if operand == name
    ]


def _uses(
    program: Mapping[str, Computation],
    inner: Computation,
    name: str,
    shown: bool,
) -> float:
    """Bytes that a fusion reads of a parameter: its slices, or all of it."""
    if not shown:
        return 0.0
    whole, total = inner[name].size, 0.0
    if inner[name].root:
        return whole
    for one, at in _users(inner, name):
        operation = one.operation
        if operation in ("slice", "dynamic-slice") and at == 0:
            total += one.size
        elif operation == "gather" and at == 0:
            total += one.size
        elif operation == "dynamic-update-slice" and at == 0:
            pass  # what is not updated stays where it is
        elif operation == "scatter" and at == 0:
            total += inner[one.operands[-1]].size
        elif operation in ALIASES:
            total += _uses(program, inner, one.name, True)
        elif operation == "fusion":
            called = program[one.called()[0]]
            argument = next(
                i.name
                for i in called.values()
                if i.operation == "parameter" and i.number == at
            )
            if _passes(called, argument):
                total += _uses(program, inner, one.name, True)
            else:
                total += _uses(program, called, argument, True)
        elif operation == "tuple":
            pass
        else:
            return whole
    return min(whole, total)


def _passes(called: Computation, name: str) -> bool:
    """Whether a computation returns a parameter as it is."""
    root = next(one for one in called.values() if one.root)
    while root.operation in ALIASES:
        root = called[root.operands[0]]
    return root.name == name


def _written(
    program: Mapping[str, Computation],
    inner: Computation,
    root: Instruction,
    arrays: Sequence[Array],
    counts,
) -> float:
    """Bytes that a fusion writes: of an update in place, the update."""
    if root.operation == "tuple":
        total, first = 0.0, 0
        for name in root.operands:  # some are tuples of their own
            end = first + len(inner[name].arrays)
            part = arrays[first:end]
            total += _written(program, inner, inner[name], part, counts)
            first = end
        return total
    if not any(map(counts, arrays)):
        return 0.0
    while root.operation == "bitcast" and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root.operation == "dynamic-update-slice":
        return inner[root.operands[1]].size
    if root.operation == "scatter":
        return inner[root.operands[-1]].size
    if root.operation == "fusion":
        called = program[root.called()[0]]
        last = next(i for i in called.values() if i.root)
        return _written(program, called, last, arrays, counts)
    return sum(array.bytes for array in arrays if counts(array))
