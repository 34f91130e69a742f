"""Programs as text, with numbers that were worked out by hand."""

# ruff: noqa: E501   lines of a program are long

import pytest

from dynscaling_jax.inference import hlo

# four rounds of a loop; each reads one of four matrices of 64 bytes and
# writes 16. S(1) lies on the chip
LOOP = """\
HloModule toy

%taken (all: f32[4,4,4], at: s32[], x: f32[4]) -> f32[4] {
  %all = f32[4,4,4]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,4,4]{2,1,0} dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,4,4}
  %flat = f32[4,4]{1,0} bitcast(%one)
  %x = f32[4]{0:S(1)} parameter(2)
  ROOT %made = f32[4]{0} dot(%x, %flat), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[4], f32[4,4,4])) -> (s32[], f32[4], f32[4,4,4]) {
  %state = (s32[], f32[4]{0:S(1)}, f32[4,4,4]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %y = f32[4]{0:S(1)} get-tuple-element(%state), index=1
  %w = f32[4,4,4]{2,1,0} get-tuple-element(%state), index=2
  %next = f32[4]{0} fusion(%w, %i, %y), kind=kOutput, calls=%taken
  %sum = f32[4]{0:S(1)} all-reduce(%next), replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[4]{0:S(1)}, f32[4,4,4]{2,1,0}) tuple(%i, %sum, %w)
}

%goes_on (state.1: (s32[], f32[4], f32[4,4,4])) -> pred[] {
  %state.1 = (s32[], f32[4]{0:S(1)}, f32[4,4,4]{2,1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state.1), index=0
  %last = s32[] constant(LAST)
  ROOT %less = pred[] compare(%count, %last), direction=LT
}

ENTRY %main (w.1: f32[4,4,4], x.1: f32[4], pool: f32[100,4], new: f32[1,4]) -> f32[4] {
  %w.1 = f32[4,4,4]{2,1,0} parameter(0)
  %x.1 = f32[4]{0} parameter(1)
  %pool = f32[100,4]{1,0} parameter(2)
  %new = f32[1,4]{1,0} parameter(3)
  %begin = s32[] constant(1)
  %put = f32[100,4]{1,0} dynamic-update-slice(%pool, %new, %begin, %begin)
  %on_chip = f32[4]{0:S(1)} copy(%x.1)
  %tuple = (s32[], f32[4]{0:S(1)}, f32[4,4,4]{2,1,0}) tuple(%begin, %on_chip, %w.1)
  %loop = (s32[], f32[4]{0:S(1)}, f32[4,4,4]{2,1,0}) while(%tuple), condition=%goes_on, body=%body
  ROOT %y.1 = f32[4]{0:S(1)} get-tuple-element(%loop), index=1
}
"""
# once: an update of 16 bytes is read and written, and 16 are copied to the
# chip; in a round, a slice of 64 and its index of 4 are read, 16 are written,
# and a sum reads and writes 16
ONCE, ROUND = 2 * 16 + 16, 64 + 4 + 16 + 2 * 16
SMALL = 4 + 4 + 1  # the loop's condition


def test_loops_slices_and_updates():
    found = hlo.traffic(LOOP.replace("LAST", "5"))
    assert found.bytes == ONCE + 4 * (ROUND + SMALL)
    assert found.loops == 0
    assert found.collectives == {"all-reduce": (4, 64, frozenset({(4,)}))}


def test_a_loop_of_unknown_length():
    text = LOOP.replace(
        "constant(LAST)", "get-tuple-element(%state.1), index=2"
    )
    found = hlo.traffic(text)
    assert (found.loops, found.bytes) == (1, ONCE + ROUND + SMALL)
    found = hlo.traffic(text, repeats=lambda depth, body: 3 + depth)
    assert found.bytes == ONCE + 3 * (ROUND + SMALL)


def test_as_xla_counts():
    """All memory, and each loop once: x is read, and written by the copy."""
    found = hlo.traffic(LOOP.replace("LAST", "5"), everywhere=True, once=True)
    assert found.bytes > ONCE + ROUND + SMALL
    assert found.collectives["all-reduce"].count == 1


def test_what_is_no_program():
    with pytest.raises(ValueError, match="no entry"):
        hlo.traffic("HloModule empty")
