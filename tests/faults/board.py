"""A quick agent as the host meets it, and what must be true of its store whatever happened."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import merino_edge
from merino_edge.agent.errors import AgentError
from merino_edge.agent.releases import Releases
from merino_edge.agent.store import Store
from merino_edge.bundle import Bundle
from merino_edge.device.agent_link import AgentLink
from merino_edge.device.releases import install_bundle
from merino_edge.device.transport import Channel, LocalTransport
from merino_edge.errors import MerinoEdgeError

RUNTIME = "quick"


def agent_argv(root: Path) -> list[str]:
    """Return the words that start a quick agent."""
    packages = Path(merino_edge.__file__).parent.parent
    program = Path(__file__).with_name("quick_agent.py")
    return ["env", f"PYTHONPATH={packages}", sys.executable, "-S", "-B", str(program), "--root", str(root)]


def start(root: Path) -> tuple[AgentLink, Channel]:
    """Start a quick agent on this machine."""
    channel = LocalTransport().open(agent_argv(root))
    return AgentLink(channel, "the board"), channel


def is_plain(error: MerinoEdgeError) -> bool:
    """Say whether an error is a sentence with a next step, and nothing that steers a terminal."""
    words = f"{error.message} {error.hint}"
    return bool(error.hint) and words.isprintable() and "Traceback" not in words and "cannot answer" not in words


def damaged_objects(root: Path) -> list[str]:
    """Return the objects that are not what they are called; parts of uploads may be anything."""
    wrong = []
    for path in (root / "objects").iterdir():
        whole = not path.name.endswith(".part")
        if whole and hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            wrong.append(path.name)
    return wrong


def what_is_wrong(root: Path, former: int | None, bundle: Bundle, said_done: bool) -> str | None:
    """Return what is broken in a store after a fault, None where nothing is; the last step is an install unaided."""
    try:
        releases = Releases(Store(root))
        now = releases.current()
        if now is None and former is not None:
            return "the former release is gone"
        if now is not None:
            releases.verify(now)
            digest = releases.describe(now)["manifest_sha256"]
            new = digest == hashlib.sha256((bundle.folder / "manifest.json").read_bytes()).hexdigest()
            if said_done and not new:
                return f"it said that all was done, and release {now} is another"
            if not new and now != former:
                return f"release {now} is neither the former nor the new one"
        elif said_done:
            return "it said that all was done, and nothing is current"
        if wrong := damaged_objects(root):
            return f"damaged objects: {wrong}"
        link, _ = start(root)
        try:
            release = install_bundle(link, bundle, RUNTIME).release
        finally:
            link.close()
        releases.verify(release)
        return None if releases.current() == release else f"after the next install {releases.current()} is current"
    except (AgentError, MerinoEdgeError, OSError) as error:
        return f"{type(error).__name__}: {error} ({getattr(error, 'hint', '')})"
