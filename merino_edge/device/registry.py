"""Your devices: their names, how each is reached, and which of them a command means.

One folder a device, ``$XDG_DATA_HOME/merino-edge/devices/NAME/``: `device.toml` (written here), and beside it the
profile and measurements that other modules keep. `local`, this very machine, always exists and needs no file.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from merino_edge.device.board import board_names, read_toml, toml_string
from merino_edge.errors import DeviceError, InvalidFileError, UsageError, check_keys, did_you_mean
from merino_edge.files import SCHEMA_VERSION, write_atomic
from merino_edge.settings import VARIABLES, data_home, read_settings

LOCAL = "local"
DEVICE_FILE = "device.toml"
ENVIRONMENT = VARIABLES["device"]

TransportName = Literal["local", "paramiko", "openssh"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_USER = re.compile(r"[A-Za-z0-9_.$][A-Za-z0-9_.$@\\-]*")
_HOST = re.compile(r"[A-Za-z0-9_.:%][A-Za-z0-9_.:%-]*")
_TOML_KEYS = ("schema_version", "host", "board", "root", "transport")


@dataclass(frozen=True)
class DeviceEntry:
    """One device of yours.

    Attributes:
        name: How you call it.
        host: `[USER@]HOST[:PORT]`, or a name from ~/.ssh/config; None for `local`.
        board: Kind of board, see `board_names`.
        root: Folder on the device; None for the default.
        transport: How it is reached.
    """

    name: str
    host: str | None
    board: str
    root: str | None
    transport: TransportName

    def __post_init__(self) -> None:
        """Refuse names that are no plain folder names, and hosts that are no hosts."""
        check_device_name(self.name)
        if self.transport not in get_args(TransportName):
            known = ", ".join(get_args(TransportName))
            raise UsageError(f"device '{self.name}': no transport '{self.transport}'; known: {known}")
        if self.board not in board_names():
            raise UsageError(
                f"device '{self.name}': unknown board '{self.board}'{did_you_mean(self.board, board_names())}",
                hint=f"boards: {', '.join(board_names())}",
            )
        if (self.host is None) != (self.transport == "local"):
            raise UsageError(f"device '{self.name}': a device reached over SSH needs a host, this machine has none")
        if self.host is not None:
            parse_host(self.host)
        if self.root is not None and (not self.root or not self.root.isprintable()):
            raise UsageError(f"device '{self.name}': {self.root!r} is no folder")


@dataclass(frozen=True)
class HostAddress:
    """What `--host` says: each part None where it is left to ~/.ssh/config."""

    host: str
    user: str | None = None
    port: int | None = None


def parse_host(text: str) -> HostAddress:
    """Parse `HOST`, `USER@HOST`, `USER@HOST:PORT`, `[IPv6]:PORT` or the same behind `ssh://`.

    Raises:
        UsageError: it is none of these; nothing that begins with `-` or holds blanks gets through.
    """
    wrong = UsageError(f"{text!r} is no host", hint="write it like pi@kitchen.local or pi@192.0.2.7:2222")
    user, at, rest = text.removeprefix("ssh://").rpartition("@")
    port: int | None = None
    host = rest
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise wrong
        port_text = tail[1:] if tail else None
    elif rest.count(":") == 1:
        host, _, port_text = rest.partition(":")
    else:
        port_text = None  # no port, or an IPv6 address without brackets
    if port_text is not None:
        if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 0 < int(port_text) < 65536:
            raise wrong
        port = int(port_text)
    if not _HOST.fullmatch(host) or (at and not _USER.fullmatch(user)):
        raise wrong
    return HostAddress(host, user if at else None, port)


def check_device_name(name: str) -> str:
    """Return the name, or raise where it is not a plain, lower-case folder name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a device", hint="use lower-case letters, digits, '.', '_' and '-', at most 64"
        )
    return name


def devices_root() -> Path:
    """Return the folder of all devices."""
    return data_home() / "devices"


def device_folder(name: str) -> Path:
    """Return the folder of what belongs to one device; it need not exist."""
    return devices_root() / check_device_name(name)


def local_entry() -> DeviceEntry:
    """Return the entry of this very machine."""
    return DeviceEntry(LOCAL, host=None, board=LOCAL, root=None, transport="local")


class Registry:
    """The devices that were added, read from disk at each call."""

    def names(self) -> list[str]:
        """Return all names: `local`, then the added ones in order."""
        folders = {path.parent.name for path in devices_root().glob(f"*/{DEVICE_FILE}")} - {LOCAL}
        return [LOCAL, *sorted(name for name in folders if _NAME.fullmatch(name))]

    def all(self) -> list[DeviceEntry]:
        """Return all entries, `local` first."""
        return [self.get(name) for name in self.names()]

    def get(self, name: str) -> DeviceEntry:
        """Return one entry.

        Raises:
            DeviceError: `name` is a kind of board, and no device of that name was added.
            UsageError: there is no such device.
            InvalidFileError: its `device.toml` is damaged.
        """
        if name == LOCAL:
            return local_entry()
        names = self.names()
        if name in names:
            return _read_entry(name)
        boards = board_names()
        if name in boards:
            raise DeviceError(
                f"no {name} has been added yet: where is it?",
                hint=f"merino-edge profile {name} --host pi@ADDRESS",
                board=name,
            )
        known = f"devices: {', '.join(names)}; boards: {', '.join(boards)}"
        raise UsageError(
            f"unknown device '{name}'{did_you_mean(name, {*names, *boards}, listed=True)}",
            hint=f"{known}; or add it: merino-edge devices add {name} --host USER@ADDRESS",
            devices=names,
            boards=boards,
        )

    def add(self, entry: DeviceEntry) -> None:
        """Write an entry; one of the same name is replaced, its profile and measurements stay."""
        if entry.name == LOCAL:
            raise UsageError("'local' is this very machine and always exists", hint="choose another name")
        values: dict[str, str | None] = {"host": entry.host, "board": entry.board, "root": entry.root}
        values["transport"] = entry.transport
        lines = [f"schema_version = {SCHEMA_VERSION}"]
        lines += [f"{key} = {toml_string(value)}" for key, value in values.items() if value is not None]
        write_atomic(device_folder(entry.name) / DEVICE_FILE, "\n".join(lines) + "\n")

    def remove(self, name: str, *, purge: bool = False) -> None:
        """Forget a device; with `purge` its profile and measurements as well.

        Raises:
            UsageError: there is no such device, or it is `local`.
        """
        if name == LOCAL:
            raise UsageError("'local' is this very machine and cannot be removed")
        if name not in self.names():
            raise UsageError(f"unknown device '{name}'{did_you_mean(name, self.names())}")
        folder = device_folder(name)
        (folder / DEVICE_FILE).unlink(missing_ok=True)
        if purge:
            shutil.rmtree(folder)


def choose_device(flag: str | None, run_device: str | None) -> tuple[str, str]:
    """Say which device a command means, and why.

    Args:
        flag: `--device`.
        run_device: The device of the run at hand.

    Returns:
        The name and the reason: the flag, the run, the environment, the configuration, or nothing at all.
    """
    if flag:
        return flag, "--device"
    if run_device:
        return run_device, "the run's device"
    if os.environ.get(ENVIRONMENT):
        return os.environ[ENVIRONMENT], f"${ENVIRONMENT}"
    settings = read_settings()
    if "device" in settings.values:
        return settings.values["device"], str(settings.path)
    return LOCAL, "this machine; nothing else was named"


def _read_entry(name: str) -> DeviceEntry:
    path = device_folder(name) / DEVICE_FILE
    value = read_toml(path, "device")
    check_keys(value, _TOML_KEYS, str(path))
    version, again = value.get("schema_version"), f"merino-edge devices remove {name}, then add it again"
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InvalidFileError(
            f"{path}: schema_version is {version!r}, this release reads {SCHEMA_VERSION}", hint=again
        )
    try:
        return DeviceEntry(
            name,
            host=_text(value, "host"),
            board=_text(value, "board") or "",
            root=_text(value, "root"),
            transport=cast(TransportName, _text(value, "transport") or "paramiko"),
        )
    except (UsageError, TypeError) as error:
        raise InvalidFileError(f"{path}: {error}", hint=again) from error


def _text(value: Mapping[str, object], key: str) -> str | None:
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{key} must be a text, not {text!r}")
    return text
