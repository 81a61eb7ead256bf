"""Bundles onto a device: what is missing is sent, whole files are never sent twice.

The device keeps files by their SHA-256 and takes an upload up where it was cut. What a bundle's
files must be stands in its manifest; the device checks it, and so a file that was changed here
after its export is refused there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from merino_edge.bundle import MANIFEST, Bundle, Piece
from merino_edge.device.agent_link import AgentLink, AgentRefusal
from merino_edge.device.records import InstallResult, Progress, PushResult, TextCheck, clean_text, whole
from merino_edge.errors import DeployError, MerinoEdgeError, ProtocolError
from merino_edge.files import sha256_file

Made = dict[str, tuple[tuple[Piece, ...], int]]


def push_files(
    link: AgentLink,
    files: dict[str, Path],
    progress: Progress | None = None,
    made: Made | None = None,
    hold: bool = False,
) -> PushResult:
    """Send those files that the device does not have.

    Args:
        link: The device.
        files: SHA-256 to path.
        progress: Called with (bytes sent, bytes to send).
        made: SHA-256 to (pieces, seed) of those that the device makes itself.
        hold: The device keeps them as long as its agent lives, however much is sent after them.

    Raises:
        DeployError: the device has no room, or a file is not what its digest says.
    """
    sizes = {digest: path.stat().st_size for digest, path in files.items()}
    objects = [{"sha256": digest, "bytes": size} for digest, size in sizes.items()]
    answer = link.ask("have", objects=objects, hold=hold).get("missing")
    if not isinstance(answer, list) or not all(isinstance(m, dict) and m.get("sha256") in sizes for m in answer):
        raise ProtocolError("the device lacks files that nobody spoke of")
    for digest in [str(m["sha256"]) for m in answer if made and m["sha256"] in made]:
        pieces, seed = made[digest] if made else ((), 0)
        link.ask("synthesize", sha256=digest, bytes=sizes[digest], pieces=[list(p) for p in pieces], seed=seed)
    missing = [(str(m["sha256"]), whole(m, "offset")) for m in answer if not made or m["sha256"] not in made]
    to_send = sum(sizes[digest] - offset for digest, offset in missing)
    sent = 0

    def count(bytes_sent: int) -> None:
        nonlocal sent
        sent += bytes_sent
        if progress is not None:
            progress(sent, to_send)

    for digest, offset in missing:
        if offset > sizes[digest]:
            raise ProtocolError(f"the device holds more of {files[digest].name} than there is")
        try:
            _upload(link, digest, files[digest], sizes[digest], offset, count)
        except AgentRefusal as refusal:
            if refusal.kind in ("busy", "disk", "request") and _came_meanwhile(link, digest, sizes[digest]):
                continue
            if refusal.kind != "corrupt":
                raise refusal.error from None
            raise DeployError(
                f"{files[digest]} is not what its manifest says (its SHA-256 is another): refused by the device",
                hint="export again with: merino-edge export",
            ) from None
    return PushResult(bytes_sent=sent, bytes_total=sum(sizes.values()))


def _came_meanwhile(link: AgentLink, digest: str, size: int) -> bool:
    """Say whether a file that was just refused is on the device: another host was sending the same one."""
    with suppress(MerinoEdgeError):
        return not link.ask("have", objects=[{"sha256": digest, "bytes": size}]).get("missing", True)
    return False


def _upload(link: AgentLink, digest: str, path: Path, size: int, offset: int, count: Callable[[int], None]) -> None:
    """Send a file; where a resumed one turns out wrong, the part there was damaged: once more from the start."""
    try:
        link.upload(digest, path, size, offset, count)
    except AgentRefusal as refusal:
        if refusal.kind != "corrupt" or offset == 0:
            raise
        link.upload(digest, path, size, 0, count)


def push_bundle(
    link: AgentLink, bundle: Bundle, progress: Progress | None = None, hold: bool = False
) -> tuple[PushResult, str]:
    """Send what the device lacks of a bundle; returns the counts and the digest of its manifest."""
    manifest = bundle.folder / MANIFEST
    digest = sha256_file(manifest)
    files = {f.sha256: bundle.folder / f.name for f in bundle.manifest.files}
    for f in bundle.manifest.files:
        if (bundle.folder / f.name).stat().st_size != f.bytes:
            raise DeployError(
                f"{bundle.folder / f.name} has another size than its manifest says", hint="merino-edge export"
            )
    made: Made = {}
    if bundle.seed is not None:
        made = {
            f.sha256: (bundle.layout[f.name], bundle.seed) for f in bundle.manifest.files if f.name in bundle.layout
        }
    return push_files(link, {**files, digest: manifest}, progress, made, hold), digest


def missing_bytes(link: AgentLink, bundle: Bundle) -> int:
    """Return how many bytes of a bundle the device lacks."""
    manifest = bundle.folder / MANIFEST
    sizes = {f.sha256: f.bytes for f in bundle.manifest.files}
    sizes[sha256_file(manifest)] = manifest.stat().st_size
    objects = [{"sha256": digest, "bytes": size} for digest, size in sizes.items()]
    answer = link.ask("have", objects=objects).get("missing")
    if not isinstance(answer, list) or not all(isinstance(m, dict) and m.get("sha256") in sizes for m in answer):
        raise ProtocolError("the device lacks files that nobody spoke of")
    return sum(max(0, sizes[str(m["sha256"])] - whole(m, "offset")) for m in answer)


def install_bundle(
    link: AgentLink,
    bundle: Bundle,
    runtime: str,
    progress: Progress | None = None,
    tokenizers: str | None = None,
    text: TextCheck | None = None,
) -> InstallResult:
    """Send, verify, try and switch; until the switch the former release serves.

    Args:
        link: The device.
        bundle: What is installed.
        runtime: Name of the runtime it runs with.
        progress: Of what is sent.
        tokenizers: Name of the runtime that the release's own `run.py` tokenizes with, None where it need not.
        text: What those must make of a text.

    Raises:
        DeployError: the device refused it, with the reason; nothing was changed.
    """
    pushed, digest = push_bundle(link, bundle, progress)
    asked: dict[str, Any] = {}
    if tokenizers is not None and text is not None:
        asked = {"tokenizers": tokenizers, "text": {"text": text.text, "token_ids": list(text.token_ids)}}
    answer = link.ask("install", manifest_sha256=digest, runtime=runtime, **asked)
    if answer.get("sha256") != digest:
        raise ProtocolError("the device installed something else than it was given")
    previous = answer.get("previous")
    return InstallResult(
        release=whole(answer, "release", 1),
        sha256=digest,
        bytes_sent=pushed.bytes_sent,
        previous=None if previous is None else whole(answer, "previous", 1),
        run_py=f"{clean_text(link.hello.get('root'), 300)}/current/run.py" if asked else None,
    )
