"""The whole client over a real SSH server: this machine, seen as if it were a board elsewhere."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd_server import Client, Server, needs_sshd

from merino_edge.device.client import AgentDevice, GenerateOptions, TestSpec, open_device
from merino_edge.device.registry import DeviceEntry
from merino_edge.errors import DeviceError
from merino_edge.exporters.to_onnx import export
from merino_edge.testing import tiny_architecture, write_bundle

pytestmark = needs_sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")  # with no start-up files that change the PATH
    own = f"SetEnv HOME={home} PATH={Path(sys.executable).parent}:/usr/bin:/bin"
    running = Server(tmp_path_factory.mktemp("sshd"), extra=own)
    yield running
    running.stop()


@pytest.fixture(params=["paramiko", "openssh"])
def board(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DeviceEntry:
    own = Client(tmp_path / "client", monkeypatch)
    own.allow(server)
    own.know(server)
    host = f"{server.user}@127.0.0.1:{server.port}"
    return DeviceEntry("board", host=host, board="pi4", root=str(tmp_path / "root"), transport=request.param)


def agent_pid(device: AgentDevice) -> int:
    return int(device._link.hello["pid"])


def test_board_is_provisioned_deployed_to_and_measured(board: DeviceEntry, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", export, tiny_architecture())
    with open_device(board) as device:
        assert device.install(bundle).bytes_sent >= bundle.manifest.file_bytes
        (runtime,) = device.facts()["runtimes"]
        assert (runtime["name"], runtime["runtime"]) == ("installed", "onnxruntime")
    with open_device(board) as device:
        assert device.push(bundle).bytes_sent == 0
        assert len(list(device.generate([1, 2], GenerateOptions(max_tokens=9)))) == 9
        (result,) = device.measure(bundle, [TestSpec("tg", 16, 8)], threads=1, context_length=32, budget_s=0.01)
        assert len(result.samples_ns) >= 16
        pid = agent_pid(device)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_agent_that_dies_on_the_board_is_an_error_and_the_next_connection_works(board: DeviceEntry) -> None:
    with open_device(board) as device:
        os.kill(agent_pid(device), signal.SIGKILL)
        with pytest.raises(DeviceError):
            device.facts()
    with open_device(board) as device:
        assert device.facts()["device_id"]
