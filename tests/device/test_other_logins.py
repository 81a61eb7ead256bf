"""Boards that log in otherwise: other shells, start-up files that speak, one session at a time, two hosts at once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sshd_server import Client, Server, needs_sshd

from merino_edge.agent import store as store_module
from merino_edge.agent.errors import AgentError
from merino_edge.agent.store import Store
from merino_edge.device import provision
from merino_edge.device.client import open_device
from merino_edge.device.provision import ensure_runtime, start_agent
from merino_edge.device.purge import purge_device
from merino_edge.device.registry import DeviceEntry, local_entry
from merino_edge.device.releases import push_files
from merino_edge.device.remote import PUT_SCRIPT, shell_command
from merino_edge.device.ssh import open_ssh
from merino_edge.device.transport import Completed, LocalTransport
from merino_edge.errors import DeviceError, UsageError

SHELLS = ("sh", "dash", "bash", "rbash", "zsh", "fish", "ksh", "mksh", "csh", "tcsh", "busybox")
NASTY = ("$(touch x)", "it's", '"', "`id`", "-n", "a\nb\n", "*", "\u00e9\U0001f600", "", "a\\", "!!", ";id", "%s", "~")


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Return how sshd would start a login shell of this kind."""
    path = shutil.which(request.param)
    if path is None:
        pytest.skip(f"not installed: {request.param}")
    return [path, "sh", "-c"] if request.param == "busybox" else [path, "-c"]


def test_every_shell_takes_a_command_apart_into_the_same_words(shell: list[str]) -> None:
    line = shell_command(["printf", r"%s\0", *NASTY])
    done = subprocess.run([*shell, line], capture_output=True, check=True, timeout=20)
    assert done.stdout.decode().split("\0")[:-1] == list(NASTY)


def test_every_shell_starts_a_program_by_its_path_and_puts_a_file(shell: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*shell, shell_command([sys.executable, "-c", "print(1)"])], capture_output=True, check=True, timeout=20
    )
    assert done.stdout == b"1\n"
    digest = hashlib.sha256(b"x").hexdigest()
    command = shell_command(["sh", "-c", PUT_SCRIPT, "put", str(tmp_path / "a b"), "600", "1", digest])
    subprocess.run([*shell, command], input=b"0\nx", capture_output=True, check=True, timeout=20)
    assert (tmp_path / "a b").read_bytes() == b"x"


# -- start-up files and limits of a server --

Boot = Callable[[str, str], DeviceEntry]


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Boot]:
    """Give a function that starts a board with a ~/.bashrc and words of its own for sshd."""
    servers = []

    def start(bashrc: str, extra: str = "") -> DeviceEntry:
        home = tmp_path / "home"
        home.mkdir()
        (home / ".bashrc").write_text(bashrc)
        own = f"SetEnv HOME={home} PATH={Path(sys.executable).parent}:/usr/bin:/bin\n{extra}"
        servers.append(Server(tmp_path / "sshd", extra=own))
        client = Client(tmp_path / "client", monkeypatch)
        client.allow(servers[-1])
        client.know(servers[-1])
        host = f"{servers[-1].user}@127.0.0.1:{servers[-1].port}"
        return DeviceEntry("board", host, "local", str(tmp_path / "r\u00f6\u00f6t 1"), "paramiko")

    yield start
    for server in servers:
        server.stop()


@needs_sshd
@pytest.mark.parametrize(
    "bashrc",
    [
        "echo Welcome; echo have 12 345; echo on stderr >&2",
        r"printf '\033[31mred\033[0m and no new line'",
        "set -eu; umask 000; alias python3=false",
        "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0",
    ],
    ids=["prints", "prints no line", "sets options", "has no UTF-8"],
)
def test_a_start_up_file_is_passed_over(bashrc: str, boot: Boot, tmp_path: Path) -> None:
    entry = boot(bashrc, "")
    for _ in range(2):  # the agent is sent, then found
        with open_device(entry) as device:
            assert device.facts()["cpu"]
    (program,) = (tmp_path / "r\u00f6\u00f6t 1").glob("agent-*.pyz")
    assert program.stat().st_mode & 0o077 == 0


@needs_sshd
@pytest.mark.parametrize(
    ("bashrc", "extra", "words"),
    [
        ("exec echo no shell for you", "", "starts no programs for this account; it says: no shell for you"),
        ("", "ForceCommand internal-sftp", "starts no programs for this account"),
        ("", "ForceCommand echo only backups", "it says: only backups"),
        ("cat > /dev/null", "", "a start-up file of the login shell there reads what is meant for the program"),
    ],
    ids=["another program", "sftp only", "a command of its own", "reads"],
)
def test_a_login_that_starts_no_program_is_told_from_a_missing_python(
    bashrc: str, extra: str, words: str, boot: Boot
) -> None:
    with pytest.raises(DeviceError, match=words) as caught:
        open_device(boot(bashrc, extra))
    assert caught.value.hint and "bashrc" in caught.value.hint


@needs_sshd
def test_a_board_that_allows_one_session_at_a_time_serves(boot: Boot, tmp_path: Path) -> None:
    transport = open_ssh(boot("", "MaxSessions 1"))
    try:
        for number in range(3):
            assert transport.run(["echo", str(number)]).stdout == f"{number}\n".encode()
            transport.put(b"x" * number, str(tmp_path / "put"))
    finally:
        transport.close()


def at_once(work: Callable[[Any], None], links: Sequence[Any]) -> list[Exception]:
    """Do the same over every link at the same time, then close them; return what failed."""
    failed: list[Exception] = []

    def guarded(link: Any) -> None:
        try:
            work(link)
        except DeviceError as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for link in links:
        link.close()
    return failed


@needs_sshd
def test_two_hosts_put_the_same_file_at_once(boot: Boot, tmp_path: Path) -> None:
    board, content = boot("", ""), os.urandom(8 << 20)
    links = [open_ssh(board) for _ in range(3)]
    assert at_once(lambda link: link.put(content, str(tmp_path / "put")), links) == []
    assert (tmp_path / "put").read_bytes() == content


def test_two_hosts_send_the_same_object_at_once(tmp_path: Path) -> None:
    file, entry = tmp_path / "file", DeviceEntry("local", None, "local", str(tmp_path / "root"), "local")
    file.write_bytes(os.urandom(24 << 20))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    links = [start_agent(LocalTransport(), entry) for _ in range(3)]
    sent = list[int]()
    assert at_once(lambda link: sent.append(push_files(link, {digest: file}).bytes_sent), links) == []
    assert len(sent) == len(links)
    assert hashlib.sha256((tmp_path / "root" / "objects" / digest).read_bytes()).hexdigest() == digest


def test_an_upload_that_another_host_holds_is_busy_and_free_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "UPLOAD_WAIT_S", 0.1)
    digest = hashlib.sha256(b"ab").hexdigest()
    with Store(tmp_path).open_part(digest, 0) as part:
        part.write(b"a")
        with pytest.raises(AgentError, match="another host sends the same file") as caught:
            Store(tmp_path).open_part(digest, 0).__enter__()
        assert caught.value.kind == "busy"
    with Store(tmp_path).open_part(digest, 1) as part:
        part.write(b"b")
        Store(tmp_path).finish_part(digest, part)
    assert Store(tmp_path).missing([(digest, 2)]) == []


# -- what is said --


class Refusing:
    """An agent without a runtime, on a file system that runs nothing, or at work for another host."""

    def __init__(self, error: DeviceError) -> None:
        self.where, self.hello, self._error = "pi@kitchen", {"root": "/usb/merino-edge"}, error

    def ask(self, operation: str, on_event: object = None, **request: object) -> dict[str, object]:
        if operation == "runtime":
            raise self._error
        python = {"platform": "linux-aarch64", "libc": "glibc", "libc_version": "2.36", "bits": 64, "version": "3.11.2"}
        return {"architecture": "aarch64", "cpu": {"flags": ["asimd"]}, "python": python, "runtimes": []}


def test_a_folder_mounted_noexec_is_named_with_the_option_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "fetch", lambda wheels: {})
    monkeypatch.setattr(provision, "push_files", lambda link, files, progress: None)
    board = DeviceEntry("kitchen", "pi@kitchen", "pi4", None, "paramiko")
    link = Refusing(DeviceError("cannot import numpy: libx.so: failed to map segment from shared object"))
    with pytest.raises(DeviceError, match="/usb/merino-edge is mounted noexec") as caught:
        ensure_runtime(link, board)  # type: ignore[arg-type]
    assert "--root" in str(caught.value.hint)


def test_a_folder_with_other_things_is_no_root_and_stays_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter").write_text("dear")
    entry = DeviceEntry("local", None, "local", str(home), "local")
    with pytest.raises(UsageError, match=r"holds other things \(letter\)"):
        start_agent(LocalTransport(), entry)
    assert os.listdir(home) == ["letter"]
    assert home.stat().st_mode & 0o777 == 0o755
    (home / "objects").mkdir()  # of an earlier version, which took any folder
    with pytest.raises(DeviceError, match="holds what is not ours") as caught:
        purge_device(LocalTransport(), entry)
    assert f"cd {home} && rm -rf agent-*.pyz objects" in str(caught.value.hint)


def test_a_purge_that_the_disk_refuses_gives_its_reason_in_a_line() -> None:
    class ReadOnly(LocalTransport):
        def run(self, argv: object, input: bytes = b"", timeout_s: float = 30.0) -> Completed:
            return Completed(0, b'{"removed": false, "refused": "Read-only file system", "purge": 1}\n', b"")

    with pytest.raises(DeviceError, match=r"cannot be removed: Read-only file system$"):
        purge_device(ReadOnly(), local_entry())
