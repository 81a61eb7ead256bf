"""This machine as a transport: commands, programs and files behind the interface that SSH has as well."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from merino_edge.device.transport import LocalTransport
from merino_edge.errors import DeviceError

pytestmark = pytest.mark.alone

LOCAL = LocalTransport()


def test_command_returns_output_errors_and_exit_code() -> None:
    done = LOCAL.run(["sh", "-c", "cat; echo bad >&2; exit 3"], b"in")
    assert (done.exit_code, done.stdout, done.stderr) == (3, b"in", b"bad\n")


def test_command_that_does_not_end_is_killed_with_its_children() -> None:
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"did not end within 0\.3 s"):
        LOCAL.run(["sh", "-c", "sleep 60 & sleep 60"], timeout_s=0.3)
    assert time.monotonic() - started < 5


def test_command_that_is_not_there_is_told() -> None:
    with pytest.raises(DeviceError, match="cannot start no-such-program"):
        LOCAL.run(["no-such-program"])
    with pytest.raises(DeviceError, match="cannot start no-such-program"):
        LOCAL.open(["no-such-program"])


def test_program_talks_both_ways_and_ends_with_its_input() -> None:
    channel = LOCAL.open(["cat"])
    channel.send(b"hello")
    assert channel.recv(100, 5) == b"hello"
    with pytest.raises(TimeoutError):
        channel.recv(100, 0.05)
    channel.close()


def test_end_of_a_program_is_an_empty_read_and_its_stderr_is_kept() -> None:
    channel = LOCAL.open([sys.executable, "-c", "import sys; sys.stderr.write('x' * 10**6 + 'last words')"])
    assert channel.recv(100, 20) == b""
    channel.close()
    assert channel.stderr_tail().endswith("last words")


def test_program_that_ignores_the_end_of_its_input_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.device.transport.CLOSE_LIMIT_S", 0.2)
    channel = LOCAL.open(["sleep", "60"])
    started = time.monotonic()
    channel.close()
    assert time.monotonic() - started < 5


def test_sending_to_a_program_that_ended_is_an_error() -> None:
    channel = LOCAL.open(["true"])
    assert channel.recv(1, 5) == b""
    with pytest.raises(DeviceError, match="has ended"):
        for _ in range(100):
            channel.send(b"x" * 100_000)
    channel.close()


def test_file_is_put_whole_private_and_in_a_private_folder(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"content")
    seen: list[tuple[int, int]] = []
    LOCAL.put(source, str(target), progress=lambda done, of: seen.append((done, of)))
    assert target.read_bytes() == b"content"
    assert (target.stat().st_mode & 0o777, target.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert seen == [(7, 7)]


def test_file_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot write"):
        LOCAL.put(b"x", str(tmp_path / "file" / "below"))
