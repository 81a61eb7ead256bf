"""Run laid-out bundles one after the other and keep their logits: what `bench/arm.py` sends to a board.

    PYTHONPATH=AGENT.pyz:WHEELS python3 run_bundles.py FOLDER REPEATS

Each bundle runs in a child of its own, so that one that dies of an illegal instruction is a row and not
the end. `prompt.json` in the folder says what is fed; `result.json` comes out, and `logits.npy` beside
each bundle.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from merino_edge.agent.opening import open_session


def run(bundle: Path, prompt: list[int], continuation: list[int], repeats: int) -> dict[str, object]:
    """Feed a prompt in one piece, then token by token; keep the logits and time single tokens.

    Returns:
        `decode_ns`: of `repeats` single tokens after the prompt, by the clock of this machine.
    """
    manifest = json.loads((bundle / "manifest.json").read_text())
    session = open_session(bundle, manifest, 1)
    rows = [np.array(session.feed(prompt, [len(prompt) - 1])[0])]
    rows += [np.array(session.feed([token], [0])[0]) for token in continuation]
    np.save(str(bundle / "logits.npy"), np.stack(rows))
    times = []
    for _ in range(repeats):
        session.truncate(len(prompt))
        begin = time.perf_counter_ns()
        session.feed(continuation[:1], [0])
        times.append(time.perf_counter_ns() - begin)
    provider = session.provider
    session.close()
    return {"ok": True, "decode_ns": times, "provider": provider}


def in_a_child(bundle: Path, prompt: list[int], continuation: list[int], repeats: int) -> dict[str, object]:
    """Run a bundle in a forked child; its death or refusal becomes the row."""
    answer = bundle / "answer.json"
    child = os.fork()
    if child == 0:
        try:
            row = run(bundle, prompt, continuation, repeats)
        except Exception as error:  # noqa: BLE001  a runtime may raise anything; it becomes the row
            row = {"ok": False, "message": f"{type(error).__name__}: {getattr(error, 'message', error)}"[:400]}
        answer.write_text(json.dumps(row))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"ok": False, "message": f"died of signal {os.WTERMSIG(status)}"}
    result: dict[str, object] = json.loads(answer.read_text())
    return result


def main() -> int:
    """Run all bundles of the folder."""
    folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
    asked = json.loads((folder / "prompt.json").read_text())
    rows = {}
    for bundle in sorted(path.parent for path in folder.glob("*/manifest.json")):
        rows[bundle.name] = in_a_child(bundle, asked["prompt"], asked["continuation"], repeats)
    (folder / "result.json").write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
