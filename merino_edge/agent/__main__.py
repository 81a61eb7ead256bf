"""`python3 agent-<sha256>.pyz --root DIR`: the agent; with `--worker [--path DIR ...]` its measuring child.

With `--standalone RELEASE INVOKED ...` it does what a release's own `run.py` was asked for.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Parse the call and run the one or the other."""
    os.umask(0o077)
    if sys.argv[1:2] == ["--standalone"]:
        from merino_edge.agent import run_command

        return run_command.main(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(prog="agent")
    parser.add_argument("--root", type=Path, help="the agent's folder")
    parser.add_argument("--worker", action="store_true", help="be the measuring child")
    parser.add_argument("--path", action="append", default=[], help="folder of wheels to import first; may be repeated")
    arguments = parser.parse_args()
    if arguments.worker:
        return _work(arguments.path)
    if arguments.root is None:
        parser.error("--root is needed")
    return _serve(arguments.root.expanduser())


def _work(paths: list[str]) -> int:
    sys.path[:0] = paths
    try:
        from merino_edge.agent import worker
    except ImportError as error:  # numpy is missing or broken: answer the first request with that
        from merino_edge.agent import frames
        from merino_edge.agent.errors import AgentError

        reason = AgentError("runtime", f"cannot import numpy: {error}", "install it on the device, or let us push it")
        os.write(1, frames.encode_json(frames.ERROR, 1, reason.to_json()))
        return 1
    return worker.main()


def _serve(root: Path) -> int:
    from merino_edge.agent import frames
    from merino_edge.agent.errors import AgentError
    from merino_edge.agent.server import Agent, Wire
    from merino_edge.agent.store import disk_error

    sink = os.dup(1)
    os.dup2(2, 1)  # a stray print must not reach the frames
    try:
        agent = Agent(root)
    except (AgentError, OSError) as error:
        said = error if isinstance(error, AgentError) else disk_error(error, error.filename or root)
        os.write(sink, frames.encode_json(frames.ERROR, 0, said.to_json()) + frames.encode_json(frames.END, 0, {}))
        return 1

    def die() -> None:
        agent.kill_child()
        os._exit(3)

    return agent.serve(Wire(0, sink, die))


if __name__ == "__main__":
    sys.exit(main())
