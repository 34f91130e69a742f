"""Bare calculations to learn arithmetic from."""

import re

import pytest

from dynscaling_jax.tasks.generator import OPERATIONS
from dynscaling_jax.training.drills import drill

EQUATION = re.compile(r"(\d+)\) (\d+) ([-+*/]) (\d+) = (\d+)\.")


def test_every_calculation_is_asked_for_and_right():
    signs, lengths = set(), set()
    for index in range(200):
        (turn,), shown = drill(0, index, 12, 999)
        steps = EQUATION.findall(shown)
        assert [int(number) for number, *_ in steps] == list(range(1, 13))
        for _, a, sign, b, result in steps:
            assert OPERATIONS[sign](int(a), int(b)) == int(result) <= 999
            signs.add(sign)
            lengths.add(len(result))
        asked = ", ".join(f"{a} {sign} {b}" for _, a, sign, b, _ in steps)
        assert turn == ("user", f"Work out: {asked}.")
    assert signs == set(OPERATIONS) and lengths == {1, 2, 3}


def test_a_drill_is_a_function_of_its_number():
    assert drill(0, 7, 3, 99) == drill(0, 7, 3, 99)
    assert len({drill(s, i, 3, 99) for s in (0, 1) for i in range(20)}) == 40


@pytest.mark.parametrize(("calculations", "largest"), [(0, 99), (3, 2)])
def test_drills_that_cannot_be(calculations, largest):
    with pytest.raises(ValueError, match="expected calculations >= 1"):
        drill(0, 0, calculations, largest)
