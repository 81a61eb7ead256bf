"""known_hosts: read as OpenSSH reads it (its own tools are the judge), extended without harm."""

from __future__ import annotations

import base64
import hashlib
import hmac
import multiprocessing
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merino_edge.device.known_hosts import HostKey, HostName, KnownHosts, Status, check_host_key, remember, usable_files
from merino_edge.errors import DeviceError

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def ed25519(seed: int) -> HostKey:
    parts = (b"ssh-ed25519", hashlib.sha256(bytes([seed])).digest())
    return HostKey("ssh-ed25519", b"".join(struct.pack(">I", len(p)) + p for p in parts))


def text(key: HostKey) -> str:
    return f"{key.key_type} {base64.b64encode(key.blob).decode()}"


def hashed(name: str, salt: bytes = b"s" * 20) -> str:
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


ONE, TWO, THREE = ed25519(1), ed25519(2), ed25519(3)
PI = HostName("pi4.lab")


def judge(tmp_path: Path, content: str | bytes, name: HostName = PI, key: HostKey = ONE) -> Status:
    path = tmp_path / "known_hosts"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return KnownHosts([path]).judge(name, key)[0]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("", Status.NEW),
        (f"pi4.lab {text(ONE)}", Status.KNOWN),
        (f"pi4.lab {text(ONE)} a comment\n", Status.KNOWN),
        (f"pi4.lab {text(ONE)}\r\n", Status.KNOWN),
        (f"  \tpi4.lab\t{text(ONE)}\n", Status.KNOWN),
        (f"PI4.Lab {text(ONE)}\n", Status.KNOWN),
        (f"other.lab,pi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"*.lab {text(ONE)}\n", Status.KNOWN),
        (f"pi?.lab {text(ONE)}\n", Status.KNOWN),
        (f"*.lab,!pi4.lab {text(ONE)}\n", Status.NEW),
        (f"!pi4.lab,*.lab {text(ONE)}\n", Status.NEW),
        (f"!other.lab,*.lab {text(ONE)}\n", Status.KNOWN),
        (f"pi4.lab {text(TWO)}\n", Status.CHANGED),
        (f"pi4.lab {text(TWO)}\npi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"{hashed('pi4.lab')} {text(ONE)}\n", Status.KNOWN),
        (f"{hashed('pi4.lab')} {text(TWO)}\n", Status.CHANGED),
        (f"{hashed('pi5.lab')} {text(ONE)}\n", Status.NEW),
        (f"@revoked * {text(ONE)}\npi4.lab {text(ONE)}\n", Status.REVOKED),
        (f"pi4.lab {text(ONE)}\n@revoked pi4.lab {text(ONE)}\n", Status.REVOKED),
        (f"pi4.lab {text(ONE)}\n@revoked pi4.lab {text(TWO)}\n", Status.KNOWN),
        (f"@cert-authority pi4.lab {text(ONE)}\n", Status.NEW),
        (f"@cert-authority * {text(TWO)}\npi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"@unheard pi4.lab {text(TWO)}\npi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"pi4.lab ssh-ed25519 AAAA####\npi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"pi4.lab ssh-ed25519\npi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"pi4.lab {text(TWO)[:-8]}\npi4.lab {text(ONE)}\n", Status.KNOWN),
        (f"pi4.lab ssh-rsa {text(TWO).split()[1]}\n", Status.NEW),
        (f"# pi4.lab {text(TWO)}\n\n \n", Status.NEW),
        (b"caf\xe9.lab " + text(TWO).encode() + b" \xff\xfe\npi4.lab " + text(ONE).encode(), Status.KNOWN),
        (b"pi4.lab " + text(ONE).encode() + b"\0junk\n", Status.KNOWN),
        (f"[pi4.lab]:2222 {text(TWO)}\n", Status.NEW),
        (f"{'x' * 2000},pi4.lab {text(ONE)}\n", Status.NEW),
    ],
)
def test_a_line_says_what_openssh_takes_it_to_say(tmp_path: Path, content: str | bytes, status: Status) -> None:
    assert judge(tmp_path, content) is status


@pytest.mark.parametrize(
    ("content", "name", "status"),
    [
        (f"[pi4.lab]:2222 {text(ONE)}\n", HostName("pi4.lab", 2222), Status.KNOWN),
        (f"[*.lab]:2222 {text(ONE)}\n", HostName("PI4.lab", 2222), Status.KNOWN),
        (f"{hashed('[pi4.lab]:2222')} {text(ONE)}\n", HostName("pi4.lab", 2222), Status.KNOWN),
        (f"pi4.lab {text(ONE)}\n", HostName("pi4.lab", 2222), Status.KNOWN),
        (f"pi4.lab {text(TWO)}\n", HostName("pi4.lab", 2222), Status.NEW),
        (f"@revoked pi4.lab {text(ONE)}\n", HostName("pi4.lab", 2222), Status.REVOKED),
        (f"[pi4.lab]:2222 {text(TWO)}\npi4.lab {text(ONE)}\n", HostName("pi4.lab", 2222), Status.CHANGED),
        (f"kitchen {text(ONE)}\n", HostName("192.0.2.7", 2222, alias="Kitchen"), Status.KNOWN),
        (f"192.0.2.7 {text(ONE)}\n", HostName("192.0.2.7", 2222, alias="kitchen"), Status.NEW),
        (f"2001:db8::1 {text(ONE)}\n", HostName("2001:DB8::1"), Status.KNOWN),
        (f"[2001:db8::1]:2222 {text(ONE)}\n", HostName("2001:db8::1", 2222), Status.KNOWN),
    ],
)
def test_ports_and_aliases_are_part_of_the_name(tmp_path: Path, content: str, name: HostName, status: Status) -> None:
    assert judge(tmp_path, content, name) is status


def test_a_line_that_cannot_be_read_leaves_a_note_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"pi4.lab {text(ONE)}\npi4.lab nonsense\n@x y z\n")
    notes = KnownHosts([path]).notes
    assert [re.findall(r"line \d", note) for note in notes] == [["line 2"], ["line 3"]]


def test_several_files_are_one_and_a_missing_or_unreadable_one_harms_none(tmp_path: Path) -> None:
    (tmp_path / "b").write_text(f"pi4.lab {text(ONE)}\n")
    (tmp_path / "folder").mkdir()
    known = KnownHosts([tmp_path / "a", tmp_path / "folder", tmp_path / "b"])
    assert known.judge(PI, ONE)[0] is Status.KNOWN
    assert "folder" in known.notes[0]
    assert usable_files([tmp_path / "a", tmp_path / "folder"]) == [tmp_path / "a"]


def test_a_large_file_is_read_whole(tmp_path: Path) -> None:
    lines = "".join(f"host{i}.lab {text(TWO)}\n" for i in range(60_000))
    assert judge(tmp_path, lines + f"pi4.lab {text(ONE)}") is Status.KNOWN


def test_the_key_types_known_are_told(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"*.lab {text(ONE)}\n@cert-authority * {text(TWO)}\n")
    assert KnownHosts([path]).key_types(PI) == ["ssh-ed25519"]
    assert KnownHosts([path]).key_types(HostName("elsewhere")) == []


names = st.sampled_from(["pi4.lab", "pi5.lab", "192.0.2.7", "[pi4.lab]:2222", "[192.0.2.7]:2222"])
patterns = st.one_of(
    names,
    st.text(alphabet="pi45.lab*?[]:2!", min_size=1, max_size=12),
    st.sampled_from(["*", "*.lab", "!pi4.lab", "pi?.lab", "[*]:2222", "PI4.LAB", "!*", "192.0.2.*"]),
)
host_fields = st.one_of(
    st.lists(patterns, min_size=1, max_size=3).map(",".join),
    names.map(hashed),
    st.sampled_from(["|1|x|y", "|1|", "|", hashed("pi4.lab") + ",pi4.lab"]),
)
key_fields = st.one_of(
    st.sampled_from(
        [text(ONE), text(TWO), text(ONE) + " comment", text(ONE)[:-4], "ssh-ed25519 @@@@", "ssh-foo AAAA", ""]
    ),
)
lines_of = st.tuples(
    st.sampled_from(["", "", "", "@revoked ", "@cert-authority ", "@odd ", "#", " "]), host_fields, key_fields
)
files = st.lists(lines_of.map(lambda t: f"{t[0]}{t[1]} {t[2]}"), max_size=6)


@needs_ssh_keygen
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(lines=[f"!* {text(ONE)}", f"@revoked * {text(ONE)}"], name="pi4.lab")
@given(lines=files, name=names)
def test_the_lines_of_a_host_are_those_that_ssh_keygen_finds(tmp_path: Path, lines: list[str], name: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("\n".join(lines))
    found = subprocess.run(
        ["ssh-keygen", "-l", "-F", name, "-f", str(path)], capture_output=True, text=True, timeout=10, check=False
    )
    oracle = {int(n) for n in re.findall(r"^# Host .* found: line (\d+)", found.stdout, re.MULTILINE)}
    ours = {line.line for line in KnownHosts([path]).keys if line.covers(name)}
    assert ours == oracle


@needs_ssh_keygen
def test_a_fingerprint_is_the_one_ssh_keygen_shows(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_text(text(ONE))
    shown = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, timeout=10, check=True)
    assert ONE.fingerprint in shown.stdout


def test_strict_refuses_what_is_new_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    with pytest.raises(DeviceError, match="not known") as caught:
        check_host_key([path], PI, ONE, "strict")
    assert ONE.fingerprint in caught.value.message
    assert not path.exists()


def test_ask_without_anybody_to_ask_is_strict(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not known"):
        check_host_key([tmp_path / "known_hosts"], PI, ONE, "ask")


def test_ask_shows_the_fingerprint_and_remembers_a_yes(tmp_path: Path) -> None:
    path, questions = tmp_path / "ssh" / "known_hosts", []

    def answer(question: str) -> bool:
        questions.append(question)
        return True

    check_host_key([path], PI, ONE, "ask", answer)
    check_host_key([path], PI, ONE, "ask", answer)
    assert len(questions) == 1
    assert ONE.fingerprint in questions[0]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_no_is_a_no(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    with pytest.raises(DeviceError, match="not known"):
        check_host_key([path], PI, ONE, "ask", lambda question: False)
    assert not path.exists()


@pytest.mark.parametrize("policy", ["strict", "ask", "accept-new"])
@pytest.mark.parametrize(
    ("line", "word"), [(f"pi4.lab {text(TWO)}", "has changed"), (f"@revoked * {text(ONE)}", "revoked")]
)
def test_no_policy_accepts_a_changed_or_revoked_key(tmp_path: Path, policy: str, line: str, word: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(line)
    with pytest.raises(DeviceError, match=word) as caught:
        check_host_key([path], PI, ONE, policy, lambda question: True)  # type: ignore[arg-type]
    assert caught.value.exit_code == 4
    assert path.read_text() == line


def test_accept_new_appends_one_line_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    before = b"# mine\xff\n@odd line\nother " + text(TWO).encode()  # no newline at the end
    path.write_bytes(before)
    check_host_key([path], PI, ONE, "accept-new")
    assert path.read_bytes() == before + b"\npi4.lab " + text(ONE).encode() + b"\n"


def test_a_hashed_name_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    check_host_key([path], PI, ONE, "accept-new", hash_names=True)
    assert b"pi4" not in path.read_bytes()
    assert KnownHosts([path]).judge(PI, ONE)[0] is Status.KNOWN


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "known_hosts").symlink_to(tmp_path / "real")
    check_host_key([tmp_path / "known_hosts"], PI, ONE, "accept-new")
    assert (tmp_path / "known_hosts").is_symlink()
    assert "pi4.lab" in (tmp_path / "real").read_text()


def test_a_key_that_cannot_be_remembered_is_refused(tmp_path: Path) -> None:
    (tmp_path / "known_hosts").mkdir()
    with pytest.raises(DeviceError, match="cannot be remembered"):
        check_host_key([tmp_path / "known_hosts"], PI, ONE, "accept-new")


def test_a_key_that_another_writer_made_a_changed_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"pi4.lab {text(TWO)}\n")
    with pytest.raises(DeviceError, match="has changed"):
        remember([path], PI, ONE)


def _write_many(path: Path, writer: int) -> None:
    for i in range(10):
        remember([path], HostName(f"h{writer}-{i}.lab"), ONE)
        remember([path], PI, ONE)


def test_concurrent_writers_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    before = f"# mine\nother {text(TWO)}"
    path.write_text(before)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, n)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [writer.exitcode for writer in writers] == [0] * 8
    content = path.read_text()
    assert content.startswith(before + "\n")
    assert sorted(line.split()[0] for line in content[len(before) + 1 :].splitlines()) == sorted(
        [f"h{n}-{i}.lab" for n in range(8) for i in range(10)] + ["pi4.lab"]
    )
