"""The quick agent, telling by an event when a stage of its work begins: `python telling_agent.py --root DIR`.

Whoever hears a stage knows that nothing of a later one had begun when it was told.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from merino_edge.agent import server
from merino_edge.agent.__main__ import main
from merino_edge.agent.releases import Releases

STAGES = ("install", "health check", "switch", "journal", "collect")
TRIAL_S = 0.1  # the real one changes nothing on the disk, however long it takes

_install, _collect = server.Agent._install, server.Agent._collect
_switch = Releases._switch
_told: list[server.Agent] = []  # the agent, while it installs


def stage_mark(stage: str) -> bytes:
    """Return the bytes by which a stage's event is known."""
    return b'{"stage":"%s"}' % stage.encode()


def install(self: server.Agent, request: dict[str, Any]) -> dict[str, object]:
    """Install, told."""
    _told.append(self)
    try:
        self._event({"stage": "install"})
        return _install(self, request)
    finally:
        _told.clear()


def answer(self: server.Agent, lock: int, runtime: str, asked: dict[str, object]) -> dict[str, object]:
    """Stand for the measuring child; what comes after it is the switch."""
    self._event({"stage": "health check"})
    time.sleep(TRIAL_S)
    self._event({"stage": "switch"})
    return {"quick": True}


def switch(self: Releases, number: int) -> None:
    """Switch; what comes after it is the journal's end."""
    _switch(self, number)
    for agent in _told:
        agent._event({"stage": "journal"})


def collect(self: server.Agent, request: dict[str, Any]) -> dict[str, object]:
    """Collect, told."""
    self._event({"stage": "collect"})
    return _collect(self, request)


if __name__ == "__main__":
    server.Agent._install = install  # type: ignore[method-assign]
    server.Agent._collect = collect  # type: ignore[method-assign]
    server.Agent._ask = answer  # type: ignore[method-assign]
    Releases._switch = switch  # type: ignore[method-assign]
    sys.exit(main())
