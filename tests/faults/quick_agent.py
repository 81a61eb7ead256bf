"""The agent as it is, with a trial that takes no time: `python quick_agent.py --root DIR`."""

from __future__ import annotations

import sys

from merino_edge.agent import server
from merino_edge.agent.__main__ import main


def answer(self: server.Agent, lock: int, runtime: str, asked: dict[str, object]) -> dict[str, object]:
    """Stand for the measuring child."""
    return {"quick": True}


server.Agent._ask = answer  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main())
