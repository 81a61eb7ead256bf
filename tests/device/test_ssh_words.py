"""The parts of SSH that need no server: configuration, quoting, what a device says, and a login by password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.device.registry import DeviceEntry, HostAddress
from merino_edge.device.remote import PUT_SCRIPT, shell_command, unreachable
from merino_edge.device.ssh import open_ssh
from merino_edge.device.ssh_config import home_folder, read_settings, read_with_openssh, route, ssh_arguments
from merino_edge.errors import DeviceError

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed (make system-packages)")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    path.write_text("")
    monkeypatch.setenv("MERINO_EDGE_SSH_CONFIG", str(path))
    return path


@needs_ssh
def test_the_configuration_is_what_ssh_says(config: Path) -> None:
    config.write_text(
        "Host kit*\n  HostName 192.0.2.7\n  Port 2200\n  User pi\n  IdentityFile ~/.ssh/%r_key\n  IdentitiesOnly yes\n"
        '  UserKnownHostsFile "/tmp/a b/kh" ~/kh2\n  HostKeyAlias kitchen\n  HashKnownHosts yes\n  IdentityAgent none\n'
    )
    found = read_settings(HostAddress("kitchen"), read_with_openssh)
    assert (found.host, found.port, found.user, found.name) == ("192.0.2.7", 2200, "pi", "kitchen")
    assert found.identity_files == (home_folder() / ".ssh" / "pi_key",)
    assert found.known_hosts[:2] == (Path("/tmp/a b/kh"), home_folder() / "kh2")
    assert (found.host_key_alias, found.hash_known_hosts, found.use_agent) == ("kitchen", True, False)
    assert found.identities_only


@needs_ssh
def test_what_the_call_says_outweighs_the_configuration(config: Path) -> None:
    config.write_text("Host *\n  Port 2200\n  User pi\n")
    found = read_settings(HostAddress("h", "me", 22), read_with_openssh)
    assert (found.user, found.port) == ("me", 22)
    assert found.description == "me@h"


@needs_ssh
def test_included_files_and_matches_are_followed(config: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Match host h\n  User nested\n")
    config.write_text(f"Include {tmp_path / 'more'}\n")
    assert read_settings(HostAddress("h"), read_with_openssh).user == "nested"


@needs_ssh
def test_a_configuration_that_ssh_refuses_is_told(config: Path) -> None:
    config.write_text("Nonsense yes\n")
    with pytest.raises(DeviceError, match="configuration"):
        read_settings(HostAddress("h"), read_with_openssh)


@needs_ssh
def test_a_chain_of_jumps_is_taken_in_order(config: Path) -> None:
    config.write_text("Host far\n ProxyJump one,me@two:2200\nHost one\n ProxyJump zero\nHost two\n ProxyJump never\n")
    hops = route(HostAddress("far"), read_with_openssh)
    assert [hop.name for hop in hops] == ["zero", "one", "two", "far"]
    assert (hops[2].user, hops[2].port) == ("me", 2200)


@needs_ssh
def test_a_jump_to_itself_ends_in_a_sentence(config: Path) -> None:
    config.write_text("Host *\n  ProxyJump bastion\n")
    with pytest.raises(DeviceError, match="jump"):
        route(HostAddress("far"), read_with_openssh)


def test_a_proxy_command_gets_its_tokens() -> None:
    options = {"proxycommand": ["nc -X %% %h %p %r %x"], "hostname": ["inner"]}
    found = read_settings(HostAddress("h", "pi", 22), lambda address: options)
    assert found.proxy_command == "nc -X % inner 22 pi %x"


def test_the_host_is_never_an_option(config: Path) -> None:
    assert ssh_arguments(HostAddress("h", "pi", 22)) == ["-F", str(config), "-p", "22", "-l", "pi", "--", "h"]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_a_command_line_is_taken_apart_into_the_same_words(words: list[str]) -> None:
    line = shell_command(["printf", r"%s\0", *words])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=10)
    assert done.stdout.decode().split("\0")[:-1] == words


@pytest.mark.parametrize("words", [[], ["a\0b"]])
def test_a_command_that_cannot_be_said_is_refused(words: list[str]) -> None:
    with pytest.raises(DeviceError):
        shell_command(words)


@pytest.mark.parametrize(
    ("reason", "word"),
    [("Name or service not known", "address"), ("Connection refused", "sshd"), ("timed out", "power")],
)
def test_an_unreachable_host_gets_a_fitting_next_step(reason: str, word: str) -> None:
    settings = read_settings(HostAddress("h", "pi"), lambda address: {})
    assert word in (unreachable(settings, reason).hint or "")


def test_a_leading_tilde_is_the_home_of_the_device(tmp_path: Path) -> None:
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    command = ["sh", "-c", PUT_SCRIPT, "put", "~/a b/x", "600", "1", digest]
    done = subprocess.run(
        command, input=b"0\nx", capture_output=True, env={**os.environ, "HOME": str(tmp_path)}, timeout=20, check=True
    )
    assert done.stdout == f"put-{digest} have 0 -\ndone\n".encode()
    assert (tmp_path / "a b" / "x").read_bytes() == b"x"


@pytest.mark.parametrize(("sent", "code", "left"), [(b"", 75, 1), (b"y", 74, 0)])
def test_a_short_upload_is_kept_and_a_damaged_one_is_not(tmp_path: Path, sent: bytes, code: int, left: int) -> None:
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    command = ["sh", "-c", PUT_SCRIPT, "put", str(tmp_path / "x"), "600", "1", digest]
    done = subprocess.run(command, input=b"0\n" + sent, capture_output=True, timeout=20, check=False)
    assert done.returncode == code
    assert not (tmp_path / "x").exists()
    assert len(list(tmp_path.glob(".put-*"))) == left


class PasswordServer(paramiko.ServerInterface):
    """Lets in who knows the word, and nobody by key."""

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == "open sesame" else paramiko.AUTH_FAILED


@pytest.fixture
def password_port(tmp_path: Path, config: Path) -> Iterator[int]:
    config.write_text(f"Host *\n  UserKnownHostsFile {tmp_path / 'kh'}\n  IdentityAgent none\n  IdentityFile none\n")
    listener = socket.create_server(("127.0.0.1", 0))
    key = paramiko.ECDSAKey.generate()
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transports.append(paramiko.Transport(connection))
            transports[-1].add_server_key(key)
            transports[-1].start_server(event=threading.Event(), server=PasswordServer())

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()
    for transport in transports:
        transport.close()


@needs_ssh
def test_a_password_is_asked_for_where_nothing_else_works(password_port: int) -> None:
    device = DeviceEntry("x", host=f"me@127.0.0.1:{password_port}", board="pi4", root=None, transport="paramiko")
    answers, secrets = iter(["wrong", "open sesame"]), []

    def ask(question: str, secret: bool) -> str:
        if not secret:
            return "yes"
        secrets.append(question)
        return next(answers)

    open_ssh(device, ask).close()
    assert secrets == [f"Password of me@127.0.0.1:{password_port}: "] * 2


@needs_ssh
def test_without_anybody_to_ask_a_password_is_no_way_in(password_port: int) -> None:
    device = DeviceEntry("x", host=f"me@127.0.0.1:{password_port}", board="pi4", root=None, transport="paramiko")
    with pytest.raises(DeviceError, match="refuses the login") as caught:
        open_ssh(device, policy="accept-new")
    assert caught.value.hint == f"ssh-keygen -t ed25519, then ssh-copy-id -p {password_port} me@127.0.0.1"
