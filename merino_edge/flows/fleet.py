"""What `deploy` does besides deploying to one device: to several at once, a dry run, and a list of releases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from merino_edge.device.registry import LOCAL, Registry
from merino_edge.errors import InternalError, MerinoEdgeError, PartialFailureError
from merino_edge.flows.deploy import choose_release, preferred, subject_device
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.flows.export import bundle_is_current, exported_bundles
from merino_edge.flows.subject import resolve_subject
from merino_edge.progress import SILENT, Progress, Task

AT_ONCE = 8
Work = Callable[[str, Ask | None, Progress], dict[str, Any]]
"""What is done to one device: its name, whom to ask, where to report."""


def all_devices() -> list[str]:
    """Return every device that was added; this very machine only where there is no other."""
    return [name for name in Registry().names() if name != LOCAL] or [LOCAL]


class _Named:
    """Progress of one of several devices: notes with its name, no bars that would write over each other."""

    def __init__(self, name: str, inner: Progress, lock: threading.Lock) -> None:
        self._name, self._inner, self._lock = name, inner, lock

    def note(self, text: str) -> None:
        with self._lock:
            self._inner.note(f"{self._name}: {text}")

    @contextmanager
    def task(self, text: str, total: float) -> Iterator[Task]:
        self.note(text)
        with SILENT.task(text, total) as task:
            yield task


def on_each(names: Sequence[str], work: Work, ask: Ask | None = None, progress: Progress = SILENT) -> dict[str, Any]:
    """Do the same to several devices at once.

    Returns:
        `deployments`, a document each in the order of the names, and `failed`, empty.

    Raises:
        PartialFailureError: some devices failed; both lists are in its details.
        MerinoEdgeError: all of them failed.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        find_entry(name)  # an unknown name is a mistake of the call: nothing is begun
    lock, asking = threading.Lock(), threading.Lock()

    def ask_one(*words: Any, **named: Any) -> str | None:
        assert ask is not None
        with asking:
            return ask(*words, **named)

    def one(name: str) -> dict[str, Any] | MerinoEdgeError:
        try:
            return work(name, ask_one if ask else None, _Named(name, progress, lock))
        except MerinoEdgeError as error:
            return error
        except Exception as error:  # noqa: BLE001  one device's trouble must not hide what became of the others
            return InternalError(f"internal error: {type(error).__name__}: {error}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(zip(names, pool.map(one, names), strict=True))
    done = [r for _, r in results if not isinstance(r, MerinoEdgeError)]
    errors = [(name, r) for name, r in results if isinstance(r, MerinoEdgeError)]
    failed = [{"device": name, **error.to_json()} for name, error in errors]
    document = {"deployments": done, "failed": failed}
    if not errors:
        return document
    text = "; ".join(f"{name}: {error.message}" for name, error in errors)
    if done:
        hint = f"{len(done)} of {len(names)} are done; again for the others: merino-edge deploy " + " ".join(
            f"--device {name}" for name, _ in errors
        )
        raise PartialFailureError(text, hint=hint, partial=document)
    kind = type(errors[0][1])
    raise kind(text, hint=errors[0][1].hint, partial=document)


def plan(
    subject_name: str | None,
    device_name: str | None,
    format_name: str | None = None,
    recipe: str | None = None,
    keep: int | None = None,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Say what `deploy` would do, changing nothing here or there.

    Returns:
        The document of `merino-edge deploy --dry-run --json`.
    """
    subject = resolve_subject(subject_name)
    name = select_device(device_name, subject_device(subject), progress)
    bundle, wanted = subject.bundle, None
    if bundle is None:
        wanted = preferred(name, subject, format_name, recipe)
        fitting = [b for b in exported_bundles(subject) if (b.manifest.format, b.manifest.recipe) == wanted]
        bundle = next((b for b in fitting if bundle_is_current(subject, b)), None)
    with opened(find_entry(name), ask) as device:
        releases, current = device.releases(), device.current()
        to_send = device.missing_bytes(bundle) if bundle is not None else None
    numbers = sorted(int(r["release"]) for r in releases)
    now = int(current["release"]) if current else None
    dropped = [] if keep is None else [n for n in numbers[: max(0, len(numbers) - keep)] if n != now]
    return {
        "device": name,
        "dry_run": True,
        "release": max([0, *numbers]) + 1,
        "previous": now,
        "bundle": bundle.label if bundle else "-".join(wanted or ()),
        "export_first": bundle is None,
        "bytes_sent": to_send or 0,
        "bytes_total": bundle.total_bytes if bundle else None,
        "sha256": None,
        "trained": bundle.manifest.trained if bundle else subject.checkpoint is not None,
        "releases_removed": dropped,
    }


def list_releases(device_name: str | None, ask: Ask | None = None, progress: Progress = SILENT) -> dict[str, Any]:
    """Return what is installed on a device.

    Returns:
        The document of `merino-edge deploy --list --json`.
    """
    name = select_device(device_name, None, progress)
    with opened(find_entry(name), ask) as device:
        current, found = device.current(), device.releases()
    now = current["release"] if current else None
    rows = [
        {
            "release": r["release"],
            "current": r["release"] == now,
            "format": r["manifest"].get("format"),
            "recipe": r["manifest"].get("recipe"),
            "trained": r["manifest"].get("trained"),
            "bytes": sum(int(f.get("bytes") or 0) for f in r["manifest"].get("files") or []),
            "installed_at": r.get("installed_at"),
            "sha256": r.get("manifest_sha256"),
        }
        for r in found
    ]
    return {"device": name, "current": now, "releases": rows}


def plan_rollback(device_name: str | None, release: int | None, progress: Progress = SILENT) -> dict[str, Any]:
    """Say what `deploy --rollback` would do."""
    listed = list_releases(device_name, progress=progress)
    chosen = choose_release(listed["device"], [r["release"] for r in listed["releases"]], listed["current"], release)
    return {
        "device": listed["device"], "dry_run": True, "release": chosen, "previous": listed["current"],
        "bytes_sent": 0, "sha256": None,
    }  # fmt: skip
