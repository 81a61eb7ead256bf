"""A device over SSH with paramiko, which no other module knows.

What paramiko leaves open is closed here: host keys are checked at every hop by OpenSSH's rules (`known_hosts.py`),
~/.ssh/config is honoured (`ssh_config.py`), a dead peer is noticed within 10 s by counted heartbeats and by the kernel,
stderr is always drained, and an end of the stream is told from a broken link.
"""

from __future__ import annotations

import base64
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import paramiko
from cryptography.exceptions import InvalidSignature, InvalidTag

from merino_edge.device.known_hosts import HostKey, KnownHosts, Policy, check_host_key, usable_files
from merino_edge.device.openssh import OpenSshTransport
from merino_edge.device.records import clean_text
from merino_edge.device.registry import DeviceEntry, HostAddress, parse_host
from merino_edge.device.remote import (
    CONNECT_LIMIT_S,
    DEAD_AFTER_S,
    Ask,
    WatchedSocket,
    dial,
    put_file,
    refused_login,
    run_command,
    shell_command,
    unreachable,
)
from merino_edge.device.ssh_config import (
    Options,
    SshSettings,
    config_path,
    find_ssh,
    home_folder,
    read_with_openssh,
    route,
)
from merino_edge.device.transport import (
    CLOSE_LIMIT_S,
    SEND_LIMIT_S,
    STDERR_TAIL_BYTES,
    Completed,
    Progress,
    Transport,
)
from merino_edge.errors import DeviceError

HEARTBEAT_S = 2.0
HANDSHAKE_LIMIT_S = 10.0
LOGIN_LIMIT_S = 20.0
SESSION_WAIT_S = 3.0
PASSWORD_TRIES = 3
_SEND_BYTES = 32 * 1024 - 64  # what fits one packet
_RSA_ALGORITHMS = ("rsa-sha2-512", "rsa-sha2-256")
WIRE_ERRORS = (
    *(paramiko.SSHException, OSError, EOFError, InvalidSignature, InvalidTag),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error),  # a damaged message's
)

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its tracebacks reach the terminal


def open_ssh(entry: DeviceEntry, ask: Ask | None = None, policy: Policy | None = None) -> Transport:
    """Connect to a device over SSH.

    Args:
        entry: Which device, and by which transport.
        ask: Asks the person at the terminal; None where nobody can be asked.
        policy: What to do with a host key nobody has seen; by default `ask` where somebody can be asked, else `strict`.

    Raises:
        DeviceError: it cannot be reached, shows a wrong key, or refuses the login; the hint is the next step.
    """
    assert entry.host is not None, "the local device has no SSH"
    address = parse_host(entry.host)
    chosen: Policy = policy or ("ask" if ask else "strict")
    if entry.transport == "openssh":
        return OpenSshTransport(address, ask, chosen)
    return ParamikoTransport(address, ask, chosen)


class ParamikoTransport:
    """A way to one device through as many jump hosts as ~/.ssh/config says."""

    def __init__(self, address: HostAddress, ask: Ask | None = None, policy: Policy = "strict") -> None:
        """Connect and log in; see `open_ssh`."""
        self.hops = (
            route(address, read_with_openssh) if find_ssh() else route(address, _read_with_paramiko, [_PARSER_NOTE])
        )
        self.notes = [note for hop in self.hops for note in hop.notes]
        self._links: list[_Link] = []
        try:
            for hop in self.hops:
                link = _Link(hop, self._links[-1] if self._links else None)
                self._links.append(link)
                self.notes += link.begin(policy, ask)
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> str:
        """See `Transport.description`."""
        return self.hops[-1].description

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        """See `Transport.run`."""
        return run_command(self.open(argv), argv, input, timeout_s, self.description)

    def open(self, argv: Sequence[str]) -> SshChannel:
        """See `Transport.open`."""
        return SshChannel(self._links[-1], shell_command(argv))

    def put(self, local: bytes | Path, remote_path: str, mode: int = 0o600, progress: Progress | None = None) -> None:
        """See `Transport.put`."""
        put_file(self.open, local, remote_path, mode, progress, self.description)

    def close(self) -> None:
        """See `Transport.close`."""
        while self._links:
            self._links.pop().close()


class _Link:
    """One authenticated SSH connection, and the thread that watches it."""

    def __init__(self, settings: SshSettings, parent: _Link | None) -> None:
        self.settings = settings
        self.broken: str | None = None
        self._closing = threading.Event()
        self._socket = _connect(settings, parent)
        self.transport = paramiko.Transport(cast(socket.socket, self._socket))
        self.transport.banner_timeout = self.transport.handshake_timeout = HANDSHAKE_LIMIT_S
        self.transport.auth_timeout = LOGIN_LIMIT_S
        self.transport.daemon = True

    def begin(self, policy: Policy, ask: Ask | None) -> list[str]:
        """Check the host's key, log in, begin to watch; returns notes."""
        settings, transport = self.settings, self.transport
        files = usable_files(settings.known_hosts)
        _prefer(transport, KnownHosts(files).key_types(settings.host_name))
        try:
            transport.start_client(timeout=HANDSHAKE_LIMIT_S)
            shown = transport.get_remote_server_key()
        except WIRE_ERRORS as error:
            raise unreachable(settings, f"it does not speak SSH as expected: {clean_text(str(error))}") from error
        key = HostKey(shown.get_name(), shown.asbytes())

        def confirm(question: str) -> bool:
            return ask is not None and (ask(question, False) or "").strip().lower() == "yes"

        hashed = settings.hash_known_hosts
        notes = check_host_key(files, settings.host_name, key, policy, confirm if ask else None, hashed)
        _log_in(transport, settings, ask)
        self._socket.begin_to_listen()
        for work in (self._ask_for_life, self._watch):
            threading.Thread(target=work, name=f"ssh-{work.__name__}", daemon=True).start()
        return notes

    def _ask_for_life(self) -> None:
        """Ask for an answer whenever nothing came for a while; any packet at all is an answer."""
        while not self._closing.wait(HEARTBEAT_S) and self.transport.is_active():
            if self._socket.pulse.silent_s >= HEARTBEAT_S:
                with suppress(*WIRE_ERRORS):
                    self.transport.global_request("keepalive@openssh.com", wait=True)

    def _watch(self) -> None:
        while not self._closing.wait(0.25) and self.transport.is_active():
            silent_s = self._socket.pulse.silent_s
            if silent_s > DEAD_AFTER_S:
                self.broken = f"it has not answered for {silent_s:.0f} s"
                self._socket.kill()
                return

    def check(self) -> None:
        """Raise where the connection is gone."""
        if self.broken or not self.transport.is_active():
            raise self.failure()

    def failure(self) -> DeviceError:
        """Say why the connection is gone."""
        reason = self.broken or clean_text(str(self.transport.get_exception() or "the other side closed it"))
        return DeviceError(
            f"the link to {self.settings.description} broke: {reason}",
            hint="check its power and network, then run the same command again: it goes on from there",
        )

    def close(self) -> None:
        """Close the connection; what runs through it ends."""
        self._closing.set()
        if self.broken:
            self._socket.kill()
        self.transport.close()
        self._socket.kill()


class SshChannel:
    """A program on the device; see `Channel`."""

    def __init__(self, link: _Link, command: str) -> None:
        """Start it through the login shell there."""
        link.check()
        self._link = link
        self._tail = bytearray()
        self._readable = threading.Event()
        try:
            self._channel = _open_session(link.transport)
            self._channel.settimeout(SEND_LIMIT_S)
            self._channel.in_buffer.set_event(self._readable)
            self._channel.exec_command(command)
        except WIRE_ERRORS as error:
            link.check()
            raise DeviceError(
                f"{link.settings.description} lets no program start: {clean_text(str(error))}",
                hint=f"try it by hand: ssh {link.settings.address_words} true",
            ) from error
        self._drain = threading.Thread(target=self._drain_stderr, name="stderr", daemon=True)
        self._drain.start()

    def _drain_stderr(self) -> None:
        while True:
            try:
                chunk = self._channel.recv_stderr(4096)
            except TimeoutError:
                continue
            except WIRE_ERRORS:
                return
            if not chunk:
                return
            self._tail += chunk
            del self._tail[:-STDERR_TAIL_BYTES]

    def send(self, data: bytes) -> None:
        """See `Channel.send`."""
        rest = memoryview(data)
        try:
            while rest:
                sent = self._channel.send(bytes(rest[:_SEND_BYTES]))
                if not sent:
                    raise OSError("the program takes no more")
                rest = rest[sent:]
        except WIRE_ERRORS as error:
            self._link.check()
            reason = f"took no byte for {SEND_LIMIT_S:g} s" if isinstance(error, TimeoutError) else "has ended"
            raise DeviceError(
                f"the program on {self._link.settings.description} {reason}",
                hint=clean_text(self.stderr_tail()) or None,
            ) from error

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """See `Channel.recv`."""
        if not self._readable.wait(timeout_s):
            self._link.check()
            raise TimeoutError(f"nothing came within {timeout_s:g} s")
        try:
            data = self._channel.recv(max_bytes)
        except WIRE_ERRORS as error:
            raise self._link.failure() from error
        if not data and not self._channel.eof_received and not self._ended_whole():
            raise self._link.failure()
        self._drain.join(0.0 if data else 0.5)  # at the end stderr says why
        return data

    def _ended_whole(self) -> bool:
        """Say whether a stream without its end mark was closed by the program, not by a link that broke."""
        self._link.transport.join(0.5)  # a transport that breaks closes its channels first, then ends
        return not self._link.broken and self._link.transport.is_active()

    def stderr_tail(self) -> str:
        """See `Channel.stderr_tail`."""
        return bytes(self._tail).decode("utf-8", "replace").strip()

    def end_input(self) -> None:
        """See `RemoteChannel.end_input`."""
        with suppress(*WIRE_ERRORS):
            self._channel.shutdown_write()

    def wait(self, timeout_s: float) -> int | None:
        """See `RemoteChannel.wait`."""
        if not self._channel.status_event.wait(timeout_s):
            self._link.check()
            return None
        self._drain.join(CLOSE_LIMIT_S)
        if self._channel.exit_status < 0:
            self._link.check()
        return self._channel.exit_status

    def close(self) -> None:
        """See `Channel.close`."""
        self.end_input()
        if self._link.transport.is_active() and not self._link.broken:
            self._channel.status_event.wait(CLOSE_LIMIT_S)
        with suppress(*WIRE_ERRORS):
            self._channel.close()


def _open_session(transport: paramiko.Transport) -> paramiko.Channel:
    """Open a session; where the server allows few at once (MaxSessions), wait for the one before to be gone there."""
    deadline = time.monotonic() + SESSION_WAIT_S
    while True:
        try:
            return transport.open_session(timeout=CONNECT_LIMIT_S)
        except paramiko.ChannelException:
            if time.monotonic() > deadline or not transport.is_active():
                raise
            time.sleep(0.1)


def _connect(settings: SshSettings, parent: _Link | None) -> WatchedSocket:
    """Return a byte stream to the host: through the hop before, or as `dial` does."""
    if parent is None:
        return WatchedSocket(*dial(settings))
    try:
        target, origin = (settings.host, settings.port), ("127.0.0.1", 0)
        channel = parent.transport.open_channel("direct-tcpip", target, origin, timeout=CONNECT_LIMIT_S)
    except WIRE_ERRORS as error:
        parent.check()
        reason = f"{parent.settings.description} cannot reach it: {clean_text(str(error))}"
        raise unreachable(settings, reason) from error
    return WatchedSocket(channel)


def _prefer(transport: paramiko.Transport, key_types: Sequence[str]) -> None:
    """Ask the server first for the kinds of key that are known already, and for the fastest cipher."""
    security = transport.get_security_options()
    known = {name for kind in key_types for name in (_RSA_ALGORITHMS if kind == "ssh-rsa" else (kind,))}
    security.key_types = sorted(security.key_types, key=lambda name: name not in known)
    security.ciphers = sorted(security.ciphers, key=lambda name: "gcm" not in name)


def _log_in(transport: paramiko.Transport, settings: SshSettings, ask: Ask | None) -> None:
    tried: list[str] = []
    methods: Sequence[str] = ("publickey", "password")
    for title, key in _keys(settings, ask):
        tried.append(title)
        try:
            if not transport.auth_publickey(settings.user, key):
                return
        except paramiko.BadAuthenticationType as error:
            methods = error.allowed_types
            break
        except WIRE_ERRORS as error:
            if not transport.is_active():
                raise refused_login(settings, clean_text(str(error)) or "it hung up") from error
    if ask is not None and {"password", "keyboard-interactive"} & set(methods):
        for _ in range(PASSWORD_TRIES):
            password = ask(f"Password of {settings.description}: ", True)
            if not password:
                break
            with suppress(*WIRE_ERRORS):
                if not transport.auth_password(settings.user, password):
                    return
            if not transport.is_active():
                break
    reason = f"it accepts none of your {len(tried)} keys" if tried else "you have no key to offer"
    raise refused_login(settings, reason, have_key=bool(tried))


def _keys(settings: SshSettings, ask: Ask | None) -> Iterator[tuple[str, paramiko.PKey]]:
    """Give the keys to offer in ssh's order: the agent's that are named, the agent's others, the files."""
    files = list(settings.identity_files)
    public = {path: _public_blob(path) for path in files}
    named = {blob for blob in public.values() if blob}
    offered: set[bytes] = set()
    agent = paramiko.Agent() if settings.use_agent else None
    try:
        held = list(agent.get_keys()) if agent else []
        for key in sorted(held, key=lambda k: k.asbytes() not in named):
            if settings.identities_only and key.asbytes() not in named:
                continue
            offered.add(key.asbytes())
            yield f"{key.get_name()} of the agent", key
        for path in files:
            if public[path] in offered or not path.is_file():
                continue
            loaded = _load_key(path, ask)
            if loaded is not None and loaded.asbytes() not in offered:
                offered.add(loaded.asbytes())
                yield str(path), loaded
    finally:
        if agent:
            agent.close()


def _load_key(path: Path, ask: Ask | None) -> paramiko.PKey | None:
    """Read a private key; None where it cannot be read, or its passphrase is not to be had."""
    try:
        return _read_key(path, None)
    except paramiko.PasswordRequiredException:
        pass
    for _ in range(PASSWORD_TRIES if ask else 0):
        password = ask(f"Passphrase of {path}: ", True) if ask else None
        if not password:
            return None
        with suppress(paramiko.PasswordRequiredException):
            if key := _read_key(path, password):
                return key
    return None


def _read_key(path: Path, password: str | None) -> paramiko.PKey | None:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key_file(str(path), password)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, OSError, ValueError, TypeError):
            continue  # of another kind, or nothing that can be read
    return None


def _public_blob(path: Path) -> bytes | None:
    try:
        return base64.b64decode(path.with_name(path.name + ".pub").read_bytes().split()[1], validate=True)
    except (OSError, ValueError, IndexError):
        return None


_PARSER_NOTE = "no OpenSSH client here: `Include`, `Match` and CanonicalizeHostname in ~/.ssh/config are not understood"


def _read_with_paramiko(address: HostAddress) -> Options:
    """Read ~/.ssh/config with paramiko's parser, and add what ssh takes for granted."""
    path = config_path() or home_folder() / ".ssh" / "config"
    try:
        values = paramiko.SSHConfig.from_path(str(path)).lookup(address.host) if path.exists() else {}
    except (paramiko.SSHException, OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"cannot read {path}: {clean_text(str(error))}") from error
    options = {key.lower(): [value] if isinstance(value, str) else list(value) for key, value in values.items()}
    options.setdefault("identityfile", [f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ed25519")])
    return options
