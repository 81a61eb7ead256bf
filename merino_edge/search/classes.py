"""Architectures that differ only in the order of their blocks are one to every cost and score here.

Blocks that choose alike may be swapped where the widths of the architecture are one. A class is listed
by its member of the lowest index: among blocks that choose alike, the options never decrease. The
poster's space has 12,285 classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from merino_edge.search.cost import Array
from merino_edge.search.group import Group
from merino_edge.search.space import Space

MAX_MEMBERS = 50_000  # listed one by one; beyond, only the representative is


def alike_before(group: Group) -> list[int | None]:
    """Return for each block the nearest block before it that chooses alike, None where there is none."""
    last: dict[object, int] = {}
    result: list[int | None] = []
    for i, choices in enumerate(group.choices):
        result.append(last.get(choices))
        last[choices] = i
    return result


def alike(group: Group) -> list[list[int]]:
    """Positions of the blocks that choose alike, one list for each kind of block."""
    kinds: dict[object, list[int]] = {}
    for i, choices in enumerate(group.choices):
        kinds.setdefault(choices, []).append(i)
    return list(kinds.values())


def has_one_width(group: Group, digits: Sequence[int]) -> bool:
    """Say whether all blocks of a member have one width."""
    return len({options[d].width for options, d in zip(group.options, digits, strict=True)}) == 1


def class_size(space: Space, index: int) -> int:
    """Return how many members of the space differ from this one only in the order of blocks, itself included."""
    group = space.group_of(index)
    digits = group.digits(index - group.offset)
    if not has_one_width(group, digits):
        return 1
    size = 1
    for positions in alike(group):
        counts = Counter(digits[i] for i in positions)
        size *= math.factorial(len(positions)) // math.prod(math.factorial(c) for c in counts.values())
    return size


def representative(space: Space, index: int) -> int:
    """Return the lowest index of the class."""
    group = space.group_of(index)
    digits = list(group.digits(index - group.offset))
    if has_one_width(group, digits):
        for positions in alike(group):
            for i, digit in zip(positions, sorted(digits[i] for i in positions), strict=True):
                digits[i] = digit
    return group.offset + group.position(digits)


def class_members(space: Space, index: int) -> list[int]:
    """Return the indices of the class; of a very large class only the representative and this one."""
    if class_size(space, index) > MAX_MEMBERS:
        return sorted({representative(space, index), index})
    group = space.group_of(index)
    digits = group.digits(index - group.offset)
    if not has_one_width(group, digits):
        return [index]
    members = np.array([group.offset], object if group.offset + group.size >= 1 << 62 else np.int64)
    for positions in alike(group):
        orders = _orders([digits[i] for i in positions], [group.radix[i] for i in positions], members.dtype)
        members = (members[:, None] + orders).reshape(-1)
    return sorted(members.tolist())


def _orders(digits: Sequence[int], radix: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return what every different order of some digits adds to an index."""
    values, counts = np.unique(digits, return_counts=True)
    sums, left = np.zeros(1, dtype), counts[None, :]  # (orders begun, digits left of each value)
    for weight in radix:
        rows, chosen = np.nonzero(left)
        sums = sums[rows] + values[chosen].astype(dtype) * weight
        left = left[rows] - (np.arange(len(values)) == chosen[:, None])
    return sums
