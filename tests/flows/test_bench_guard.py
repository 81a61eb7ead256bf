"""The regression guard: a slower device ends with 7, noise does not, another device is refused."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from merino_edge.architecture import save_architecture
from merino_edge.cli.main import main
from merino_edge.testing import FakeBoard, FakeDevice, tiny_architecture

Command = Callable[..., tuple[int, dict[str, Any], str]]
TESTS = ("-t", "tg16@16,pp32")


@pytest.fixture
def command(fake: FakeDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    save_architecture(tmp_path / "small.json", tiny_architecture())

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", str(tmp_path / "small.json"), *TESTS, *words, "--json"])
        said = capsys.readouterr()
        return int(str(ended.value.code)), json.loads(said.out), said.err

    return run


@pytest.fixture
def baseline(command: Command, tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    code, document, _ = command("--save", str(path))
    assert code == 0
    assert json.loads(path.read_text()) == document
    return path


def check(document: dict[str, Any]) -> None:
    text = resources.files("merino_edge.cli").joinpath("schemas", "bench.json").read_text(encoding="utf-8")
    jsonschema.validate(document, json.loads(text))


def slower(factor: float) -> FakeBoard:
    usual = FakeBoard()
    return replace(
        usual,
        macs_per_s=usual.macs_per_s / factor,
        bandwidth_bytes_per_s=usual.bandwidth_bytes_per_s / factor,
        layer_overhead_ms=usual.layer_overhead_ms * factor,
        token_overhead_ms=usual.token_overhead_ms * factor,
    )


def test_the_same_device_keeps_its_own_baseline(command: Command, baseline: Path) -> None:
    code, document, _ = command("--baseline", str(baseline))
    assert code == 0
    check(document)
    assert {row["verdict"] for row in document["baseline"]["rows"]} == {"within the limit"}
    assert {row["what"] for row in document["baseline"]["rows"]} == {"p50_ms", "peak_memory_bytes", "file_bytes"}


def test_a_slower_device_ends_with_seven_and_all_rows(command: Command, fake: FakeDevice, baseline: Path) -> None:
    fake.board = slower(1.1)
    code, document, said = command("--baseline", str(baseline), "--fail-over", "5%")
    assert (code, document["error"]["kind"]) == (7, "regression")
    check(document)
    worse = [row for row in document["baseline"]["rows"] if row["verdict"] == "worse"]
    assert len(worse) == 4  # two recipes, two tests
    assert all(row["ratio"] == pytest.approx(1.1, rel=0.01) for row in worse)
    assert document["baseline"]["tries"] == 3
    assert "tg16@16" in said
    assert command("--baseline", str(baseline), "--fail-over", "20%")[0] == 0


def test_one_unlucky_process_is_no_regression(
    command: Command, fake: FakeDevice, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = fake.measure, []

    def unlucky(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        slow = 2 if len(calls) <= 2 else 1
        return [
            replace(r, samples_ns=tuple(slow * s for s in r.samples_ns), peak_memory_bytes=slow * r.peak_memory_bytes)
            for r in measure(*args, **kwargs)
        ]

    monkeypatch.setattr(fake, "measure", unlucky)
    code, document, _ = command("--baseline", str(baseline))
    assert (code, document["baseline"]["tries"]) == (0, 2)


def test_a_slowdown_within_noise_is_no_regression(
    command: Command, fake: FakeDevice, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = fake.measure

    def noisy(*args: Any, **kwargs: Any) -> Any:
        found = []
        for result in measure(*args, **kwargs):
            block = 3 if result.spec.test == "tg" else 1
            slow = [s * (8 if (i // block) % 2 else 10) // 8 for i, s in enumerate(result.samples_ns)]
            found.append(replace(result, samples_ns=tuple(slow)))
        return found

    monkeypatch.setattr(fake, "measure", noisy)
    code, document, _ = command("--baseline", str(baseline))
    assert code == 0
    assert "within noise" in {row["verdict"] for row in document["baseline"]["rows"]}


@pytest.mark.parametrize(
    ("facts", "words", "told"),
    [
        ({"device_id": "fake-1"}, (), "device id was fake-0000000000 and is fake-1"),
        ({"power_mode": "powersave"}, (), "power mode was performance and is powersave"),
        ({}, ("--threads", "2"), "threads was 4 and is 2"),
        ({}, ("--sustained",), "power mode was performance and is performance+sustained"),
    ],
)
def test_a_baseline_of_other_conditions_is_refused_with_what_differs(
    command: Command, fake: FakeDevice, baseline: Path, facts: dict[str, Any], words: tuple[str, ...], told: str
) -> None:
    fake._facts = facts
    code, document, _ = command("--baseline", str(baseline), *words)
    assert code == 2
    assert told in document["error"]["message"]


def test_a_baseline_of_another_device_is_refused_before_anything_is_measured(
    command: Command, fake: FakeDevice, baseline: Path
) -> None:
    fake._facts, fake.measured = {"device_id": "fake-1"}, []
    assert command("--baseline", str(baseline))[0] == 2
    assert not fake.measured


def test_too_few_samples_to_know_the_noise_are_refused(command: Command, tmp_path: Path) -> None:
    path = str(tmp_path / "short.json")
    assert command("--save", path, "--repeats", "1")[0] == 0
    code, document, _ = command("--baseline", path)
    assert code == 2
    assert "1 samples cannot tell a slowdown from noise, 5 can" in document["error"]["message"]


def test_a_newer_runtime_is_told_and_compared(
    command: Command, fake: FakeDevice, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = fake.measure

    def newer(*args: Any, **kwargs: Any) -> Any:
        return [replace(result, runtime_version="9.0") for result in measure(*args, **kwargs)]

    monkeypatch.setattr(fake, "measure", newer)
    code, document, _ = command("--baseline", str(baseline))
    assert code == 0
    assert document["baseline"]["notes"] == ["runtime was onnxruntime 0.0.0 and is onnxruntime 9.0"]


def test_rows_that_only_one_side_has_are_told(command: Command, baseline: Path) -> None:
    code, document, _ = command("--baseline", str(baseline), "-t", "pp8")
    assert code == 0
    assert sum(note.startswith("not in the baseline") for note in document["baseline"]["notes"]) == 2
    code, document, _ = command("--baseline", str(baseline), "--recipe", "fp32")
    assert sum(note.startswith("in the baseline alone") for note in document["baseline"]["notes"]) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "not valid JSON"),
        ("{}", "schema_version"),
        ('{"schema_version": 1}', "holds no rows"),
        ('{"schema_version": 1, "rows": [3]}', "row 1: not a row"),
        ('{"schema_version": 1, "rows": [{"format": "onnx"}]}', "row 1: 'architecture_digest' is missing"),
    ],
)
def test_a_baseline_that_is_none_is_refused_before_anything_is_measured(
    command: Command, fake: FakeDevice, tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "bad.json").write_text(content)
    code, document, _ = command("--baseline", str(tmp_path / "bad.json"))
    assert (code, document["error"]["kind"]) == (1, "invalid-file")
    assert told in document["error"]["message"]
    assert document["error"]["hint"]
    assert not fake.measured


def test_a_regression_does_not_become_the_new_baseline(command: Command, fake: FakeDevice, baseline: Path) -> None:
    before = baseline.read_bytes()
    fake.board = slower(2)
    assert command("--baseline", str(baseline), "--save", str(baseline))[0] == 7
    assert baseline.read_bytes() == before


def test_invalid_measurements_are_not_saved(command: Command, fake: FakeDevice, tmp_path: Path) -> None:
    fake.invalid_reason = "throttled"
    code, _, _ = command("--save", str(tmp_path / "new.json"))
    assert code == 5
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("where", ["folder", "nowhere/file.json", "pipe"])
def test_a_place_that_cannot_be_saved_to_is_refused_before_anything_is_measured(
    command: Command, fake: FakeDevice, tmp_path: Path, where: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    code, _, said = command("--save", str(tmp_path / where))
    assert (code, "--save" in said, fake.measured) == (2, True, [])
    assert (tmp_path / "pipe").is_fifo()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_old_baseline_and_shows_what_was_measured(command: Command, full_disk: Path) -> None:
    old = full_disk / "baseline.json"
    old.write_text("old")
    code, document, said = command("--save", str(old))
    assert code == 1
    assert "No space left" in said
    assert [(p.name, p.read_text()) for p in full_disk.iterdir()] == [("baseline.json", "old")]
    assert len(document["rows"]) == 4
