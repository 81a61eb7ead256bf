"""What ~/.ssh/config says about a host, as `ssh` itself understands it (`ssh -G`).

Where no OpenSSH client is installed, `ssh.py` asks paramiko's parser instead, which knows less, and says so.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merino_edge.device.known_hosts import SSH_PORT, HostName
from merino_edge.device.registry import HostAddress, parse_host
from merino_edge.errors import DeviceError, UsageError

CONFIG_ENVIRONMENT = "MERINO_EDGE_SSH_CONFIG"
MAX_JUMPS = 8
_READ_LIMIT_S = 20.0  # a `Match exec` of the user's may take its time

Options = Mapping[str, Sequence[str]]  # lower-case keyword -> values, as many as there are lines
Reader = Callable[[HostAddress], Options]


@dataclass(frozen=True)
class SshSettings:
    """How to reach one host.

    Attributes:
        name: What was asked for, before ~/.ssh/config translated it.
        host: Where to connect to.
        port: And at which port.
        user: Login name.
        identity_files: Private keys to try, in order.
        identities_only: Offer no other keys of the agent than these.
        use_agent: False where the configuration says `IdentityAgent none`.
        jumps: Hosts to go through, the first hop first.
        proxy_command: A program whose stdin and stdout are the connection; instead of jumps.
        known_hosts: Files with known keys, the user's first.
        host_key_alias: Name under which the host's key is kept.
        hash_known_hosts: Write names hashed.
        notes: What could not be honoured.
    """

    name: str
    host: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    identities_only: bool
    use_agent: bool
    jumps: tuple[str, ...]
    proxy_command: str | None
    known_hosts: tuple[Path, ...]
    host_key_alias: str | None
    hash_known_hosts: bool
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Return `user@host`, with the port where it is an unusual one."""
        return f"{self.user}@{self.name}" + ("" if self.port == SSH_PORT else f":{self.port}")

    @property
    def host_name(self) -> HostName:
        """Return the name under which the host's key is looked up."""
        return HostName(self.host, self.port, self.host_key_alias)

    @property
    def address_words(self) -> str:
        """Return what a person types after `ssh` or `ssh-copy-id` to reach the host."""
        port = "" if self.port == SSH_PORT else f"-p {self.port} "
        return f"{port}{self.user}@{self.name}"


def config_path() -> Path | None:
    """Return the configuration file that is used instead of ~/.ssh/config, if `$MERINO_EDGE_SSH_CONFIG` names one."""
    value = os.environ.get(CONFIG_ENVIRONMENT)
    return Path(value) if value else None


def home_folder() -> Path:
    """Return the home folder as `ssh` sees it: by the password file, not by `$HOME`."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def find_ssh() -> str | None:
    """Return the path of the OpenSSH client, None where there is none."""
    return shutil.which("ssh")


def ssh_arguments(address: HostAddress) -> list[str]:
    """Return the arguments that name configuration, port, user and host to `ssh`; nothing in them is an option."""
    path = config_path()
    words = ["-F", str(path)] if path else []
    words += ["-p", str(address.port)] if address.port else []
    words += ["-l", address.user] if address.user else []
    return [*words, "--", address.host]


def read_with_openssh(address: HostAddress) -> Options:
    """Ask `ssh -G` what it would do."""
    command = [find_ssh() or "ssh", "-G", *ssh_arguments(address)]
    try:
        answer = subprocess.run(
            command, capture_output=True, timeout=_READ_LIMIT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"cannot ask ssh for its configuration: {error}") from error
    if answer.returncode:
        message = answer.stderr.decode("utf-8", "replace").strip().splitlines() or ["it does not say why"]
        raise DeviceError(
            f"ssh cannot read its configuration: {message[0]}", hint=f"try it by hand: ssh -G {address.host}"
        )
    options: dict[str, list[str]] = {}
    for line in answer.stdout.decode("utf-8", "surrogateescape").splitlines():
        keyword, _, value = line.partition(" ")
        options.setdefault(keyword.lower(), []).append(value)
    return options


def read_settings(address: HostAddress, read: Reader, notes: Sequence[str] = ()) -> SshSettings:
    """Gather the settings of one host from what `read` says about it."""
    options = read(address)

    def last(keyword: str) -> str | None:
        values = options.get(keyword)
        return values[0] if values and values[0].lower() != "none" else None

    user = address.user or last("user") or getpass.getuser()
    host = last("hostname") or address.host
    port = address.port or int(last("port") or SSH_PORT)
    tokens = {"h": host, "p": str(port), "r": user, "n": address.host, "d": str(home_folder()), "%": "%"}
    tokens |= {"u": getpass.getuser(), "i": str(os.getuid())}
    files = _paths(" ".join(options.get("userknownhostsfile") or ["~/.ssh/known_hosts"]), tokens)
    shared = " ".join(options.get("globalknownhostsfile") or ["/etc/ssh/ssh_known_hosts"])
    jump, agent = last("proxyjump"), options.get("identityagent", [""])[0].lower()
    command = None if jump else last("proxycommand")
    return SshSettings(
        name=address.host,
        host=host,
        port=port,
        user=user,
        identity_files=tuple(_path(value, tokens) for value in options.get("identityfile", ()) if value != "none"),
        identities_only=last("identitiesonly") == "yes",
        use_agent=agent != "none",
        jumps=tuple(part.strip() for part in jump.split(",")) if jump else (),
        proxy_command=_expand(command, tokens) if command else None,
        known_hosts=(*files, *_paths(shared, tokens)),
        host_key_alias=last("hostkeyalias"),
        hash_known_hosts=last("hashknownhosts") == "yes",
        notes=(*notes, *_limits(options)),
    )


def route(address: HostAddress, read: Reader, notes: Sequence[str] = ()) -> list[SshSettings]:
    """Return every hop on the way to a host, the host itself last.

    Raises:
        DeviceError: there are more than `MAX_JUMPS` hops, as when two hosts name each other.
    """
    target = read_settings(address, read, notes)
    hops = [target]
    jumps = target.jumps
    while jumps:
        if len(hops) > MAX_JUMPS:
            raise DeviceError(
                f"{address.host} is more than {MAX_JUMPS} jumps away; does its ProxyJump lead back to it?"
            )
        try:
            hop = read_settings(parse_host(jumps[-1]), read, notes)
        except UsageError as error:
            raise DeviceError(f"ProxyJump of {hops[0].name}: {error.message}") from error
        jumps = jumps[:-1] or hop.jumps  # what is named explicitly outweighs what the hop itself says
        hops.insert(0, replace(hop, jumps=jumps, proxy_command=None if jumps else hop.proxy_command))
    return hops


def _limits(options: Options) -> list[str]:
    """Say what of the configuration is not honoured, where that could matter."""
    silent = ("none", "no", "false", "")
    names = {"revokedhostkeys": "RevokedHostKeys", "knownhostscommand": "KnownHostsCommand"}
    found = [names[key] for key in names if options.get(key, [""])[0].lower() not in silent]
    return [f"{word} is set and not read here; --transport openssh honours it" for word in found]


def _expand(text: str, tokens: Mapping[str, str]) -> str:
    parts = text.split("%")
    done, i = parts[0], 1
    while i < len(parts):
        if not parts[i] and i + 1 < len(parts):  # %%
            done += "%" + parts[i + 1]
            i += 2
            continue
        done += tokens.get(parts[i][:1], "%" + parts[i][:1]) + parts[i][1:]
        i += 1
    return done


def _path(text: str, tokens: Mapping[str, str]) -> Path:
    text = _expand(text.strip('"'), tokens)
    return home_folder() / text[2:] if text.startswith("~/") else Path(text)


def _paths(text: str, tokens: Mapping[str, str]) -> list[Path]:
    """Split a list of paths; `ssh -G` prints them unquoted, so a blank begins a new one only before `/` or `~`."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split(" ")
    joined: list[str] = []
    for word in words:
        if joined and not word.startswith(("/", "~", "%")):
            joined[-1] += " " + word
        else:
            joined.append(word)
    return [_path(word, tokens) for word in joined]
