"""The run itself: every contender alive in a process of its own, asked in turn, in a new order each round.

All contenders of one thread count see the same minutes of the machine. The first round of each test warms
up and is kept apart; samples stay in the order they were taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from peers import environments
from peers.contenders import DEPTH, PROMPT, Contender
from peers.environments import NotMeasured

WORKER = Path(__file__).resolve().parent / "worker.py"
ANSWER_S = 1200.0  # for any answer, the longest being what torch.compile needs to load
PAUSE_S = 0.02  # threads of the one before stop spinning
CHECK_TEXT = [(7919 * i + 11) % 50_000 for i in range(48)]
Samples = dict[str, Any]  # test -> {"warmup": [...], "rounds": [[ns, ...], ...], "queued_ns": [...]}


class Live:
    """A contender's worker process.

    Raises:
        NotMeasured: it ended, with the last line it said.
    """

    def __init__(self, folder: Path, contender: Contender, path: str, threads: int, log: Path) -> None:
        self.contender = contender
        self._log = log
        python = environments.python_of(folder, contender.environment)
        # Each runtime is told its threads; those of numerical libraries beside it follow.
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) | {"OPENBLAS_NUM_THREADS": "1"}
        with log.open("w", encoding="utf-8") as stream:
            self._process = subprocess.Popen(
                [str(python), str(WORKER), contender.engine, path, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={
                    **os.environ,
                    **counts,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "HF_HUB_OFFLINE": "1",
                    "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # what --setup compiled is found again
                },
            )
        self.loaded = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask and wait for the answer."""
        with contextlib.suppress(OSError):  # ended: the missing answer says so
            self._pipe(self._process.stdin).write(json.dumps(request) + "\n")
            self._pipe(self._process.stdin).flush()
        return self._answer()

    def end(self) -> None:
        """Let it end."""
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    @staticmethod
    def _pipe(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    def _answer(self) -> dict[str, Any]:
        out = self._pipe(self._process.stdout)
        if not select.select([out], [], [], ANSWER_S)[0]:
            self._process.kill()
            raise NotMeasured(f"no answer within {ANSWER_S / 60:.0f} minutes")
        line = out.readline()
        if not line:
            code = self._process.wait()
            said = self._log.read_text(encoding="utf-8", errors="replace")
            raise NotMeasured(environments.complaint(said, f"its process ended with {code}"))
        answer: dict[str, Any] = json.loads(line)
        return answer


REQUESTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "decode": lambda tokens: {"do": "decode", "depth": DEPTH, "tokens": tokens},
    "prefill": lambda _: {"do": "read", "tokens": PROMPT, "all": False},
    "full": lambda _: {"do": "read", "tokens": PROMPT, "all": True},
}


class Field:
    """All contenders of one thread count.

    Args:
        folder: Of environments and models.
        threads: Of every runtime.
        say: Told how far it is.
        reasons: Filled with why a contender is not measured.
    """

    def __init__(self, folder: Path, threads: int, say: Callable[[str], None], reasons: dict[str, str]) -> None:
        self._folder, self.threads, self._say, self._reasons = folder, threads, say, reasons
        self._live: dict[str, Live] = {}
        self._shuffle = random.Random(threads)  # noqa: S311  an order, not a secret
        self.loaded: dict[str, dict[str, Any]] = {}
        self.samples: dict[str, Samples] = {}

    def open(self, paths: Sequence[tuple[Contender, str]]) -> None:
        """Start everybody, one after the other."""
        for contender, path in paths:
            self._say(f"{self.threads} thread(s): loading {contender.name}")
            try:
                live = Live(self._folder, contender, path, self.threads, self._log(contender))
            except NotMeasured as error:
                self._reasons[contender.name] = str(error)
                continue
            self._live[contender.name] = live
            self.loaded[contender.name] = live.loaded
            self.samples[contender.name] = {}

    def run(self, test: str, rounds: int, tokens: int = 1) -> None:
        """Ask everybody who takes part in a test, round after round."""
        names = [name for name, live in self._live.items() if test in live.contender.tests]
        for number in range(rounds + 1):
            self._say(f"{self.threads} thread(s): {test}, round {number} of {rounds}")
            self._shuffle.shuffle(names)
            for name in list(names):
                time.sleep(PAUSE_S)
                if not self._take(name, test, number, REQUESTS[test](tokens)):
                    names.remove(name)

    def _take(self, name: str, test: str, number: int, request: dict[str, Any]) -> bool:
        try:
            answer = self._live[name].ask(**request)
        except NotMeasured as error:
            self._drop(name, f"{test}: {error}")
            return False
        kept = self.samples[name].setdefault(test, {"warmup": [], "rounds": [], "queued_ns": []})
        if number == 0:
            kept["warmup"] = answer["ns"]
        else:
            kept["rounds"].append(answer["ns"])
            kept["queued_ns"].append(answer["queued_ns"])
        return True

    def check(self, folder: Path) -> dict[str, Path]:
        """Have everybody write the logits after one text, and return where they lie."""
        written: dict[str, Path] = {}
        for name, live in list(self._live.items()):
            path = folder / f"{len(written)}-{self.threads}.npy"
            try:
                if live.contender.engine != "bandwidth":
                    live.ask(do="logits", ids=CHECK_TEXT, path=str(path))
                    written[name] = path
            except NotMeasured as error:
                self._drop(name, f"logits: {error}")
        return written

    def memory(self) -> dict[str, dict[str, int]]:
        """Return what everybody holds now."""
        return {name: live.ask(do="memory") for name, live in self._live.items()}

    def close(self) -> None:
        """End everybody."""
        for live in self._live.values():
            live.end()
        self._live = {}

    def _drop(self, name: str, reason: str) -> None:
        self._reasons[name] = reason
        self._live.pop(name).end()
        self.samples.pop(name)

    def _log(self, contender: Contender) -> Path:
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        plain = "".join(c if c.isalnum() else "-" for c in contender.name)
        return logs / f"{plain}-{self.threads}.log"


def load_times(
    folder: Path, paths: Sequence[tuple[Contender, str]], rounds: int, say: Callable[[str], None]
) -> dict[str, list[int]]:
    """Load everybody in fresh processes, one thread, in turn; return nanoseconds."""
    found: dict[str, list[int]] = {contender.name: [] for contender, _ in paths}
    for number in range(rounds):
        say(f"load, round {number + 1} of {rounds}")
        for contender, path in paths:
            field = Field(folder, 1, lambda _: None, {})
            field.open([(contender, path)])
            field.close()
            found[contender.name] += [loaded["load_ns"] for loaded in field.loaded.values()]
    return found
