"""Run `tests/board` on several emulated cores side by side: a board waits much, and budgets of time then overlap.

    python tools/board/side_by_side.py 'cortex-a72 cortex-a76' [words for pytest]

One pytest for each core. What the boards' desks type is shown at once, each pytest's own report when it has ended.
What is the same on every core is left to one of them: the first does things twice, the last tries what needs no host.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from image import BoardError, ensure_image, say

TESTS = Path(__file__).resolve().parent.parent.parent / "tests" / "board"
PYTEST = Path(sys.executable).with_name("pytest")
ENDED_OTHERWISE = 1  # a signal's negative code is no exit code


def run(cpu: str, cpus: list[str], words: list[str]) -> int:
    """Run the tests on one core; return pytest's exit code."""
    own = {"BOARD_CPUS": cpu, "BOARD_FIRST": cpus[0], "BOARD_LAST": cpus[-1]}
    command = [str(PYTEST), str(TESTS), *words]
    if cpu != cpus[0]:
        command += ["--ignore", str(TESTS / "test_board_tools.py")]
    done = subprocess.run(command, cwd=TESTS.parent.parent, env={**os.environ, **own}, stdout=subprocess.PIPE)
    sys.stdout.buffer.write(f"\n== {cpu}\n".encode() + done.stdout)
    sys.stdout.buffer.flush()
    return done.returncode


def main(arguments: list[str]) -> int:
    """Do what the command line says; return the worst exit code."""
    cpus, words = list(dict.fromkeys(arguments[0].split())), arguments[1:]
    if not cpus:
        say("which cores? for instance: cortex-a72 cortex-a76")
        return 2
    try:
        ensure_image()
    except BoardError as error:
        say(str(error))
        return 1
    with ThreadPoolExecutor(len(cpus)) as pool:
        codes = list(pool.map(lambda cpu: run(cpu, cpus, words), cpus))
    return max(code if code >= 0 else ENDED_OTHERWISE for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
