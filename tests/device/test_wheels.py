"""The lock of runtime wheels: what fits which device, what never does, and that nothing else is used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from merino_edge.device import wheels
from merino_edge.device.wheels import WheelSet, fetch, fitting_sets, known_fault, locked_sets
from merino_edge.errors import DeviceError
from merino_edge.settings import cache_home

PI_OS = {"platform": "linux-aarch64", "libc": "glibc", "libc_version": "2.36", "bits": 64, "version": "3.11.2"}
CONTENT = b"a wheel"
SHA = hashlib.sha256(CONTENT).hexdigest()
ONE = WheelSet("onnxruntime", "1.0", "3.11", "aarch64", 28, {"onnxruntime-1.0-cp311-cp311-linux_aarch64.whl": SHA})


def best(**python: Any) -> str:
    return fitting_sets("onnxruntime", {**PI_OS, **python})[0].version


def test_newest_runtime_of_the_interpreter_comes_first() -> None:
    assert best() == "1.32.0"
    assert best(version="3.8.10", libc_version="2.31") == "1.19.2"  # JetPack 5
    assert best(version="3.10.12") == "1.23.2"
    assert best(version="3.11.2", libc_version="2.27") == "1.28.0"  # older C library, older wheels


def test_versions_go_down() -> None:
    versions = [[int(n) for n in s.version.split(".")] for s in fitting_sets("onnxruntime", PI_OS)]
    assert versions == sorted(versions, reverse=True)
    assert len(versions) >= 4


def test_what_dies_on_a_cortex_a72_is_not_in_the_lock_and_known() -> None:
    assert "1.21.0" not in {s.version for s in locked_sets() if s.runtime == "onnxruntime"}
    assert known_fault("onnxruntime", "1.21.0", "aarch64", ["asimd"])
    assert known_fault("onnxruntime", "1.21.0", "aarch64", ["asimd", "asimddp"]) is None
    assert known_fault("onnxruntime", "1.27.0", "aarch64", ["asimddp", "sme"])
    assert known_fault("onnxruntime", "1.32.0", "aarch64", ["asimd"]) is None


@pytest.mark.parametrize("package", ["onnxruntime", "ai-edge-litert", "tflite-runtime"])
def test_every_set_of_the_lock_has_its_runtime_its_numpy_and_whole_digests(package: str) -> None:
    sets = [s for s in locked_sets() if s.runtime == package]
    assert sets
    for each in sets:
        projects = {name.split("-")[0] for name in each.wheels}
        assert {package.replace("-", "_"), "numpy"} <= projects
        assert all(name.endswith(".whl") for name in each.wheels)
        assert all(len(bytes.fromhex(sha)) == 32 for sha in each.wheels.values())
        python = "cp" + each.python.replace(".", "")
        assert any(f"-{python}-" in name for name in each.wheels)


def test_every_interpreter_that_has_a_runtime_has_one_tokenizers_wheel() -> None:
    sets = [s for s in locked_sets() if s.runtime == "tokenizers"]
    assert {(s.python, s.machine) for s in sets} >= {(s.python, s.machine) for s in locked_sets()}
    for each in sets:
        ((name, sha),) = each.wheels.items()
        assert name.startswith(f"tokenizers-{each.version}-cp3")
        assert len(bytes.fromhex(sha)) == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 32}, "user land is 32-bit"),
        ({"libc": "", "libc_version": ""}, "no wheels"),
        ({"platform": "macosx-14.0-arm64"}, "no wheels"),
        ({"platform": "linux-riscv64"}, "there are some for aarch64, x86_64"),
        ({"libc_version": "\x1b[31m"}, "no wheels"),
        ({"libc_version": "2.17"}, "glibc 2.17, and onnxruntime needs 2.27"),
        ({"version": "3.99.0"}, "for Python 3.99; there are some for 3.8, 3.9, 3.10"),
    ],
)
def test_system_without_wheels_is_told_why(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        fitting_sets("onnxruntime", {**PI_OS, **change})
    assert caught.value.hint
    assert "\x1b" not in caught.value.message


def test_wheel_is_downloaded_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(each: WheelSet, missing: Any, folder: Path) -> None:
        calls.append(each)
        for name in missing:
            (folder / name).write_bytes(CONTENT)

    monkeypatch.setattr(wheels, "_download", download)
    assert fetch(ONE) == fetch(ONE) == {SHA: cache_home() / "wheels" / next(iter(ONE.wheels))}
    assert len(calls) == 1


def test_wheel_with_another_digest_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(each: WheelSet, missing: Any, folder: Path) -> None:
        for name in missing:
            (folder / name).write_bytes(CONTENT + b"!")

    monkeypatch.setattr(wheels, "_download", download)
    with pytest.raises(DeviceError, match="not the file that was locked"):
        fetch(ONE)
    assert list((cache_home() / "wheels").rglob("*.whl")) == []


def test_damaged_wheel_in_the_cache_is_downloaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(each: WheelSet, missing: Any, folder: Path) -> None:
        for name in missing:
            (folder / name).write_bytes(CONTENT)

    monkeypatch.setattr(wheels, "_download", download)
    (path,) = fetch(ONE).values()
    path.write_bytes(b"half")
    assert fetch(ONE)[SHA].read_bytes() == CONTENT
