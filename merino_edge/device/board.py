"""Kinds of board: facts, and an estimate of how fast they are, from one TOML file each.

The files lie in the package `merino_edge.device_profiles`; `pi4.toml` shows the schema. They are read strictly: an
unknown key is an error that offers the nearest, a missing, negative or infinite number is an error as well.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from merino_edge.errors import InvalidFileError, UsageError, check_keys, did_you_mean
from merino_edge.files import SCHEMA_VERSION, read_text

_PACKAGE = "merino_edge.device_profiles"
_T = TypeVar("_T")

ESTIMATE_KEYS = (
    "bandwidth_bytes_per_s",
    "cache_bandwidth_bytes_per_s",
    "fp32_macs_per_s",
    "int8_macs_per_s",
    "layer_overhead_ms",
    "token_overhead_ms",
    "runtime_memory_bytes",
    "relative_error",
)


@dataclass(frozen=True)
class Cpu:
    """The processor of a board.

    Attributes:
        core: Name of the core that does the work.
        cores: All of them.
        performance_cores: Those of the fast kind.
        instruction_sets: Extensions that matrix multiplication can use (`neon`, `dotprod`, `i8mm`).
        last_level_cache_bytes: Size of the last cache before memory.
    """

    core: str
    cores: int
    performance_cores: int
    instruction_sets: tuple[str, ...]
    last_level_cache_bytes: int


@dataclass(frozen=True)
class Sensors:
    """What a board can measure about itself: an energy sensor by name, or why there is none."""

    energy: bool
    energy_sensor: str | None
    energy_reason: str | None


@dataclass(frozen=True)
class Board:
    """One kind of board.

    Attributes:
        name: The file's name without `.toml`.
        title: What it says on the box.
        device_tree_model: Beginning of /proc/device-tree/model by which it is recognised; None where nothing tells.
        cpu: Its processor.
        ram_bytes: Memory, of the variant the file speaks of.
        prefer: `FORMAT/RECIPE`, the first choice first.
        sensors: Whether it can measure energy.
        estimate: Rates, overheads and `relative_error` by the names in `ESTIMATE_KEYS`.
        estimate_source: Where the estimate comes from.
    """

    name: str
    title: str
    device_tree_model: str | None
    cpu: Cpu
    ram_bytes: int
    prefer: tuple[str, ...]
    sensors: Sensors
    estimate: dict[str, float]
    estimate_source: str


@cache
def board_names() -> tuple[str, ...]:
    """Return the names of all shipped boards, in order."""
    entries = (Path(entry.name) for entry in resources.files(_PACKAGE).iterdir())
    return tuple(sorted(entry.stem for entry in entries if entry.suffix == ".toml"))


@cache
def load_board(name: str) -> Board:
    """Read the facts of one kind of board.

    Raises:
        UsageError: there is no such board; the nearest is offered.
        InvalidFileError: the file is damaged.
    """
    if name not in board_names():
        raise UsageError(
            f"unknown board '{name}'{did_you_mean(name, board_names(), listed=True)}",
            hint=f"boards: {', '.join(board_names())}",
        )
    text = resources.files(_PACKAGE).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return parse_board(text, name)


def slow_here(format_name: str, recipe: str, facts: Mapping[str, Any] | None, board: Board) -> str | None:
    """Return why a recipe is a bad choice for a device's processor, None where nothing is known against it.

    8-bit weights in blocks are an operator (MatMulNBits) whose 8-bit products onnxruntime has on Arm only for cores
    with the dot product. On others it gives right numbers, by unpacking every weight to float32 at every call
    (`bench/arm.py --instructions` counts how many instructions that takes).

    Args:
        format_name: `onnx` or another.
        recipe: Of the bundle.
        facts: What the device says of itself, which beats the board's file; None where it was never asked.
        board: Its kind, for devices never asked.
    """
    if format_name != "onnx" or not recipe.startswith(("weight_only_wi8", "dynamic_wi8_head")):
        return None
    cpu = facts.get("cpu") if facts else None
    if isinstance(cpu, dict) and isinstance(cpu.get("flags"), list) and cpu["flags"]:
        arm = facts is not None and facts.get("architecture") == "aarch64"
        lacking = arm and "asimddp" not in cpu["flags"]
        core = cpu.get("model") or "its core"
    else:
        sets = board.cpu.instruction_sets
        lacking, core = "neon" in sets and "dotprod" not in sets, board.cpu.core
    return f"{core} has no dot product, so that {recipe} unpacks weights to float32 at every token" if lacking else None


def detect_board(facts: Mapping[str, Any]) -> str | None:
    """Return the name of the board whose `match` fits what a device says of itself, None where none does.

    Args:
        facts: What the agent tells; `board_model` is the text of /proc/device-tree/model.
    """
    model = facts.get("board_model")
    if not isinstance(model, str):
        return None
    beginnings = {board.device_tree_model or "": board.name for board in map(load_board, board_names())}
    fitting = [text for text in beginnings if text and model.startswith(text)]
    return beginnings[max(fitting, key=len)] if fitting else None


def parse_board(text: str, name: str) -> Board:
    """Read a board's TOML; `name` must be the name in it."""
    where = f"{name}.toml"
    top = _Table(parse_toml(text, where), where)
    top.only("schema_version", "name", "title", "match", "cpu", "memory", "prefer", "sensors", "estimate")
    if top.whole("schema_version") != SCHEMA_VERSION:
        raise InvalidFileError(f"{where}: schema_version must be {SCHEMA_VERSION}")
    if top.text("name") != name:
        raise InvalidFileError(f"{where}: name must be '{name}', like the file's")
    match = top.table("match", optional=True).only("device_tree_model")
    memory = top.table("memory").only("ram_bytes")
    prefer = top.table("prefer").only("bundles")
    estimate = top.table("estimate").only(*ESTIMATE_KEYS, "source")
    return Board(
        name=name,
        title=top.text("title"),
        device_tree_model=match.text("device_tree_model") if match.values else None,
        cpu=_parse_cpu(top.table("cpu")),
        ram_bytes=memory.whole("ram_bytes"),
        prefer=prefer.texts("bundles"),
        sensors=_parse_sensors(top.table("sensors")),
        estimate={key: estimate.number(key) for key in ESTIMATE_KEYS},
        estimate_source=estimate.text("source"),
    )


def _parse_cpu(table: _Table) -> Cpu:
    table.only("core", "cores", "performance_cores", "instruction_sets", "last_level_cache_bytes")
    cpu = Cpu(
        core=table.text("core"),
        cores=table.whole("cores"),
        performance_cores=table.whole("performance_cores"),
        instruction_sets=table.texts("instruction_sets"),
        last_level_cache_bytes=table.whole("last_level_cache_bytes"),
    )
    if cpu.performance_cores > cpu.cores:
        raise InvalidFileError(f"{table.where}: performance_cores cannot exceed cores")
    return cpu


def _parse_sensors(table: _Table) -> Sensors:
    table.only("energy", "energy_sensor", "energy_reason")
    energy = table.truth("energy")
    needed, other = ("energy_sensor", "energy_reason") if energy else ("energy_reason", "energy_sensor")
    if other in table.values:
        raise InvalidFileError(f"{table.where}: {other} contradicts energy = {str(energy).lower()}")
    text = table.text(needed)
    return Sensors(energy, energy_sensor=text if energy else None, energy_reason=None if energy else text)


@dataclass(frozen=True)
class _Table:
    """A TOML table that says where it stands when something in it is wrong."""

    values: Mapping[str, Any]
    where: str

    def only(self, *keys: str) -> _Table:
        check_keys(self.values, keys, self.where)
        return self

    def table(self, key: str, optional: bool = False) -> _Table:
        if optional and key not in self.values:
            return _Table({}, f"{self.where}, [{key}]")
        return _Table(self._get(key, "a table", lambda v: v if isinstance(v, dict) else None), f"{self.where}, [{key}]")

    def text(self, key: str) -> str:
        return self._get(key, "a text", lambda v: v if isinstance(v, str) and v.strip() else None)

    def texts(self, key: str) -> tuple[str, ...]:
        return self._get(key, "a list of texts", _texts)

    def truth(self, key: str) -> bool:
        return self._get(key, "true or false", lambda v: v if isinstance(v, bool) else None)

    def whole(self, key: str) -> int:
        return self._get(key, "a whole number above zero", _whole)

    def number(self, key: str) -> float:
        return self._get(key, "a number above zero", _positive)

    def _get(self, key: str, what: str, read: Callable[[Any], _T | None]) -> _T:
        if key not in self.values:
            raise InvalidFileError(f"{self.where}: '{key}' is missing")
        found = read(self.values[key])
        if found is None:
            raise InvalidFileError(f"{self.where}: {key} must be {what}, not {self.values[key]!r}")
        return found


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def toml_string(text: str) -> str:
    """Quote a text for TOML; JSON's escapes are TOML's, as long as nothing unprintable is in it."""
    return json.dumps(text, ensure_ascii=False)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file; anything wrong with it is an `InvalidFileError` that names it."""
    return parse_toml(read_text(path, what), f"{what} {path}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML; anything wrong with it is an `InvalidFileError` that says where."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidFileError(f"{where} is not valid TOML: {error}") from error
