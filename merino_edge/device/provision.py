"""Getting the agent and a runtime onto a device.

The agent travels as one zipapp, named by its own SHA-256 and the same byte for byte wherever it is
built. The runtime of this very machine is the interpreter we run under. On a board it is what the
board has installed already, where that computes rightly; otherwise wheels are resolved and
downloaded here, for the board's tags, and pushed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from merino_edge.device.agent_link import AgentLink
from merino_edge.device.records import Progress, clean_text
from merino_edge.device.registry import DeviceEntry, data_home
from merino_edge.device.releases import push_files
from merino_edge.device.transport import Transport
from merino_edge.errors import DeviceError
from merino_edge.files import sha256_file

REMOTE_ROOT = "~/.local/share/merino-edge"
LOWEST_PYTHON = (3, 8)
_INTERPRETERS = (*(f"python3.{minor}" for minor in range(14, 7, -1)), "python3")
_PROBE = (
    "import hashlib,importlib.util,json,os,sys;"
    "r=os.path.abspath(os.path.expanduser(sys.argv[1]));p=os.path.join(r,'agent-'+sys.argv[2]+'.pyz');"
    "h=hashlib.sha256(open(p,'rb').read()).hexdigest() if os.path.isfile(p) else '';"
    "f=importlib.util.find_spec;w=bool(f('onnxruntime') and f('numpy'));"
    "print(json.dumps({'probe':1,'python':sys.executable,'version':list(sys.version_info[:3]),"
    "'root':r,'path':p,'have':h==sys.argv[2],'runtime':w}))"
)
_PROBE_ALL = (
    'code=$1 root=$2 sum=$3; shift 3; for p; do command -v "$p" >/dev/null && "$p" -c "$code" "$root" "$sum"; done; :'
)
RUNTIME = "onnxruntime"
RUNTIME_WHEELS = {
    "onnxruntime": ("onnxruntime>=1.21.1", "numpy"),
    "ai-edge-litert": ("ai-edge-litert>=1.4", "numpy"),
    "tflite-runtime": ("tflite-runtime>=2.14", "numpy<2"),
}
STAND_INS = {"tflite-runtime": "ai-edge-litert"}  # what runs the files of another runtime, too
_MAX_GLIBC_MINOR = 60


@cache
def agent_program() -> tuple[bytes, str]:
    """Return the agent's zipapp and its SHA-256. Same sources, same bytes."""
    package = resources.files("merino_edge.agent")
    sources = {f"merino_edge/agent/{e.name}": e.read_bytes() for e in package.iterdir() if e.name.endswith(".py")}
    sources["merino_edge/__init__.py"] = b""
    sources["__main__.py"] = b"import sys\nfrom merino_edge.agent.__main__ import main\nsys.exit(main())\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(sources):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o600 << 16
            entry.create_system = 3
            archive.writestr(entry, sources[name])
    content = stream.getvalue()
    return content, hashlib.sha256(content).hexdigest()


def start_agent(transport: Transport, entry: DeviceEntry) -> AgentLink:
    """Push the agent where it is missing, start it and shake hands.

    Raises:
        DeviceError: the device has no Python that could run it, or refused.
    """
    program, digest = agent_program()
    local = entry.transport == "local"
    root = entry.root or (str(data_home() / "device-root") if local else REMOTE_ROOT)
    found = _find_python(transport, [sys.executable] if local else list(_INTERPRETERS), root, digest)
    path = str(found["path"])
    if not found["have"]:
        transport.put(program, path, mode=0o600)
    link = AgentLink(transport.open([str(found["python"]), path, "--root", str(found["root"])]), transport.description)
    if link.hello.get("digest") != digest:
        link.close()
        raise DeviceError(f"{transport.description}: the agent there is not the one that was sent", hint="try again")
    return link


def _find_python(transport: Transport, interpreters: list[str], root: str, digest: str) -> dict[str, Any]:
    """Return what the probe found of the best interpreter: one that has the runtime already, then the newest."""
    done = transport.run(["sh", "-c", _PROBE_ALL, "probe", _PROBE, root, digest, *interpreters], timeout_s=60.0)
    found = list(_probe_answers(done.stdout))
    good = [f for f in found if tuple(f["version"]) >= LOWEST_PYTHON]
    if good:
        return max(good, key=lambda f: (f["runtime"] is True, f["version"]))
    versions = ", ".join(sorted({".".join(str(n) for n in f["version"]) for f in found}))
    raise DeviceError(
        f"{transport.description} has {f'only Python {versions}' if versions else 'no Python 3'}; "
        f"the agent needs {'.'.join(str(n) for n in LOWEST_PYTHON)} or newer",
        hint="on the device: sudo apt install python3.8 (or a newer one); nothing else is needed",
    )


def _probe_answers(output: bytes) -> Iterator[dict[str, Any]]:
    """Find the probe's lines; a login script may have printed others before."""
    for line in output.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict) or value.get("probe") != 1:
            continue
        version = value.get("version")
        texts = [value.get(name) for name in ("python", "root", "path")]
        if (
            isinstance(version, list)
            and all(isinstance(n, int) for n in version)
            and all(isinstance(text, str) and text.startswith("/") for text in texts)
        ):
            yield value


def ensure_runtime(
    link: AgentLink, entry: DeviceEntry, progress: Progress | None = None, package: str = RUNTIME
) -> str:
    """Return the name of a checked runtime on the device, making one where there is none.

    Args:
        link: To the device.
        entry: Which device.
        progress: Of what is sent.
        package: The runtime that a manifest names.

    Raises:
        DeviceError: none can be had; the message says what to type.
    """
    if package not in RUNTIME_WHEELS:
        raise DeviceError(f"no device runs '{package}'; known runtimes: {', '.join(RUNTIME_WHEELS)}")
    facts = link.ask("facts")
    runtimes = [r for r in facts.get("runtimes") or [] if isinstance(r, dict)]
    if entry.transport == "local":
        name = _local_name(package)
        if all(r.get("name") != name for r in runtimes):
            link.ask("runtime", name=name, package=package)
        return name
    usable = [r for r in runtimes if r.get("runtime") in (package, STAND_INS.get(package)) and r.get("python")]
    if usable:
        return str(usable[-1]["name"])
    try:
        found = link.ask("runtime", name="installed" if package == RUNTIME else f"installed-{package}", package=package)
        return clean_text(found.get("name"), 128)
    except DeviceError as error:
        return _push_wheels(link, facts, error, progress, package)


def _local_name(package: str) -> str:
    """Name this interpreter's runtime by what it depends on, so that an upgrade is checked anew."""
    versions = []
    for name in (STAND_INS.get(package, package), package):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions = [f"{part}{importlib.metadata.version(part)}" for part in (name, "numpy")]
            break
    if not versions:
        extra = "" if package == RUNTIME else "[tflite]"
        raise DeviceError(f"{package} is not installed here", hint=f"pip install 'merino-edge{extra}'")
    return f"host-{'-'.join(versions)}-{hashlib.sha256(sys.executable.encode()).hexdigest()[:8]}"


def platform_tags(python: dict[str, Any], package: str = RUNTIME) -> list[str]:
    """Return the platform tags of wheels that fit an interpreter, newest glibc first.

    Args:
        python: The `python` facts of a device: its user land decides, not its kernel.
        package: Whose wheels, for the messages.

    Raises:
        DeviceError: no wheels are made for it.
    """
    machine = re.fullmatch(r"linux-(\w+)", str(python.get("platform")))
    glibc = re.fullmatch(r"2\.(\d+)", str(python.get("libc_version")))
    bits = python.get("bits")
    if machine is None or glibc is None or python.get("libc") != "glibc":
        raise DeviceError(
            f"no wheels of {package} are made for {clean_text(python.get('platform'), 60)} "
            f"with {clean_text(python.get('libc') or 'this C library', 20)}",
            hint=f"install {package} on the device by hand, then try again",
        )
    name = machine.group(1)
    if bits == 32:
        raise DeviceError(
            f"the device's user land is 32-bit, and no wheels of {package} are made for it",
            hint="install a 64-bit system on the board (Raspberry Pi OS 64-bit)",
        )
    minor = min(int(glibc.group(1)), _MAX_GLIBC_MINOR)
    tags = [f"manylinux_2_{m}_{name}" for m in range(minor, 16, -1)]
    return [*tags, f"manylinux2014_{name}"] if minor >= 17 else tags


def _push_wheels(
    link: AgentLink, facts: dict[str, Any], cause: DeviceError, progress: Progress | None, package: str
) -> str:
    """Download wheels for the device here, push them, have them unzipped and checked."""
    python = facts.get("python") or {}
    tags = platform_tags(python, package)
    version = ".".join(str(python.get("version")).split(".")[:2])
    if not re.fullmatch(r"3\.\d{1,2}", version):
        raise DeviceError(f"the device's Python calls itself {clean_text(version, 20)}") from cause
    with tempfile.TemporaryDirectory(prefix="merino-edge-wheels-") as folder:
        _download(Path(folder), version, tags, cause, package)
        wheels = {sha256_file(path): path for path in sorted(Path(folder).glob("*.whl"))}
        push_files(link, wheels, progress)
        digest = hashlib.sha256("".join(sorted(wheels)).encode()).hexdigest()[:12]
        named = [{"name": path.name, "sha256": sha} for sha, path in wheels.items()]
        found = link.ask("runtime", name=f"{package}-{digest}", wheels=named, package=package)
    return clean_text(found.get("name"), 128)


def _download(folder: Path, version: str, tags: list[str], cause: DeviceError, package: str) -> None:
    """Let pip resolve and download wheels for another machine."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--dest", str(folder), "--implementation", "cp", "--python-version", version]
    for tag in tags:
        command += ["--platform", tag]
    try:
        done = subprocess.run([*command, *RUNTIME_WHEELS[package]], capture_output=True, text=True, timeout=900)
        problem = clean_text(done.stderr, 300) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        raise DeviceError(
            f"no {package} for the device: it has none that works ({cause.message}), and none could be "
            f"downloaded for Python {version}, {tags[0]}: {problem}",
            hint=f"on the device: python{version} -m pip install --user {package} numpy",
        ) from cause
