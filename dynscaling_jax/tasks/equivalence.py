"""When two answers are the same: one relation, for votes and for grading.

Answers are compared in canonical form. Where that leaves two formulas which
differ as text, each is read once by a worker process with a hard limit, and
what they mean is compared (symbolic.py). The relation is symmetric and
reflexive. It is transitive up to conventions of mathematical writing that
let a short form stand for several long ones: a list without brackets equals
the tuple and the set of the same items, and the one with names of the same
values; 2x+3 equals y = 2x+3; (1,2) is a pair and an interval; an interval
equals the inequality for any variable; a numeral in a stated base equals the
one that leaves the base to the question. Lists that differ as text in more
than 16 items are different.
"""

import json
import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from mpmath.ctx_mp import MPContext

from dynscaling_jax.answer_index import AnswerIndex
from dynscaling_jax.tasks.forms import canonical
from dynscaling_jax.tasks.formulas import Listing, is_word, listing, named
from dynscaling_jax.tasks.numbers import rational
from dynscaling_jax.workers import StartError, Worker, WorkerError

Outcome = Literal["equal", "different", "timeout"]
Compare = Callable[[str, str, str], Outcome]  # (answer, answer, kind)
Meaning = Callable[[str], Any]  # of a formula; see symbolic.py

_PROGRAM = Path(__file__).with_name("symbolic.py")
_RESTART = 2.0  # processor seconds that another worker costs
_LONGEST = 1 << 26  # bytes of a meaning
_MOST_FORMULAS = 16  # items of two lists that are compared as formulas
_HARD = ["hard"]  # the meaning of a formula that took too much


def classify(
    answers: Iterable[str | None], kind: str, compare: Compare
) -> tuple[int, ...]:
    r"""Numbers the classes of one query's answers: what votes count.

    An answer joins the first class whose first member it equals; a comparison
    that times out does not join.

        answers  "1/2"  "0.5"  None  "2"  "\frac12"
        ids      0      0      -1    1    0

    Args:
      answers: None is an unreadable one.
      kind: of the answers; see `canonical`.
      compare: a Comparer's question limit holds for all of them together.

    Returns:
      The class of each answer, from 0 in the order first seen; -1 for one
      that is None or cannot be read as `kind`.
    """
    compare = of_question(compare)
    index = AnswerIndex(lambda a, b: compare(a, b, kind) == "equal")
    forms = (a if a is None else canonical(a, kind) for a in answers)
    return tuple(-1 if form is None else index.number(form) for form in forms)


def of_question(compare: Compare) -> Compare:
    """Returns the comparison for all the answers of one question.

    They share a limit of time where `compare` is a Comparer.
    """
    return compare.question() if isinstance(compare, Comparer) else compare


class Comparer:
    """Compares answers: `comparer(a, b, kind)` is equal, different, timeout.

    Cheap to make: a worker starts when the first formula needs one. Safe to
    call from several threads; with `workers` of them, that many formulas are
    read at once. Close it, or use it as a context manager; it also closes
    when it is collected.
    """

    def __init__(
        self,
        time_limit: float = 2.0,
        question_limit: float = 10.0,
        workers: int = 1,
        cache_size: int = 20_000,
    ):
        """Makes a comparer that starts its workers when it needs them.

        Args:
          time_limit: processor seconds to read one formula. What exceeds
            them, or 2 GiB, is a timeout against all others. Wall time is
            bounded by ten times that.
          question_limit: processor seconds to read all formulas of one call,
            or of one `question()`; what comes after them is a timeout too. A
            formula that was read before costs what it cost then, so that
            outcomes do not depend on what was compared earlier.
          workers: the number of worker processes.
          cache_size: formulas whose meanings are kept, hard ones included.

        Raises:
          ValueError: a limit that is not positive.
        """
        if min(time_limit, question_limit, workers, cache_size) <= 0:
            raise ValueError(
                "time_limit, question_limit, workers and cache_size must be "
                f"positive, got {time_limit}, {question_limit}, {workers} and "
                f"{cache_size}"
            )
        self._time_limit = time_limit
        self._question_limit = question_limit
        self._cache_size = cache_size
        self._cache: dict[str, tuple[Any, float]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._workers = [Worker(Path(_PROGRAM)) for _ in range(workers)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def __call__(self, a: str, b: str, kind: str) -> Outcome:
        """Compares two answers.

        Raises:
          ValueError: an unknown kind.
          RuntimeError: a worker that cannot start; a closed comparer.
        """
        return self.question()(a, b, kind)

    def question(self) -> Compare:
        """Returns a comparison for all the answers of one question.

        Its calls share one limit of processor seconds.
        """
        costs: dict[str, float] = {}

        def meaning(formula: str) -> Any:
            if formula not in costs:
                if sum(costs.values()) >= self._question_limit:
                    return _HARD
            found, costs[formula] = self._read(formula)
            return found

        def compare(a: str, b: str, kind: str) -> Outcome:
            first, second = canonical(a, kind), canonical(b, kind)
            if first is None or second is None:
                return "different"
            if kind != "math":
                return _outcome(first == second)
            return _formulas(first, second, meaning)

        return compare

    def _read(self, formula: str) -> tuple[Any, float]:
        """The meaning of a formula, and the seconds that it took."""
        with self._lock:
            if formula in self._cache:
                return self._cache[formula]
        worker = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("this Comparer has been closed")
            found = _meaning(worker, formula, self._time_limit)
        finally:
            self._idle.put(worker)
        with self._lock:
            if len(self._cache) >= self._cache_size:
                del self._cache[next(iter(self._cache))]  # the oldest
            self._cache[formula] = found
        return found

    def close(self) -> None:
        """Ends the workers; a reading under way becomes a timeout."""
        self._closed = True
        for worker in self._workers:
            worker.kill()
        idle = [self._idle.get() for _ in self._workers]
        for worker in idle:
            worker.stop()
            self._idle.put(worker)

    def __enter__(self) -> "Comparer":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()


# Two canonical answers of kind math, or two items of them, as texts.

_BASE = re.compile(r"(-?[0-9][0-9A-F.]*)_(?:\d|\{\d+\})")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_MODULUS = re.compile(r"(.+)\\pmod\{(.+)\}")
_RELATION = re.compile(r"[=<>]|\\(?:leq|geq|neq|equiv)")


def _outcome(same: bool) -> Outcome:
    return "equal" if same else "different"


def _formulas(a: str, b: str, meaning: Meaning) -> Outcome:
    if a == b:
        return "equal"
    if is_word(a) or is_word(b):
        return "different"
    x, y = rational(a), rational(b)
    if x is not None and y is not None:  # an item of \pm 2 is "+2"
        return _outcome(x == y)
    bases = _BASE.fullmatch(a), _BASE.fullmatch(b)
    if any(bases):
        first = bases[0][1] if bases[0] else a
        second = bases[1][1] if bases[1] else b
        return _outcome(first == second and not all(bases))
    moduli = _MODULUS.fullmatch(a), _MODULUS.fullmatch(b)
    if moduli[0] and moduli[1]:
        return _tuples(moduli[0].groups(), moduli[1].groups(), meaning)
    left, right = _expand(listing(a)), _expand(listing(b))
    sizes = {len(left.items), len(right.items)}
    if min(sizes) > 1:
        return _lists(left, right, meaning)
    if sizes == {1} and r"\{" in (left.opening, right.opening):
        return _formulas(left.items[0], right.items[0], meaning)
    for number, items in ((x, right), (y, left)):
        if number is not None and len(items.items) > 1:
            return _grouped(number, items)
    for equation, formula in ((a, b), (b, a)):  # y = 2x + 3 and 2x + 3
        name, value = named(equation)
        if name and not _RELATION.search(formula):
            return _formulas(value, formula, meaning)
    return _meanings(meaning(a), meaning(b))


def _lists(a: Listing, b: Listing, meaning: Meaning) -> Outcome:
    brackets = {a.opening + a.closing, b.opening + b.closing}
    if len(a.items) != len(b.items) or not (
        len(brackets) == 1 or brackets in ({"", "()"}, {"", r"\{\}"})
    ):
        return "different"
    names_a, values_a = zip(*map(named, a.items), strict=True)
    names_b, values_b = zip(*map(named, b.items), strict=True)
    if all(names_a) and all(names_b):
        if sorted(names_a) != sorted(names_b):
            return "different"
        values = dict(zip(names_b, values_b, strict=True))
        return _tuples(values_a, [values[name] for name in names_a], meaning)
    if all(names_a) or all(names_b):
        letters = {n.partition("_")[0] for n in (*names_a, *names_b) if n}
        ordered = len(letters) > 1 or "()" in brackets
        if ordered and r"\{\}" in brackets:
            return "different"
        return (_tuples if ordered else _sets)(values_a, values_b, meaning)
    if brackets <= {"", r"\{\}"}:
        return _sets(a.items, b.items, meaning)
    return _tuples(a.items, b.items, meaning)


def _tuples(a: Sequence[str], b: Sequence[str], meaning: Meaning) -> Outcome:
    pairs = [pair for pair in zip(a, b, strict=True) if pair[0] != pair[1]]
    if len(pairs) > _MOST_FORMULAS:
        return "different"
    outcomes = [_formulas(*pair, meaning) for pair in pairs]
    for outcome in ("different", "timeout"):
        if outcome in outcomes:
            return outcome
    return "equal"


def _sets(a: Sequence[str], b: Sequence[str], meaning: Meaning) -> Outcome:
    """Every item of the first list matches a different one of the second."""
    left = list((Counter(a) - Counter(b)).elements())
    right = list((Counter(b) - Counter(a)).elements())
    if len(left) > _MOST_FORMULAS:
        return "different"
    late = False
    for item in left:
        outcomes = [_formulas(item, other, meaning) for other in right]
        if "equal" in outcomes:
            del right[outcomes.index("equal")]
        elif "timeout" in outcomes:
            late = True
        else:
            return "different"
    return "timeout" if late else "equal"


def _grouped(number: Fraction, items: Listing) -> Outcome:
    """Whether "100,101,102", a number or a list, is the same as both."""
    groups = f"{number.numerator:,}".split(",")
    same = (
        number.denominator == 1
        and not items.opening
        and not any(group.startswith("0") for group in groups)
        and sorted(groups) == sorted(items.items)
    )
    return _outcome(same)


def _expand(parts: Listing) -> Listing:
    r"""Makes the two items a + b and a - b of a \pm b."""
    items: list[str] = []
    for item in parts.items:
        both = (_PLUS_MINUS.sub(sign, item) for sign in "+-")
        items += dict.fromkeys(both)  # without the sign both are the same
    return parts._replace(items=tuple(items))


# Two meanings, as symbolic.py gives them: nested lists of values. A value is
# exact, "1/3", or rough, {"re": [mantissa, exponent], "im": ...}.

_MP = MPContext()
_MP.prec = 256  # of 200 that a rough value has


def _meanings(a: Any, b: Any) -> Outcome:
    if _HARD in (a, b):
        return "timeout"
    if a is None or b is None or a[0] != b[0]:
        return "different"
    if a[0] == "set" and "" in (a[2], b[2]):  # an interval names no variable
        a, b = a[:2], b[:2]
    return _outcome(_close(a[1:], b[1:]))


def _close(a: Any, b: Any) -> bool:
    """Whether two values, or lists of them, agree to some 48 digits."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if a == b or dict not in (type(a), type(b)):
        return a == b
    try:
        x, y = _number(a), _number(b)
    except ValueError:  # \infty
        return False
    larger = max(abs(x), abs(y))
    return abs(x - y) < _MP.ldexp(larger, -160)


def _number(value: Any) -> Any:
    if isinstance(value, str):
        exact = Fraction(value)
        return _MP.mpf(exact.numerator) / exact.denominator
    return _MP.mpc(_MP.ldexp(*value["re"]), _MP.ldexp(*value["im"]))


def _meaning(worker: Worker, formula: str, seconds: float) -> tuple[Any, float]:
    """The meaning of a formula, and the processor seconds that it took."""
    request = json.dumps([seconds, formula]).encode() + b"\n"
    try:
        return tuple(json.loads(worker.ask(request, seconds, _LONGEST)))
    except StartError as error:
        raise RuntimeError(
            "the process that compares formulas did not start; is "
            "math-verify installed? Its own message stands above."
        ) from error
    except WorkerError:
        return _HARD, seconds + _RESTART
