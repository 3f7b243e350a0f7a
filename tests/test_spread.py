from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from u2export.reference.spread import evenly_spread


def test_the_middle_or_the_first_of_each_part() -> None:
    assert evenly_spread(range(10), 3) == [1, 5, 8]
    assert evenly_spread(range(10), 3, first=True) == [0, 3, 6]
    assert evenly_spread("abc", 3) == evenly_spread("abc", 9, first=True) == ["a", "b", "c"]


@given(length=st.integers(1, 200), count=st.integers(1, 220), first=st.booleans())
def test_steps_differ_by_one_at_most(length: int, count: int, first: bool) -> None:
    picks = evenly_spread(range(length), count, first=first)
    assert len(picks) == min(count, length)
    steps = {b - a for a, b in pairwise(picks)}
    assert max(steps, default=1) - min(steps, default=1) <= 1 and min(steps, default=1) >= 1
