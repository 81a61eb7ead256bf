"""Text is found, decompressed, cut into pieces; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.errors import DataError
from merino_edge.training.text import LONGEST_PIECE, SEPARATOR, _cut, open_text


def read(*sources: Path | str) -> str:
    return "".join(piece.text for piece in open_text([str(s) for s in sources]).pieces())


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_text_is_read_through_each_compression(tmp_path: Path, suffix: str) -> None:
    data = "héllo\nworld\n".encode()
    packed = {"": data, ".gz": gzip.compress(data), ".xz": lzma.compress(data)}
    packed[".zst"] = zstandard.compress(data)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed[suffix])
    assert read(path) == "héllo\nworld\n"


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_damaged_compression_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"\x28\xb5\x2f\xfd no archive at all")
    with pytest.raises(DataError, match=r"a\.txt.*is damaged"):
        read(path)


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("B")
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "sub" / "c.txt").write_text("C")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    assert read(tmp_path) == "ABC"


def test_jsonl_gives_the_text_of_each_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "n": 1}\n\n{"text": "two"}\n')
    assert [tuple(p) for p in open_text([str(path)]).pieces()] == [("one", True), ("two", True)]


@pytest.mark.parametrize("line", ["{", "[1]", '{"txt": "a"}', '{"text": 3}'])
def test_bad_json_line_is_named_by_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        read(path)


@given(st.text(max_size=60), st.sampled_from([b"\xff", b"\xc3("]))
def test_byte_that_is_not_utf8_is_named_by_its_offset(before: str, bad: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(before.encode() + bad + b" after")
        with pytest.raises(DataError, match=f"offset {len(before.encode())}$"):
            read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin1"])
def test_the_hint_for_a_file_in_another_encoding_converts_it(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("größe".encode(encoding))
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"iconv -f {encoding} -t utf-8" in str(caught.value.hint)


def test_offset_counts_over_the_borders_of_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    size = (1 << 20) - 1
    path.write_bytes(b"a" * size + "é".encode()[:1] + b"x")  # the bad byte is the last of the first read
    with pytest.raises(DataError, match=f"offset {size}$"):
        read(path)


@pytest.mark.parametrize(("name", "words"), [("none.txt", "does not exist"), ("a.pdf", "no known kind")])
def test_unusable_path_is_refused(tmp_path: Path, name: str, words: str) -> None:
    if name == "a.pdf":
        (tmp_path / name).write_bytes(b"%PDF")
    with pytest.raises(DataError, match=words):
        open_text([str(tmp_path / name)])


def test_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text"):
        open_text([str(tmp_path)])


def test_separator_lines_end_documents() -> None:
    pieces = list(_cut(["a\n", f"{SEPARATOR}\n", f"{SEPARATOR}\n", "b\n", "c\n"], 100))
    assert [tuple(p) for p in pieces] == [("a\n", True), ("b\nc\n", True)]


@given(st.lists(st.sampled_from(["\n", "a few words\n", "x" * 90 + "\n", "y" * 500])), st.integers(10, 100))
def test_cutting_loses_no_text_and_bounds_the_pieces(lines: list[str], longest: int) -> None:
    pieces = list(_cut(lines, longest))
    assert "".join(p.text for p in pieces).strip() == "".join(lines).strip()
    assert all(len(p.text) <= 8 * longest for p in pieces)


def test_digest_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = open_text([str(path)]).digest
    assert open_text([str(path)]).digest == first
    path.write_text("two")
    assert open_text([str(path)]).digest != first


def test_without_data_the_text_of_python_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERINO_EDGE_DATA", raising=False)
    source = open_text(None)
    pieces = list(source.pieces())
    assert source.name.startswith("Python 3.")
    assert sum(len(p.text) for p in pieces) > 1_000_000
    assert max(len(p.text) for p in pieces) <= 8 * LONGEST_PIECE


def test_without_data_wikitext2_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wikitext2").mkdir()
    for split in ("train", "valid"):
        text = f" = {split} one = \n \n words \n = = part = = \n more \n = {split} two = \n words \n"
        (tmp_path / "wikitext2" / f"{split}.txt.xz").write_bytes(lzma.compress(text.encode()))
    monkeypatch.setenv("MERINO_EDGE_DATA", str(tmp_path))
    source = open_text(None)
    assert source.name == "wikitext2"
    assert [p.ends_document for p in source.pieces()] == [True, True]
    assert source.validation is not None
    assert "valid one" in next(source.validation()).text


def test_data_set_is_loaded_by_its_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(5)))
    source = open_text([f"hf:{tmp_path}"])
    assert [p.text for p in source.pieces()] == [f"document {i}" for i in range(5)]


def test_data_set_beside_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="beside other sources"):
        open_text(["hf:name", str(tmp_path)])
