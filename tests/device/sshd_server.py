"""A real OpenSSH server on loopback for tests: own keys, own configuration, a free high port, nothing shared."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = [name for name in (SSHD, "ssh", "ssh-keygen") if shutil.which(name) is None]
needs_sshd = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (make system-packages)")


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair; return the private key's path."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)], check=True, timeout=30
    )
    return path


def public(path: Path) -> str:
    """Return type and base64 of a key pair's public half."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def free_port() -> int:
    """Return a port nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    """One sshd, started and ended by its process id."""

    def __init__(self, folder: Path, host_kinds: tuple[str, ...] = ("ed25519",), extra: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self.user = folder, free_port(), getpass.getuser()
        self.host_keys = [make_key(folder / f"host_{kind}", kind) for kind in host_kinds]
        self.authorized = folder / "authorized_keys"
        self.authorized.touch()
        self._config = folder / "sshd_config"
        self._extra = extra
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of root separates its rights
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it with the host keys that lie there now; wait until it listens."""
        lines = [
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"AuthorizedKeysFile {self.authorized}",
            "StrictModes no",
        ]
        lines += ["UsePAM no", "PidFile none", "PermitRootLogin yes", "PasswordAuthentication no", "MaxStartups 100"]
        lines += [
            "KbdInteractiveAuthentication no",
            "PrintMotd no",
            "Subsystem sftp internal-sftp",
            *(f"HostKey {key}" for key in self.host_keys),
        ]
        self._config.write_text("\n".join(lines) + "\n" + self._extra + "\n")
        log = open(self.folder / "log", "ab")  # noqa: SIM115
        command = [SSHD, "-D", "-e", "-f", str(self._config)]
        self._process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        log.close()
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.025)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End it, and the sessions it started."""
        if self._process is not None:
            for child in self.sessions():
                kill_if_there(child)
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def sessions(self) -> list[int]:
        """Return the process ids of the sessions now running."""
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(word) for word in text.split()]


def kill_if_there(pid: int) -> None:
    """Kill a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Client:
    """A client's own ~/.ssh: a key, known hosts, a configuration."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = make_key(folder / "id")
        self.known_hosts, self.config = folder / "known_hosts", folder / "config"
        self.write_config("")
        monkeypatch.setenv("MERINO_EDGE_SSH_CONFIG", str(self.config))

    def write_config(self, text: str) -> None:
        """Write the configuration: `text`, then what keeps the test apart from the machine's own keys."""
        own = f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n  IdentityFile {self.key}\n"
        self.config.write_text(f"{text}\nHost *\n{own}  IdentitiesOnly yes\n  IdentityAgent none\n")

    def allow(self, server: Server) -> None:
        """Let this client in."""
        server.authorized.write_text(server.authorized.read_text() + public(self.key) + "\n")

    def know(self, server: Server, name: str | None = None) -> None:
        """Write the server's keys down."""
        label = name or f"[127.0.0.1]:{server.port}"
        lines = [f"{label} {public(key)}\n" for key in server.host_keys]
        with open(self.known_hosts, "a") as stream:
            stream.write("".join(lines))


class StallingProxy:
    """Passes bytes on to a port until it is told to pass on nothing any more; the connections stay open."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self.stalled = threading.Event()
        self.passed = 0
        self.cut_after: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [here, there]
            threading.Thread(target=self._pass_on, args=(here, there, True), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(there, here, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(65536):
                while self.stalled.is_set():
                    time.sleep(0.05)
                if counted:
                    self.passed += len(data)
                    if self.cut_after is not None and self.passed > self.cut_after:
                        break
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything."""
        self.stalled.clear()
        for sock in (self._listener, *self._sockets):
            sock.close()
