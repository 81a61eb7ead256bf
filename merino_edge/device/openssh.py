"""A device over SSH with the system's own `ssh`, for what only OpenSSH can do: FIDO keys, Kerberos, certificates.

One master process holds the connection; every program is a second `ssh` that goes through its socket. Host keys are
checked by `ssh` itself, at every hop under the same policy; what the configuration says against that is overruled.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from merino_edge.device.known_hosts import Policy
from merino_edge.device.records import clean_text
from merino_edge.device.registry import HostAddress
from merino_edge.device.remote import (
    CONNECT_LIMIT_S,
    Ask,
    put_file,
    refused_login,
    run_command,
    shell_command,
    unreachable,
)
from merino_edge.device.ssh_config import SshSettings, config_path, find_ssh, read_with_openssh, route
from merino_edge.device.transport import CLOSE_LIMIT_S, STDERR_TAIL_BYTES, Completed, LocalChannel, Progress
from merino_edge.errors import DeviceError

_SSH_FAILED = 255
_START_LIMIT_S = 30.0
_TYPING_LIMIT_S = 180.0  # while somebody may be typing a passphrase
_CHECKING: dict[Policy, str] = {"strict": "yes", "ask": "ask", "accept-new": "accept-new"}
_FIXED_OPTIONS = (
    "ServerAliveInterval=2",  # three unanswered: gone within 8 s
    "ServerAliveCountMax=3",
    f"ConnectTimeout={CONNECT_LIMIT_S:.0f}",
    "NoHostAuthenticationForLocalhost=no",
    "VerifyHostKeyDNS=no",
    "UpdateHostKeys=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "EscapeChar=none",
    "ControlPersist=no",
    "LogLevel=ERROR",
)


class OpenSshTransport:
    """A way to one device through the system's `ssh`."""

    def __init__(self, address: HostAddress, ask: Ask | None = None, policy: Policy = "strict") -> None:
        """Start the master process; `ssh` itself asks at the terminal where `ask` says that there is one."""
        program = find_ssh()
        if program is None:
            raise DeviceError(
                "there is no `ssh` on this machine", hint="install OpenSSH's client, or leave out --transport"
            )
        self._program = program
        self.hops = route(address, read_with_openssh)
        self.notes: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="merino-"))  # short: a socket's path is limited to about 100 bytes
        self._tail = bytearray()
        self._stood = False
        options = [*_FIXED_OPTIONS, f"StrictHostKeyChecking={_CHECKING[policy]}", f"BatchMode={'no' if ask else 'yes'}"]
        command = [*_command(program, options, self.hops), "-M", "-N", *self._socket_words, "--", self.hops[-1].name]
        self._master = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._drain = threading.Thread(target=self._drain_stderr, name="stderr", daemon=True)
        self._drain.start()
        try:
            self._wait_for_master(_TYPING_LIMIT_S if ask else _START_LIMIT_S)
        except BaseException:
            self.close()
            raise

    @property
    def _socket_words(self) -> list[str]:
        return ["-S", str(self._folder / "s")]

    def _drain_stderr(self) -> None:
        assert self._master.stderr is not None
        while chunk := self._master.stderr.read1(4096):  # type: ignore[attr-defined]
            self._tail += chunk
            del self._tail[:-STDERR_TAIL_BYTES]

    def _wait_for_master(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not (self._folder / "s").exists():
            if self._master.poll() is not None:
                raise self.failure()
            if time.monotonic() > end:
                raise unreachable(self.hops[-1], f"ssh was not through after {limit_s:.0f} s")
            time.sleep(0.02)
        self._stood = True

    @property
    def alive(self) -> bool:
        """Say whether the connection still stands."""
        return self._master.poll() is None

    def failure(self) -> DeviceError:
        """Say why there is no connection."""
        self._drain.join(CLOSE_LIMIT_S)
        said = bytes(self._tail).decode("utf-8", "replace")
        if not self._stood:
            return _explain(said, self.hops)
        reason = clean_text(said.strip().rpartition("\n")[2]) or "it has not answered any more"
        hint = "check its power and network, then run the same command again: it goes on from there"
        return DeviceError(f"the link to {self.description} broke: {reason}", hint=hint)

    @property
    def description(self) -> str:
        """See `Transport.description`."""
        return self.hops[-1].description

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        """See `Transport.run`."""
        return run_command(self.open(argv), argv, input, timeout_s, self.description)

    def open(self, argv: Sequence[str]) -> OpenSshChannel:
        """See `Transport.open`."""
        if not self.alive:
            raise self.failure()
        config = config_path()
        words = [self._program, *(["-F", str(config)] if config else []), "-T", *self._socket_words]
        for option in (
            "BatchMode=yes",
            "ControlMaster=no",
            "ProxyCommand=false",
            "LogLevel=ERROR",
            "RemoteCommand=none",
        ):
            words += ["-o", option]  # ProxyCommand=false: never a second connection beside the master's
        return OpenSshChannel(self, [*words, "--", self.hops[-1].name, shell_command(argv)])

    def put(self, local: bytes | Path, remote_path: str, mode: int = 0o600, progress: Progress | None = None) -> None:
        """See `Transport.put`."""
        put_file(self.open, local, remote_path, mode, progress, self.description)

    def close(self) -> None:
        """See `Transport.close`."""
        self._master.terminate()
        try:
            self._master.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._master.kill()
            self._master.wait()
        self._drain.join(CLOSE_LIMIT_S)
        if self._master.stderr is not None and not self._drain.is_alive():
            self._master.stderr.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class OpenSshChannel(LocalChannel):
    """A program on the device, behind an `ssh` process of our own."""

    def __init__(self, transport: OpenSshTransport, argv: Sequence[str]) -> None:
        """Start it."""
        super().__init__(argv)
        self._transport = transport

    def send(self, data: bytes) -> None:
        """See `Channel.send`."""
        try:
            super().send(data)
        except DeviceError as error:
            raise self._lost() or error from error

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """See `Channel.recv`."""
        data = super().recv(max_bytes, timeout_s)
        if not data and (lost := self._lost()):
            raise lost
        return data

    def _lost(self) -> DeviceError | None:
        """Return what happened where this end was not the program's own."""
        self.wait_quietly(1.0)
        if self._child.returncode != _SSH_FAILED:
            return None
        with suppress(subprocess.TimeoutExpired):
            self._transport._master.wait(0.5)
        return None if self._transport.alive else self._transport.failure()

    def end_input(self) -> None:
        """See `RemoteChannel.end_input`."""
        with suppress(OSError):
            self._stdin.close()

    def wait(self, timeout_s: float) -> int | None:
        """See `RemoteChannel.wait`."""
        code = self.wait_quietly(timeout_s)
        if code is None:
            return None
        self._drain.join(CLOSE_LIMIT_S)
        if code == _SSH_FAILED and (lost := self._lost()):
            raise lost
        return code

    def close(self) -> None:
        """See `Channel.close`."""
        self.end_input()
        if self.wait_quietly(CLOSE_LIMIT_S) is None:
            self._child.kill()
            self._child.wait()
        self._drain.join(0.5)  # the master may hold the pipe a little longer
        self._stdout.close()
        if not self._drain.is_alive():
            self._stderr.close()

    def wait_quietly(self, timeout_s: float) -> int | None:
        """Wait for our own process, whatever its end means."""
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


def _command(program: str, options: Sequence[str], hops: Sequence[SshSettings]) -> list[str]:
    """Return the words that lead to the last hop; the way there is a chain of `ssh -W`, each under the same options."""
    config = config_path()
    words = [program, *(["-F", str(config)] if config else []), "-T"]
    for option in options:
        words += ["-o", option]
    *before, target = hops
    if before:
        inner = [*_command(program, options, before), "-W", f"[{target.host}]:{target.port}", "--", before[-1].name]
        words += ["-o", "ProxyCommand=" + shlex.join(inner).replace("%", "%%")]
    elif target.proxy_command is None:
        words += ["-o", "ProxyCommand=none"]
    return [*words, "-p", str(target.port), "-l", target.user]


def _explain(said: str, hops: Sequence[SshSettings]) -> DeviceError:
    """Turn what `ssh` said on its stderr into a sentence with the next step."""
    settings = hops[-1]
    line = clean_text(next((row for row in reversed(said.strip().splitlines()) if row.strip()), "ssh does not say why"))
    if "IDENTIFICATION HAS CHANGED" in said:
        fact = re.search(r"Offending \S+ key in (\S+):(\d+)", said)
        where = f": {clean_text(fact[1])}, line {fact[2]} says otherwise" if fact else ""
        file = f" -f {shlex.quote(clean_text(fact[1]))}" if fact else ""
        hint = f"if the device was set up anew: ssh-keygen -R '{settings.host_name.lookup}'{file}; else beware"
        return DeviceError(f"the key of {settings.host_name.lookup} has changed{where}", hint=hint)
    if "revoked" in said.lower() and "key" in said.lower():
        hint = "give the device a new host key; a revoked one is never accepted"
        return DeviceError(f"the key of {settings.host_name.lookup} is revoked", hint=hint)
    if "Host key verification failed" in said or "host key is known" in said:
        unknown = re.search(r"No (\S+) host key is known for (\S+)", said)
        host = clean_text(unknown[2]) if unknown else settings.host_name.lookup
        hint = f"connect once by hand and compare the fingerprint: ssh {settings.address_words}"
        return DeviceError(f"the host {host} is not known", hint=hint)
    if "Permission denied" in said or "Too many authentication" in said:
        return refused_login(settings, line)
    return unreachable(settings, line)
