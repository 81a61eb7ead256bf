"""The agent and a runtime onto a device: which interpreter, which wheels, and what is said without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from merino_edge.device import provision
from merino_edge.device.provision import ensure_runtime, ensure_tokenizers, start_agent
from merino_edge.device.registry import DeviceEntry, local_entry
from merino_edge.device.transport import Completed, LocalTransport
from merino_edge.device.wheels import MAX_TRIES, WheelSet
from merino_edge.errors import DeviceError

PI_OS = {"platform": "linux-aarch64", "libc": "glibc", "libc_version": "2.36", "bits": 64, "version": "3.11.2"}


class Answering(LocalTransport):
    """A device whose probe answers what it was told to."""

    def __init__(self, *answers: dict[str, Any] | str) -> None:
        self.output = "\n".join(a if isinstance(a, str) else json.dumps(a) for a in answers)
        self.opened: list[str] = []

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        return Completed(0, f"probe-input {input.decode()}{self.output}".encode(), b"")

    def open(self, argv: Sequence[str]) -> Any:
        self.opened = list(argv)
        raise DeviceError("not in this test")


def probe(python: str, version: list[int], runtime: bool = False) -> dict[str, Any]:
    place = {"root": "/root", "path": "/root/agent.pyz", "have": True}
    return {"probe": 1, "python": python, "version": version, "runtime": runtime, **place}


@pytest.fixture
def board() -> DeviceEntry:
    return DeviceEntry("kitchen", "pi@kitchen.local", "pi4", None, "paramiko")


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ([probe("/usr/bin/python3.9", [3, 9, 2]), probe("/usr/bin/python3.11", [3, 11, 2])], "/usr/bin/python3.11"),
        ([probe("/a/python3.8", [3, 8, 0], runtime=True), probe("/b/python3.11", [3, 11, 2])], "/a/python3.8"),
        (["Welcome!", "{", '{"probe": 1}', probe("/usr/bin/python3", [3, 10, 0])], "/usr/bin/python3"),
        ([probe("/usr/bin/python3", [3, 6, 9]), probe("/usr/bin/python3.8", [3, 8, 0])], "/usr/bin/python3.8"),
        ([probe("/usr/bin/python3", [3, 99, 0]), probe("/usr/bin/python3.11", [3, 11, 0])], "/usr/bin/python3.11"),
    ],
    ids=["the newest", "one with the runtime first", "after a banner", "not one that is too old", "one with wheels"],
)
def test_interpreter_is_chosen(answers: list[Any], chosen: str, board: DeviceEntry) -> None:
    transport = Answering(*answers)
    with pytest.raises(DeviceError, match="not in this test"):
        start_agent(transport, board)
    assert transport.opened[0] == chosen


@pytest.mark.parametrize(
    ("answers", "words"),
    [([], "no Python 3;"), ([probe("/usr/bin/python3", [3, 6, 9])], "only Python 3.6.9; the agent needs 3.8 or newer")],
)
def test_device_without_a_python_is_told_what_to_install(answers: list[Any], words: str, board: DeviceEntry) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        start_agent(Answering(*answers), board)
    assert "apt install" in str(caught.value.hint)


def test_a_python_without_its_whole_library_is_told_from_none(
    board: DeviceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = b"Traceback (most recent call last):\nModuleNotFoundError: No module named 'json'\n"
    monkeypatch.setattr(
        Answering, "run", lambda self, argv, input=b"", timeout_s=30.0: Completed(0, b"probe-input " + input, said)
    )
    with pytest.raises(DeviceError, match=r"lacks a part of the standard library \(json\)") as caught:
        start_agent(Answering(), board)
    assert "python3-minimal is not enough" in str(caught.value.hint)


def board_facts(*flags: str, **python: Any) -> dict[str, Any]:
    return {"architecture": "aarch64", "cpu": {"flags": list(flags)}, "python": {**PI_OS, **python}, "runtimes": []}


class Link:
    """An agent that answers what it was told to, runtime by runtime."""

    def __init__(self, facts: dict[str, Any], *answers: dict[str, Any] | DeviceError) -> None:
        self.facts, self.answers, self.asked = facts, list(answers), list[dict[str, Any]]()

    def ask(self, operation: str, on_event: Any = None, **request: Any) -> dict[str, Any]:
        if operation == "facts":
            return self.facts
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, DeviceError):
            raise answer
        return {"name": request["name"], **answer}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[WheelSet]:
    """Keep what would be downloaded and sent."""
    taken: list[WheelSet] = []

    def fetch(wheels: WheelSet) -> dict[str, Path]:
        taken.append(wheels)
        return {sha: Path(name) for name, sha in wheels.wheels.items()}

    monkeypatch.setattr(provision, "fetch", fetch)
    monkeypatch.setattr(provision, "push_files", lambda link, files, progress: None)
    return taken


NONE = DeviceError("cannot import numpy and onnxruntime")
ILLEGAL = DeviceError("the runtime uses an instruction that this CPU does not have")
GOOD = {"runtime": "onnxruntime", "runtime_version": "1.28.0"}


def test_a_version_that_dies_makes_room_for_the_one_before(board: DeviceEntry, sent: list[WheelSet]) -> None:
    link = Link(board_facts("asimd"), NONE, ILLEGAL, GOOD)
    name = ensure_runtime(link, board)  # type: ignore[arg-type]
    assert [wheels.version for wheels in sent] == ["1.32.0", "1.28.0"]
    assert name == link.asked[-1]["name"]
    assert {w["sha256"] for w in link.asked[-1]["wheels"]} == set(sent[-1].wheels.values())


def test_when_every_version_dies_the_sentence_names_them_and_the_next_step(
    board: DeviceEntry, sent: list[WheelSet]
) -> None:
    with pytest.raises(DeviceError) as caught:
        ensure_runtime(Link(board_facts("asimd"), NONE, *[ILLEGAL] * MAX_TRIES), board)  # type: ignore[arg-type]
    assert all(wheels.version in caught.value.message for wheels in sent)
    assert "an instruction that this CPU does not have" in caught.value.message
    assert "by hand" in str(caught.value.hint)


def test_an_installed_runtime_known_to_die_on_this_core_is_not_taken(board: DeviceEntry, sent: list[WheelSet]) -> None:
    bad = {"runtime": "onnxruntime", "runtime_version": "1.21.0"}
    link = Link(board_facts("asimd"), bad, GOOD)
    assert ensure_runtime(link, board).startswith("onnxruntime-")  # type: ignore[arg-type]
    link = Link(board_facts("asimd", "asimddp"), bad)
    assert ensure_runtime(link, board) == "installed"  # type: ignore[arg-type]


def test_a_recorded_runtime_known_to_die_on_this_core_is_not_taken_either(
    board: DeviceEntry, sent: list[WheelSet]
) -> None:
    record = {"name": "installed", "runtime": "onnxruntime", "runtime_version": "1.21.0", "python": "/usr/bin/python3"}
    link = Link({**board_facts("asimd"), "runtimes": [record]}, NONE, GOOD)
    assert ensure_runtime(link, board) != "installed"  # type: ignore[arg-type]


def test_where_tflite_runtime_has_no_wheels_its_successor_is_sent(board: DeviceEntry, sent: list[WheelSet]) -> None:
    link = Link(board_facts(version="3.12.1"), NONE, {"runtime": "ai-edge-litert", "runtime_version": "2.3.0"})
    ensure_runtime(link, board, package="tflite-runtime")  # type: ignore[arg-type]
    assert [wheels.runtime for wheels in sent] == ["ai-edge-litert"]


RUNTIME = {"name": "installed", "runtime": "onnxruntime", "runtime_version": "1.28.0", "python": "/usr/bin/python3"}
TOKENIZERS = {"runtime": "tokenizers", "runtime_version": "0.22.2"}


def test_tokenizers_are_sent_when_asked_for_from_the_best_version_down_beside_their_runtime(
    board: DeviceEntry, sent: list[WheelSet]
) -> None:
    link = Link({**board_facts("asimd"), "runtimes": [RUNTIME]}, NONE, ILLEGAL, TOKENIZERS)
    assert ensure_tokenizers(link, board, "installed", push=False) is None  # type: ignore[arg-type]
    assert sent == []
    name = ensure_tokenizers(link, board, "installed", push=True)  # type: ignore[arg-type]
    assert [(wheels.runtime, wheels.version) for wheels in sent] == [("tokenizers", "0.23.3"), ("tokenizers", "0.22.2")]
    assert name == link.asked[-1]["name"]
    assert {asked["beside"] for asked in link.asked} == {"installed"}


def test_tokenizers_that_are_there_are_used_unasked_under_their_own_interpreter_alone(
    board: DeviceEntry, sent: list[WheelSet]
) -> None:
    there = {"name": "tokenizers-1", **TOKENIZERS, "python": RUNTIME["python"]}
    link = Link({**board_facts("asimd"), "runtimes": [RUNTIME, there]})
    assert ensure_tokenizers(link, board, "installed", push=False) == "tokenizers-1"  # type: ignore[arg-type]
    other = {**there, "python": "/usr/bin/python3.9"}
    link = Link({**board_facts("asimd"), "runtimes": [RUNTIME, other]}, TOKENIZERS)
    assert ensure_tokenizers(link, board, "installed", push=False) == "installed-tokenizers"  # type: ignore[arg-type]


def test_without_an_index_the_sentence_says_what_to_type_on_the_device(
    board: DeviceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(wheels: WheelSet) -> dict[str, Path]:
        raise DeviceError("no network", hint="plug it in")

    monkeypatch.setattr(provision, "fetch", fetch)
    with pytest.raises(DeviceError, match="no network") as caught:
        ensure_runtime(Link(board_facts("asimd"), NONE), board)  # type: ignore[arg-type]
    assert "python3.11 -m pip install --user onnxruntime numpy" in str(caught.value.hint)


def test_local_runtime_is_this_interpreter_and_checked_once(tmp_path: Path) -> None:
    entry = DeviceEntry("local", None, "local", str(tmp_path / "root"), "local")
    link = start_agent(LocalTransport(), entry)
    name = ensure_runtime(link, entry)
    assert ensure_runtime(link, entry) == name
    (record,) = link.ask("facts")["runtimes"]
    assert (record["name"], record["python"], record["folder"]) == (name, sys.executable, None)
    link.close()


def test_agent_is_pushed_once_under_its_hash_and_private(tmp_path: Path) -> None:
    entry = DeviceEntry("local", None, local_entry().board, str(tmp_path / "root"), "local")
    for _ in range(2):
        link = start_agent(LocalTransport(), entry)
        link.close()
    (program,) = (tmp_path / "root").glob("agent-*.pyz")
    assert program.name == f"agent-{link.hello['digest']}.pyz"
    assert program.stat().st_mode & 0o077 == 0
