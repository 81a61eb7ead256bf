"""`deploy`: the bundle goes to the device, is checked there, and becomes the current release."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from merino_edge.bundle import TOKENIZER, Bundle, bundle_label
from merino_edge.device.board import slow_here
from merino_edge.device.client import Device, InstallResult, TextCheck
from merino_edge.device.registry import Registry, device_folder
from merino_edge.errors import MerinoEdgeError, UsageError
from merino_edge.files import sha256_file, write_atomic
from merino_edge.flows.chat import find_template, keep_template
from merino_edge.flows.conditions import DEFAULT_RECIPE
from merino_edge.flows.devices import Ask, board_of, find_entry, is_unregistered_board, opened, select_device
from merino_edge.flows.export import current_bundle
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.runtime_version import check_runtime, runtime_version
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.progress import SILENT, Progress

_EXPORTING = threading.Lock()
_SAMPLE = "Once upon a time, 12 naïve owners of a café said: “Où est-il?”\n\t你好 👋 <|endoftext|>"


def known_facts(device: str) -> dict[str, Any] | None:
    """Return what a device said of itself when it was profiled, None where it never was."""
    profile = None if is_unregistered_board(device) else read_profile(device)
    return None if profile is None or profile.estimate else profile.facts


def subject_device(subject: Subject) -> str | None:
    """Return the device that a subject's run was made for."""
    return str(subject.run.info()["device"]) if subject.run else None


def preferred(device: str, subject: Subject, format_name: str | None, recipe: str | None) -> tuple[str, str]:
    """Choose format and recipe: what was asked for, else the board's first choice among those exported.

    Where nothing is exported yet, the board's first choice of all.
    """
    board, facts = board_of(device), known_facts(device)
    wishes = [tuple(wish.split("/", 1)) for wish in board.prefer]
    wishes.sort(key=lambda wish: slow_here(wish[0], wish[1], facts, board) is not None)  # those last
    fitting = [w for w in wishes if (format_name in (None, w[0])) and (recipe in (None, w[1]))]
    if format_name and recipe:
        return format_name, recipe
    if format_name and not fitting:
        return format_name, DEFAULT_RECIPE
    if not fitting:
        raise UsageError(
            f"{device} has no preferred bundle with {recipe}",
            hint=f"name the format too: --format {likely_format(recipe)} --recipe {recipe}",
        )
    exported = {f.name for f in subject.run.bundle_folders()} if subject.run else set()
    for format_wish, recipe_wish in fitting:
        label = bundle_label(format_wish, recipe_wish)
        if any(name == label or name.startswith(f"{label}-") for name in exported):
            return format_wish, recipe_wish
    return fitting[0][0], fitting[0][1]


def likely_format(recipe: str | None) -> str:
    """Return the format that a recipe's name belongs to; most are ONNX's, or both formats'."""
    return "tflite" if recipe and recipe.startswith("dynamic_wi4") else "onnx"


def deploy(
    subject_name: str | None,
    device_name: str | None,
    format_name: str | None = None,
    recipe: str | None = None,
    keep: int | None = None,
    ask: Ask | None = None,
    progress: Progress = SILENT,
    standalone: bool = False,
) -> dict[str, Any]:
    """Deploy a run, exporting first where the export is missing or older than the checkpoint.

    With `keep`, all but the newest so many releases are removed first; the current one always stays.
    With `standalone`, the device gets a tokenizers wheel too, for the release's own `run.py`.

    Returns:
        The document of `merino-edge deploy --json`.
    """
    subject = resolve_subject(subject_name)
    name = select_device(device_name, subject_device(subject), progress)
    entry = find_entry(name)
    with _hint_on_full_disk(name, keep, recipe), opened(entry, ask) as device:
        facts = device.facts()
        bundle = _bundle_for(name, facts, subject, format_name, recipe, progress)
        if not bundle.manifest.trained:
            progress.note("these weights are random (trained: false): good for timing only; next: merino-edge train")
        manifest = bundle.manifest
        problem = slow_here(manifest.format, manifest.recipe, facts, board_of(name))
        if problem is not None:
            first = board_of(name).prefer[0].partition("/")[2]
            progress.note(f"{problem}; likely faster there: merino-edge deploy --recipe {first}")
        text = text_check(bundle)
        if standalone and text is None:
            raise UsageError("without a tokenizer nothing can be generated there", hint="merino-edge train")
        freed = device.collect(keep) if keep is not None else 0
        result = _install(device, bundle, text, standalone, progress)
    keep_tokenizer(name, bundle, subject.checkpoint)
    return {
        "device": name,
        "run": subject.run.name if subject.run else None,
        "release": result.release,
        "sha256": result.sha256,
        "bytes_sent": result.bytes_sent,
        "previous": result.previous,
        "bundle": bundle.label,
        "trained": bundle.manifest.trained,
        "bytes_freed": freed,
        "bytes_total": bundle.total_bytes,
        "run_py": result.run_py,
    }


def _bundle_for(
    device: str,
    facts: Mapping[str, Any],
    subject: Subject,
    format_name: str | None,
    recipe: str | None,
    progress: Progress,
) -> Bundle:
    """Return what is to be deployed, in a form that the device's runtime carries, exporting it where it is missing."""
    version, bundle = runtime_version(facts), subject.bundle
    if bundle is None:
        with _EXPORTING:  # several devices may want the same file
            wish = preferred(device, subject, format_name, recipe)
            bundle = current_bundle(subject, *wish, progress=progress, version=version)
    check_runtime(bundle, version, device)
    return bundle


def _install(
    device: Device, bundle: Bundle, text: TextCheck | None, standalone: bool, progress: Progress
) -> InstallResult:
    total = sum(f.bytes for f in bundle.manifest.files)
    with progress.task(f"deploying {bundle.label} to {device.name}", total) as task:
        return device.install(bundle, lambda done, _: task.update(done), text, standalone)


@contextmanager
def _hint_on_full_disk(device: str, keep: int | None, recipe: str | None) -> Iterator[None]:
    """Do not advise `--keep 1` to who has just done so: only what is not ours can be removed then, or less be sent."""
    try:
        yield
    except MerinoEdgeError as error:
        if keep == 1 and "--keep 1" in (error.hint or ""):
            error.hint = f"no older release is left to remove: delete other files on {device}"
            if "4" not in (recipe or ""):
                error.hint += ", or send a smaller file: merino-edge deploy --format onnx --recipe int4"
        raise


def text_check(bundle: Bundle) -> TextCheck | None:
    """Return what a bundle's tokenizer makes of a text, None where it has none."""
    path = bundle.folder / TOKENIZER
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return TextCheck(_SAMPLE, tuple(Tokenizer.from_file(str(path)).encode(_SAMPLE).ids))


def rollback(device_name: str | None, release: int | None, progress: Progress = SILENT) -> dict[str, Any]:
    """Switch back to an earlier release, by default the one before.

    Returns:
        The document of `merino-edge deploy --rollback --json`.
    """
    name = select_device(device_name, None, progress)
    with opened(find_entry(name)) as device:
        current = device.current()
        numbers = sorted(int(r["release"]) for r in device.releases())
        now = int(current["release"]) if current else None
        release = choose_release(name, numbers, now, release)
        device.activate(release)
    return {"device": name, "release": release, "previous": now, "bytes_sent": 0, "sha256": None}


def choose_release(device: str, numbers: Sequence[int], now: int | None, wanted: int | None) -> int:
    """Return the release to go back to: the one asked for, else the newest before the present one."""
    if wanted is None:
        earlier = [n for n in sorted(numbers) if now is None or n < now]
        if not earlier:
            raise UsageError(f"{device} has no earlier release to go back to", hint="merino-edge deploy")
        return earlier[-1]
    if wanted not in numbers:
        known = ", ".join(map(str, sorted(numbers))) or "none"
        raise UsageError(f"{device} has no release {wanted}; it has {known}", hint="merino-edge deploy --list")
    return wanted


def tokenizer_store(device: str) -> Path:
    """Folder on the host of the tokenizers of what was deployed to a device: text stays on the host."""
    return device_folder(device) / "tokenizers"


def deployed_to() -> list[str]:
    """Return the devices that a model with a tokenizer was deployed to from this host."""
    return [name for name in Registry().names() if any(tokenizer_store(name).glob("*.json"))]


def template_file(device: str, digest: str) -> Path:
    """Return where the chat template that goes with a tokenizer is kept."""
    return tokenizer_store(device) / f"{digest}.chat"


def keep_tokenizer(device: str, bundle: Bundle, checkpoint: Path | None = None) -> None:
    """Keep the tokenizer of a deployed bundle under its digest, and the chat template of its checkpoint or bundle."""
    path = bundle.folder / TOKENIZER
    if path.is_file():
        digest = sha256_file(path)
        target = tokenizer_store(device) / f"{digest}.json"
        if not target.exists():
            write_atomic(target, path.read_bytes())
        keep_template(template_file(device, digest), find_template(checkpoint, bundle.folder))
