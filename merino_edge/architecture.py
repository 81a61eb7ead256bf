"""What a MeRino decoder looks like: blocks of layers that share one set of weights.

An `Architecture` fixes every tensor's name and shape. It is the one description that search,
training, export and the device agree on; its digest names it in every measurement.

The model (arXiv 2403.07921, sections 3.1 and 3.3; the details the paper leaves open are ours):
pre-norm decoder, rotary positions, RMSNorm, two-matrix feed-forward network with exact GELU, no
biases, token embedding tied with the output head. All `depth` layers of a block call the same
matrices. Where the width changes between blocks stands one linear projection.

An *embedding skip* (not in the paper): what enters the first layer, normed, is added to what enters every
executed layer, times a gain for each channel. It has no matrix, little time, and lowers the loss
(`bench/space_study.py`, `bench/skip_time.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from merino_edge.errors import InvalidFileError, check_keys
from merino_edge.files import canonical_json, read_json, write_json

NORM_EPSILON = 1e-5
ROPE_THETA = 10_000.0
MAX_DIMENSION = 1 << 20  # of a width or a vocabulary: a guard against nonsense in files


@dataclass(frozen=True)
class Block:
    """`depth` layers of one width that call one set of weight matrices.

    Attributes:
        width: E, the width of the residual stream.
        ffn_ratio: R; the feed-forward network is `int(R * E)` wide.
        depth: L, how many times the layer is executed.
    """

    width: int
    ffn_ratio: float
    depth: int

    def __post_init__(self) -> None:
        """Check the numbers once; an integral ratio is kept as an integer so that digests agree."""
        for name in ("width", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DIMENSION:
                raise InvalidFileError(f"block {name} must be a whole number from 1 to {MAX_DIMENSION}, not {value!r}")
        ratio = self.ffn_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio != ratio:
            raise InvalidFileError(f"block ffn_ratio must be a number, not {ratio!r}")
        if not 0 < ratio <= MAX_DIMENSION or not 1 <= int(ratio * self.width) <= MAX_DIMENSION:
            raise InvalidFileError(
                f"block ffn_ratio {ratio!r} at width {self.width} gives no feed-forward network of 1 to {MAX_DIMENSION}"
            )
        if int(ratio) == ratio:
            object.__setattr__(self, "ffn_ratio", int(ratio))

    @property
    def ffn_width(self) -> int:
        """F, the width of the feed-forward network."""
        return int(self.ffn_ratio * self.width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, FFN width and depth: what the network is, in whatever ratio it is written."""
        return self.width, self.ffn_width, self.depth


@dataclass(frozen=True)
class Architecture:
    """A whole block-shared decoder.

    Attributes:
        blocks: The blocks in order of execution.
        embedding_width: Width of the token table, which is also the output head.
        vocab_size: V, rows of the token table.
        head_dim: Width of one attention head, the same in all blocks; even (rotary positions).
        per_layer_norms: Give every executed layer its own norm gains instead of one per block.
        embedding_skip: Add the normed embedding to what enters every executed layer, by gains of its own; the blocks
            have one width then.
    """

    blocks: tuple[Block, ...]
    embedding_width: int
    vocab_size: int
    head_dim: int = 64
    per_layer_norms: bool = False
    embedding_skip: bool = False

    def __post_init__(self) -> None:
        """Check what the parts must be to each other."""
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if not 1 <= len(self.blocks) <= 1024:
            raise InvalidFileError(f"an architecture needs 1 to 1024 blocks, not {len(self.blocks)}")
        for name in ("embedding_width", "vocab_size", "head_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_DIMENSION:
                raise InvalidFileError(f"{name} must be a whole number from 1 to {MAX_DIMENSION}, not {value!r}")
        for name in ("per_layer_norms", "embedding_skip"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidFileError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.head_dim % 2:
            raise InvalidFileError(f"head_dim must be even for rotary positions, not {self.head_dim}")
        for i, block in enumerate(self.blocks):
            if block.width % self.head_dim:
                raise InvalidFileError(
                    f"block {i}: width {block.width} is no multiple of head_dim {self.head_dim}",
                    hint=f"use a multiple of {self.head_dim}, or another head_dim",
                )
        if self.embedding_skip and len({block.width for block in self.blocks}) > 1:
            raise InvalidFileError(
                "embedding_skip needs blocks of one width",
                hint="give all blocks one width, or leave embedding_skip out",
            )

    @property
    def depth(self) -> int:
        """Executed layers of the whole model."""
        return sum(block.depth for block in self.blocks)

    def heads(self, block: int) -> int:
        """Attention heads of one block."""
        return self.blocks[block].width // self.head_dim

    def input_width(self, block: int) -> int:
        """Width of what enters a block, before its projection."""
        return self.blocks[block - 1].width if block else self.embedding_width

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every unique tensor, in the order of execution: two axes are a matrix `[out, in]`."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.embedding_width)}
        for i, block in enumerate(self.blocks):
            width, ffn = block.width, block.ffn_width
            if self.input_width(i) != width:
                shapes[f"blocks.{i}.projection.weight"] = (width, self.input_width(i))
            for name in ("query", "key", "value", "output"):
                shapes[f"blocks.{i}.{name}.weight"] = (width, width)
            shapes[f"blocks.{i}.ffn_in.weight"] = (ffn, width)
            shapes[f"blocks.{i}.ffn_out.weight"] = (width, ffn)
            shapes[f"blocks.{i}.norms"] = (block.depth if self.per_layer_norms else 1, 2, width)
            if self.embedding_skip:
                shapes[f"blocks.{i}.skip_gains"] = (block.depth, 1, width)
        last = self.blocks[-1].width
        shapes["final_norm.weight"] = (last,)
        if last != self.embedding_width:
            shapes["output_projection.weight"] = (self.embedding_width, last)
        return shapes

    @property
    def unique_parameters(self) -> int:
        """Parameters as stored: a shared matrix counts once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes.values())

    @property
    def executed_parameters(self) -> int:
        """Parameters as executed in one forward pass: a shared matrix counts at every use."""
        total = 0
        for name, shape in self.tensor_shapes.items():
            parts = name.split(".")
            shared = parts[0] == "blocks" and parts[2] != "projection"
            uses = self.blocks[int(parts[1])].depth if shared else 1
            if parts[-1] == "skip_gains" or (parts[-1] == "norms" and self.per_layer_norms):
                uses = 1
            total += uses * math.prod(shape)
        return total + math.prod(self.tensor_shapes["embedding.weight"])  # the tied table is also the head

    def layers(self) -> Iterator[tuple[int, int]]:
        """Yield (block, layer in the block) in the order of execution."""
        for i, block in enumerate(self.blocks):
            for layer in range(block.depth):
                yield i, layer

    def kv_cache_bytes(self, tokens: int, bytes_per_value: int = 4) -> int:
        """Bytes of keys and values that `tokens` positions need over all executed layers."""
        return sum(2 * block.depth * block.width for block in self.blocks) * tokens * bytes_per_value

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that files carry."""
        return {
            "blocks": [{"width": b.width, "ffn_ratio": b.ffn_ratio, "depth": b.depth} for b in self.blocks],
            "embedding_width": self.embedding_width,
            "vocab_size": self.vocab_size,
            "head_dim": self.head_dim,
            "per_layer_norms": self.per_layer_norms,
            **({"embedding_skip": True} if self.embedding_skip else {}),
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "architecture") -> Architecture:
        """Read the JSON object; every unknown or missing key is an error."""
        if not isinstance(value, Mapping):
            raise InvalidFileError(f"{where}: an architecture must be a JSON object")
        keys = ("blocks", "embedding_width", "vocab_size", "head_dim", "per_layer_norms", "embedding_skip")
        check_keys(value, keys, where)
        if not isinstance(value.get("blocks"), list):
            raise InvalidFileError(f"{where}: 'blocks' must be a list of blocks")
        blocks = []
        for i, item in enumerate(value["blocks"]):
            if not isinstance(item, Mapping):
                raise InvalidFileError(f"{where}: block {i} must be a JSON object")
            check_keys(item, ("width", "ffn_ratio", "depth"), f"{where}, block {i}")
            try:
                blocks.append(Block(item["width"], item["ffn_ratio"], item["depth"]))
            except KeyError as error:
                raise InvalidFileError(f"{where}, block {i}: key {error} is missing") from error
            except InvalidFileError as error:
                raise InvalidFileError(f"{where}, block {i}: {error.message}", hint=error.hint) from error
        try:
            return cls(
                blocks=tuple(blocks),
                embedding_width=value["embedding_width"],
                vocab_size=value["vocab_size"],
                head_dim=value.get("head_dim", 64),
                per_layer_norms=value.get("per_layer_norms", False),
                embedding_skip=value.get("embedding_skip", False),
            )
        except KeyError as error:
            raise InvalidFileError(f"{where}: key {error} is missing") from error
        except InvalidFileError as error:
            raise InvalidFileError(f"{where}: {error.message}", hint=error.hint) from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: the architecture's name in measurements."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def describe(self) -> str:
        """One line a person can read: ``512x3 r4 | 2 of 512x1 r1, V 8192, embedding skip``, two blocks alike last."""
        runs = [(len(list(alike)), b) for b, alike in itertools.groupby(self.blocks)]
        blocks = " | ".join(
            (f"{count} of " if count > 1 else "") + f"{b.width}x{b.depth} r{b.ffn_ratio:g}" for count, b in runs
        )
        table = "" if self.embedding_width == self.blocks[0].width else f", embedding {self.embedding_width}"
        return f"{blocks}{table}, V {self.vocab_size}{', embedding skip' if self.embedding_skip else ''}"


def load_architecture(path: Path) -> Architecture:
    """Read an `architecture.json`."""
    document = read_json(path, "architecture")
    return Architecture.from_json(document, where=str(path))


def save_architecture(path: Path, architecture: Architecture) -> None:
    """Write an `architecture.json`."""
    write_json(path, architecture.to_json())


def check_tensors(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise where the tensors at hand are not those the architecture names.

    Args:
        architecture: What the file claims to hold.
        shapes: Name and shape of each tensor found.
        where: The file, for the error.
    """
    expected = architecture.tensor_shapes
    missing = [name for name in expected if name not in shapes]
    foreign = [name for name in shapes if name not in expected]
    wrong = [name for name in expected if name in shapes and tuple(shapes[name]) != expected[name]]
    if not (missing or foreign or wrong):
        return
    if missing:
        problem = f"tensor '{missing[0]}' is missing"
    elif wrong:
        name = wrong[0]
        problem = f"tensor '{name}' has shape {list(shapes[name])}, the architecture says {list(expected[name])}"
    else:
        problem = f"tensor '{foreign[0]}' belongs to no part of the architecture"
    more = len(missing) + len(foreign) + len(wrong) - 1
    raise InvalidFileError(f"{where}: {problem}" + (f" (and {more} more)" if more else ""))
