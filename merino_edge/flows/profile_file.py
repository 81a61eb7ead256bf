"""`profile.json`: what is known about a device: its facts, and for each recipe the fitted models.

The estimate of a board that was never measured is the same object with coefficients derived from
its bandwidth and multiply rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merino_edge.bundle import bundle_label
from merino_edge.device.board import Board
from merino_edge.device.registry import device_folder
from merino_edge.errors import InvalidFileError, check_keys, next_step
from merino_edge.files import read_json, write_json
from merino_edge.flows.conditions import TESTS, Conditions
from merino_edge.search.latency import LatencyModel, MemoryModel, estimate_latency, estimate_memory
from merino_edge.search.memory import cache_copies

_KEYS = ("device", "estimate", "facts", "recipes")
_RECIPE_KEYS = ("conditions", "key", "latency", "memory", "models", "seconds", "valid", "cache_bytes", "energy")


@dataclass(frozen=True)
class RecipeProfile:
    """The models of one recipe on one device.

    Attributes:
        conditions: What was measured, or estimated.
        key: What the records behind it have in common; empty for an estimate.
        latency: Models by test, `tg` and `pp128`.
        memory: Model of the peak memory.
        models: Whole models measured; 0 for an estimate.
        seconds: Time it took.
        cache_bytes: Last-level cache that the features assume.
        valid: False where the device was too disturbed for the numbers to be used.
        energy: Model of a generated token's energy, mJ instead of ms; None where no sensor told.
    """

    conditions: Conditions
    key: dict[str, Any]
    latency: dict[str, LatencyModel]
    memory: MemoryModel
    models: int
    seconds: float
    cache_bytes: int
    valid: bool = True
    energy: LatencyModel | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "conditions": self.conditions.to_json(),
            "key": self.key,
            "latency": {test: model.to_json() for test, model in self.latency.items()},
            "memory": self.memory.to_json(),
            "models": self.models,
            "seconds": self.seconds,
            "cache_bytes": self.cache_bytes,
            "valid": self.valid,
            "energy": self.energy.to_json() if self.energy else None,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> RecipeProfile:
        """Read the JSON object."""
        if not isinstance(value, dict):
            raise InvalidFileError(f"{where} must be a JSON object")
        check_keys(value, _RECIPE_KEYS, where)
        try:
            missing = [test for test in TESTS if test not in value["latency"]]
            if missing:
                raise InvalidFileError(f"{where}: the latency model of {missing[0]} is missing")
            return cls(
                conditions=Conditions.from_json(value["conditions"], where),
                key=dict(value["key"]),
                latency={t: LatencyModel.from_json(m, f"{where}, latency {t}") for t, m in value["latency"].items()},
                memory=MemoryModel.from_json(value["memory"], f"{where}, memory"),
                models=int(value["models"]),
                seconds=float(value["seconds"]),
                cache_bytes=int(value["cache_bytes"]),
                valid=bool(value["valid"]),
                energy=LatencyModel.from_json(value["energy"], f"{where}, energy") if value.get("energy") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidFileError(f"{where}: not a profile: {error}") from error


_AGAIN = "measure again with: merino-edge profile"


@dataclass(frozen=True)
class Profile:
    """All that is known about a device.

    Attributes:
        device: Its name.
        estimate: True where nothing was measured: every number carries an interval.
        facts: What the device said of itself; empty for an estimate.
        recipes: By bundle label (`onnx-dynamic_wi8_afp32`).
    """

    device: str
    estimate: bool
    facts: dict[str, Any]
    recipes: dict[str, RecipeProfile]

    def recipe(self, conditions: Conditions) -> RecipeProfile | None:
        """Return the models for a format, recipe and form, None where they were not measured."""
        return self.recipes.get(bundle_label(conditions.format, conditions.recipe, conditions.form))


def profile_path(device: str) -> Path:
    """Return where a device's profile lies."""
    return device_folder(device) / "profile.json"


def read_profile(device: str) -> Profile | None:
    """Read a device's profile, None where it has none."""
    path = profile_path(device)
    if not path.exists():
        return None
    with next_step(_AGAIN):
        value = read_json(path, "profile")
        check_keys(value, _KEYS, f"profile {path}")
        try:
            recipes = {
                label: RecipeProfile.from_json(r, f"profile {path}, {label}") for label, r in value["recipes"].items()
            }
            return Profile(str(value["device"]), bool(value["estimate"]), dict(value["facts"]), recipes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidFileError(f"profile {path}: not a profile: {error}") from error


def write_profile(profile: Profile) -> Path:
    """Write a device's profile."""
    path = profile_path(profile.device)
    write_json(
        path,
        {
            "device": profile.device,
            "estimate": profile.estimate,
            "facts": profile.facts,
            "recipes": {label: r.to_json() for label, r in profile.recipes.items()},
        },
    )
    return path


def estimated_profile(device: str, board: Board, conditions: Conditions) -> Profile:
    """Derive a profile from a board's data sheet; every number from it is an estimate."""
    cache = board.cpu.last_level_cache_bytes
    latency = {
        test: estimate_latency(
            board.estimate,
            test=test,
            depth=conditions.depth if test == "tg" else 0,
            recipe=conditions.recipe,
            cache_bytes=cache,
        )
        for test in TESTS
    }
    memory = estimate_memory(
        board.estimate,
        recipe=conditions.recipe,
        context_length=conditions.context_length,
        copies=cache_copies(conditions.format, conditions.form),
    )
    recipe = RecipeProfile(conditions, {}, latency, memory, models=0, seconds=0.0, cache_bytes=cache)
    label = bundle_label(conditions.format, conditions.recipe, conditions.form)
    return Profile(device, estimate=True, facts={}, recipes={label: recipe})
