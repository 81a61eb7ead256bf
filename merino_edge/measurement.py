"""One measurement: raw samples, and everything that must be equal for two of them to compare.

Records are appended to a device's `measurements.jsonl`, one a line, and never changed. The reader
computes statistics; nothing here is rounded or averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from merino_edge.errors import InvalidFileError, check_keys
from merino_edge.files import append_line, read_lines


@dataclass(frozen=True)
class MeasurementKey:
    """What a number depends on. A record informs a prediction only where all of this agrees.

    Attributes:
        device_id: The machine, not its name in the registry.
        os_image: Kernel and distribution.
        runtime: `onnxruntime`, `ai-edge-litert`, ...
        runtime_version: Its version.
        provider: Execution provider really used (`CPUExecutionProvider`).
        power_mode: Governor or power mode; None where the machine has none.
        threads: Threads the runtime was given.
        format: `onnx`, `tflite`.
        recipe: `fp32`, `dynamic_wi8_afp32`, ...
        form: How the graph is written (`standard`, `fast`, `legacy`).
        exporter_version: Raised with every change of the emitted graphs, or of how sessions run them.
        architecture_digest: `Architecture.digest`.
        test: `tg`, `pp128`, `full1024`, ...
        depth: Tokens in the cache before the test begins.
    """

    device_id: str
    os_image: str
    runtime: str
    runtime_version: str
    provider: str
    power_mode: str | None
    threads: int
    format: str
    recipe: str
    form: str
    exporter_version: int
    architecture_digest: str
    test: str
    depth: int

    def __post_init__(self) -> None:
        """Refuse values of another type: they would never compare equal, and nobody would know why."""
        for f in fields(self):
            value = getattr(self, f.name)
            wanted: dict[str, tuple[type, ...]] = {"int": (int,), "str": (str,), "str | None": (str, type(None))}
            if type(value) not in wanted[str(f.type)] or (f.type == "int" and value < 0):
                raise InvalidFileError(f"key: {f.name} cannot be {value!r}")


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one test of one bundle on one device.

    Attributes:
        key: See `MeasurementKey`.
        architecture: JSON of the architecture.
        samples_ns: Time of each repetition: one token for `tg`, one whole prompt for `pp`.
        warmup_ns: Repetitions before, not counted.
        load_ns: Time to open the bundle.
        peak_memory_bytes: VmHWM of the measuring process, runtime included, cache filled to `context_length`.
        model_memory_bytes: That less the empty runtime.
        file_backed_bytes: Resident pages backed by files at the end, which the kernel may drop.
        context_length: Tokens the cache was filled to for the memory reading.
        file_bytes: Graph and weights on disk.
        unique_bytes: Each unique tensor once, as the recipe stores it.
        conditions: Temperatures, clocks, load and throttle flags before and after.
        valid: False where the device was throttled or disturbed; such a record is kept and not used.
        invalid_reason: Why, where it is not valid.
        energy_mj: Per repetition, or None.
        energy_reason: Why `energy_mj` is None.
        taken_at: Seconds since 1970 by the host's clock; a label only.
    """

    key: MeasurementKey
    architecture: dict[str, Any]
    samples_ns: tuple[int, ...]
    warmup_ns: tuple[int, ...]
    load_ns: int
    peak_memory_bytes: int
    model_memory_bytes: int
    file_backed_bytes: int
    context_length: int
    file_bytes: int
    unique_bytes: int
    conditions: dict[str, Any] = field(default_factory=dict)
    valid: bool = True
    invalid_reason: str | None = None
    energy_mj: float | None = None
    energy_reason: str | None = "no energy sensor"
    taken_at: float = 0.0

    def __post_init__(self) -> None:
        """Refuse samples that no clock gives."""
        if not self.samples_ns or any(type(s) is not int or s <= 0 for s in self.samples_ns):
            raise InvalidFileError("a measurement needs samples, each a positive number of nanoseconds")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "int" and (type(value) is not int or value < 0):
                raise InvalidFileError(f"{f.name} must be a whole number, not {value!r}")
        if not isinstance(self.valid, bool):
            raise InvalidFileError(f"valid must be true or false, not {self.valid!r}")

    @property
    def p50_ms(self) -> float:
        """Median time of one repetition."""
        return percentile_ms(self.samples_ns, 50)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON record."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Measurement:
        """Read a JSON record; unknown and missing keys are errors."""
        check_keys(value, (f.name for f in fields(cls)), where)
        try:
            key = value["key"]
            check_keys(key, (f.name for f in fields(MeasurementKey)), "key")
            numbers = {n: tuple(value[n]) for n in ("samples_ns", "warmup_ns")}
            return cls(**{**value, "key": MeasurementKey(**key), **numbers})
        except InvalidFileError as error:
            raise InvalidFileError(f"{where}: {error.message}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidFileError(f"{where}: not a measurement: {error}") from error


def percentile_ms(samples_ns: Sequence[int], percent: float) -> float:
    """Return the percentile of the samples in milliseconds (nearest rank; the median averages two)."""
    ordered = sorted(samples_ns)
    if percent == 50:
        middle = len(ordered) // 2
        return (ordered[middle] + ordered[~middle]) / 2 / 1e6
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] / 1e6


def median_interval_ms(samples_ns: Sequence[int], z: float = 1.96) -> tuple[float, float]:
    """Return a distribution-free interval of the median (order statistics, 95 % by default)."""
    ordered = sorted(samples_ns)
    n = len(ordered)
    spread = z * math.sqrt(n) / 2
    low = max(0, math.floor(n / 2 - spread))
    high = min(n - 1, math.ceil(n / 2 + spread))
    return ordered[low] / 1e6, ordered[high] / 1e6


def append_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """Append records to a log."""
    for measurement in measurements:
        append_line(path, measurement.to_json())


def read_measurements(path: Path) -> list[Measurement]:
    """Read all records of a log; none where there is no file."""
    return [
        Measurement.from_json(record, f"measurements {path}, record {number}")
        for number, record in enumerate(read_lines(path, "measurements"), start=1)
    ]
