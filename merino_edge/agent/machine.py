"""A view of one machine's files and tools: the real one, or a recorded tree of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

RECORDED = "MERINO_EDGE_MACHINE"


class Machine:
    """A view of one machine's /proc, /sys and /etc.

    Args:
        root: Where they lie; another folder than `/` holds a recorded machine.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.real = root == Path("/")

    @classmethod
    def here(cls) -> Machine:
        """Return this machine, or the recorded one that $MERINO_EDGE_MACHINE names."""
        return cls(Path(os.environ.get(RECORDED) or "/"))

    def text(self, path: str) -> str | None:
        """Return a small file's text without its end, None where it cannot be read."""
        try:
            content = (self.root / path.lstrip("/")).read_bytes()
        except OSError:
            return None
        return content.rstrip(b"\0\n ").decode("utf-8", "replace")

    def number(self, path: str) -> int | None:
        """Return a file's whole number."""
        text = self.text(path)
        return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,18}", text) else None

    def paths(self, pattern: str) -> list[Path]:
        """Return what matches a pattern below the root, in order."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    def table(self, path: str) -> dict[str, int]:
        """Return the `Name:  123 kB` lines of a file as bytes."""
        result = {}
        for line in (self.text(path) or "").splitlines():
            match = re.match(r"(\w+(?:\(\w+\))?):\s+(\d+)( kB)?$", line)
            if match:
                result[match.group(1)] = int(match.group(2)) * (1024 if match.group(3) else 1)
        return result

    def command(self, *argv: str) -> str | None:
        """Return a tool's output, None where there is no such tool or this is a recorded machine."""
        if not self.real:
            return self.text("commands/" + "_".join(argv))
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None
