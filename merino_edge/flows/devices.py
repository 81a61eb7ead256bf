"""`devices`, and how every other flow finds and opens the device that a command means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from merino_edge.device.board import Board, board_names, detect_board, load_board
from merino_edge.device.client import Device, open_device, open_transport
from merino_edge.device.purge import purge_device
from merino_edge.device.records import clean_text
from merino_edge.device.registry import LOCAL, DeviceEntry, Registry, TransportName, choose_device, device_folder
from merino_edge.errors import DeviceError, UsageError
from merino_edge.progress import SILENT, Progress

Ask = Callable[..., str | None]
"""Puts a question to a person, unseen with `secret=True`, and returns the answer; None where nobody can be asked."""


def select_device(flag: str | None, run_device: str | None, progress: Progress) -> str:
    """Return the name of the device that a command means, and say why it is that one."""
    name, why = choose_device(flag, run_device)
    progress.note(f"device: {name} ({why})")
    return name


def find_entry(name: str) -> DeviceEntry:
    """Return a registered device.

    Raises:
        DeviceError: `name` is a kind of board and no device of that kind was added.
        UsageError: nothing is called so.
    """
    return Registry().get(name)


def is_unregistered_board(name: str) -> bool:
    """Say whether a name is that of a board of which no device was added."""
    return name not in Registry().names() and name in board_names()


def register(
    name: str,
    host: str | None,
    board: str | None = None,
    transport: TransportName = "paramiko",
    root: str | None = None,
    ask: Ask | None = None,
) -> DeviceEntry:
    """Add a device, asking for its address where a person is there to answer.

    Raises:
        DeviceError: nobody can be asked and no host was given; the hint is the command that gives it.
    """
    if host is None and ask is not None:
        host = ask(f"address of {name} (user@host): ")
    if host is None:
        return find_entry(name)  # raises what there is to say
    kind = board or (name if name in board_names() else LOCAL)
    entry = DeviceEntry(name, host=host, board=kind, root=root, transport=transport)
    Registry().add(entry)
    return entry


@contextmanager
def opened(entry: DeviceEntry, ask: Ask | None = None) -> Iterator[Device]:
    """Open a device and close it again whatever happens."""
    device = open_device(entry, ask=ask)
    try:
        yield device
    finally:
        device.close()


def board_of(name: str) -> Board:
    """Return the board facts of a device or of a bare board name."""
    if is_unregistered_board(name):
        return load_board(name)
    return load_board(find_entry(name).board)


def list_devices() -> dict[str, Any]:
    """Return all devices and boards.

    Returns:
        The document of `merino-edge devices --json`.
    """
    rows = []
    for entry in Registry().all():
        rows.append(
            {
                "device": entry.name,
                "board": entry.board,
                "host": entry.host,
                "transport": entry.transport,
                "profiled": (device_folder(entry.name) / "profile.json").exists(),
            }
        )
    return {"devices": rows, "boards": list(board_names())}


ARM_MACHINES = ("aarch64", "arm")  # what every board that ships says of itself


def add_device(
    name: str,
    host: str,
    board: str | None,
    transport: TransportName,
    root: str | None,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Add a device after it has answered; a wrong `--profile` is contradicted.

    Returns:
        The document of `merino-edge devices add --json`.
    """
    if name == LOCAL:
        raise UsageError("'local' is this very machine and always exists", hint="choose another name")
    entry = DeviceEntry(name, host=host, board=board or LOCAL, root=root, transport=transport)
    progress.note(f"device: {name} ({host})")
    with opened(entry, ask) as device:
        facts = device.facts()
    detected = detect_board(facts)
    if board is not None and detected is not None and detected != board:
        raise UsageError(
            f"{name} says it is a {load_board(detected).title}, not a {load_board(board).title}",
            hint=f"merino-edge devices add {name} --host {host} --profile {detected}",
        )
    machine = str(facts.get("architecture"))
    if board not in (None, LOCAL) and detected is None and not machine.startswith(ARM_MACHINES):
        raise UsageError(
            f"{name} is a {clean_text(machine, 30)} machine, and no {load_board(board).title}",
            hint=f"merino-edge devices add {name} --host {host}",
        )
    kind = board or detected or LOCAL
    Registry().add(DeviceEntry(name, host=host, board=kind, root=root, transport=transport))
    return {"device": name, "host": host, "board": kind, "detected": detected, "facts": facts}


def remove_device(name: str, purge: bool, ask: Ask | None = None, progress: Progress = SILENT) -> dict[str, Any]:
    """Forget a device; with `purge` no file and no process of ours stays on it, nor its profile on this host.

    Returns:
        The document of `merino-edge devices remove --json`.

    Raises:
        DeviceError: it cannot be reached, or somebody is at work there; nothing is forgotten then.
    """
    found: dict[str, Any] = {"removed": False, "ended": 0}
    if purge and name != LOCAL:
        entry = find_entry(name)
        progress.note(f"device: {name} ({entry.host})")
        try:
            transport = open_transport(entry, ask)
        except DeviceError as error:
            error.hint = f"{error.hint or ''}; or forget it here only: merino-edge devices remove {name}".lstrip("; ")
            raise
        try:
            found = purge_device(transport, entry)
        finally:
            transport.close()
    Registry().remove(name, purge=purge)
    document = {"device": name, "removed": True, "purged": purge}
    return {**document, "device_folder_removed": found["removed"], "processes_ended": found["ended"]}
