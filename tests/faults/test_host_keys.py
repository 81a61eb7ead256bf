"""Host keys on real connections: what we accept is what `ssh` accepts, under every policy, at every hop."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from campaign import Campaign
from sshd_server import Client, Server, make_key, needs_sshd, public

from merino_edge.device.registry import DeviceEntry
from merino_edge.device.ssh import open_ssh
from merino_edge.errors import DeviceError

PROMISED = 160  # connections that were judged twice: 50 cases and 6 with a jump host, times three policies

pytestmark = [needs_sshd, pytest.mark.timeout(3600)]
POLICIES = {"strict": "yes", "ask": "ask", "accept-new": "accept-new"}


class Bench:
    """A server, keys that are not its own, and lines to make of them."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder / "sshd", ("ed25519", "rsa"))
        self.hop = Server(folder / "hop")
        self.ed25519, self.rsa = (public(key) for key in self.server.host_keys)
        self.other = public(make_key(folder / "other"))
        self.other_rsa = public(make_key(folder / "other_rsa", "rsa"))
        self.name = f"[127.0.0.1]:{self.server.port}"
        self.hop_key = public(self.hop.host_keys[0])
        self.hop_name = f"[127.0.0.1]:{self.hop.port}"
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
    made.hop.stop()


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


# With a jump host before it: what is known of the hop, and of the target.
JUMPS: dict[str, Line] = {
    "both known": lambda b: f"{b.hop_name} {b.hop_key}\n{b.name} {b.ed25519}\n",
    "the hop changed": lambda b: f"{b.hop_name} {b.other}\n{b.name} {b.ed25519}\n",
    "the hop revoked": lambda b: f"@revoked * {b.hop_key}\n{b.hop_name} {b.hop_key}\n{b.name} {b.ed25519}\n",
    "the hop unknown": lambda b: f"{b.name} {b.ed25519}\n",
    "the target changed": lambda b: f"{b.hop_name} {b.hop_key}\n{b.name} {b.other}\n",
    "the target unknown": lambda b: f"{b.hop_name} {b.hop_key}\n",
}


def ours(host: str, policy: str, transport: str) -> bool:
    """Connect; say whether every host's key passed (nobody is let in at the target, so the login is refused after)."""
    device = DeviceEntry("x", host=host, board="pi4", root=None, transport=transport)  # type: ignore[arg-type]
    with pytest.raises(DeviceError) as caught:
        open_ssh(device, lambda question, secret: None if secret else "yes", policy)  # type: ignore[arg-type]
    return "refuses the login" in caught.value.message


def theirs(bench: Bench, client: Client, host: str, policy: str) -> bool:
    """Ask ssh; an askpass program says yes where it asks."""
    config = client.config.with_name("theirs")
    checking = f"Host *\n  StrictHostKeyChecking {POLICIES[policy]}\n  UpdateHostKeys no\n"
    config.write_text(client.config.read_text() + checking)  # in a file, so that it holds for the jump host as well
    command = ["ssh", "-F", str(config), "-o", "NumberOfPasswordPrompts=0", "-p", str(bench.server.port)]
    environment = {"PATH": "/usr/bin:/bin", "SSH_ASKPASS": str(bench.askpass), "SSH_ASKPASS_REQUIRE": "force"}
    done = subprocess.run(
        [*command, host.partition(":")[0], "true"],
        capture_output=True,
        timeout=60,
        env=environment,
        check=False,
        text=True,
    )
    assert done.returncode == 255, done.stderr
    return "Permission denied" in done.stderr


def careless(bench: Bench, known_hosts: Path) -> bool:
    """Connect as many programs do: paramiko's own reading of the file, and whatever is missing is added."""
    with paramiko.SSHClient() as client:
        with contextlib.suppress(Exception):  # it raises many things, and programs go on after them
            client.load_host_keys(str(known_hosts))
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect("127.0.0.1", bench.server.port, "nobody", "x", allow_agent=False, look_for_keys=False)
        except paramiko.AuthenticationException:
            return True
        except Exception:  # noqa: BLE001  refused, for whatever reason
            return False
    return True


def test_a_key_passes_where_ssh_lets_it_pass(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = Campaign("host-keys", PROMISED)
    client = Client(tmp_path / "client", monkeypatch)
    client.allow(bench.hop)
    pairs = [(name, policy, False) for name in CASES for policy in POLICIES]
    pairs += [(name, policy, True) for name in JUMPS for policy in POLICIES]
    naive_differs = 0
    must = [("revoked for all", "accept-new", False), ("the hop changed", "accept-new", True)]
    chosen = campaign.random.sample(pairs, campaign.portion(len(pairs), least=6))
    for name, policy, jump in dict.fromkeys([*must, *chosen]):
        client.write_config(jump_config(bench) if jump else "")
        host = "board" if jump else f"127.0.0.1:{bench.server.port}"
        before = (JUMPS if jump else CASES)[name](bench).encode(errors="surrogateescape")
        client.known_hosts.write_bytes(before)
        expected = theirs(bench, client, host, policy)
        if not jump:
            client.known_hosts.write_bytes(before)
            naive_differs += careless(bench, client.known_hosts) and not expected
        client.known_hosts.write_bytes(before)
        transport = "openssh" if campaign.random.random() < 0.2 and policy != "ask" else "paramiko"
        got = ours(host, policy, transport)
        campaign.hit(f"{policy}, jump" if jump else policy)
        place = f"{name}, {policy}, {transport}" + ", through a jump host" * jump
        if got != expected:
            campaign.fail(f"{place}: ssh {'accepts' if expected else 'refuses'}, we do not")
        after = client.known_hosts.read_bytes()
        if not after.startswith(before) or (policy == "strict" and after != before):
            campaign.fail(f"{place}: other lines of the file changed")
        if after != before and not jump and not (expected and after.endswith(b"\n")):
            campaign.fail(f"{place}: the file grew")
    assert naive_differs, "the negative control was not caught"
    campaign.facts = {"cases": len(CASES) + len(JUMPS), "naive_accepts_what_ssh_refuses": naive_differs}
    campaign.finish()


def jump_config(bench: Bench) -> str:
    """Return a configuration that leads to the server through the hop."""
    target = f"Host board\n  HostName 127.0.0.1\n  Port {bench.server.port}\n"
    return target + f"  ProxyJump {bench.hop.user}@127.0.0.1:{bench.hop.port}\n"


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES) >= 40
