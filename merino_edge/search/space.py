"""A search space: choices in a TOML, and a number for every architecture they allow.

    schema_version = 1
    name = "mine"
    vocab_size = 16_384                # a number is one choice, a list is several
    head_dim = [32, 64]
    width = [256, 384, 512]            # one width for the whole model; or give each block its own
    embedding_width = "width"          # equal to that one width; or numbers
    per_layer_norms = false
    embedding_skip = true              # or false; left out, `search` takes it where the model has one width
    [[block]]                          # in the order of execution
    count = 4                          # this many blocks choose alike; a list is a choice, too
    depth = [1, 2, 3]
    ffn_ratio = [1, 2, 3, 4]

A space is a row of groups. Inside a group all but the blocks is fixed (vocabulary, head_dim, the one
width, embedding, how many blocks there are), so a member is one option for each block, and its index is
`group.offset + mixed radix of the options`, block 0 the most significant digit. Where counts of several
kinds of block overlap, or two FFN ratios round to one FFN width, an architecture may have several numbers
(`overlaps.py`): the lowest is its own, and it is counted once.
"""

from __future__ import annotations

import itertools
import math
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import MAX_DIMENSION, Architecture
from merino_edge.errors import InvalidFileError, UsageError, check_keys, did_you_mean
from merino_edge.files import SCHEMA_VERSION
from merino_edge.search.group import BlockChoices, Group, multiples
from merino_edge.search.overlaps import Box, Mask, Repeats, inside

SPACES = Path(__file__).parent / "spaces"
_KEYS = (
    "schema_version", "name", "title", "vocab_size", "head_dim", "width", "embedding_width", "per_layer_norms",
    "embedding_skip", "block",
)  # fmt: skip
MAX_GROUPS = 100_000
MAX_BLOCKS = 64
MAX_OPTIONS = 1_000_000  # of all blocks, for every head_dim and model width: each lies in memory once


@dataclass(frozen=True)
class Space:
    """All architectures that a list of choices allows, numbered.

    Attributes:
        name: What the user calls it.
        vocab_sizes: Choices of V.
        head_dims: Choices of the heads' width.
        widths: Choices of the one width, or None where each block has its own.
        embedding_widths: Choices, or None where it equals the one width.
        blocks: Choices of each block, in the order of execution, of the members with the most blocks.
        per_layer_norms: Whether every executed layer has its own norm gains.
        embedding_skip: As in `Architecture`; None, the file does not say, is without (see `with_embedding_skip`).
        title: One line about it.
        fewer: The same of members with fewer blocks, where their number is a choice.
    """

    name: str
    vocab_sizes: tuple[int, ...]
    head_dims: tuple[int, ...]
    widths: tuple[int, ...] | None
    embedding_widths: tuple[int, ...] | None
    blocks: tuple[BlockChoices, ...]
    per_layer_norms: bool = False
    embedding_skip: bool | None = None
    title: str = ""
    fewer: tuple[tuple[BlockChoices, ...], ...] = ()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of the index."""
        groups: list[Group] = []
        offset = 0
        rows = (*self.fewer, self.blocks)
        for head_dim, width, row in itertools.product(self.head_dims, self.widths or (None,), rows):
            options = tuple(choices.options(width, head_dim) for choices in row)
            if not all(options):
                continue
            embeddings = (width,) if self.embedding_widths is None else self.embedding_widths
            for vocab_size, embedding in itertools.product(self.vocab_sizes, embeddings):
                assert embedding is not None  # load_space refuses "width" where each block has its own
                group = Group(offset, vocab_size, head_dim, embedding, options, row)
                groups.append(group)
                offset += group.size
        return tuple(groups)

    @cached_property
    def numbers(self) -> int:
        """How many numbers there are: more than architectures where some have several."""
        return sum(group.size for group in self.groups)

    @cached_property
    def size(self) -> int:
        """Number of architectures, all different."""
        if not self._repeats.rows_of:
            return self.numbers
        embeddings = 1 if self.embedding_widths is None else len(self.embedding_widths)
        return self._repeats.size * embeddings * len(self.vocab_sizes)

    @cached_property
    def _repeats(self) -> Repeats:
        return Repeats((*self.fewer, self.blocks), self.widths, self.head_dims)

    def repeats(self, group: Group) -> tuple[Box, ...]:
        """Return what of a group has a lower number, too (`overlaps.inside`)."""
        width = group.options[0][0].width if self.widths else None
        return self._repeats.boxes(group.head_dim, width, group.choices)

    def are_repeated(self, indices: npt.NDArray[np.int64]) -> Mask:
        """Say which of some indices, rising, have an architecture that has a lower one, too."""
        found = np.zeros(len(indices), bool)
        ends: list[int] = np.searchsorted(indices, self._offsets[1:]).tolist()
        for group, start, end in zip(self.groups, [0, *ends], [*ends, len(indices)], strict=True):
            boxes = self.repeats(group) if end > start else ()
            if boxes:
                shape = [len(options) for options in group.options]
                digits = np.unravel_index(indices[start:end] - group.offset, shape)
                found[start:end] = inside(boxes, np.stack(digits, axis=1))
        return found

    def is_repeated(self, index: int) -> bool:
        """Say whether the architecture of this index has a lower one, too."""
        group = self.group_of(index)
        boxes = self.repeats(group)
        return bool(boxes) and bool(inside(boxes, np.array([group.digits(index - group.offset)]))[0])

    def aligned(self, multiple: int, table: int = 1) -> Space:
        """Return the members whose matrices a recipe can cut into blocks.

        A ratio stays where it fits every width that stays, so that blocks keep a full grid of options.

        Args:
            multiple: Input values of a block.
            table: The same of the token table, where it must divide by another number too.

        Raises:
            UsageError: nothing is left.
        """
        both = math.lcm(multiple, table)
        embeddings = None if self.embedding_widths is None else multiples(self.embedding_widths, both)
        alone = both if embeddings is None else multiple  # a model's one width is the table's too
        widths = None if self.widths is None else multiples(self.widths, alone)
        rows = [tuple(c.aligned(widths, multiple) for c in row) for row in (*self.fewer, self.blocks)]
        *fewer, blocks = dict.fromkeys(rows)  # kinds may have become alike
        result = replace(self, widths=widths, embedding_widths=embeddings, blocks=blocks, fewer=tuple(fewer))
        if () in (widths, embeddings) or any(() in (c.widths, c.ffn_ratios) for c in blocks) or not result.groups:
            raise UsageError(
                f"space {self.name}: no architecture has only matrices that blocks of {both} divide",
                hint="choose a recipe with smaller blocks, or one without: --recipe dynamic_wi8_afp32",
            )
        return result

    def with_embedding_skip(self, wanted: bool | None = None) -> Space:
        """Return the space with the embedding skip or without it.

        Args:
            wanted: None is what the file says, else with it wherever the model has one width.

        Raises:
            UsageError: it is wanted where blocks may differ in width.
        """
        if wanted is None:
            wanted = self.widths is not None if self.embedding_skip is None else self.embedding_skip
        if wanted and self.widths is None:
            problem = f"space {self.name} gives each block a width of its own, and an embedding skip needs one for all"
            raise UsageError(problem, hint="leave --embedding-skip out")
        return replace(self, embedding_skip=wanted)

    @property
    def vocab_size(self) -> int:
        """V; where the space has several choices, the largest."""
        return max(self.vocab_sizes)

    @cached_property
    def _offsets(self) -> list[int]:
        return [group.offset for group in self.groups]

    @cached_property
    def _groups_of(self) -> dict[tuple[int, int, int, int | None, int], list[Group]]:
        found: dict[tuple[int, int, int, int | None, int], list[Group]] = {}
        for g in self.groups:
            width = g.options[0][0].width if self.widths else None
            found.setdefault((g.vocab_size, g.head_dim, g.embedding_width, width, len(g.options)), []).append(g)
        return found

    def group_of(self, index: int) -> Group:
        """Return the group that holds the member of this index."""
        if not 0 <= index < self.numbers:
            raise IndexError(f"space {self.name} has no member {index}, only 0 to {self.numbers - 1}")
        low, high = 0, len(self._offsets)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._offsets[middle] <= index else (low, middle)
        return self.groups[low]

    def decode(self, index: int) -> Architecture:
        """Return the architecture of this index."""
        group = self.group_of(index)
        return self.build(group, group.digits(index - group.offset))

    def build(self, group: Group, digits: Sequence[int]) -> Architecture:
        """Return the architecture with these options in this group."""
        blocks = tuple(options[digit] for options, digit in zip(group.options, digits, strict=True))
        sizes = (group.embedding_width, group.vocab_size, group.head_dim)
        return Architecture(blocks, *sizes, self.per_layer_norms, bool(self.embedding_skip))

    def index_of(self, architecture: Architecture) -> int | None:
        """Return the architecture's lowest index, None where the space does not hold it.

        In whatever FFN ratios it is written: what counts is the FFN width.
        """
        return next(self.indices_of(architecture), None)

    def indices_of(self, architecture: Architecture) -> Iterator[int]:
        """Return an index for each group that holds the architecture, rising."""
        a = architecture
        if (a.per_layer_norms, a.embedding_skip) != (self.per_layer_norms, bool(self.embedding_skip)):
            return
        width = a.blocks[0].width if self.widths else None
        for group in self._groups_of.get((a.vocab_size, a.head_dim, a.embedding_width, width, len(a.blocks)), []):
            digits = [numbers.get(block.shape) for numbers, block in zip(group.number_of, a.blocks, strict=True)]
            found = [digit for digit in digits if digit is not None]
            if len(found) == len(digits):
                yield group.offset + group.position(found)

    def sample(self, count: int, seed: int) -> list[Architecture]:
        """Draw different members uniformly; all of them where the space has no more than `count`."""
        return [self.decode(index) for index in self.sample_indices(count, seed)]

    def sample_indices(self, count: int, seed: int) -> list[int]:
        """Draw indices of different members uniformly."""
        several = self.numbers > self.size
        if count >= self.size:
            return [index for index in range(self.numbers) if not (several and self.is_repeated(index))]
        rng = random.Random(seed)  # noqa: S311 (no secret)
        drawn: dict[int, None] = {}
        while len(drawn) < count:  # ends: count < size, and the space is drawn from evenly
            index = rng.randrange(self.numbers)
            if not (several and self.is_repeated(index)):
                drawn[index] = None
        return list(drawn)


def space_names() -> list[str]:
    """Names of the spaces that ship."""
    return sorted(path.stem for path in SPACES.glob("*.toml"))


def load_space(name_or_path: str, vocab_size: int | None = None) -> Space:
    """Read a shipped space by name, or any TOML by its path.

    Args:
        name_or_path: `poster`, `free`, `wide`, or a file.
        vocab_size: The one vocabulary size, instead of the file's choices.

    Raises:
        UsageError: no such space, or the file is none; the message says why.
    """
    if vocab_size is not None and not 2 <= vocab_size <= MAX_DIMENSION:
        raise UsageError(f"a vocabulary size must lie between 2 and {MAX_DIMENSION}, not {vocab_size}")
    path = SPACES / f"{name_or_path}.toml" if name_or_path in space_names() else Path(name_or_path)
    where = f"space {path}"
    try:
        document = tomllib.loads(
            path.read_text(encoding="utf-8-sig")
        )  # with or without the mark that Windows puts first
        if not document:
            raise InvalidFileError(f"{where} is empty")
        return parse_space(document, where, vocab_size)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(
            f"there is no space '{name_or_path}'{did_you_mean(name_or_path, space_names())}",
            hint="name a shipped space, or the path of a TOML file",
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {where}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text", hint=_HINT) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not valid TOML: {error}", hint=_HINT) from error
    except InvalidFileError as error:  # a space is part of the call: what is wrong in it is wrong in the call
        raise UsageError(error.message, hint=error.hint or _HINT) from error


_HINT = f"correct the file; {SPACES / 'poster.toml'} shows how one looks"


def parse_space(document: Mapping[str, Any], where: str, vocab_size: int | None = None) -> Space:
    """Check the tables of a space file and build the space.

    Raises:
        InvalidFileError: a key is unknown or missing, a choice empty, a width divisible by no head_dim.
    """
    check_keys(document, _KEYS, where)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InvalidFileError(f"{where}: schema_version must be {SCHEMA_VERSION}")
    name, title = document.get("name"), document.get("title", "")
    if not isinstance(name, str) or not name or not isinstance(title, str) or not (name + title).isprintable():
        raise InvalidFileError(f"{where}: 'name' must be a word and 'title' a line of text")
    *fewer, blocks = _parse_blocks(document.get("block"), where)
    own = [choices.widths is not None for choices in blocks]
    widths = _choices(document, "width", where) if "width" in document else None
    if widths is None and not all(own):
        raise InvalidFileError(f"{where}: block {own.index(False)} has no 'width', and the model has no one width")
    if widths is not None and any(own):
        raise InvalidFileError(f"{where}: 'width' stands both for the whole model and in block {own.index(True)}")
    embedding = document.get("embedding_width", "width")
    if embedding == "width" and widths is None:
        raise InvalidFileError(f"{where}: embedding_width must be numbers where each block has its own width")
    norms = bool(_flag(document, "per_layer_norms", where))
    skip = _flag(document, "embedding_skip", where)
    if skip and widths is None:
        raise InvalidFileError(
            f"{where}: embedding_skip needs one 'width' for the whole model", hint="leave embedding_skip out"
        )
    space = Space(
        name=name,
        vocab_sizes=_choices(document, "vocab_size", where) if vocab_size is None else (vocab_size,),
        head_dims=_choices(document, "head_dim", where) if "head_dim" in document else (64,),
        widths=widths,
        embedding_widths=None if embedding == "width" else _choices(document, "embedding_width", where),
        blocks=blocks,
        per_layer_norms=norms,
        embedding_skip=skip,
        title=title,
        fewer=tuple(fewer),
    )
    _check(space, where)
    return space


def _check(space: Space, where: str) -> None:
    """Refuse widths no head divides, blocks that give no network, and absurd sizes."""
    if min(space.vocab_sizes) < 2:
        raise InvalidFileError(f"{where}: vocab_size must be at least 2, not {min(space.vocab_sizes)}")
    for head_dim in space.head_dims:
        if head_dim % 2:
            raise InvalidFileError(f"{where}: head_dim must be even for rotary positions, not {head_dim}")
    for i, choices in enumerate(space.blocks):
        for width in choices.widths or space.widths or ():
            if all(width % head_dim for head_dim in space.head_dims):
                allowed = " or ".join(map(str, space.head_dims))
                raise InvalidFileError(f"{where}: block {i}: no head divides width {width}: head_dim is {allowed}")
    embeddings = 1 if space.embedding_widths is None else len(space.embedding_widths)
    rows = len(space.fewer) + 1
    if rows * len(space.vocab_sizes) * len(space.head_dims) * len(space.widths or (0,)) * embeddings > MAX_GROUPS:
        raise InvalidFileError(f"{where}: more than {MAX_GROUPS} combinations outside the blocks")
    widths_of_model = len(space.widths or (0,)) * len(space.head_dims)
    every = itertools.chain(space.blocks, *space.fewer)
    options = sum(len(c.widths or (0,)) * len(c.depths) * len(c.ffn_ratios) for c in every)
    if options * widths_of_model > MAX_OPTIONS:
        raise InvalidFileError(
            f"{where}: its blocks have {options * widths_of_model:,} options in all, more than {MAX_OPTIONS:,}"
        )
    try:
        groups = space.groups
        if groups:
            space.build(groups[-1], [0] * len(groups[-1].options))
            assert space.size
    except InvalidFileError as error:
        raise InvalidFileError(f"{where}: {error.message}", hint=error.hint) from error
    if not groups:
        raise InvalidFileError(f"{where}: no head_dim divides a width of every block; the space is empty")


def _parse_blocks(value: Any, where: str) -> list[tuple[BlockChoices, ...]]:
    """Return the choices of each block for every number of blocks, the most blocks last."""
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        raise InvalidFileError(f"{where}: needs at least one [[block]]")
    kinds: list[BlockChoices] = []
    counts: list[list[int]] = []
    for item in value:
        here = f"{where}, [[block]] {len(kinds)}"
        check_keys(item, ("count", "width", "depth", "ffn_ratio"), here)
        counts.append(_counts(item, here))
        widths = _choices(item, "width", here) if "width" in item else None
        kinds.append(BlockChoices(widths, _choices(item, "depth", here), _ratios(item, here)))
    most = sum(map(max, counts))
    if most > MAX_BLOCKS:
        raise InvalidFileError(f"{where}: at most {MAX_BLOCKS} blocks, not {most}")
    if math.prod(map(len, counts)) > MAX_GROUPS:
        raise InvalidFileError(f"{where}: more than {MAX_GROUPS} combinations of counts")
    rows = (
        tuple(itertools.chain.from_iterable([kind] * n for kind, n in zip(kinds, numbers, strict=True)))
        for numbers in itertools.product(*counts)
    )
    return sorted(dict.fromkeys(rows), key=len)


def _counts(table: Mapping[str, Any], where: str) -> list[int]:
    values = _list({"count": table.get("count", 1)}, "count", where)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_BLOCKS:
            raise InvalidFileError(f"{where}: count must be whole numbers from 1 to {MAX_BLOCKS}, not {value!r}")
    _distinct(values, "count", where)
    return values


def _flag(document: Mapping[str, Any], key: str, where: str) -> bool | None:
    value = document.get(key)
    if key in document and not isinstance(value, bool):
        raise InvalidFileError(f"{where}: {key} must be true or false, not {value!r}")
    return value


def _list(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    if key not in table:
        raise InvalidFileError(f"{where}: key '{key}' is missing")
    value = table[key]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise InvalidFileError(f"{where}: '{key}' has no choice; write at least one")
    return values


def _distinct(values: list[Any], key: str, where: str) -> None:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise InvalidFileError(f"{where}: {key} {value} stands twice")


def _choices(table: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    values = _list(table, key, where)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DIMENSION:
            raise InvalidFileError(f"{where}: {key} must be whole numbers from 1 to {MAX_DIMENSION}, not {value!r}")
    _distinct(values, key, where)
    return tuple(values)


def _ratios(table: Mapping[str, Any], where: str) -> tuple[float, ...]:
    values = _list(table, "ffn_ratio", where)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise InvalidFileError(f"{where}: ffn_ratio must be numbers greater than zero, not {value!r}")
    _distinct(values, "ffn_ratio", where)
    return tuple(values)
