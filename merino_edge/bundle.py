"""What is deployed: one folder with a graph, its weights, a tokenizer and a manifest.

`manifest.json` is the whole description: what was exported, from which architecture, for which
runtime, each file with its digest, how well it agrees with `reference.py`, and a small check that
the device repeats before it trusts the files. It carries a digest of itself, so that a bundle with a
damaged manifest is refused too. A bundle holds one format, one recipe, one form.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.errors import InvalidFileError, check_keys, next_step
from merino_edge.files import canonical_json, read_json, sha256_file, write_json

MANIFEST = "manifest.json"
OWN_DIGEST = "manifest_sha256"
TOKENIZER = "tokenizer.json"

Piece = tuple[str, int, str]
"""A run of bytes: kind, length and pattern, as `merino_edge/agent/synthetic.py` makes them."""


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle: its name inside the folder, digest and size."""

    name: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        """Refuse names that lead out of the folder, and digests that are none."""
        if not isinstance(self.name, str) or self.name in ("", ".", "..", MANIFEST) or set(self.name) & set("/\\\0"):
            raise InvalidFileError(f"{self.name!r} is no name for a file of a bundle")
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InvalidFileError(f"{self.name}: {self.sha256!r} is no sha256")
        if type(self.bytes) is not int or self.bytes < 0:
            raise InvalidFileError(f"{self.name}: bytes must be a whole number, not {self.bytes!r}")


@dataclass(frozen=True)
class OutputCheck:
    """What the bundle must answer on the device before it is switched on.

    Attributes:
        token_ids: The prompt.
        top: The eight largest logits after it, `(token id, logit)`, largest first.
        tolerance: Largest difference allowed in any of those logits.
    """

    token_ids: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    tolerance: float

    def __post_init__(self) -> None:
        """Refuse numbers that no model gives."""
        if any(type(t) is not int or t < 0 for t in (*self.token_ids, *(token for token, _ in self.top))):
            raise InvalidFileError("the output check holds token ids that are none")
        if not all(map(math.isfinite, (self.tolerance, *(x for _, x in self.top)))) or self.tolerance <= 0:
            raise InvalidFileError("the output check holds numbers that no model gives")


@dataclass(frozen=True)
class Manifest:
    """The description of one bundle.

    Attributes:
        architecture: What the graph computes.
        format: `onnx`, `tflite`.
        recipe: `fp32`, `dynamic_wi8_afp32`, ...
        form: How the graph is written: `standard`, ...
        exporter_version: Raised with every change of the emitted graphs.
        runtime: The package that runs it: `onnxruntime`.
        runtime_min_version: The lowest version that can.
        files: Everything in the folder but the manifest.
        context_length: Tokens the cache may hold.
        file_bytes: Graph and weights, no tokenizer.
        unique_bytes: Each unique tensor once, as the recipe stores it.
        parity: Agreement with `reference.py`: `max_abs_diff`, `logits_std`, `bound`, `prompts`.
        quality: Perplexity before and after on held-out text: `measured` and, where it was, `perplexity_fp32`,
            `perplexity`, `perplexity_change`, `limit`, `tokens`; else `reason`. None where nobody asked.
        trained: False for random weights.
        trained_tokens: Tokens the weights were trained on; 0 for random weights.
        check: See `OutputCheck`.
        weights_sha256: Digest of the checkpoint's weights, so that a newer checkpoint is noticed; None for random ones.
        notes: What the exporter had to say.
        quantizer: What chose integers and scales; None where the file holds none.
    """

    architecture: Architecture
    format: str
    recipe: str
    form: str
    exporter_version: int
    runtime: str
    runtime_min_version: str
    files: tuple[BundleFile, ...]
    context_length: int
    file_bytes: int
    unique_bytes: int
    parity: dict[str, Any]
    quality: dict[str, Any] | None
    trained: bool
    trained_tokens: int
    check: OutputCheck
    weights_sha256: str | None = None
    notes: tuple[str, ...] = ()
    quantizer: str | None = None

    def __post_init__(self) -> None:
        """Check the type of every plain value, and the check's token ids against the vocabulary."""
        plain: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "dict[str, Any]": (dict,)}
        plain |= {f"{name} | None": (*types, type(None)) for name, types in plain.items()}
        for f in fields(self):
            value = getattr(self, f.name)
            wrong = type(value) not in plain.get(str(f.type), (type(value),))
            if wrong or (f.type == "int" and value < 0):
                raise InvalidFileError(f"{f.name} cannot be {value!r}")
        if any(t >= self.architecture.vocab_size for t in self.check.token_ids):
            raise InvalidFileError("the output check holds token ids beyond the vocabulary")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `manifest.json` (without `schema_version` and its own digest)."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        value["architecture"] = self.architecture.to_json()
        value["architecture_digest"] = self.architecture.digest
        value["notes"] = list(self.notes)
        value["files"] = [{"name": f.name, "sha256": f.sha256, "bytes": f.bytes} for f in self.files]
        value["check"] = {
            "token_ids": list(self.check.token_ids),
            "top": [[token, logit] for token, logit in self.check.top],
            "tolerance": self.check.tolerance,
        }
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Manifest:
        """Read the JSON object; unknown keys, wrong types and a wrong digest are errors."""
        known = [f.name for f in fields(cls)]
        check_keys(value, [*known, "architecture_digest", OWN_DIGEST], where)
        try:
            architecture = Architecture.from_json(value["architecture"], where)
            if value["architecture_digest"] != architecture.digest:
                raise InvalidFileError("architecture_digest does not belong to the architecture in it")
            for f in (*value["files"], value["check"]):
                check_keys(f, ("name", "sha256", "bytes", "token_ids", "top", "tolerance"), "files and check")
            check = OutputCheck(
                tuple(value["check"]["token_ids"]),
                tuple((token, float(logit)) for token, logit in value["check"]["top"]),
                float(value["check"]["tolerance"]),
            )
            parts = {
                "architecture": architecture,
                "files": tuple(BundleFile(**f) for f in value["files"]),
                "check": check,
                "notes": tuple(value["notes"]),
            }
            manifest = cls(**{**{n: value[n] for n in known}, **parts})
        except InvalidFileError as error:
            raise InvalidFileError(f"{where}: {error.message}") from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InvalidFileError(f"{where}: not a manifest: {error}") from error
        if value.get(OWN_DIGEST, own := own_digest(value)) != own:  # earlier exports carry none
            raise InvalidFileError(f"{where} was changed: its digest is not the one in it")
        return manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine's disk whose files are those its manifest names.

    Attributes:
        folder: Where it lies.
        manifest: What it is.
        layout: Of a fresh export: by name, what lies where in the files that hold nothing but weights.
        seed: Where the weights were made from a seed: files of `layout` need not travel, a device makes them.
    """

    folder: Path
    manifest: Manifest
    layout: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    seed: int | None = None

    @property
    def label(self) -> str:
        """`onnx-dynamic_wi8_afp32`: the name of its folder in a run."""
        return bundle_label(self.manifest.format, self.manifest.recipe, self.manifest.form)

    @property
    def total_bytes(self) -> int:
        """All that a device keeps of it: its files and the manifest."""
        return sum(f.bytes for f in self.manifest.files) + (self.folder / MANIFEST).stat().st_size


def bundle_label(format_name: str, recipe: str, form: str = "standard") -> str:
    """Return the folder name of a bundle: `FORMAT-RECIPE[-FORM]`; the standard form goes unnamed."""
    return f"{format_name}-{recipe}" + ("" if form == "standard" else f"-{form}")


def own_digest(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's canonical JSON, but for the digest itself and `schema_version`."""
    own = {name: v for name, v in value.items() if name not in (OWN_DIGEST, "schema_version")}
    return hashlib.sha256(canonical_json(own).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Write `manifest.json` with its own digest; it is the last file of a bundle to appear."""
    value = manifest.to_json()
    write_json(folder / MANIFEST, {**value, OWN_DIGEST: own_digest(value)})
    return Bundle(folder, manifest)


def describe_file(folder: Path, name: str) -> BundleFile:
    """Return name, digest and size of a file just written."""
    return BundleFile(name, sha256_file(folder / name), (folder / name).stat().st_size)


def read_bundle(folder: Path, verify: bool = True) -> Bundle:
    """Read a bundle.

    Args:
        folder: The folder that holds `manifest.json`.
        verify: Read every file and compare its SHA-256.

    Raises:
        InvalidFileError: a file is missing, truncated or changed.
    """
    if not (folder / MANIFEST).is_file():
        raise InvalidFileError(f"{folder} is no bundle: it has no {MANIFEST}", hint="make one with: merino-edge export")
    again = "export again with: merino-edge export"
    with next_step(again):
        manifest = Manifest.from_json(read_json(folder / MANIFEST, "manifest"), f"manifest {folder / MANIFEST}")
    for f in manifest.files:
        path = folder / f.name
        if not path.is_file():
            raise InvalidFileError(f"bundle {folder}: {f.name} is missing", hint=again)
        size = path.stat().st_size
        if size != f.bytes:
            raise InvalidFileError(
                f"bundle {folder}: {f.name} has {size} bytes, the manifest says {f.bytes}", hint=again
            )
        if verify and sha256_file(path) != f.sha256:
            raise InvalidFileError(
                f"bundle {folder}: {f.name} was changed: its sha256 is not the manifest's", hint=again
            )
    return Bundle(folder, manifest)
