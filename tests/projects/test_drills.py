"""Bare calculations to learn arithmetic from."""

import re

import pytest

from dynscaling_jax.tasks.generated import OPERATIONS
from projects.reasoner.drills import drill

LINE = re.compile(r"(\d+)\) (\d+) ([-+*/]) (\d+) = (\d+)([^.]*)\.")


def test_every_calculation_is_asked_for_and_right():
    signs, lengths, verdicts = set(), set(), set()
    for index in range(200):
        (turn,), shown = drill(0, index, 12, 999)
        lines = LINE.findall(shown)
        asked = turn.content.removeprefix("Work out: ").removesuffix(".")
        assert turn.role == "user" and len(lines) == 12
        for number, (line, wanted) in enumerate(
            zip(lines, asked.split(", "), strict=True), 1
        ):
            place, a, sign, b, result, verdict = line
            assert int(place) == number
            assert OPERATIONS[sign](int(a), int(b)) == int(result) <= 999
            if verdict:
                value, due = map(int, wanted.split(" for "))
                assert {int(a), int(b)} == {value, due}
                assert verdict == (
                    ", that is right"
                    if value == due
                    else f" too {'many' if value > due else 'few'}"
                )
                verdicts.add(verdict)
            else:
                assert wanted == f"{a} {sign} {b}"
                signs.add(sign)
            lengths.add(len(result))
    assert signs == set(OPERATIONS) and lengths == {1, 2, 3}
    assert len(verdicts) == 3


def test_a_drill_is_a_function_of_its_number():
    assert drill(0, 7, 3, 99) == drill(0, 7, 3, 99)
    assert len({drill(s, i, 3, 99) for s in (0, 1) for i in range(20)}) == 40


@pytest.mark.parametrize(("calculations", "largest"), [(0, 99), (3, 2)])
def test_drills_that_cannot_be(calculations, largest):
    with pytest.raises(ValueError, match="expected calculations >= 1"):
        drill(0, 0, calculations, largest)
