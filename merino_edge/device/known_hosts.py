"""Which host keys are known: OpenSSH's `known_hosts` files, read and extended by the rules of OpenSSH itself.

The grammar is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT": an optional marker (`@revoked`, `@cert-authority`),
comma-separated patterns (`*`, `?`, `!negated`, `[host]:port`) or one hashed name (`|1|salt|hash`), a key type, the key,
a comment. A line that cannot be read is passed over with a note and never hides the others. Writing only appends; a
changed or revoked key is never accepted, whatever the policy.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from merino_edge.errors import DeviceError

SSH_PORT = 22
Policy = Literal["strict", "ask", "accept-new"]
Marker = Literal["", "@revoked", "@cert-authority"]
Confirm = Callable[[str], bool]

_MAX_PATTERN_BYTES = 1023  # a longer pattern matches nothing in OpenSSH either
_ED25519_KEY_BYTES = 32
_MIN_RSA_BITS = 1024
_KEY_FIELDS = {  # fields in the key's blob, its type among them
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
    "ssh-dss": 5,
}


@dataclass(frozen=True)
class HostKey:
    """A public key as it travels: its type and its blob, which begins with the type again."""

    key_type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint as `ssh` shows it: ``SHA256:...``."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def title(self) -> str:
        """Return the type as people say it: ``ED25519``."""
        return {"ssh-ed25519": "ED25519", "ssh-rsa": "RSA"}.get(self.key_type, self.key_type.split("-")[0].upper())


@dataclass(frozen=True)
class KnownKey:
    """One readable line: the names it speaks of, and the key."""

    path: Path
    line: int
    marker: Marker
    hosts: bytes
    key: HostKey

    def covers(self, name: str) -> bool:
        """Say whether this line speaks of `name` (lower case; ``[host]:port`` beside port 22)."""
        return (
            _hash_matches(self.hosts, name) if self.hosts.startswith(b"|") else _list_matches(self.hosts, name.encode())
        )


class Status(Enum):
    """What the files say about a key."""

    KNOWN = "known"
    NEW = "new"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True)
class HostName:
    """Under which name a host's keys are kept: address and port, or the alias that ~/.ssh/config gives."""

    host: str
    port: int = SSH_PORT
    alias: str | None = None

    @property
    def lookup(self) -> str:
        """Return the name as it stands in the files."""
        if self.alias is not None:
            return self.alias.lower()
        host = self.host.lower()
        return host if self.port == SSH_PORT else f"[{host}]:{self.port}"


class KnownHosts:
    """Several files read as one, the user's first."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read them; a file that does not exist is an empty one."""
        self.files = tuple(files)
        self.notes: list[str] = []
        self.keys: list[KnownKey] = []
        for path in self.files:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.notes.append(f"{path} cannot be read: {error.strerror}")
                continue
            self.keys += _parse(path, data, self.notes)

    def judge(self, name: HostName, key: HostKey) -> tuple[Status, KnownKey | None]:
        """Say what the files know of a host's key, and by which line.

        A host on another port than 22 that is new there is looked up by its bare name as well, as `ssh` does:
        a key known there is known; beyond `ssh`, a key revoked there is revoked.
        """
        found = self._judge(name.lookup, key)
        if found[0] is Status.NEW and name.alias is None and name.port != SSH_PORT:
            bare = self._judge(name.host.lower(), key)
            if bare[0] in (Status.KNOWN, Status.REVOKED):
                return bare
        return found

    def _judge(self, name: str, key: HostKey) -> tuple[Status, KnownKey | None]:
        lines = [line for line in self.keys if line.covers(name)]
        for line in lines:
            if line.marker == "@revoked" and line.key == key:
                return Status.REVOKED, line
        plain = [line for line in lines if not line.marker]
        for line in plain:
            if line.key == key:
                return Status.KNOWN, line
        return (Status.CHANGED, plain[0]) if plain else (Status.NEW, None)

    def key_types(self, name: HostName) -> list[str]:
        """Return the key types known for a host, so that the server can be asked for one of them."""
        names = {name.lookup} | ({name.host.lower()} if name.alias is None else set())
        lines = (line for line in self.keys if not line.marker and any(line.covers(n) for n in names))
        return list(dict.fromkeys(line.key.key_type for line in lines))


def check_host_key(
    files: Sequence[Path],
    name: HostName,
    key: HostKey,
    policy: Policy,
    confirm: Confirm | None = None,
    hash_names: bool = False,
) -> list[str]:
    """Let a host's key pass, or raise.

    Args:
        files: The known_hosts files; a new key is appended to the first.
        name: The host.
        key: What it showed.
        policy: What to do with a key nobody has seen yet.
        confirm: Asks the person at the terminal; needed by `ask`, which is `strict` without it.
        hash_names: Write the name hashed.

    Returns:
        Notes about lines and files that could not be read.

    Raises:
        DeviceError: the key is changed, revoked, unknown and not accepted, or cannot be remembered.
    """
    known = KnownHosts(files)
    status, line = known.judge(name, key)
    _refuse_bad(status, line, name, key)
    if status is Status.NEW:
        if policy == "ask" and confirm is not None:
            question = (
                f"The host {name.lookup} is not known.\nIts {key.title} key has the fingerprint {key.fingerprint}.\n"
                "Compare it with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the device. Is it the same (yes/no)?"
            )
            accepted = confirm(question)
        else:
            accepted = policy == "accept-new"
        if not accepted:
            raise _unknown(name, key, known)
        remember(files, name, key, hash_names)
    return known.notes


def remember(files: Sequence[Path], name: HostName, key: HostKey, hash_names: bool = False) -> None:
    """Append a host's key to the first file, unless somebody was faster; no other byte of it changes.

    Raises:
        DeviceError: it cannot be written, or holds another key for this host by now.
    """
    path = files[0]
    label = _hashed(name.lookup) if hash_names else name.lookup
    line = f"{label} {key.key_type} {base64.b64encode(key.blob).decode()}\n".encode()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "rb+", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            status, other = KnownHosts(files).judge(name, key)
            _refuse_bad(status, other, name, key)
            if status is Status.KNOWN:
                return
            end = stream.seek(0, os.SEEK_END)
            if end and os.pread(stream.fileno(), 1, end - 1) != b"\n":
                line = b"\n" + line
            if os.write(stream.fileno(), line) != len(line):
                os.ftruncate(stream.fileno(), end)
                raise OSError(28, "No space left on device")
            os.fsync(stream.fileno())
    except OSError as error:
        raise DeviceError(
            f"the key of {name.lookup} cannot be remembered: {path}: {error.strerror}",
            hint=f"make {path} writable, or add the key by hand: ssh-keyscan {name.host} >> {path}",
        ) from error


def usable_files(paths: Sequence[Path]) -> list[Path]:
    """Leave out what is no regular file (`/dev/null`, folders), except in the first place, which is written to."""

    def special(path: Path) -> bool:
        try:
            return not stat.S_ISREG(path.stat().st_mode)
        except OSError:
            return False  # not there, or shut: a note will say so

    return [path for i, path in enumerate(paths) if i == 0 or not special(path)]


def _refuse_bad(status: Status, line: KnownKey | None, name: HostName, key: HostKey) -> None:
    if line is None or status in (Status.NEW, Status.KNOWN):
        return
    where = f"{line.path}, line {line.line}"
    facts = {"host": name.lookup, "fingerprint": key.fingerprint, "known_hosts": where}
    if status is Status.REVOKED:
        raise DeviceError(
            f"the key of {name.lookup} ({key.fingerprint}) is revoked by {where}",
            hint="give the device a new host key; a revoked one is never accepted",
            **facts,
        )
    raise DeviceError(
        f"the key of {name.lookup} has changed: it shows {key.fingerprint}, {where} says {line.key.fingerprint}",
        hint=f"if the device was set up anew: ssh-keygen -R '{name.lookup}' -f {line.path}; else beware",
        **facts,
    )


def _unknown(name: HostName, key: HostKey, known: KnownHosts) -> DeviceError:
    port = "" if name.port == SSH_PORT else f"-p {name.port} "
    authority = any(line.marker == "@cert-authority" and line.covers(name.lookup) for line in known.keys)
    hint = f"connect once by hand and compare the fingerprint: ssh {port}{name.host}"
    if authority:
        hint = "its known_hosts line is a @cert-authority, which only --transport openssh understands"
    return DeviceError(
        f"the host {name.lookup} is not known: its {key.title} key is {key.fingerprint}",
        hint=hint,
        host=name.lookup,
        fingerprint=key.fingerprint,
    )


def _parse(path: Path, data: bytes, notes: list[str]) -> Iterator[KnownKey]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        text = raw.split(b"\0")[0].lstrip(b" \t")
        if not text or text.startswith((b"#", b"\r")):
            continue
        try:
            marker, hosts, key = _parse_line(text)
        except ValueError as error:
            notes.append(f"{path}, line {number} is passed over: {error}")
            continue
        yield KnownKey(path, number, marker, hosts, key)


def _parse_line(text: bytes) -> tuple[Marker, bytes, HostKey]:
    marker: Marker = ""
    if text.startswith(b"@"):
        word, text = _split_word(text)
        if word == b"@revoked":
            marker = "@revoked"
        elif word == b"@cert-authority":
            marker = "@cert-authority"
        else:
            raise ValueError("the marker is not known")
        if text.startswith(b"@"):
            raise ValueError("two markers")
    hosts, text = _split_word(text)
    key_type, text = _split_word(text)
    encoded, _ = _split_word(text)
    if not encoded or key_type.startswith(b"#"):
        raise ValueError("it has no key")
    try:
        blob = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the key is not base64") from error
    return marker, hosts, _check_key(key_type.decode("ascii", "replace"), blob)


def _split_word(text: bytes) -> tuple[bytes, bytes]:
    for position, byte in enumerate(text):
        if byte in b" \t":
            return text[:position], text[position:].lstrip(b" \t")
    return text, b""


def _check_key(key_type: str, blob: bytes) -> HostKey:
    if key_type not in _KEY_FIELDS:
        raise ValueError("the key's type is not known")
    fields: list[bytes] = []
    rest = blob
    while rest and len(fields) < _KEY_FIELDS[key_type]:
        length = int.from_bytes(rest[:4], "big")
        if len(rest) < 4 + length:
            raise ValueError("the key is cut off")
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    if rest or len(fields) != _KEY_FIELDS[key_type] or fields[0] != key_type.encode():
        raise ValueError("the key is not of the type it claims")
    short_rsa = key_type == "ssh-rsa" and len(fields[2].lstrip(b"\0")) * 8 < _MIN_RSA_BITS
    if short_rsa or ("ed25519" in key_type and len(fields[1]) != _ED25519_KEY_BYTES):
        raise ValueError("the key has a wrong length")
    return HostKey(key_type, blob)


def _hashed(name: str, salt: bytes | None = None) -> str:
    salt = secrets.token_bytes(20) if salt is None else salt
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()  # SHA-1 is what the format says
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def _hash_matches(hosts: bytes, name: str) -> bool:
    parts = hosts.split(b"|")
    if len(parts) != 4 or parts[:2] != [b"", b"1"]:
        return False
    try:
        salt = base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(_hashed(name, salt).encode(), hosts)


def _list_matches(patterns: bytes, name: bytes) -> bool:
    """Match a comma-separated list; one negated pattern that fits outweighs all others."""
    matched = False
    for pattern in patterns.lower().split(b","):
        negated = pattern.startswith(b"!")
        body = pattern[1:] if negated else pattern
        if len(body) > _MAX_PATTERN_BYTES:
            return False
        if _matches(body, name):
            if negated:
                return False
            matched = True
    return matched


def _matches(pattern: bytes, name: bytes) -> bool:
    """Match `*` and `?`; in time proportional to the product of the lengths at worst."""
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        if p < len(pattern) and pattern[p : p + 1] == b"*":
            star, mark = p, n
            p += 1
        elif p < len(pattern) and pattern[p : p + 1] in (b"?", name[n : n + 1]):
            p, n = p + 1, n + 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return not pattern[p:].strip(b"*")
