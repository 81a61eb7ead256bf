"""Host keys on a real connection: what we accept is what the system's `ssh` accepts, under every policy."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sshd_server import Client, Server, make_key, needs_sshd, public

from merino_edge.device.registry import DeviceEntry
from merino_edge.device.ssh import open_ssh
from merino_edge.errors import DeviceError

pytestmark = needs_sshd
POLICIES = {"strict": "yes", "ask": "ask", "accept-new": "accept-new"}


class Bench:
    """A server, keys that are not its own, and lines to make of them."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder / "sshd", ("ed25519", "rsa"))
        self.ed25519, self.rsa = (public(key) for key in self.server.host_keys)
        self.other = public(make_key(folder / "other"))
        self.other_rsa = public(make_key(folder / "other_rsa", "rsa"))
        self.name = f"[127.0.0.1]:{self.server.port}"
        self.askpass = folder / "yes.sh"
        self.askpass.write_text("#!/bin/sh\necho yes\n")
        self.askpass.chmod(0o700)

    def hashed(self, name: str | None = None) -> str:
        salt = b"salt" * 5
        digest = hmac.new(salt, (name or self.name).encode(), hashlib.sha1).digest()
        return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.server.stop()


Line = Callable[[Bench], str]
CASES: dict[str, Line] = {
    "empty": lambda b: "",
    "known": lambda b: f"{b.name} {b.ed25519}\n",
    "known without a newline": lambda b: f"{b.name} {b.ed25519}",
    "known with a comment": lambda b: f"{b.name} {b.ed25519} me@here\n",
    "known after a comment line": lambda b: f"# {b.name} {b.other}\n{b.name} {b.ed25519}\n",
    "known, CRLF": lambda b: f"{b.name} {b.ed25519}\r\n",
    "known, tabs and blanks": lambda b: f"  {b.name}\t  {b.ed25519}\n",
    "known by its rsa key": lambda b: f"{b.name} {b.rsa}\n",
    "known, both keys": lambda b: f"{b.name} {b.rsa}\n{b.name} {b.ed25519}\n",
    "known in a list": lambda b: f"elsewhere,{b.name},third {b.ed25519}\n",
    "known by a pattern": lambda b: f"[127.0.*]:* {b.ed25519}\n",
    "known by a star": lambda b: f"* {b.ed25519}\n",
    "known by question marks": lambda b: f"[127.0.0.?]:{b.server.port} {b.ed25519}\n",
    "known but negated": lambda b: f"*,!{b.name} {b.ed25519}\n",
    "negated first": lambda b: f"!{b.name},* {b.ed25519}\n",
    "another negated": lambda b: f"*,!elsewhere {b.ed25519}\n",
    "hashed": lambda b: f"{b.hashed()} {b.ed25519}\n",
    "hashed, changed": lambda b: f"{b.hashed()} {b.other}\n",
    "hashed for another host": lambda b: f"{b.hashed('[127.0.0.2]:22')} {b.other}\n",
    "hashed badly": lambda b: f"|1|abc|def {b.other}\n",
    "bare name, same key": lambda b: f"127.0.0.1 {b.ed25519}\n",
    "bare name, another key": lambda b: f"127.0.0.1 {b.other}\n",
    "another port": lambda b: f"[127.0.0.1]:1 {b.other}\n",
    "changed": lambda b: f"{b.name} {b.other}\n",
    "changed, then right": lambda b: f"{b.name} {b.other}\n{b.name} {b.ed25519}\n",
    "changed by a pattern": lambda b: f"* {b.other}\n",
    "changed kind": lambda b: f"{b.name} {b.other_rsa}\n",
    "changed kind beside the right one": lambda b: f"{b.name} {b.other_rsa}\n{b.name} {b.ed25519}\n",
    "revoked": lambda b: f"@revoked {b.name} {b.ed25519}\n",
    "revoked for all": lambda b: f"@revoked * {b.ed25519}\n@revoked * {b.rsa}\n",
    "revoked and known": lambda b: f"{b.name} {b.ed25519}\n@revoked * {b.ed25519}\n",
    "another is revoked": lambda b: f"{b.name} {b.ed25519}\n@revoked * {b.other}\n",
    "revoked, hashed": lambda b: f"@revoked {b.hashed()} {b.ed25519}\n{b.name} {b.ed25519}\n",
    "authority alone": lambda b: f"@cert-authority * {b.other}\n",
    "its own key as authority": lambda b: f"@cert-authority {b.name} {b.ed25519}\n",
    "authority beside known": lambda b: f"@cert-authority * {b.other}\n{b.name} {b.ed25519}\n",
    "an odd marker": lambda b: f"@odd {b.name} {b.other}\n",
    "two markers": lambda b: f"@revoked @revoked {b.name} {b.ed25519}\n{b.name} {b.ed25519}\n",
    "marker in capitals": lambda b: f"@REVOKED {b.name} {b.ed25519}\n{b.name} {b.ed25519}\n",
    "corrupt base64": lambda b: f"{b.name} ssh-ed25519 AAAA!!!!\n{b.name} {b.ed25519}\n",
    "corrupt base64 alone": lambda b: f"{b.name} ssh-ed25519 AAAA!!!!\n",
    "cut key": lambda b: f"{b.name} {b.other[:-6]}\n",
    "wrong type word": lambda b: f"{b.name} ssh-rsa {b.other.split()[1]}\n",
    "unknown type word": lambda b: f"{b.name} ssh-nonsense {b.other.split()[1]}\n",
    "only a name": lambda b: f"{b.name}\n{b.name} ssh-ed25519\n",
    "not UTF-8": lambda b: f"caf\udce9 {b.other}\n{b.name} {b.ed25519} \udcff\n",
    "a NUL": lambda b: f"{b.name} {b.ed25519}\0rest\n",
    "a NUL before": lambda b: f"\0{b.name} {b.other}\n",
    "an overlong pattern": lambda b: f"{'x' * 1500},{b.name} {b.ed25519}\n",
    "a thousand others": lambda b: "".join(f"host{i} {b.other}\n" for i in range(1000)) + f"{b.name} {b.ed25519}\n",
}


def ours(bench: Bench, policy: str) -> bool:
    """Connect; say whether the host's key passed (nobody is let in, so the login is refused after)."""
    device = DeviceEntry("x", host=f"127.0.0.1:{bench.server.port}", board="pi4", root=None, transport="paramiko")
    with pytest.raises(DeviceError) as caught:
        open_ssh(device, lambda question, secret: None if secret else "yes", policy)  # type: ignore[arg-type]
    return "refuses the login" in caught.value.message


def theirs(bench: Bench, client: Client, policy: str) -> bool:
    """Ask ssh; an askpass program says yes where it asks."""
    options = [f"StrictHostKeyChecking={POLICIES[policy]}", "UpdateHostKeys=no", "NumberOfPasswordPrompts=0"]
    command = ["ssh", "-F", str(client.config), "-p", str(bench.server.port), *(w for o in options for w in ("-o", o))]
    environment = {"PATH": "/usr/bin:/bin", "SSH_ASKPASS": str(bench.askpass), "SSH_ASKPASS_REQUIRE": "force"}
    done = subprocess.run(
        [*command, "127.0.0.1", "true"], capture_output=True, timeout=20, env=environment, check=False, text=True
    )
    assert done.returncode == 255, done.stderr
    return "Permission denied" in done.stderr


WHOLE = os.environ.get("FAULT_SHARE") == "1"  # else `ask` meets a fifth of the cases only
PAIRS = [(c, p) for i, c in enumerate(CASES) for p in POLICIES if WHOLE or p != "ask" or i % 5 == 0]


@pytest.mark.parametrize(("case", "policy"), PAIRS)
def test_a_key_passes_where_ssh_lets_it_pass(
    case: str, policy: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(tmp_path / "client", monkeypatch)
    before = CASES[case](bench).encode(errors="surrogateescape")
    client.known_hosts.write_bytes(before)
    expected = theirs(bench, client, policy)
    client.known_hosts.write_bytes(before)
    assert ours(bench, policy) == expected
    after = client.known_hosts.read_bytes()
    assert after.startswith(before)
    assert after == before or (expected and policy != "strict" and after.endswith(b"\n"))


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40
