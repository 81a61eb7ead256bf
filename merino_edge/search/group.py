"""Members of a space that differ in their blocks only, and what each of their blocks may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from merino_edge.architecture import Block


@dataclass(frozen=True)
class BlockChoices:
    """What one block may be. `widths` is None where the whole model has one width."""

    widths: tuple[int, ...] | None
    depths: tuple[int, ...]
    ffn_ratios: tuple[float, ...]

    def options(self, model_width: int | None, head_dim: int) -> tuple[Block, ...]:
        """Every block that these choices allow: by width, then depth, then ratio."""
        widths = (model_width,) if self.widths is None else self.widths
        return tuple(
            Block(width, ratio, depth)
            for width in widths
            if width is not None and width % head_dim == 0
            for depth in self.depths
            for ratio in self.ffn_ratios
        )

    def aligned(self, model_widths: tuple[int, ...] | None, multiple: int) -> BlockChoices:
        """Return the choices whose widths and FFN widths are multiples of a number."""
        own = None if self.widths is None else multiples(self.widths, multiple)
        widths = own or model_widths or ()
        fitting = tuple(r for r in self.ffn_ratios if all(int(r * width) % multiple == 0 for width in widths))
        return BlockChoices(own, self.depths, fitting)


def multiples(values: tuple[int, ...], of: int) -> tuple[int, ...]:
    """Return the values that a number divides."""
    return tuple(value for value in values if value % of == 0)


@dataclass(frozen=True)
class Group:
    """Members of a space that differ in their blocks only.

    Attributes:
        offset: Index of the first member.
        vocab_size: V of all members.
        head_dim: Of all members.
        embedding_width: Of all members.
        options: For each block, what it may be.
        choices: The choices that they come from; blocks of the same choices may change places.
    """

    offset: int
    vocab_size: int
    head_dim: int
    embedding_width: int
    options: tuple[tuple[Block, ...], ...]
    choices: tuple[BlockChoices, ...]

    @cached_property
    def size(self) -> int:
        """Number of members."""
        return math.prod(len(options) for options in self.options)

    @cached_property
    def radix(self) -> tuple[int, ...]:
        """What one step of each block's option adds to a position; block 0 has the most."""
        return tuple(math.prod(len(options) for options in self.options[i + 1 :]) for i in range(len(self.options)))

    @cached_property
    def number_of(self) -> tuple[dict[tuple[int, int, int], int], ...]:
        """For each block the first option of each width, FFN width and depth: FFN ratios may round alike."""
        result: dict[int, dict[tuple[int, int, int], int]] = {}  # by choices, for alike blocks have the same
        for choices, options in zip(self.choices, self.options, strict=True):
            if id(choices) not in result:
                first = result[id(choices)] = {}
                for i, block in enumerate(options):
                    first.setdefault(block.shape, i)
        return tuple(result[id(choices)] for choices in self.choices)

    @cached_property
    def distinct(self) -> tuple[tuple[int, ...], ...]:
        """For each block the options that differ, the first of those that are alike, rising."""
        return tuple(tuple(numbers.values()) for numbers in self.number_of)

    def first_alike(self, digits: Sequence[int]) -> tuple[int, ...]:
        """Return for each block the first option that is like the one given."""
        blocks = [options[digit] for options, digit in zip(self.options, digits, strict=True)]
        return tuple(numbers[block.shape] for numbers, block in zip(self.number_of, blocks, strict=True))

    def digits(self, position: int) -> tuple[int, ...]:
        """Return the option of each block of the member at `position` inside the group."""
        digits = []
        for options in reversed(self.options):
            position, digit = divmod(position, len(options))
            digits.append(digit)
        return tuple(reversed(digits))

    def position(self, digits: Iterable[int]) -> int:
        """Return where in the group the member with these options stands."""
        return sum(digit * step for digit, step in zip(digits, self.radix, strict=True))
