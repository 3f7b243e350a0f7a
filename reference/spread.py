"""The one rule by which some photos of many are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly_spread(items: Sequence[T], count: int, *, first: bool = False) -> list[T]:
    """Return `count` of the items in their order, evenly spread; all of them if there are no more.

    The list is cut into `count` parts of equal length. The middle item of each part is chosen.

    Args:
        items: photos, or whatever is chosen from.
        count: how many to choose, at least 1.
        first: choose the first item of each part in place of the middle one.
    """
    if count >= len(items):
        return list(items)
    return [items[(2 * i + (not first)) * len(items) // (2 * count)] for i in range(count)]
