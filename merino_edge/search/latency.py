"""Milliseconds of an architecture on a device: analytic costs times fitted coefficients.

Two sources, one code path: coefficients fitted to a few measured models (`fit_latency`), or derived
from a board's bandwidth and multiply rate (`estimate_latency`). Either way the model predicts, and
raises its prediction by a band: conformal for the fitted one, the stated relative error for the
estimate. A limit applies to the raised value. Kept as JSON.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import InvalidFileError, UsageError, check_keys
from merino_edge.search.cost import (
    Array,
    KvBytes,
    Macs,
    Sum,
    Whole,
    bytes_sum,
    matrix_bytes,
    on_grid,
    table_bytes,
    total,
    where_changed,
)
from merino_edge.search.fitting import Accuracy, FloatArray, conformal_excess, fit_coefficients, judge, leave_one_out
from merino_edge.search.memory import MemoryModel, MemorySample, estimate_memory, fit_memory
from merino_edge.search.space import Space

__all__ = [
    "LatencyModel", "LatencySample", "MemoryModel", "MemorySample",
    "choose_architectures", "estimate_latency", "estimate_memory", "fit_latency", "fit_memory",
]  # fmt: skip

FEATURES = (
    "attention_macs",  # query, key, value, output
    "ffn_macs",  # and width projections: plain products
    "score_macs",  # T x P scores and their product with the values
    "weight_bytes_once",  # each block's matrices, read at least once a pass
    "weight_bytes_again",  # second and later uses of blocks larger than the last-level cache
    "weight_bytes_cached",  # second and later uses of the others
    "kv_bytes",  # keys and values read
    "layers",  # executed layers: launching operators
    "head_macs",  # product with the token table
    "constant",
    "weight_bytes_evicted",  # of a block's matrices, what is above its share of the last-level cache
    "weight_bytes_missed",  # of a whole model's matrices and table, what the cache no longer holds when it comes again
    "kv_bytes_missed",  # of its keys and values
)
LATER = FEATURES[-3:]  # files written before these were counted lack them
MISSED = FEATURES.index("weight_bytes_missed")  # from here on no sums over blocks
OLD_MISSED = "model_bytes_evicted"  # what the former was called when keys and values took no room
CACHE_SHARES = (1 / 24, 1 / 16, 1 / 12, 1 / 10, 1 / 8, 1 / 6, 1 / 4)  # that a block may have for itself
KEPT_SHARES = (1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1.0, 5 / 4)  # that a model may have for itself
KV_ROOM = 2  # bytes of cache that a byte of keys and values takes; 0 to 4 were tried (bench/cache_study.py)
MS_GRID = 2.0**-30  # ms; sums over blocks stay exact up to 8e6 ms
COVERAGE = 0.9
OF_CACHE = ("share_bytes", "kept_bytes", "kv_room")
TG_TOKENS = 64  # `tg` is the median over 64 tokens
_TEST = re.compile(r"^(tg|pp|full)([1-9][0-9]{0,5})?$")


@dataclass(frozen=True)
class Work:
    """What one repetition of a test computes: T new tokens, P positions, N rows of logits."""

    tokens: int
    positions: int
    logits: int


def parse_test(test: str, depth: int) -> Work:
    """Return the work of `tg`, `tgN`, `ppN` or `fullN` after `depth` tokens.

    Raises:
        UsageError: no such test.
    """
    match = _TEST.match(test)
    if not match or (match[1] != "tg" and not match[2]):
        raise UsageError(f"'{test}' is no test", hint="use tg, ppN (pp128) or fullN (full1024)")
    count = int(match[2] or TG_TOKENS)
    if match[1] == "tg":
        return Work(1, depth + max(1, count // 2), 1)  # the median token stands in the middle
    return Work(count, depth + count, 1 if match[1] == "pp" else count)


@dataclass(frozen=True)
class Features:
    """The analytic costs of a test, as sums but for the last two; arrays have the features in front."""

    work: Work
    recipe: str
    cache_bytes: int
    share_bytes: int | None = None  # of the cache, for each block; None: nothing is counted as evicted
    kept_bytes: int | None = None  # of the cache, for the whole model; None as above
    kv_room: int = KV_ROOM

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Return `(features, ...)` of blocks."""
        w, f, n = (np.asarray(a, np.float64) for a in (width, ffn_width, depth))
        size = matrix_bytes(self.recipe)
        weights = 4.0 * size(w, w) + size(f, w) + size(w, f)
        again = (n - 1) * weights
        large = weights > self.cache_bytes
        t, p = self.work.tokens, self.work.positions
        macs = [Macs(t, p, 0, (name,)).blocks(w, f, n) for name in ("attention", "ffn", "scores")]
        kv = KvBytes(p).blocks(w, f, n)
        zero = 0.0 * n
        evicted = np.maximum(weights - (math.inf if self.share_bytes is None else self.share_bytes), 0.0)
        once = weights + zero
        return np.stack([*macs, once, again * large, again * ~large, kv, n, zero, zero, evicted + zero, zero, zero])

    def seams(self, before: Array, after: Array) -> Array:
        """Return `(features, ...)` of width projections: products and bytes."""
        b, a = np.broadcast_arrays(np.asarray(before, np.float64), np.asarray(after, np.float64))
        result = np.zeros((len(FEATURES), *b.shape))
        result[1] = where_changed(b, a, self.work.tokens * b * a)
        result[3] = where_changed(b, a, matrix_bytes(self.recipe)(a, b))
        return result

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Return `(features, ...)` of output projection, head, and the constant."""
        last = np.asarray(last_width, np.float64)
        result = np.zeros((len(FEATURES), *last.shape))
        changed = last != embedding_width
        result[1] = changed * self.work.logits * last * embedding_width
        result[3] = changed * matrix_bytes(self.recipe)(embedding_width, last)
        result[8] = float(self.work.logits) * embedding_width * vocab_size
        result[9] = 1.0
        return result

    def of(self, architecture: Architecture) -> FloatArray:
        """Return `(features,)` of one architecture."""
        blocks = architecture.blocks
        width, ffn, depth = (
            np.array(v, np.float64)
            for v in ([b.width for b in blocks], [b.ffn_width for b in blocks], [b.depth for b in blocks])
        )
        before = np.array([architecture.input_width(i) for i in range(len(blocks))], np.float64)
        ends = self.ends(width[-1:], architecture.embedding_width, architecture.vocab_size)
        parts = [self.blocks(width, ffn, depth), self.seams(before, width), ends]
        found = np.asarray(np.concatenate(parts, axis=1).sum(1), np.float64)
        found[MISSED:] = self.missed(*(total(quantity, architecture) for quantity in self.held))
        return found

    @property
    def held(self) -> tuple[Sum, Sum]:
        """Bytes that every pass reads: of the whole model, each tensor once, and of keys and values."""
        return bytes_sum(self.recipe, per_layer_norms=False), KvBytes(self.work.positions)

    def missed(self, stored: Array, kv: Array) -> Array:
        """Return `(2, ...)` the last features, which are no sums over blocks, from the bytes of `held`.

        Of what passes through a cache again and again, and is larger, as much is found as there is room: the share
        that is missed is 1 - kept / all, of everything alike.
        """
        weights, cached = np.asarray(stored, np.float64), np.asarray(kv, np.float64)
        if self.kept_bytes is None:
            return np.zeros((2, *weights.shape))
        share = np.maximum(1.0 - self.kept_bytes / (weights + self.kv_room * cached), 0.0)
        return np.stack([share * weights, share * cached])


@dataclass(frozen=True)
class LatencySample:
    """One measured model: the median of a test."""

    architecture: Architecture
    ms: float


@dataclass(frozen=True)
class LatencyModel:
    """Predicts one test at one depth under one recipe on one device.

    Itself a sum over blocks, in ms; where `kept_bytes` is set, what `missed_ms` says of the whole model comes on top.

    Attributes:
        test: `tg`, `pp128`, `full1024`, ...
        depth: Tokens in the cache before.
        recipe: As in the bundle.
        cache_bytes: Last-level cache: blocks above it are read again at every use.
        coefficients: ms per unit of each feature.
        band: Share by which `upper_ms` lies above `predict_ms`.
        estimate: True where no measurement stands behind it.
        accuracy: `samples`, `mape`, `within_10pct` (shares of 1), `kendall`: of left-out samples, never in-sample.
        share_bytes: Of the cache, what a block may have for itself: what its matrices have above it is read from
            memory anew in every pass. A model as a whole does not stay in a cache that each of its blocks would
            fit, and this keeps a latency a sum over blocks. None where nothing of the kind was seen.
        kept_bytes: Of the cache, what a whole model and its keys and values may have for themselves: of what is above
            that, a part is read from memory anew in every pass. None where `share_bytes` or neither told the measured
            models better.
        kv_room: How many bytes of that a byte of keys and values takes.
    """

    test: str
    depth: int
    recipe: str
    cache_bytes: int
    coefficients: tuple[float, ...]
    band: float
    estimate: bool
    accuracy: dict[str, Any]
    share_bytes: int | None = None
    kept_bytes: int | None = None
    kv_room: int = KV_ROOM

    @property
    def features(self) -> Features:
        """The costs that the coefficients belong to."""
        work = parse_test(self.test, self.depth)
        return Features(work, self.recipe, self.cache_bytes, self.share_bytes, self.kept_bytes, self.kv_room)

    def _ms(self, features: Array) -> Array:
        return on_grid(np.tensordot(np.array(self.coefficients), features, axes=1), MS_GRID)

    def blocks(self, width: Array, ffn_width: Array, depth: Array) -> Array:
        """Milliseconds of blocks."""
        return self._ms(self.features.blocks(width, ffn_width, depth))

    def seams(self, before: Array, after: Array) -> Array:
        """Milliseconds of width projections."""
        return self._ms(self.features.seams(before, after))

    def ends(self, last_width: Array, embedding_width: Whole, vocab_size: Whole) -> Array:
        """Milliseconds of output projection, head and everything constant."""
        return self._ms(self.features.ends(last_width, embedding_width, vocab_size))

    def missed_ms(self, stored: Array, kv: Array) -> Array:
        """Return milliseconds on top of the sum over blocks, `(2, ...)`: of weights, and of keys and values.

        By the bytes of whole models (`Features.held`).
        """
        prices = np.array(self.coefficients[MISSED:]).reshape(2, *[1] * np.ndim(stored))
        return on_grid(prices * self.features.missed(stored, kv), MS_GRID)

    def missed_ms_of(self, architecture: Architecture) -> tuple[float, float]:
        """Return the same for one architecture."""
        weights, kv = self.missed_ms(*(total(quantity, architecture) for quantity in self.features.held))
        return float(weights), float(kv)

    def predict_ms(self, architecture: Architecture) -> float:
        """Return the expected median."""
        return float(total(self, architecture) + sum(self.missed_ms_of(architecture)))

    def upper_ms(self, architecture: Architecture) -> float:
        """Return the end of the band, which a limit applies to."""
        return self.predict_ms(architecture) * (1.0 + self.band)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "test": self.test,
            "depth": self.depth,
            "recipe": self.recipe,
            "cache_bytes": self.cache_bytes,
            "share_bytes": self.share_bytes,
            "kept_bytes": self.kept_bytes,
            "kv_room": self.kv_room,
            "ms_per_unit": dict(zip(FEATURES, self.coefficients, strict=True)),
            "band": self.band,
            "estimate": self.estimate,
            "accuracy": self.accuracy,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> LatencyModel:
        """Read the JSON object; unknown or missing keys and impossible numbers are errors."""
        if not isinstance(value, Mapping):
            raise InvalidFileError(f"{where}: a latency model must be a JSON object")
        keys = ("test", "depth", "recipe", "cache_bytes", "ms_per_unit", "band", "estimate", "accuracy")
        check_keys(value, (*keys, *OF_CACHE), where)
        for key in keys:
            if key not in value:
                raise InvalidFileError(f"{where}: key '{key}' is missing")
        units = value["ms_per_unit"]
        of_cache: dict[str, Any] = {name: value.get(name) for name in OF_CACHE}
        if "kv_room" not in value:
            of_cache["kv_room"] = KV_ROOM
            if isinstance(units, Mapping):
                units = {**dict.fromkeys(LATER, 0.0), **units}
                if OLD_MISSED in units:
                    units[FEATURES[MISSED]], of_cache["kv_room"] = units.pop(OLD_MISSED), 0
        for name, size in of_cache.items():
            or_null = "" if name == "kv_room" else " or null"
            if size is None and or_null:
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise InvalidFileError(f"{where}: {name} must be a whole number of at least 0{or_null}, not {size!r}")
        if not isinstance(units, Mapping) or set(units) != set(FEATURES):
            raise InvalidFileError(f"{where}: 'ms_per_unit' must name exactly: {', '.join(FEATURES)}")
        for name, number in [*units.items(), ("band", value["band"])]:
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                raise InvalidFileError(f"{where}: {name} must be a number of at least 0, not {number!r}")
        for name in ("depth", "cache_bytes"):
            if isinstance(value[name], bool) or not isinstance(value[name], int) or value[name] < 0:
                raise InvalidFileError(f"{where}: {name} must be a whole number of at least 0, not {value[name]!r}")
        if not isinstance(value["estimate"], bool) or not isinstance(value["accuracy"], Mapping):
            raise InvalidFileError(f"{where}: 'estimate' must be true or false, 'accuracy' an object")
        if not isinstance(value["test"], str) or not isinstance(value["recipe"], str):
            raise InvalidFileError(f"{where}: 'test' and 'recipe' must be words")
        check_keys(value["accuracy"], ("samples", "mape", "within_10pct", "kendall"), f"{where}, accuracy")
        parse_test(value["test"], value["depth"])
        matrix_bytes(value["recipe"])
        return cls(
            **{k: value[k] for k in keys if k not in ("ms_per_unit", "accuracy")},
            coefficients=tuple(float(units[name]) for name in FEATURES),
            accuracy=dict(value["accuracy"]),
            **of_cache,
        )


def fit_latency(
    samples: Sequence[LatencySample], *, test: str, depth: int, recipe: str, cache_bytes: int
) -> LatencyModel:
    """Fit a model to measured architectures.

    Args:
        samples: At least three, of different architectures; more and more varied ones make it better.
        test: What was measured.
        depth: Tokens in the cache before.
        recipe: Of the bundles measured.
        cache_bytes: Last-level cache of the device.

    Raises:
        UsageError: too few samples, or one that is no time.
    """
    if len(samples) < 3:
        raise UsageError(f"a latency model needs at least 3 measured models, not {len(samples)}")
    for sample in samples:
        if not (math.isfinite(sample.ms) and sample.ms > 0):
            raise UsageError(f"{sample.ms!r} ms is no time for {sample.architecture.describe()}")
    measured = np.array([sample.ms for sample in samples], np.float64)
    fits: list[tuple[Accuracy, Features, FloatArray, FloatArray]] = []
    shares: list[tuple[int | None, int | None]] = [(int(s * cache_bytes), None) for s in CACHE_SHARES if cache_bytes]
    shares += [(None, int(kept * cache_bytes)) for kept in KEPT_SHARES if cache_bytes]
    for share, kept in [(None, None), *shares]:
        costs = Features(parse_test(test, depth), recipe, cache_bytes, share, kept)
        features = np.stack([costs.of(sample.architecture) for sample in samples])
        held_out = leave_one_out(features, measured)
        fits.append((judge(held_out, measured), costs, features, held_out))
    accuracy, costs, features, held_out = min(fits, key=lambda fit: fit[0].mape or 0.0)  # the earlier of equals
    return LatencyModel(
        test=test,
        depth=depth,
        recipe=recipe,
        cache_bytes=cache_bytes,
        coefficients=tuple(fit_coefficients(features, measured).tolist()),
        band=conformal_excess(held_out, measured, COVERAGE),
        estimate=False,
        accuracy=accuracy.to_json(),
        share_bytes=costs.share_bytes,
        kept_bytes=costs.kept_bytes,
    )


def estimate_latency(
    estimate: Mapping[str, Any], *, test: str, depth: int, recipe: str, cache_bytes: int
) -> LatencyModel:
    """Derive a model from a board's `[estimate]`: streaming, multiplying and launching, one after another."""
    rate = float(estimate["fp32_macs_per_s" if recipe == "fp32" else "int8_macs_per_s"])
    bandwidth = float(estimate["bandwidth_bytes_per_s"])
    ms_per_byte, ms_per_mac = 1e3 / bandwidth, 1e3 / rate
    attention = 1e3 / float(estimate["fp32_macs_per_s"])  # scores stay float32 under every recipe
    head = ms_per_mac + table_bytes(recipe)(1, 1024) / 1024 * ms_per_byte / parse_test(test, depth).logits
    units = {
        "attention_macs": ms_per_mac,
        "ffn_macs": ms_per_mac,
        "score_macs": attention,
        "weight_bytes_once": ms_per_byte,
        "weight_bytes_again": ms_per_byte,
        "weight_bytes_cached": 1e3 / float(estimate["cache_bandwidth_bytes_per_s"]),
        "kv_bytes": ms_per_byte,
        "layers": float(estimate["layer_overhead_ms"]),
        "head_macs": head,
        "constant": float(estimate["token_overhead_ms"]),
        **dict.fromkeys(LATER, 0.0),
    }
    return LatencyModel(
        test=test,
        depth=depth,
        recipe=recipe,
        cache_bytes=cache_bytes,
        coefficients=tuple(units[name] for name in FEATURES),
        band=float(estimate["relative_error"]),
        estimate=True,
        accuracy=judge(np.empty(0), np.empty(0)).to_json(),
    )


def choose_architectures(space: Space, count: int, seed: int) -> list[Architecture]:
    """Choose members spread over the space: small to large, shallow to deep, narrow to wide.

    Farthest-point design on the logarithms of what a device feels (bytes, MACs, layers, reuse, widths)
    over a seeded pool that holds the extremes of every group. Smallest first.
    """
    corners = []
    for group in space.groups[:256]:
        sizes = [[_size(block) for block in options] for options in group.options]
        smallest, largest = ([pick(s) for s in sizes] for pick in (_argmin, _argmax))
        corners += [space.build(group, smallest), space.build(group, largest)]
    pool = list(dict.fromkeys([*corners, *sample_lengths(space, min(2000, space.size), seed)]))
    costs = Features(parse_test("pp128", 0), "dynamic_wi8_afp32", 0)
    features = np.stack([costs.of(architecture) for architecture in pool])
    points = np.log(features[:, [0, 1, 3, 7, 8]])  # attention, FFN, bytes once, layers, head
    points = np.column_stack([points, np.log(features[:, 4] + features[:, 3])])
    points = (points - points.mean(0)) / np.where(points.std(0) > 1e-12, points.std(0), 1.0)
    volume = features[:, :3].sum(1)
    chosen = [int(volume.argmin()), int(volume.argmax())][: min(count, len(pool))]
    distance = np.minimum.reduce([((points - points[i]) ** 2).sum(1) for i in chosen]) if chosen else points[:, 0]
    while len(chosen) < min(count, len(pool)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    chosen = list(dict.fromkeys(chosen))
    return [pool[i] for i in sorted(chosen, key=lambda i: (volume[i], i))]


def sample_lengths(space: Space, count: int, seed: int) -> list[Architecture]:
    """Draw different members, any number of blocks as likely as another: drawn evenly nearly all have the most."""
    if not space.fewer or count >= space.size:
        return space.sample(count, seed)
    rng = random.Random(seed)  # noqa: S311 (no secret)
    drawn: dict[int, None] = {}
    while len(drawn) < count:  # ends: count < size, and any member may be drawn
        group = rng.choice(space.groups)
        index = group.offset + rng.randrange(group.size)
        if space.numbers == space.size or not space.is_repeated(index):
            drawn[index] = None
    return [space.decode(index) for index in drawn]


def _size(block: Block) -> tuple[int, int, int]:
    return block.width * block.width * block.depth, block.ffn_width, block.depth


def _argmin(sizes: list[tuple[int, int, int]]) -> int:
    return sizes.index(min(sizes))


def _argmax(sizes: list[tuple[int, int, int]]) -> int:
    return sizes.index(max(sizes))
