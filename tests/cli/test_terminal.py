"""What goes where: results on stdout, the rest on stderr, no escape code in a pipe, no colour with NO_COLOR.

Every command is run with both ends in pipes, with stderr alone on a terminal, and with both on one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from merino_edge.cli.main import COMMANDS
from merino_edge.testing import TINY_SPACE_TOML

pytestmark = pytest.mark.timeout(400)

PROGRAM = Path(sys.executable).with_name("merino-edge")
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;\d+)*m")

# A call of every command, in an order in which each finds what it needs; its exit code.
CALLS: dict[str, tuple[tuple[str, ...], int]] = {
    "config": ((), 0),
    "completion": (("bash",), 0),
    "devices": ((), 0),
    "doctor": ((), 0),
    "profile": (("--estimate",), 0),
    "search": (("--space", "tiny.toml", "--vocab", "300", "--parameters", "1M", "--no-verify", "--run", "tiny"), 0),
    "show": (("tiny",), 0),
    "export": (("tiny", "--recipe", "fp32"), 0),
    "deploy": (("tiny", "--recipe", "fp32"), 0),
    "bench": (("tiny", "--recipe", "fp32", "--time", "1s", "--tokens", "0"), 0),
    "generate": (("Hello",), 2),  # random weights
    "serve": (("--port", "0"), 2),
    "train": (("tiny", "--data", "nowhere.txt"), 1),
    "evaluate": (("tiny", "--data", "nowhere.txt"), 2),  # nothing is trained
    "report": (("tiny",), 0),
}
CALLS = {name: call for name, call in CALLS.items() if name in COMMANDS}
WITHOUT_JSON = {"completion", "serve"}
SLOW_TO_START = {"train", "evaluate", "doctor"}


class Result:
    """What a command wrote to each end."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run(folder: Path, words: tuple[str, ...], terminals: tuple[str, ...] = (), **more: str) -> Result:
    """Run a command; the streams named in `terminals` are terminals of their own, the others pipes."""
    own = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache", "MERINO_EDGE_RUNS": "runs"}
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {**{name: str(folder / part) for name, part in own.items()}, "TERM": "xterm-256color", **more}
    ends = {name: os.openpty() if name in terminals else os.pipe() for name in ("out", "err")}
    process = subprocess.Popen(
        [PROGRAM, *words], stdin=subprocess.DEVNULL, stdout=ends["out"][1], stderr=ends["err"][1], env=environment,
        cwd=folder,
    )  # fmt: skip
    texts = {"out": b"", "err": b""}

    def read(name: str) -> None:
        while True:
            try:
                piece = os.read(ends[name][0], 65536)
            except OSError:  # how a terminal tells its end
                return
            if not piece:
                return
            texts[name] += piece

    for _, end in ends.values():
        os.close(end)
    readers = [threading.Thread(target=read, args=(name,)) for name in ends]
    for reader in readers:
        reader.start()
    code = process.wait(120)
    for reader in readers:
        reader.join()
    for end, _ in ends.values():
        os.close(end)
    return Result(code, texts["out"].decode(), texts["err"].decode())


def go_round(
    folder: Path, terminals: tuple[str, ...], as_json: bool, names: list[str], **more: str
) -> dict[str, Result]:
    """Call commands once each."""
    (folder / "tiny.toml").write_text(TINY_SPACE_TOML)
    extra = ("--json",) if as_json else ()
    return {
        name: run(folder, (name, *words, *(() if name in WITHOUT_JSON else extra)), terminals, **more)
        for name, (words, _) in CALLS.items()
        if name in names
    }


def test_every_command_is_called_here() -> None:
    assert set(COMMANDS) - set(CALLS) == set()


def test_in_pipes_nothing_holds_an_escape_code(tmp_path: Path) -> None:
    for name, result in go_round(tmp_path, (), False, list(CALLS)).items():
        assert result.code == CALLS[name][1], f"{name}: {result.err}"
        assert ESCAPE not in result.out + result.err, name
        assert "\r" not in result.out + result.err, name


def test_with_stderr_on_a_terminal_stdout_holds_one_document_and_bars_go_to_stderr(tmp_path: Path) -> None:
    results = go_round(tmp_path, ("err",), True, ["devices", "search", "bench"])
    for name, result in results.items():
        assert result.code == CALLS[name][1], f"{name}: {result.err}"
        assert ESCAPE not in result.out, name
        if name not in WITHOUT_JSON:
            json.loads(result.out)
    assert ESCAPE in results["bench"].err, "no bar was drawn"


def test_with_no_color_a_terminal_gets_no_colour(tmp_path: Path) -> None:
    quick = [name for name in CALLS if name not in SLOW_TO_START]
    for name, result in go_round(tmp_path, ("out", "err"), False, quick, NO_COLOR="1").items():
        assert result.code == CALLS[name][1], f"{name}: {result.err}"
        assert not COLOUR.search(result.out + result.err), name


def test_a_terminal_without_no_color_gets_some(tmp_path: Path) -> None:
    assert COLOUR.search(run(tmp_path, ("doctor",), ("out", "err")).out)
    assert not COLOUR.search(run(tmp_path, ("doctor",), ("err",)).out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_goes_to_stdout_and_says_how_to_call_it(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, (name, "--help"))
    assert (result.code, result.err) == (0, "")
    assert f"merino-edge {name}" in result.out
    assert "\\b" not in result.out
    assert ESCAPE not in result.out


def test_help_leaves_examples_in_lines_of_their_own(tmp_path: Path) -> None:
    assert "\n  merino-edge profile pi4 --estimate           what ships" in run(tmp_path, ("profile", "--help")).out
    assert "\n  The ring:  profile -> search" in run(tmp_path, ("--help",)).out
