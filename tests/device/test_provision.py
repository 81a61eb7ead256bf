"""The agent and a runtime onto a device: which interpreter, which wheels, and what is said without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from merino_edge.device.provision import ensure_runtime, platform_tags, start_agent
from merino_edge.device.registry import DeviceEntry, local_entry
from merino_edge.device.transport import Completed, LocalTransport
from merino_edge.errors import DeviceError

PI_OS = {"platform": "linux-aarch64", "libc": "glibc", "libc_version": "2.36", "bits": 64, "version": "3.11.2"}


class Answering(LocalTransport):
    """A device whose probe answers what it was told to."""

    def __init__(self, *answers: dict[str, Any] | str) -> None:
        self.output = "\n".join(a if isinstance(a, str) else json.dumps(a) for a in answers)
        self.opened: list[str] = []

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        return Completed(0, self.output.encode(), b"")

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
    ],
    ids=["the newest", "one with the runtime first", "after a banner", "not one that is too old"],
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


def test_tags_follow_the_c_library_newest_first() -> None:
    tags = platform_tags(PI_OS)
    assert tags[:2] == ["manylinux_2_36_aarch64", "manylinux_2_35_aarch64"]
    assert tags[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 32}, "user land is 32-bit"),
        ({"libc": "", "libc_version": ""}, "no wheels"),
        ({"platform": "macosx-14.0-arm64"}, "no wheels"),
        ({"libc_version": "\x1b[31m"}, "no wheels"),
    ],
)
def test_system_without_wheels_is_told_why(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        platform_tags({**PI_OS, **change})
    assert caught.value.hint
    assert "\x1b" not in caught.value.message


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
