"""The whole ring on an emulated aarch64 board over real SSH, with the commands a user types and real aarch64 wheels.

Numbers and files must be right, and what the board cannot tell must be null with its reason. Times
are an emulator's: nothing here compares them with anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from board_desk import Desk

from merino_edge.device.client import open_device
from merino_edge.device.registry import DeviceEntry
from merino_edge.errors import DeviceError
from merino_edge.testing import write_tiny_space

pytestmark = pytest.mark.timeout(1800)
SMALL = ("--vocab", "300", "--context", "256")  # a byte-level BPE holds 257 tokens before it learns any
TEXT = "The board on the desk said nothing for a while, and then it said what it had been told to say. " * 400


@pytest.fixture(scope="session")
def space(desk: Desk) -> str:
    return str(write_tiny_space(desk.home))


@pytest.fixture(scope="session")
def profiled(desk: Desk, added: dict[str, Any], space: str) -> dict[str, Any]:
    return desk.type("profile", desk.name, "--quick", "--time", "30s", "--space", space, *SMALL)


@pytest.fixture(scope="session")
def found(desk: Desk, profiled: dict[str, Any], space: str) -> dict[str, Any]:
    limit = 10 * profiled["reach"][1]["tg_ms_upper"]  # an emulator's clock wavers: a limit that binds nothing
    words = ("--device", desk.name, "--latency", f"{limit:.4g}ms", "--space", space, "--run", "ring")
    return desk.type("search", *words, *SMALL)


@pytest.fixture(scope="session")
def trained(desk: Desk, found: dict[str, Any]) -> dict[str, Any]:
    text = desk.home / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    words = ("--data", str(text), "--steps", "20", "--batch-tokens", "1024", "--context", "256")
    return desk.type("train", "ring", *words)


@pytest.fixture(scope="session")
def deployed(desk: Desk, trained: dict[str, Any]) -> dict[str, Any]:
    return desk.type("deploy", "ring")


def test_device_says_that_it_is_emulated_and_what_its_core_can_do(desk: Desk, added: dict[str, Any]) -> None:
    facts = added["facts"]
    assert "QEMU" in facts["board_model"]
    assert facts["cpu"]["model"].lower() == desk.board.cpu
    assert ("asimddp" in facts["cpu"]["flags"]) == (desk.board.cpu == "cortex-a76")
    assert facts["emulated"]


def test_what_the_board_cannot_tell_is_null_with_its_reason(added: dict[str, Any]) -> None:
    facts = added["facts"]
    for name in ("governor", "temperature_c", "throttled", "power_w"):
        assert facts[name] is None
        assert facts["unknown"][name]


def test_profile_fits_what_the_board_measured(profiled: dict[str, Any]) -> None:
    assert not profiled["estimate"]
    assert profiled["models"] >= 6
    assert all(row["tg_ms"] > 0 for row in profiled["reach"])
    assert profiled["key"]["runtime"] == "onnxruntime"


def test_runtime_that_dies_on_the_core_is_passed_over_and_told_in_a_sentence(
    desk: Desk, profiled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runtime,) = profiled["facts"]["runtimes"]
    assert runtime["name"].startswith("onnxruntime-")
    assert runtime["runtime_version"] == "1.32.0"
    if desk.has_a_runtime_that_dies:
        monkeypatch.setenv("MERINO_EDGE_SSH_CONFIG", str(desk.board.ssh_config))
        sentence = pytest.raises(DeviceError, match="an instruction that this CPU does not have")
        with open_device(DeviceEntry(desk.name, desk.board.address, "pi4", None, "paramiko")) as device, sentence:
            device._link.ask("runtime", name="installed", package="onnxruntime")


def test_search_ends_with_what_the_board_measured(found: dict[str, Any]) -> None:
    assert found["measured"]["tg_ms"] > 0
    assert found["measured"]["peak_memory_bytes"] > 10_000_000
    assert found["parameters"] < 1_000_000


def test_deployed_model_is_the_trained_one_and_sent_once(desk: Desk, deployed: dict[str, Any]) -> None:
    assert deployed["trained"]
    assert deployed["bundle"].startswith("onnx-dynamic_wi8_afp32")
    if not desk.repeats:
        assert desk.type("deploy", "ring", "--dry-run")["bytes_sent"] == 0
        return
    again = desk.type("deploy", "ring")
    assert again["bytes_sent"] == 0
    assert again["previous"] == deployed["release"]


def test_generation_is_the_same_whenever_it_is_asked_for(desk: Desk, deployed: dict[str, Any]) -> None:
    words = ("generate", "The board", "--device", desk.name, "--max-tokens", "12", "--seed", "3")
    first = desk.type(*words)
    assert first["tokens"] > 0
    if desk.repeats:
        assert desk.type(*words)["text"] == first["text"]


def test_bench_measures_both_recipes_and_their_text(desk: Desk, deployed: dict[str, Any]) -> None:
    recipes = ("--recipe", "fp32", "--recipe", "dynamic_wi8_afp32")
    rows = desk.type("bench", "ring", *recipes, "--time", "2s", "--tokens", "256")["rows"]
    assert {row["recipe"] for row in rows} == {"fp32", "dynamic_wi8_afp32"}
    assert all(row["p50_ms"] > 0 and row["peak_memory_bytes"] > 10_000_000 for row in rows)


def test_nothing_lies_outside_the_devices_own_folder(desk: Desk, deployed: dict[str, Any]) -> None:
    find = "find ~ -mindepth 1 -maxdepth 3 -newer /etc/hostname"
    listed = desk.board.ssh(f"{find}; stat -c %a ~/.local/share/merino-edge")
    own = Path("/home/pi/.local/share/merino-edge")
    *places, mode = listed.split()
    assert mode == "700"
    ours = {str(path) for path in (own, *own.parents)}
    assert [p for p in places if p not in ours and "/.ssh" not in p and "/.local/lib" not in p] == []
