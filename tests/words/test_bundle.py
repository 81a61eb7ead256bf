"""A bundle is what its manifest says, byte for byte, or it is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import (
    MANIFEST,
    OWN_DIGEST,
    BundleFile,
    Manifest,
    OutputCheck,
    bundle_label,
    describe_file,
    read_bundle,
    write_manifest,
)
from merino_edge.errors import InvalidFileError

ARCHITECTURE = Architecture((Block(8, 1, 2),), embedding_width=8, vocab_size=16, head_dim=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete bundle of two small files."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.data").write_bytes(bytes(range(256)))
    manifest = Manifest(
        architecture=ARCHITECTURE,
        format="onnx",
        recipe="fp32",
        form="standard",
        exporter_version=1,
        runtime="onnxruntime",
        runtime_min_version="1.22",
        files=(describe_file(folder, "model.onnx"), describe_file(folder, "model.data")),
        context_length=1024,
        file_bytes=261,
        unique_bytes=256,
        parity={"max_abs_diff": 1e-6},
        quality=None,
        trained=False,
        trained_tokens=0,
        check=OutputCheck((1, 2), ((3, 0.5), (4, 0.25)), 1e-3),
        notes=("a note",),
    )
    write_manifest(folder, manifest)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest by hand."""
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def test_a_bundle_reads_back(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert Manifest.from_json(bundle.manifest.to_json(), "it") == bundle.manifest
    assert bundle.manifest.architecture == ARCHITECTURE
    assert bundle.label == "onnx-fp32"


def test_only_other_forms_are_named_in_the_label() -> None:
    assert bundle_label("onnx", "fp32") == "onnx-fp32"
    assert bundle_label("onnx", "fp32", "fast") == "onnx-fp32-fast"


def test_one_flipped_bit_is_noticed(folder: Path) -> None:
    content = bytearray((folder / "model.data").read_bytes())
    content[100] ^= 1
    (folder / "model.data").write_bytes(content)
    with pytest.raises(InvalidFileError, match=r"model\.data was changed") as caught:
        read_bundle(folder)
    assert caught.value.hint == "export again with: merino-edge export"


def test_one_flipped_bit_of_the_manifest_is_noticed_wherever_it_is(folder: Path) -> None:
    whole = (folder / MANIFEST).read_bytes()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        (folder / MANIFEST).write_bytes(content)
        with pytest.raises(InvalidFileError) as caught:
            read_bundle(folder)
        assert "\n" not in caught.value.message
        assert caught.value.hint


def test_a_manifest_of_an_earlier_export_carries_no_digest_and_is_read(folder: Path) -> None:
    edit(folder, lambda m: m.pop(OWN_DIGEST))
    assert read_bundle(folder).manifest.recipe == "fp32"
    edit(folder, lambda m: m.update({OWN_DIGEST: "0" * 64}))
    with pytest.raises(InvalidFileError, match="was changed: its digest"):
        read_bundle(folder)


def test_a_truncated_file_is_noticed_even_unverified(folder: Path) -> None:
    (folder / "model.data").write_bytes(b"short")
    with pytest.raises(InvalidFileError, match=r"model\.data has 5 bytes, the manifest says 256"):
        read_bundle(folder, verify=False)


def test_a_missing_file_is_noticed(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(InvalidFileError, match=r"model\.onnx is missing"):
        read_bundle(folder)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="is no bundle") as caught:
        read_bundle(tmp_path)
    assert "merino-edge export" in str(caught.value.hint)


def test_a_truncated_manifest_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    for length in range(0, len(text) - 2, 97):
        (folder / MANIFEST).write_text(text[:length])
        with pytest.raises(InvalidFileError, match="manifest"):
            read_bundle(folder)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "", ".", "..", "a\\b", "manifest.json", "a\0b", "a/b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda m: m["files"][0].update(name=name))
    with pytest.raises(InvalidFileError, match="no name for a file of a bundle"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update(fromat="onnx"), r"unknown key 'fromat'; did you mean 'format'\?"),
        (lambda m: m.pop("check"), "check"),
        (lambda m: m.update(architecture_digest="0" * 64), "does not belong"),
        (lambda m: m["architecture"].update(vocab_size=17), "does not belong"),
        (lambda m: m.update(context_length=-1), "context_length cannot be -1"),
        (lambda m: m.update(context_length="1024"), "context_length cannot be '1024'"),
        (lambda m: m.update(trained="no"), "trained cannot be 'no'"),
        (lambda m: m.update(format=None), "format cannot be None"),
        (lambda m: m.update(parity=[]), "parity cannot be"),
        (lambda m: m.update(files=None), "not a manifest"),
        (lambda m: m["files"][0].update(sha256="abc"), "no sha256"),
        (lambda m: m["files"][0].update(name=5), "no name for a file"),
        (lambda m: m["files"][0].update(bytes=-1), "bytes must be a whole number"),
        (lambda m: m["files"][0].update(size=5), "unknown key 'size'"),
        (lambda m: m["check"].update(tolerance=0), "no model gives"),
        (lambda m: m["check"].update(tolerance=10**400), "not a manifest"),
        (lambda m: m["check"].update(token_ids=[-1]), "token ids that are none"),
        (lambda m: m["check"].update(token_ids=[16]), "beyond the vocabulary"),
        (lambda m: m["check"].update(top=[[1]]), "not a manifest"),
        (lambda m: m["check"].update(tolerance=float("nan")), "NaN"),
    ],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, change: Callable[[Any], Any], problem: str) -> None:
    edit(folder, change)
    with pytest.raises(InvalidFileError, match=problem) as caught:
        read_bundle(folder)
    assert MANIFEST in caught.value.message


def test_a_described_file_has_its_size_and_digest(folder: Path) -> None:
    digest = hashlib.sha256(b"graph").hexdigest()
    assert describe_file(folder, "model.onnx") == BundleFile("model.onnx", digest, 5)
