"""Completion in the real shells: their script is sourced, and the shell is asked what it would offer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merino_edge.device.registry import DeviceEntry, Registry
from merino_edge.run import create_run

pytestmark = pytest.mark.alone

PROGRAM = Path(sys.executable).with_name("merino-edge")
ENVIRONMENT = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "TERM": "dumb"}

BASH = """
eval "$(merino-edge completion bash)"
COMP_WORDS=({words}) COMP_CWORD={last}
_merino_edge_completion merino-edge
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = """
merino-edge completion fish | source
complete -C '{line}'
"""


def offers(shell: str, line: str, folder: Path) -> list[str]:
    """Return what a shell offers after a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here: apt install {shell}")
    if shell == "zsh":
        return offers_of_zsh(line, folder)
    words = line.split(" ")
    text = BASH.format(words=" ".join(f"'{w}'" for w in words), last=len(words) - 1)
    script = text if shell == "bash" else FISH.format(line=line)
    environment = {**os.environ, **ENVIRONMENT, **own(folder)}
    done = subprocess.run([shell, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [offer.partition("\t")[0] for offer in done.stdout.splitlines() if offer]


def own(folder: Path) -> dict[str, str]:
    """Return the variables by which the tests' folders are found, whatever the shell does at its start."""
    names = ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MERINO_EDGE_RUNS")
    return {**{name: os.environ[name] for name in names}, "HOME": str(folder), "ZDOTDIR": str(folder)}


def offers_of_zsh(line: str, folder: Path) -> list[str]:
    """Type a line and the tab key into an interactive zsh on a terminal of its own; read what it lists."""
    (folder / ".zshrc").write_text(
        "PS1='ready> '\nautoload -Uz compinit; compinit -u -D\n"
        "zstyle ':completion:*' list-prompt ''\nzstyle ':completion:*' menu no\nsetopt auto_list no_list_ambiguous\n"
        'eval "$(merino-edge completion zsh)"\n'
    )
    master, slave = os.openpty()
    zsh = subprocess.Popen(
        ["zsh", "-i"], stdin=slave, stdout=slave, stderr=slave, env={**ENVIRONMENT, **own(folder)}, cwd=folder,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        read_until(master, "ready> ")
        os.write(master, f"{line}\t\t".encode())
        text = read_until(master, None)
    finally:
        zsh.kill()
        zsh.wait()
        os.close(master)
    words = text.replace("\r", " ").replace("\x07", " ").replace("\x08", " ").split()
    return [word for word in words if word not in line.split(" ")[:-1]]


def read_until(terminal: int, mark: str | None, seconds: float = 30.0) -> str:
    """Read a terminal until it says something; without a mark, until it has been silent for a while."""
    os.set_blocking(terminal, False)
    text, started, heard = "", time.monotonic(), time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            text += os.read(terminal, 65536).decode(errors="replace")
            heard = time.monotonic()
        except BlockingIOError:
            time.sleep(0.05)
        if mark is not None and mark in text:
            return text
        if mark is None and time.monotonic() - heard > 4:
            return text
    assert mark is None, f"no {mark!r} in {text!r}"
    return text


@pytest.fixture(autouse=True)
def things() -> None:
    """A device and a run to be completed."""
    Registry().add(DeviceEntry("kitchen", host="pi@kitchen", board="pi4", root=None, transport="paramiko"))
    create_run("kitten", "local")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("merino-edge expo", "export"),
        ("merino-edge search --file", "--file-size"),
        ("merino-edge search --device kit", "kitchen"),
        ("merino-edge train kit", "kitten"),
        ("merino-edge export merino-6", "merino-61m"),
        ("merino-edge export --recipe dynamic_wi8", "dynamic_wi8_afp32"),
        ("merino-edge devices remove kit", "kitchen"),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_the_shell_offers_commands_options_and_names(shell: str, line: str, expected: str, tmp_path: Path) -> None:
    assert any(expected in offer for offer in offers(shell, line, tmp_path))


@pytest.mark.parametrize(
    ("line", "expected"), [("merino-edge expo", "export"), ("merino-edge search --device kit", "kitchen")]
)
def test_zsh_offers_the_same_on_its_terminal(line: str, expected: str, tmp_path: Path) -> None:
    assert any(expected in offer for offer in offers("zsh", line, tmp_path))


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_does_not_begin_so_is_not_offered(shell: str, tmp_path: Path) -> None:
    assert offers(shell, "merino-edge search --device kit", tmp_path) == ["kitchen"]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_damaged_configuration_offers_nothing_and_says_nothing(shell: str, tmp_path: Path) -> None:
    file = Path(os.environ["XDG_CONFIG_HOME"]) / "merino-edge" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[[[")
    assert offers(shell, "merino-edge search --device kit", tmp_path) == ["kitchen"]
