"""Measurement records keep their raw samples; statistics are the reader's."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.errors import InvalidFileError
from merino_edge.measurement import (
    Measurement,
    MeasurementKey,
    append_measurements,
    median_interval_ms,
    percentile_ms,
    read_measurements,
)

KEY = MeasurementKey(
    device_id="d1",
    os_image="Debian 12",
    runtime="onnxruntime",
    runtime_version="1.22.0",
    provider="CPUExecutionProvider",
    power_mode=None,
    threads=2,
    format="onnx",
    recipe="fp32",
    form="standard",
    exporter_version=1,
    architecture_digest="0" * 64,
    test="tg",
    depth=128,
)
RECORD = Measurement(
    key=KEY,
    architecture={"blocks": []},
    samples_ns=(3_000_000, 1_000_000, 2_000_000),
    warmup_ns=(9_000_000,),
    load_ns=5,
    peak_memory_bytes=6,
    model_memory_bytes=7,
    file_backed_bytes=8,
    context_length=1024,
    file_bytes=9,
    unique_bytes=10,
    conditions={"load1": [0.1, 0.2]},
)
SAMPLES = st.lists(st.integers(1, 10**12), min_size=1, max_size=50)


def test_records_read_back_from_a_log_in_order(tmp_path: Path) -> None:
    second = Measurement.from_json({**RECORD.to_json(), "valid": False, "invalid_reason": "throttled"}, "it")
    append_measurements(tmp_path / "m.jsonl", [RECORD, second])
    assert read_measurements(tmp_path / "m.jsonl") == [RECORD, second]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"samples_ns": []}, "needs samples"),
        ({"samples_ns": [1, -1]}, "needs samples"),
        ({"samples_ns": [1.5]}, "needs samples"),
        ({"samples_ns": [True]}, "needs samples"),
        ({"samples_ns": "123"}, "needs samples"),
        ({"samples_ns": None}, "not a measurement"),
        ({"load_ns": -1}, "load_ns must be a whole number"),
        ({"file_backed_bytes": -1}, "file_backed_bytes must be a whole number"),
        ({"context_length": 1.5}, "context_length must be a whole number"),
        ({"valid": "yes"}, "valid must be true or false"),
        ({"p50": 1}, "unknown key 'p50'"),
        ({"key": None}, "not a measurement"),
        ({"key": []}, "not a measurement"),
        ({"key": {**RECORD.to_json()["key"], "threads": "2"}}, "key: threads cannot be '2'"),
        ({"key": {**RECORD.to_json()["key"], "depth": -1}}, "key: depth cannot be -1"),
        ({"key": {**RECORD.to_json()["key"], "treads": 2}}, r"key: unknown key 'treads'; did you mean 'threads'\?"),
    ],
)
def test_a_record_that_no_clock_gives_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidFileError, match=problem) as caught:
        Measurement.from_json({**RECORD.to_json(), **change}, "m.jsonl, record 3")
    assert caught.value.message.count("m.jsonl, record 3") == 1


@pytest.mark.parametrize("key", ["key", "samples_ns", "file_bytes"])
def test_a_record_without_a_key_is_refused(key: str) -> None:
    record = RECORD.to_json()
    del record[key]
    with pytest.raises(InvalidFileError, match=key):
        Measurement.from_json(record, "it")


@given(SAMPLES)
def test_the_median_is_the_median(samples: list[int]) -> None:
    assert percentile_ms(samples, 50) == pytest.approx(statistics.median(samples) / 1e6)


@given(SAMPLES)
def test_percentiles_are_samples_in_order(samples: list[int]) -> None:
    p50, p90, p99 = (percentile_ms(samples, p) for p in (50, 90, 99))
    assert min(samples) / 1e6 <= p50 <= p90 <= p99 <= max(samples) / 1e6
    assert p90 * 1e6 in [pytest.approx(s) for s in samples]


def test_p90_of_ten_samples_is_the_ninth() -> None:
    assert percentile_ms([n * 10**6 for n in range(10, 0, -1)], 90) == 9


@given(SAMPLES)
def test_the_interval_holds_the_median(samples: list[int]) -> None:
    low, high = median_interval_ms(samples)
    assert low <= percentile_ms(samples, 50) <= high


def test_p50_is_read_from_the_samples() -> None:
    assert RECORD.p50_ms == 2.0
