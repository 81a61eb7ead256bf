"""Two ways over SSH, one interface, against a real server on loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd_server import Client, Server, StallingProxy, free_port, kill_if_there, make_key, needs_sshd, public

from merino_edge.device.registry import DeviceEntry
from merino_edge.device.ssh import open_ssh
from merino_edge.device.transport import Transport
from merino_edge.errors import DeviceError

pytestmark = [needs_sshd, pytest.mark.alone]
WAYS = ("paramiko", "openssh")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("sshd"), ("ed25519", "ecdsa", "rsa"))
    yield running
    running.stop()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Client:
    own = Client(tmp_path / "client", monkeypatch)
    own.allow(server)
    own.know(server)
    return own


def entry(port: int, way: str, host: str = "127.0.0.1") -> DeviceEntry:
    return DeviceEntry("board", host=f"{host}:{port}", board="pi4", root=None, transport=way)  # type: ignore[arg-type]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=WAYS)
def link(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Transport]:
    """One connection that many tests share."""
    with pytest.MonkeyPatch.context() as patch:
        own = Client(tmp_path_factory.mktemp("client"), patch)
        own.allow(server)
        own.know(server)
        transport = open_ssh(entry(server.port, request.param))
    yield transport
    transport.close()


def test_a_command_returns_its_output_errors_and_exit_code(link: Transport) -> None:
    done = link.run(["sh", "-c", "cat; echo oops >&2; exit 7"], input=b"a\0b\n")
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"a\0b\n", b"oops")


@pytest.mark.parametrize(
    "word", ["$(touch x)", "a b", "'", '"', "`id`", "-n", "\n", "*", "\u00e9\U0001f600", "", "a\\", "!", ";id"]
)
def test_no_word_is_taken_by_a_shell(link: Transport, word: str) -> None:
    assert link.run(["printf", "%s|", word, "end"]).stdout == f"{word}|end|".encode()


def test_much_output_on_both_streams_blocks_nothing(link: Transport) -> None:
    script = "dd if=/dev/zero bs=1M count=8 2>/dev/null >&2; dd if=/dev/zero bs=1M count=8 2>/dev/null; echo end >&2"
    done = link.run(["sh", "-c", script], timeout_s=60)
    assert len(done.stdout) == 8 * 2**20
    assert done.stderr.endswith(b"end")


def test_large_input_that_comes_back_at_once_blocks_nothing(link: Transport) -> None:
    data = os.urandom(6 * 2**20)
    assert link.run(["cat"], input=data, timeout_s=60).stdout == data


def test_input_that_nobody_reads_harms_nothing(link: Transport) -> None:
    assert link.run(["true"], input=bytes(8 * 2**20)).exit_code == 0


def test_a_command_that_does_not_end_is_given_up(link: Transport) -> None:
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="did not end within"):
        link.run(["sleep", "60"], timeout_s=0.5)
    assert time.monotonic() - begin < 6
    assert link.run(["echo", "next"]).stdout == b"next\n"


def test_endless_output_is_cut_off(link: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.device.remote.OUTPUT_LIMIT_BYTES", 2**20)
    with pytest.raises(DeviceError, match="says more than"):
        link.run(["cat", "/dev/zero"])


def test_a_program_talks_both_ways_and_ends_with_its_input(link: Transport) -> None:
    channel = link.open(["cat"])
    for word in (b"one", b"two" * 50_000):
        channel.send(word)
        got = b""
        while len(got) < len(word):
            got += channel.recv(65536, 10)
        assert got == word
    with pytest.raises(TimeoutError):
        channel.recv(10, 0.05)
    channel.send(b"still open")
    assert channel.recv(100, 10) == b"still open"
    begin = time.monotonic()
    channel.close()
    assert time.monotonic() - begin < 2


def test_the_end_of_a_program_is_an_empty_read(link: Transport) -> None:
    channel = link.open(["sh", "-c", "echo x; echo why >&2; exit 3"])
    assert channel.recv(10, 10) == b"x\n"
    assert channel.recv(10, 10) == b""
    assert channel.stderr_tail() == "why"
    channel.close()


def test_sending_to_a_program_that_ended_is_an_error(link: Transport) -> None:
    channel = link.open(["true"])
    assert channel.recv(1, 10) == b""
    with pytest.raises(DeviceError):
        for _ in range(200):
            channel.send(bytes(65536))
    channel.close()


def test_several_programs_run_at_once(link: Transport) -> None:
    channels = [link.open(["cat"]) for _ in range(5)]
    for number, channel in enumerate(channels):
        channel.send(b"%d" % number)
    assert [channel.recv(10, 10) for channel in channels] == [b"%d" % number for number in range(5)]
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_a_file_arrives_whole_with_its_rights(link: Transport, tmp_path: Path, size: int) -> None:
    data, target, told = os.urandom(size), tmp_path / "a b'$" / "file", []
    link.put(data, str(target), mode=0o640, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o640
    assert target.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(target.parent) == ["file"]
    assert told[-1] == (size, size)


def test_a_file_is_put_from_a_path_and_replaces_the_old_one(link: Transport, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "target").write_bytes(b"old and longer")
    link.put(tmp_path / "source", str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_file_that_cannot_be_written_says_why(link: Transport, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DeviceError, match="is a folder"):
        link.put(b"x", str(tmp_path / "folder"))
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot write"):
        link.put(b"x", str(tmp_path / "plain" / "below"))
    with pytest.raises(DeviceError, match="cannot read"):
        link.put(tmp_path / "missing", str(tmp_path / "x"))


def part_of(target: Path, data: bytes) -> Path:
    return target.parent / f".put-{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("prefix", ["true", "false", "long"])
def test_an_upload_goes_on_only_from_a_true_beginning(link: Transport, tmp_path: Path, prefix: str) -> None:
    data, target, told = os.urandom(3_000_000), tmp_path / "file", []
    begun = {"true": data[:1_500_000], "false": bytes(1_500_000), "long": data + b"x"}[prefix]
    part_of(target, data).write_bytes(begun)
    link.put(data, str(target), progress=lambda done, total: told.append(done))
    assert target.read_bytes() == data
    assert told[0] == ((1_500_000 if prefix == "true" else 0) + 2**20)
    assert os.listdir(tmp_path).count(part_of(target, data).name) == 0


def test_a_cut_upload_keeps_the_old_file_and_goes_on(way: str, client: Client, server: Server, tmp_path: Path) -> None:
    proxy = StallingProxy(server.port)
    client.know(server, f"[127.0.0.1]:{proxy.port}")
    data, target = os.urandom(12 * 2**20), tmp_path / "target"
    target.write_bytes(b"old")
    try:
        transport = open_ssh(entry(proxy.port, way))
        proxy.cut_after = proxy.passed + 8 * 2**20
        with pytest.raises(DeviceError) as caught:
            transport.put(data, str(target))
        transport.close()
        assert caught.value.exit_code == 4
        assert target.read_bytes() == b"old"
        time.sleep(0.5)
        had = part_of(target, data).stat().st_size
        assert had > 2**20
        proxy.cut_after, proxy.passed = None, 0
        transport = open_ssh(entry(proxy.port, way))
        transport.put(data, str(target))
        transport.close()
        assert target.read_bytes() == data
        assert proxy.passed < len(data) - had + 2**20
    finally:
        proxy.close()


def test_a_dead_peer_is_noticed_within_ten_seconds(way: str, client: Client, server: Server) -> None:
    proxy = StallingProxy(server.port)
    client.know(server, f"[127.0.0.1]:{proxy.port}")
    transport = open_ssh(entry(proxy.port, way))
    channel = transport.open(["cat"])
    channel.send(b"x")
    assert channel.recv(1, 10) == b"x"
    try:
        proxy.stalled.set()
        begin = time.monotonic()
        with pytest.raises(DeviceError, match="broke"):
            channel.recv(1, 20)
        assert time.monotonic() - begin < 10.5
        channel.close()
        transport.close()
        assert time.monotonic() - begin < 14
    finally:
        proxy.close()


def test_a_killed_session_is_an_error_not_an_end(way: str, client: Client, server: Server) -> None:
    before = set(server.sessions())
    transport = open_ssh(entry(server.port, way))
    channel = transport.open(["cat"])
    channel.send(b"x")
    channel.recv(1, 10)
    for pid in set(server.sessions()) - before:
        kill_if_there(pid)
    with pytest.raises(DeviceError, match="broke"):
        channel.recv(1, 10)
    with pytest.raises(DeviceError, match="broke"):
        transport.run(["true"])
    channel.close()
    transport.close()


def test_an_idle_link_stays_alive(client: Client, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.device.ssh.DEAD_AFTER_S", 2.0)
    monkeypatch.setattr("merino_edge.device.ssh.HEARTBEAT_S", 0.5)
    transport = open_ssh(entry(server.port, "paramiko"))
    time.sleep(3.5)
    assert transport.run(["echo", "here"]).stdout == b"here\n"
    transport.close()


def test_an_unknown_host_is_refused_with_its_fingerprint(way: str, client: Client, server: Server) -> None:
    client.known_hosts.write_text("")
    with pytest.raises(DeviceError, match="not known") as caught:
        open_ssh(entry(server.port, way))
    assert "ssh -p" in (caught.value.hint or "")
    assert client.known_hosts.read_text() == ""


def test_a_changed_key_is_refused_whatever_the_policy(way: str, client: Client, server: Server, tmp_path: Path) -> None:
    line = f"[127.0.0.1]:{server.port} {public(make_key(tmp_path / 'other'))}\n"
    client.known_hosts.write_text(line)
    with pytest.raises(DeviceError, match="has changed") as caught:
        open_ssh(entry(server.port, way), policy="accept-new")
    assert "ssh-keygen -R" in (caught.value.hint or "")
    assert client.known_hosts.read_text() == line


def test_accept_new_writes_the_key_down_once(way: str, client: Client, server: Server) -> None:
    client.known_hosts.write_text("")
    for _ in range(2):
        open_ssh(entry(server.port, way), policy="accept-new").close()
    assert client.known_hosts.read_text().count("\n") == 1
    open_ssh(entry(server.port, "openssh")).close()


def test_a_person_may_say_yes_to_a_fingerprint(client: Client, server: Server) -> None:
    client.known_hosts.write_text("")
    asked: list[str] = []

    def ask(question: str, secret: bool) -> str:
        asked.append(question)
        return "yes"

    open_ssh(entry(server.port, "paramiko"), ask).close()
    assert "SHA256:" in asked[0]
    with pytest.raises(DeviceError, match="not known"):
        client.known_hosts.write_text("")
        open_ssh(entry(server.port, "paramiko"), lambda question, secret: "y")


def test_a_known_kind_of_key_is_asked_for(way: str, client: Client, server: Server) -> None:
    rsa = next(key for key in server.host_keys if "rsa" in key.name)
    client.known_hosts.write_text(f"[127.0.0.1]:{server.port} {public(rsa)}\n")
    open_ssh(entry(server.port, way)).close()


def test_a_refused_login_names_ssh_copy_id(way: str, client: Client, server: Server, tmp_path: Path) -> None:
    client.key = make_key(tmp_path / "stranger")
    client.write_config("")
    with pytest.raises(DeviceError, match="refuses the login") as caught:
        open_ssh(entry(server.port, way))
    assert f"ssh-copy-id -p {server.port} " in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_other_kinds_of_key_log_in(client: Client, server: Server, tmp_path: Path, kind: str) -> None:
    client.key = make_key(tmp_path / kind, kind)
    client.write_config("")
    client.allow(server)
    open_ssh(entry(server.port, "paramiko")).close()


def test_a_passphrase_is_asked_for_and_tried_again(client: Client, server: Server, tmp_path: Path) -> None:
    client.key = make_key(tmp_path / "locked", passphrase="open sesame")
    client.write_config("")
    client.allow(server)
    answers = iter(["wrong", "open sesame"])
    open_ssh(entry(server.port, "paramiko"), lambda question, secret: next(answers) if secret else None).close()
    with pytest.raises(DeviceError, match="refuses the login"):
        open_ssh(entry(server.port, "paramiko"))


def test_the_keys_of_an_agent_are_offered(
    client: Client, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.key = make_key(tmp_path / "held")
    client.allow(server)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            time.sleep(0.02)
        subprocess.run(["ssh-add", "-q", str(client.key)], check=True, timeout=10)
        client.key.unlink()
        client.write_config("Host *\n  IdentityAgent SSH_AUTH_SOCK\n")
        open_ssh(entry(server.port, "paramiko")).close()
    finally:
        agent.terminate()
        agent.wait(10)


def test_nobody_at_the_port_is_told(way: str, client: Client) -> None:
    with pytest.raises(DeviceError, match="cannot reach") as caught:
        open_ssh(entry(free_port(), way))
    assert "sshd" in (caught.value.hint or "")


def test_a_name_nobody_knows_is_told(way: str, client: Client) -> None:
    with pytest.raises(DeviceError, match="cannot reach") as caught:
        open_ssh(entry(22, way, "no-such-host.invalid"))
    assert "name" in (caught.value.hint or "")


def test_what_is_no_ssh_server_is_told_in_time(way: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.device.ssh.HANDSHAKE_LIMIT_S", 1.0)
    monkeypatch.setattr("merino_edge.device.openssh._FIXED_OPTIONS", ("ConnectTimeout=1",))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(DeviceError):
            open_ssh(entry(silent.getsockname()[1], way))
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("jump", ["config", "command"])
def test_a_jump_leads_on_and_each_hop_is_checked(
    way: str, jump: str, client: Client, server: Server, tmp_path: Path
) -> None:
    other = Server(tmp_path / "bastion")
    try:
        client.allow(other)
        through = f"ProxyJump 127.0.0.1:{other.port}"
        if jump == "command":
            through = f"ProxyCommand ssh -F {client.config} -p {other.port} -W %h:%p 127.0.0.1"
        client.write_config(f"Host inner\n  HostName 127.0.0.1\n  {through}\n")
        with pytest.raises(DeviceError):
            open_ssh(entry(server.port, way, "inner"))
        client.know(other)
        transport = open_ssh(entry(server.port, way, "inner"))
        assert transport.run(["echo", "through"]).stdout == b"through\n"
        transport.close()
        changed = client.known_hosts.read_text().replace(public(other.host_keys[0]), public(make_key(tmp_path / "x")))
        client.known_hosts.write_text(changed)
        with pytest.raises(DeviceError):
            open_ssh(entry(server.port, way, "inner"), policy="accept-new")
    finally:
        other.stop()


def test_two_hosts_that_name_each_other_end_in_a_sentence(way: str, client: Client) -> None:
    client.write_config("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(DeviceError, match="jumps away"):
        open_ssh(entry(22, way, "a"))


def test_without_an_openssh_client_the_configuration_is_still_read(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.write_config(f"Host kitchen\n  HostName 127.0.0.1\n  Port {server.port}\n")
    monkeypatch.setattr("merino_edge.device.ssh.find_ssh", lambda: None)
    device = DeviceEntry("board", host="kitchen", board="pi4", root=None, transport="paramiko")
    transport = open_ssh(device)
    assert transport.run(["true"]).exit_code == 0
    assert "Match" in transport.notes[0]  # type: ignore[attr-defined]
    transport.close()


def test_closing_leaves_no_process_and_no_thread(way: str, client: Client, server: Server) -> None:
    before, sessions = set(threading.enumerate()), set(server.sessions())
    transport = open_ssh(entry(server.port, way))
    transport.run(["true"])
    transport.close()
    end = time.monotonic() + 5
    while time.monotonic() < end and (
        set(server.sessions()) - sessions or {t for t in threading.enumerate() if t.is_alive()} - before
    ):
        time.sleep(0.05)
    assert set(server.sessions()) <= sessions
    assert {t.name for t in set(threading.enumerate()) - before} == set()
