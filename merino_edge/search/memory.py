"""Bytes that a device must have free for an architecture: runtime, weights, cache filled to the context.

The same two sources as latency: a fit to measured peaks, or an estimate from a board's file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merino_edge.architecture import Architecture
from merino_edge.errors import InvalidFileError, UsageError, check_keys
from merino_edge.search.cost import Array, KvBytes, Whole, bytes_sum, matrix_bytes, table_bytes, total
from merino_edge.search.fitting import conformal_excess, fit_coefficients, judge, leave_one_out

FEATURES = ("weight_bytes", "table_bytes", "kv_bytes", "constant")
WEIGHT_COPIES = (1.0, 1.0)  # of weights and table, that an engine holds at least; of the cache: `cache_copies`
COVERAGE = 0.9
BAND_OF_ONE = 0.1  # where one sample leaves nothing to be judged by
SAMPLES_TO_FIT = 5  # below, coefficients are the prior's and only their common scale is fitted


def cache_copies(format_name: str, form: str) -> int:
    """Return how often a session holds keys and values: once where it writes into the cache that it reads."""
    return 1 if form == "fast" or format_name == "tflite" else 2


@dataclass(frozen=True)
class MemorySample:
    """One measured model: peak bytes of the process, runtime included, cache filled to the context."""

    architecture: Architecture
    peak_bytes: int


@dataclass(frozen=True)
class MemoryModel:
    """Predicts the peak memory of the process that runs a bundle. Itself a sum over blocks, in bytes.

    Attributes:
        recipe: As in the bundle.
        context_length: Positions the cache is filled to.
        coefficients: Bytes resident per byte of weights, table and cache, and the constant in bytes.
        band: Share by which `upper_bytes` lies above `predict_bytes`.
        estimate: True where no measurement stands behind it.
        accuracy: As in `LatencyModel`.
    """

    recipe: str
    context_length: int
    coefficients: tuple[float, ...]
    band: float
    estimate: bool
    accuracy: dict[str, Any]

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Weights and cache of blocks."""
        weights = bytes_sum(self.recipe, per_layer_norms=False).blocks(width, ffn_width, depth)
        cache = KvBytes(self.context_length).blocks(width, ffn_width, depth)
        return self._bytes(weights, 0, cache, 0)

    def seams(self, before: Array, after: Array) -> Array:
        """Width projections."""
        return self._bytes(bytes_sum(self.recipe, per_layer_norms=False).seams(before, after), 0, 0, 0)

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Table, output projection, and everything constant."""
        table = table_bytes(self.recipe)(vocab_size, embedding_width)
        everything = bytes_sum(self.recipe, per_layer_norms=False).ends(last_width, embedding_width, vocab_size)
        return self._bytes(everything - table, table, 0, 1)

    def _bytes(self, weights: Any, table: Any, cache: Any, constant: Any) -> Array:
        parts = zip(self.coefficients, (weights, table, cache, constant), strict=True)
        return np.rint(sum(c * np.asarray(v, np.float64) for c, v in parts))

    def predict_bytes(self, architecture: Architecture) -> float:
        """Return the expected peak."""
        return float(total(self, architecture))

    def upper_bytes(self, architecture: Architecture) -> float:
        """Return the end of the band, which a limit applies to."""
        return self.predict_bytes(architecture) * (1.0 + self.band)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "recipe": self.recipe,
            "context_length": self.context_length,
            "bytes_per_unit": dict(zip(FEATURES, self.coefficients, strict=True)),
            "band": self.band,
            "estimate": self.estimate,
            "accuracy": self.accuracy,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> MemoryModel:
        """Read the JSON object; unknown or missing keys and impossible numbers are errors."""
        if not isinstance(value, Mapping):
            raise InvalidFileError(f"{where}: a memory model must be a JSON object")
        keys = ("recipe", "context_length", "bytes_per_unit", "band", "estimate", "accuracy")
        check_keys(value, keys, where)
        for key in keys:
            if key not in value:
                raise InvalidFileError(f"{where}: key '{key}' is missing")
        units = value["bytes_per_unit"]
        if not isinstance(units, Mapping) or set(units) != set(FEATURES):
            raise InvalidFileError(f"{where}: 'bytes_per_unit' must name exactly: {', '.join(FEATURES)}")
        for name, number in [*units.items(), ("band", value["band"])]:
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                raise InvalidFileError(f"{where}: {name} must be a number of at least 0, not {number!r}")
        context = value["context_length"]
        if isinstance(context, bool) or not isinstance(context, int) or context < 1:
            raise InvalidFileError(f"{where}: context_length must be a whole number of at least 1, not {context!r}")
        if not isinstance(value["estimate"], bool) or not isinstance(value["accuracy"], Mapping):
            raise InvalidFileError(f"{where}: 'estimate' must be true or false, 'accuracy' an object")
        if not isinstance(value["recipe"], str):
            raise InvalidFileError(f"{where}: 'recipe' must be a word")
        check_keys(value["accuracy"], ("samples", "mape", "within_10pct", "kendall"), f"{where}, accuracy")
        matrix_bytes(value["recipe"])
        coefficients = tuple(float(units[name]) for name in FEATURES)
        return cls(
            value["recipe"], context, coefficients, float(value["band"]), value["estimate"], dict(value["accuracy"])
        )


def _unit_models(recipe: str, context_length: int) -> list[MemoryModel]:
    """Return one model a feature, whose prediction is that feature."""
    eye = np.eye(len(FEATURES))
    return [MemoryModel(recipe, context_length, tuple(row.tolist()), 0.0, True, {}) for row in eye]


def fit_memory(
    samples: Sequence[MemorySample], *, recipe: str, context_length: int, runtime_bytes: int, copies: int = 2
) -> MemoryModel:
    """Fit a model to measured peaks.

    Args:
        samples: At least one; with fewer than five only the common scale of the prior is fitted.
        recipe: Of the bundles measured.
        context_length: Positions their cache was filled to.
        runtime_bytes: Peak of the empty runtime in the same process; the constant is at least that.
        copies: Of the cache, that the prior assumes: see `cache_copies`.

    Raises:
        UsageError: no sample, or one that is no size.
    """
    if not samples:
        raise UsageError("a memory model needs at least one measured model")
    if any(sample.peak_bytes <= 0 for sample in samples):
        raise UsageError("a measured peak of memory must be greater than zero")
    units = _unit_models(recipe, context_length)
    features = np.array([[unit.predict_bytes(s.architecture) for unit in units] for s in samples])
    measured = np.array([s.peak_bytes for s in samples], np.float64)
    few, prior = len(samples) < SAMPLES_TO_FIT, np.array([*WEIGHT_COPIES, float(copies)])
    columns = (features[:, :3] @ prior)[:, None] if few else features
    found = fit_coefficients(columns, measured, runtime_bytes)
    fitted = [*(found[0] * prior), 0.0] if few else found.tolist()
    coefficients = (*(float(c) for c in fitted[:3]), float(fitted[3]) + runtime_bytes)
    band, accuracy = BAND_OF_ONE, judge(np.empty(0), np.empty(0)).to_json()
    if len(samples) > 1:
        held_out = leave_one_out(columns, measured, runtime_bytes)
        band, accuracy = conformal_excess(held_out, measured, COVERAGE), judge(held_out, measured).to_json()
    return MemoryModel(recipe, context_length, coefficients, band, False, accuracy)


def estimate_memory(estimate: Mapping[str, Any], *, recipe: str, context_length: int, copies: int = 2) -> MemoryModel:
    """Derive a model from a board's `[estimate]`: the empty runtime, weights once, so many copies of the cache."""
    coefficients = (*WEIGHT_COPIES, float(copies), float(estimate["runtime_memory_bytes"]))
    error = float(estimate["relative_error"])
    accuracy = judge(np.empty(0), np.empty(0)).to_json()
    return MemoryModel(recipe, context_length, coefficients, error, True, accuracy)
