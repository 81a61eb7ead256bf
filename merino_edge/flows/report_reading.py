"""Values out of a run's JSON files, each checked as it is taken: what is damaged is named, never drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merino_edge.errors import InvalidFileError


@dataclass(frozen=True)
class Record:
    """A JSON object and where it comes from.

    Attributes:
        value: As read.
        where: The file, and the place in it, for errors.
        hint: What mends a damaged one.
    """

    value: Mapping[str, Any]
    where: str
    hint: str

    def _wrong(self, key: str, wanted: str) -> InvalidFileError:
        found = repr(self.value.get(key))
        shown = found if len(found) <= 40 else f"{found[:37]}..."
        problem = f"must be {wanted}, not {shown}" if key in self.value else "is missing"
        return InvalidFileError(f"{self.where}: '{key}' {problem}", hint=self.hint)

    def optional(self, key: str) -> float | None:
        """Return a number, None where it is null or not there."""
        value = self.value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a number")
        return float(value)

    def number(self, key: str) -> float:
        """Return a number."""
        value = self.optional(key)
        if value is None:
            raise self._wrong(key, "a number")
        return value

    def count(self, key: str) -> int:
        """Return a whole number of at least 0."""
        value = self.number(key)
        if value < 0 or value != int(value):
            raise self._wrong(key, "a whole number")
        return int(value)

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.value.get(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self.value.get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def inside(self, key: str) -> Record:
        """Return an object in it."""
        value = self.value.get(key)
        if not isinstance(value, Mapping):
            raise self._wrong(key, "an object")
        return Record(value, f"{self.where}, {key}", self.hint)

    def maybe(self, key: str) -> Record | None:
        """Return an object in it, None where it is null or not there."""
        return None if self.value.get(key) is None else self.inside(key)

    def each(self, key: str) -> list[Record]:
        """Return the objects of a list in it."""
        value = self.value.get(key)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self._wrong(key, "a list of objects")
        return [Record(item, f"{self.where}, {key} {n}", self.hint) for n, item in enumerate(value, start=1)]

    def numbers(self) -> dict[str, float]:
        """Return all numbers in it by their keys; nulls are left out."""
        found = {key: self.optional(key) for key in self.value}
        return {key: value for key, value in found.items() if value is not None}
