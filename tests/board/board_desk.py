"""A user's desk with one board on it: the commands as they are typed, on a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulator

COMMAND = Path(sys.executable).with_name("merino-edge")
LIMIT_S = 900.0  # of one command, on a machine that does other things too


@dataclass
class Desk:
    """A user's desk with one board on it.

    Attributes:
        board: The emulated board.
        home: Where this user's devices, runs and settings lie.
        seconds: What each command took.
        repeats: What is said to be the same twice is really done twice: on one core, for a start of a runtime takes
            an emulator many seconds.
        standalone: What needs no host is tried: on one core, too.
    """

    board: emulator.Board
    home: Path
    seconds: dict[str, float]
    repeats: bool = True
    standalone: bool = True

    @property
    def has_a_runtime_that_dies(self) -> bool:
        """Whether onnxruntime 1.21.0 is installed: it dies of an illegal instruction without the dot product."""
        return self.board.cpu in ("cortex-a53", "cortex-a57", "cortex-a72")

    def install_a_runtime_that_dies(self) -> None:
        """Let the board's own Python find it, as after `pip install --user`."""
        site = "~/.local/lib/python3.11/site-packages"
        paths = "/opt/runtimes/numpy-2\\n/opt/runtimes/onnxruntime-1.21.0\\n"
        self.board.ssh(f"mkdir -p {site} && printf '{paths}' > {site}/installed.pth")

    @property
    def name(self) -> str:
        """What the device is called: never what it stands in for."""
        return self.board.name

    def type(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Type a command with `--json`; return its document. It must end with `code`."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MERINO_EDGE")}
        environment |= {"MERINO_EDGE_SSH_CONFIG": str(self.board.ssh_config), "NO_COLOR": "1"}
        environment |= {f"XDG_{kind}_HOME": str(self.home / kind) for kind in ("DATA", "CONFIG", "CACHE")}
        environment["MERINO_EDGE_RUNS"] = str(self.home / "runs")
        started = time.monotonic()
        done = subprocess.run(
            [str(COMMAND), *words, "--json"],
            env=environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        took = time.monotonic() - started
        self.seconds[words[0]] = self.seconds.get(words[0], 0.0) + took
        print(f"{self.name}: {took:6.1f} s  merino-edge {' '.join(words)}", file=sys.__stderr__, flush=True)
        assert done.returncode == code, f"merino-edge {' '.join(words)} ended with {done.returncode}:\n{done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document
