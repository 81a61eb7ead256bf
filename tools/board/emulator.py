"""An emulated aarch64 board: QEMU started, found again, and ended.

    python tools/board/emulator.py up --cpu cortex-a72 [--icount] [--keep] [--name NAME]
    python tools/board/emulator.py down [--name NAME]
    python tools/board/emulator.py status

A running board has a folder `.board/run/NAME` with its process id, its console, `ssh_config` and
`known_hosts`. Its SSH port is a free one of this machine's loopback, chosen by QEMU. Whatever it
computes is right as on a board; how long it takes says nothing about any board.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from image import STATE, USER, BoardError, check_tools, ensure_image, say
from qmp import SOCKET, Qmp, QmpError

QEMU = "qemu-system-aarch64"
CPUS = ("cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76", "neoverse-n1")
BOOT_S = 120.0  # 6 s where the machine has nothing else to do
HOST = "emulated-board"


@dataclass(frozen=True)
class Board:
    """A board that runs.

    Attributes:
        name: How it is called.
        folder: Where its files lie.
        pid: Of QEMU.
        port: Of its sshd, on 127.0.0.1.
        cpu: The core it emulates.
        icount: Its clock counts instructions, one a nanosecond.
        qemu: QEMU's version.
    """

    name: str
    folder: Path
    pid: int
    port: int
    cpu: str
    icount: bool
    qemu: str

    @property
    def address(self) -> str:
        """What `merino-edge devices add --host` takes."""
        return f"{USER}@127.0.0.1:{self.port}"

    @property
    def ssh_config(self) -> Path:
        """Configuration that makes `ssh` and `merino-edge` trust and reach it."""
        return self.folder / "ssh_config"

    def ssh(self, command: str, timeout_s: float = 120.0) -> str:
        """Run a command on it; return what it printed.

        Raises:
            BoardError: it failed or took too long.
        """
        argv = ["ssh", "-F", str(self.ssh_config), HOST, command]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BoardError(f"the board did not answer {command!r} within {timeout_s:.0f} s") from error
        if done.returncode:
            raise BoardError(f"on the board, {command!r} failed with {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout


def run_folder(name: str) -> Path:
    """Return the folder of a board by its name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
        raise BoardError(f"'{name}' is no name of a board: small letters, digits and '-'")
    return STATE / "run" / name


def find(name: str) -> Board | None:
    """Return the running board of a name, None where none runs."""
    folder = run_folder(name)
    try:
        facts = json.loads((folder / "board.json").read_text(encoding="utf-8"))
        pid = int((folder / "pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    board = Board(folder=folder, pid=pid, **facts)
    return board if _is_ours(board) else None


def _is_ours(board: Board) -> bool:
    """Say whether the process is still the QEMU of this folder, and no later one with the same number."""
    with suppress(OSError):
        words = Path(f"/proc/{board.pid}/cmdline").read_bytes().split(b"\0")
        return QEMU.encode() in words[0] and str(board.folder / "pid").encode() in words
    return False


def up(name: str, cpu: str, icount: bool = False, keep: bool = False, memory_mib: int = 1536) -> Board:
    """Boot a board and wait until it answers SSH; one that runs already with the same core is taken.

    Args:
        name: How it is called.
        cpu: The core.
        icount: Count instructions instead of time; one core.
        keep: Write to a disk of its own that the next `up` with `keep` finds again; otherwise
            everything written is forgotten at its end.
        memory_mib: Its memory.

    Raises:
        BoardError: it did not come up; the message holds the end of its console.
    """
    if cpu not in CPUS:
        raise BoardError(f"unknown core '{cpu}'; cores: {', '.join(CPUS)}")
    running = find(name)
    if running is not None:
        if (running.cpu, running.icount) == (cpu, icount):
            return running
        down(name)
    check_tools((QEMU, "qemu-img", "fdtput", "ssh"))
    image, folder = ensure_image(), run_folder(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in ("pid", "board.json", SOCKET):
        (folder / left).unlink(missing_ok=True)
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()[3]
    machine = [QEMU, "-M", "virt", "-nodefaults", "-display", "none", "-cpu", cpu]
    machine += ["-smp", "1" if icount else "2", "-m", str(memory_mib)]
    tree = _device_tree(folder, machine, f"QEMU {version} emulating a {cpu}, no board")
    started = time.monotonic()
    _start([*machine, *_hardware(image, folder, tree, keep), *(["-icount", "shift=0"] if icount else [])])
    try:
        pid = int((folder / "pid").read_text(encoding="ascii"))
        board = Board(name, folder, pid, _port(folder), cpu, icount, version)
        _write_access(board, image)
        _wait(board)
    except BaseException:
        _kill(folder)
        raise
    facts = {key: getattr(board, key) for key in ("name", "port", "cpu", "icount", "qemu")}
    (folder / "board.json").write_text(json.dumps(facts), encoding="utf-8")
    say(f"{name} ({cpu}{', instruction count' if icount else ''}) answers after {time.monotonic() - started:.1f} s")
    return board


def _device_tree(folder: Path, machine: list[str], model: str) -> Path:
    """Write the machine's device tree with a model that says what it is."""
    plain, named = folder / "plain.dtb", folder / "board.dtb"
    dump = [word if word != "virt" else f"virt,dumpdtb={plain}" for word in machine]
    for command in (dump, ["fdtput", "-t", "s", str(plain), "/", "model", model]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BoardError(f"{command[0]} failed: {done.stderr[-500:]}")
    return plain.replace(named)


def _hardware(image: Path, folder: Path, tree: Path, keep: bool) -> list[str]:
    disk, form = image / "disk.img", "raw"
    if keep:
        disk, form = folder / "disk.qcow2", "qcow2"
        if disk.exists() and not _lies_on(disk, image):
            disk.unlink()
        if not disk.exists():
            base = ["-b", str(image / "disk.img"), "-F", "raw"]
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)], check=True)
    words = f"console=ttyAMA0 quiet panic=1 random.trust_cpu=on mitigations=off board.epoch={int(time.time())}"
    hardware = ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"), "-append", words]
    hardware += ["-dtb", str(tree), "-drive", f"if=none,id=disk,file={disk},format={form},cache=unsafe"]
    hardware += ["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]
    hardware += ["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"]
    hardware += ["-device", "virtio-net-pci,netdev=net,romfile=", "-no-reboot"]
    hardware += ["-serial", f"file:{folder / 'console'}", "-pidfile", str(folder / "pid"), "-daemonize"]
    return [*hardware, *([] if keep else ["-snapshot"])]


def _lies_on(disk: Path, image: Path) -> bool:
    """Say whether a disk of its own was begun on this image and not on one that has been replaced."""
    with open(disk, "rb") as stream:
        return str(image).encode() in stream.read(1 << 16)


def _start(command: list[str]) -> None:
    folder = Path(command[command.index("-pidfile") + 1]).parent
    command = [*command, "-qmp", f"unix:{SOCKET},server=on,wait=off"]  # relative: the path of a socket may not be long
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise BoardError(f"{QEMU} did not start: {done.stderr[-1000:]}\n  {shlex.join(command)}")


def _port(folder: Path) -> int:
    """Ask QEMU which port of this machine it has taken for the board's sshd."""
    with Qmp(folder) as qmp:
        text = qmp.ask("human-monitor-command", **{"command-line": "info usernet"})
    match = re.search(r"HOST_FORWARD\S*\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", str(text))
    if match is None:
        raise BoardError(f"QEMU forwards no port:\n{text}")
    return int(match.group(1))


def _write_access(board: Board, image: Path) -> None:
    """Write what makes SSH sure of this board and no other; the user's own files stay out of it."""
    key = (image / "host_ed25519.pub").read_text(encoding="ascii").rsplit(" ", 2)[0]
    (board.folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {key}\n", encoding="ascii")
    lines = [f"Host {HOST}", "    HostName 127.0.0.1", f"    Port {board.port}", f"    User {USER}"]
    login, known = board.folder / "id_ed25519", board.folder / "known_hosts"
    login.unlink(missing_ok=True)
    shutil.copy(image / "id_ed25519", login)  # the image may make room for a newer one while this board runs
    lines += ["Host *", f'    IdentityFile "{login}"', "    IdentitiesOnly yes", "    IdentityAgent none"]
    lines += [f'    UserKnownHostsFile "{known}"', "    GlobalKnownHostsFile none"]
    lines += ["    StrictHostKeyChecking yes", "    BatchMode yes", "    ConnectTimeout 10"]
    board.ssh_config.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _wait(board: Board) -> None:
    """Wait until it answers."""
    end, problem = time.monotonic() + BOOT_S, ""
    while time.monotonic() < end:
        if not Path(f"/proc/{board.pid}").exists():
            break
        try:
            board.ssh("true", timeout_s=20.0)
            return
        except BoardError as error:
            problem = str(error)
            time.sleep(0.5)
    console = (board.folder / "console").read_text(encoding="utf-8", errors="replace")[-2000:]
    raise BoardError(f"the board does not answer: {problem}\nthe end of its console:\n{console}")


def down(name: str) -> bool:
    """End a board; False where none runs."""
    board = find(name)
    if board is None:
        return False
    with suppress(QmpError), Qmp(board.folder) as qmp:
        qmp.ask("quit")
    _kill(board.folder)
    return True


def kill(name: str) -> None:
    """Take the power away: what the board had not written to its disk is lost."""
    if find(name) is not None:
        _kill(run_folder(name))


def _kill(folder: Path) -> None:
    """End QEMU by its process id, unless it has ended already."""
    with suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text(encoding="ascii"))
        for _ in range(50):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(folder).encode() not in words:
                break
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
    (folder / "board.json").unlink(missing_ok=True)


def running() -> list[Board]:
    """Return all boards that run."""
    names = sorted(path.name for path in (STATE / "run").glob("*")) if (STATE / "run").is_dir() else []
    return [board for board in map(find, names) if board is not None]


def _tell(board: Board) -> None:
    print(f"export MERINO_EDGE_SSH_CONFIG={shlex.quote(str(board.ssh_config))}")
    print(f".venv/bin/merino-edge devices add {board.name} --host {board.address} --profile pi4")
    say(f"a shell on it: ssh -F {shlex.quote(str(board.ssh_config))} {HOST}; its end: make board-down")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="an emulated aarch64 board")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "down", "status", "image"):
        sub = commands.add_parser(name)
        sub.add_argument("--name", default="emulated")
        if name == "up":
            sub.add_argument("--cpu", default="cortex-a72", choices=CPUS)
            sub.add_argument("--icount", action="store_true")
            sub.add_argument("--keep", action="store_true")
    asked: Any = parser.parse_args(arguments)
    try:
        if asked.command == "up":
            _tell(up(asked.name, asked.cpu, asked.icount, asked.keep))
        elif asked.command == "down":
            say(f"{asked.name} ended" if down(asked.name) else f"no board called {asked.name} runs")
        elif asked.command == "image":
            print(ensure_image())
        else:
            for board in running():
                print(f"{board.name}: {board.cpu}, {board.address}, process {board.pid}")
    except (BoardError, QmpError) as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
