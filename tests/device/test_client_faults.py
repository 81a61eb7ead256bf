"""What happens when an agent, its host, its child or its runtime fails."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from merino_edge.agent import PROTOCOL, frames
from merino_edge.agent.server import SILENCE_S
from merino_edge.agent.store import Store
from merino_edge.bundle import Bundle
from merino_edge.device.agent_link import AgentLink, AgentRefusal
from merino_edge.device.client import AgentDevice, TestSpec, open_device
from merino_edge.device.provision import agent_program, start_agent
from merino_edge.device.registry import DeviceEntry, local_entry
from merino_edge.device.releases import push_files
from merino_edge.device.transport import LocalTransport
from merino_edge.errors import DeployError, DeviceBusyError, DeviceError, MerinoEdgeError, ProtocolError
from merino_edge.exporters.to_onnx import export
from merino_edge.files import sha256_file
from merino_edge.testing import tiny_architecture, write_bundle

pytestmark = pytest.mark.alone


@pytest.fixture
def entry(tmp_path: Path) -> DeviceEntry:
    return dataclasses.replace(local_entry(), root=str(tmp_path / "root"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), export, tiny_architecture())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("other"), export, tiny_architecture(), seed=1)


@pytest.fixture
def link(entry: DeviceEntry) -> Iterator[AgentLink]:
    opened = start_agent(LocalTransport(), entry)
    yield opened
    opened.close()


ENDLESS = TestSpec("tg", 1_000_000)  # never done within a test


def agent_pid(device: AgentDevice) -> int:
    return int(device._link.hello["pid"])


def test_second_measurement_is_refused_while_one_runs(entry: DeviceEntry, bundle: Bundle) -> None:
    running = threading.Event()
    with open_device(entry) as first, open_device(entry) as second:
        second.push(bundle)
        second.runtime()

        def measure() -> None:
            first.measure(bundle, [TestSpec("tg", 64)], budget_s=2, progress=lambda done, of: running.set())

        thread = threading.Thread(target=measure)
        thread.start()
        assert running.wait(20)
        with pytest.raises(DeviceBusyError, match=f"process {agent_pid(first)} works on the device .measure. since"):
            second.measure(bundle, [TestSpec("pp", 8)])
        thread.join()
        assert second.measure(bundle, [TestSpec("pp", 8)], threads=1, context_length=16, budget_s=0.01)


def test_lock_is_free_after_the_holder_was_killed(entry: DeviceEntry, bundle: Bundle) -> None:
    running = threading.Event()
    with open_device(entry) as first, open_device(entry) as second:

        def measure() -> None:
            with pytest.raises(ProtocolError, match="cut"):
                first.measure(bundle, [ENDLESS], progress=lambda done, of: running.set())

        thread = threading.Thread(target=measure)
        thread.start()
        assert running.wait(20)
        os.kill(agent_pid(first), signal.SIGKILL)
        thread.join()
        deadline = time.monotonic() + 5
        while True:
            try:
                assert second.measure(bundle, [TestSpec("pp", 8)], threads=1, context_length=16, budget_s=0.01)
                break
            except DeviceBusyError:
                assert time.monotonic() < deadline
                time.sleep(0.05)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2, 0.35])
def test_agent_killed_while_it_installs_leaves_the_old_release_or_the_new(
    entry: DeviceEntry, bundle: Bundle, other: Bundle, delay_s: float
) -> None:
    with open_device(entry) as device:
        old = device.install(bundle).release
        device.push(other)
        killer = threading.Timer(delay_s, os.kill, (agent_pid(device), signal.SIGKILL))
        killer.start()
        with contextlib.suppress(DeviceError):
            device.install(other)
        killer.join()
    with open_device(entry) as device:
        current = device.current()
        assert current is not None
        assert current["release"] in (old, old + 1)
        device._link.ask("verify", release=current["release"])
        installed = device.install(other)
        current = device.current()
        assert current is not None
        assert current["release"] == installed.release


def test_agent_killed_while_it_receives_resumes_the_upload(entry: DeviceEntry, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * 12 + b"end")
    digest, size = sha256_file(path), path.stat().st_size
    link = start_agent(LocalTransport(), entry)
    acknowledged = 0

    def kill_in_the_middle(sent: int) -> None:
        nonlocal acknowledged
        acknowledged += sent
        if acknowledged >= 5 << 20:
            os.kill(int(link.hello["pid"]), signal.SIGKILL)

    with pytest.raises(MerinoEdgeError):
        link.upload(digest, path, size, 0, kill_in_the_middle)
    link.close()
    again = start_agent(LocalTransport(), entry)
    result = push_files(again, {digest: path})
    again.close()
    assert result.bytes_sent <= size - acknowledged
    assert sha256_file(Path(str(entry.root)) / "objects" / digest) == digest


def test_resumed_upload_whose_beginning_was_damaged_is_sent_whole(link: AgentLink, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"good " * 1000)
    digest = sha256_file(path)
    (Path(str(link.hello["root"])) / "objects" / f"{digest}.part").write_bytes(b"bad " * 100)
    push_files(link, {digest: path})
    assert sha256_file(Path(str(link.hello["root"])) / "objects" / digest) == digest


def test_file_that_is_not_what_it_says_is_refused(link: AgentLink, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with pytest.raises(DeployError, match="not what its manifest says"):
        push_files(link, {"0" * 64: path})


def test_device_without_room_says_so_before_a_byte_is_sent(link: AgentLink) -> None:
    with pytest.raises(DeployError, match="are free on the device"):
        link.ask("have", objects=[{"sha256": "0" * 64, "bytes": 1 << 60}])


def test_unknown_request_is_refused_and_the_next_answered(link: AgentLink) -> None:
    with pytest.raises(ProtocolError, match="knows no 'dance'"):
        link.ask("dance")
    assert link.ask("facts")["device_id"]


def start_raw(root: Path) -> subprocess.Popen[bytes]:
    program = root.parent / "agent.pyz"
    program.write_bytes(agent_program()[0])
    return subprocess.Popen(
        [sys.executable, str(program), "--root", str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )


def test_agent_with_a_quiet_host_ends_its_child_and_frees_the_lock_within_ten_seconds(
    entry: DeviceEntry, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_device(entry) as device:
        device.push(bundle)
        device.runtime()
    monkeypatch.setattr("merino_edge.device.agent_link.BEAT_S", 1000.0)
    with open_device(entry) as device:
        started = time.monotonic()
        with pytest.raises(ProtocolError, match="cut"):
            device.measure(bundle, [ENDLESS])
        assert SILENCE_S - 1 < time.monotonic() - started < 10
    with Store(Path(str(entry.root))).lock("test"):
        pass


def test_agent_ends_at_once_when_its_stdin_ends(tmp_path: Path) -> None:
    child = start_raw(tmp_path / "root")
    assert child.stdin and child.stdout
    child.stdout.read(1)
    child.stdin.close()
    assert child.wait(2) == 3
    child.stdout.close()


def test_agent_refuses_a_damaged_frame_and_ends(tmp_path: Path) -> None:
    child = start_raw(tmp_path / "root")
    out, _ = child.communicate(frames.encode_json(frames.HELLO, 0, {"protocol": PROTOCOL}) + b"\0" * 40, timeout=10)
    received = frames.Decoder().feed(out)
    assert [f.type for f in received if f.type != frames.PING] == [frames.HELLO, frames.ERROR]


class Script:
    """A channel that says what it was told to, for broken and hostile agents."""

    def __init__(self, output: bytes) -> None:
        self.output = io.BytesIO(output)

    def send(self, data: bytes) -> None:
        pass

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        return self.output.read(max_bytes)

    def stderr_tail(self) -> str:
        return "Traceback: \x1b[31mout of luck"

    def close(self) -> None:
        pass


HELLO = frames.encode_json(frames.HELLO, 0, {"protocol": PROTOCOL})
END = frames.encode(frames.END, 0)


def test_stream_without_its_end_frame_is_an_error_that_quotes_stderr() -> None:
    with pytest.raises(ProtocolError, match=r"no end frame; the agent last said: Traceback: \[31mout of luck"):
        AgentLink(Script(HELLO), "x").ask("facts")


def test_agent_that_ends_without_an_answer_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="before it had answered"):
        AgentLink(Script(HELLO + END), "x").ask("facts")


def test_answer_to_another_question_is_an_error() -> None:
    answer = frames.encode_json(frames.RESULT, 99, {"device_id": "wrong"})
    with pytest.raises(ProtocolError, match="another question"):
        AgentLink(Script(HELLO + answer + END), "x").ask("facts")


def test_agent_of_another_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="another protocol"):
        AgentLink(Script(frames.encode_json(frames.HELLO, 0, {"protocol": 99}) + END), "x")


def test_escape_codes_of_a_device_never_reach_the_message() -> None:
    error = {"kind": "failed", "message": "\x1b]52;c;evil\x07 \u202egone", "hint": "\x1b[2J", "details": {"a": "\x1b"}}
    answer = frames.encode_json(frames.ERROR, 1, error)
    with pytest.raises(DeviceError) as caught:
        AgentLink(Script(HELLO + answer + END), "x").ask("facts")
    assert all(c.isprintable() for c in f"{caught.value.message}{caught.value.hint}{caught.value.details}")


@pytest.mark.parametrize("samples", [[-5], [0], [float(3)], [True], [], "x", [10**30]])
def test_samples_that_no_clock_gives_are_refused(samples: object, bundle: Bundle) -> None:
    from merino_edge.device.records import read_results

    answer = {
        "load_ns": 1, "peak_memory_bytes": 1, "model_memory_bytes": 1, "file_backed_bytes": 1, "threads": 1,
        "tests": [{"samples_ns": samples, "warmup_ns": [1]}],
    }  # fmt: skip
    with pytest.raises(ProtocolError):
        read_results(answer, (TestSpec("tg", 1),))


def wheel(folder: Path, module: str) -> Path:
    path = folder / "onnxruntime-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("onnxruntime/__init__.py", module)
    return path


def register(link: AgentLink, path: Path) -> dict[str, object]:
    digest = sha256_file(path)
    push_files(link, {digest: path})
    return link.ask("runtime", name="odd", wheels=[{"name": path.name, "sha256": digest}])


REAL = "import sys, os\nsys.path.pop(0)\ndel sys.modules['onnxruntime']\nimport onnxruntime\n"


def test_runtime_that_prints_does_not_damage_the_stream(link: AgentLink, tmp_path: Path) -> None:
    noisy = (
        REAL + "print('hello ' * 999, flush=True)\nos.write(1, b'raw noise' * 999)\nos.system('echo from a child')\n"
    )
    assert register(link, wheel(tmp_path, noisy))["runtime"] == "onnxruntime"


def test_runtime_with_illegal_instructions_is_explained(link: AgentLink, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="instruction that this CPU does not have"):
        register(link, wheel(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"))


def test_runtime_that_computes_wrongly_is_refused(link: AgentLink, tmp_path: Path) -> None:
    wrong = REAL + (
        "original = onnxruntime.InferenceSession.run\n"
        "onnxruntime.InferenceSession.run = lambda *a: [x + 1 if x.ndim else x for x in original(*a)]\n"
    )
    with pytest.raises(DeviceError, match="computes wrong numbers"):
        register(link, wheel(tmp_path, wrong))
    assert link.ask("facts")["runtimes"] == []


def test_wheel_that_leaves_its_folder_is_refused(link: AgentLink, tmp_path: Path) -> None:
    path = tmp_path / "evil.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.py", "")
    with pytest.raises(DeployError, match="leaves its folder"):
        register(link, path)


def test_refusal_keeps_the_agents_kind(link: AgentLink, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with pytest.raises(AgentRefusal) as caught:
        link.upload("0" * 64, path, 7, 0, lambda sent: None)
    assert caught.value.kind == "corrupt"


def test_interrupted_upload_is_taken_up_again_on_the_same_link(link: AgentLink, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * 30)
    digest, seen = sha256_file(path), 0.0

    def interrupt(done: float, of: float) -> None:
        nonlocal seen
        seen = done
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_files(link, {digest: path}, interrupt)
    assert seen
    assert push_files(link, {digest: path}).bytes_sent < path.stat().st_size
    assert push_files(link, {digest: path}).bytes_sent == 0


def test_silent_agent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Script):
        def recv(self, max_bytes: int, timeout_s: float) -> bytes:
            data = self.output.read(max_bytes)
            if not data:
                time.sleep(timeout_s)
                raise TimeoutError
            return data

    monkeypatch.setattr("merino_edge.device.agent_link.SILENCE_S", 0.6)
    started = time.monotonic()
    silent = AgentLink(Silent(HELLO), "x")
    with pytest.raises(DeviceError, match="nothing was heard for"):
        silent.ask("facts")
    silent.close()
    assert time.monotonic() - started < 5


def test_endless_stream_is_refused_in_bounded_memory() -> None:
    class Endless(Script):
        def recv(self, max_bytes: int, timeout_s: float) -> bytes:
            return b"noise " * 40_000

    with pytest.raises(ProtocolError, match="other bytes come first"):
        AgentLink(Endless(b""), "x")


def test_flood_of_frames_nobody_asked_for_is_cut_off() -> None:
    event = frames.encode_json(frames.EVENT, 7, {"token": 1})
    with pytest.raises(ProtocolError, match="another question"):
        AgentLink(Script(HELLO + event * 20_000 + END), "x").ask("facts")
