"""Files are written whole or not at all, and read only when they are what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge import files
from merino_edge.errors import InvalidFileError, MerinoEdgeError
from merino_edge.files import (
    append_line,
    building_folder,
    canonical_json,
    move_into_place,
    open_atomic,
    parse_json,
    read_json,
    read_lines,
    sha256_file,
    write_atomic,
    write_json,
    write_lines,
)

LINE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from merino_edge.errors import MerinoEdgeError
from merino_edge.files import append_line, write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    {action}
except MerinoEdgeError as error:
    sys.exit(7)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid():
        pytest.skip("a disk of 64 KiB needs root to mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a disk of 64 KiB here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_document_reads_back_without_its_version(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"x": 1})
    assert json.loads((tmp_path / "new" / "a.json").read_text())["schema_version"] == 1
    assert read_json(tmp_path / "new" / "a.json") == {"x": 1}


def test_writing_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "one")
    write_atomic(tmp_path / "a", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"two"


def test_an_exception_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), open_atomic(tmp_path / "a") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_number_that_json_lacks_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    write_atomic(small_disk / "a", "old")
    with pytest.raises(MerinoEdgeError, match="No space left") as caught:
        write_atomic(small_disk / "a", b"x" * 200_000)
    assert "free some space" in str(caught.value.hint)
    assert [(p.name, p.read_text()) for p in small_disk.iterdir()] == [("a", "old")]


def test_a_full_disk_leaves_whole_lines_in_a_log(small_disk: Path) -> None:
    log, written = small_disk / "log", 0
    with pytest.raises(MerinoEdgeError, match="No space left"):
        while True:
            append_line(log, {"n": written, "filling": "x" * 3000})
            written += 1
    assert written > 5
    assert [record["n"] for record in read_lines(log)] == list(range(written))
    assert log.read_bytes().endswith(b"\n")


def test_a_file_size_limit_keeps_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    code = LINE_LIMIT.format(action=f"write_atomic(Path({str(tmp_path / 'a')!r}), b'x' * 9000)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_file_size_limit_leaves_whole_lines_in_a_log(tmp_path: Path) -> None:
    code = LINE_LIMIT.format(action=f"[append_line(Path({str(tmp_path / 'log')!r}), {{'n': n}}) for n in range(999)]")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7
    numbers = [record["n"] for record in read_lines(tmp_path / "log")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100


def test_kill_9_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    code = (
        "import itertools, sys; from pathlib import Path; from merino_edge.files import write_json\n"
        "for n in itertools.count(): write_json(Path(sys.argv[1]), {'n': n, 'filling': [n] * 2000})"
    )
    for attempt in range(5):
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
            until = time.monotonic() + 20
            seen = path.stat().st_mtime_ns if path.exists() else 0
            while (path.stat().st_mtime_ns if path.exists() else 0) == seen and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        document = read_json(path)
        assert document["filling"] == [document["n"]] * 2000


BUILD = """
import sys
from pathlib import Path
from merino_edge.files import building_folder
with building_folder(Path(sys.argv[1]), "model") as folder:
    (folder / "half").write_text("written")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UNLOCKED_S", -1.0)
    words = [sys.executable, "-c", BUILD, str(tmp_path)]
    killed, living = (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    left, written = (Path(str(child.stdout and child.stdout.readline()).strip()) for child in (killed, living))
    killed.kill()
    killed.communicate()
    assert (left / "half").exists()
    with building_folder(tmp_path, "model") as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, written])
        assert (written / "half").read_text() == "written"
    living.communicate("")
    assert living.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_moved_into_place_replaces_the_old_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for content in ("first", "second"):
        with building_folder(tmp_path, "model") as folder:
            (folder / content).write_text(content)
            move_into_place(folder, place)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert [path.name for path in place.iterdir()] == [content]


def test_what_was_set_aside_stays_until_something_is_in_its_place(tmp_path: Path) -> None:
    aside = tmp_path / ".model.old"
    aside.mkdir()
    os.utime(aside, (1, 1))
    with building_folder(tmp_path, "other"):
        assert aside.exists()
    (tmp_path / "model").mkdir()
    with building_folder(tmp_path, "other"):
        assert not aside.exists()


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append_line(log, {"n": 1})
    with open(log, "ab") as stream:
        stream.write(b'{"schema_version": 1, "n": 2')
    assert read_lines(log) == [{"n": 1}]


def test_appending_cuts_a_torn_line_off(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append_line(log, {"n": 1})
    for torn in (b'{"n"', b"\0" * 4096):
        with open(log, "ab") as stream:
            stream.write(torn)
        append_line(log, {"n": 2})
    assert [record["n"] for record in read_lines(log)] == [1, 2, 2]


def test_damage_in_the_middle_of_a_log_names_the_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_lines(log, [{"n": n} for n in range(4)])
    log.write_text(log.read_text().replace('"n": 2', '"n: 2'))
    with pytest.raises(InvalidFileError, match="line 3"):
        read_lines(log)


def test_two_writers_never_mix_their_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from merino_edge.files import append_line\n"
        "for n in range(100): append_line(Path(sys.argv[1]), {'who': sys.argv[2], 'n': n, 'filling': 'x' * 500})"
    )
    log = tmp_path / "log"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(log), who]) for who in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    records = read_lines(log)
    for who in "ab":
        assert [r["n"] for r in records if r["who"] == who] == list(range(100))


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b'{"schema_version": 1, "x":', "not valid JSON"),
        (b'{"schema_version": 1, "x": NaN}', "NaN"),
        (b'{"schema_version": 1, "x": -Infinity}', "Infinity"),
        (b'{"schema_version": 1, "x": 1e999}', "out of range"),
        (b'{"schema_version": 1, "x": 1, "x": 2}', "twice"),
        (b"[1]", "one JSON object"),
        (b"\xff\xfe", "UTF-8"),
        (b"{}", "schema_version is None"),
        (b'{"schema_version": 2}', "schema_version is 2"),
        (b'{"x":' * 100_000, "not valid JSON"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(InvalidFileError, match=problem) as caught:
        read_json(tmp_path / "p.json", "profile")
    assert "p.json" in caught.value.message
    assert "profile" in caught.value.message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InvalidFileError, match="cannot read"):
        read_json(tmp_path)
    with pytest.raises(InvalidFileError, match="cannot read"):
        sha256_file(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON_VALUES))
def test_canonical_json_has_one_spelling(value: dict[str, object]) -> None:
    text = canonical_json(value)
    assert parse_json(text, "it") == value
    assert canonical_json(dict(reversed(value.items()))) == text
    assert text.isascii()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_log_or_an_invalid_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    log.write_bytes(content)
    try:
        assert read_lines(log) == []
    except InvalidFileError as error:
        assert str(log) in error.message
