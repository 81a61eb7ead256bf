"""Getting the agent and a runtime onto a device.

The agent travels as one zipapp, named by its own SHA-256 and the same byte for byte wherever it is
built. The runtime of this very machine is the interpreter we run under. On a board it is what the
board has installed already, where that computes rightly; otherwise locked wheels (`wheels.py`) are
downloaded here, pushed, unzipped there and checked, from the best version down to one that works.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Any

from merino_edge.device.agent_link import AgentLink
from merino_edge.device.records import Progress, clean_text
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.releases import push_files
from merino_edge.device.transport import Completed, Transport
from merino_edge.device.wheels import MAX_TRIES, WheelSet, fetch, fitting_sets, known_fault, locked_sets
from merino_edge.errors import DeviceBusyError, DeviceError, UsageError
from merino_edge.settings import data_home

REMOTE_ROOT = "~/.local/share/merino-edge"
LOWEST_PYTHON = (3, 8)
INTERPRETERS = (*(f"python3.{minor}" for minor in range(14, 7, -1)), "python3")
_PROBE = (
    "import hashlib,importlib.util,json,os,sys;"
    "r=os.path.abspath(os.path.expanduser(sys.argv[1]));p=os.path.join(r,'agent-'+sys.argv[2]+'.pyz');"
    "h=hashlib.sha256(open(p,'rb').read()).hexdigest() if os.path.isfile(p) else '';"
    "f=importlib.util.find_spec;w=bool(f('onnxruntime') and f('numpy'));"
    "new=os.path.isdir(r) and not os.path.isdir(os.path.join(r,'objects'));"
    "o=sorted(n for n in os.listdir(r) if not n.startswith(('agent-','.put-')))[:3] if new else [];"
    "print(json.dumps({'probe':1,'python':sys.executable,'version':list(sys.version_info[:3]),"
    "'root':r,'path':p,'have':h==sys.argv[2],'runtime':w,'others':o}))"
)
_PROBE_ALL = (
    'read -r word; echo "probe-input $word"; code=$1 root=$2 sum=$3; shift 3; '
    'for p; do command -v "$p" >/dev/null && "$p" -c "$code" "$root" "$sum"; done; :'
)
_NOEXEC = "failed to map segment from shared object"  # the loader's words where a library may not be run
RUNTIME = "onnxruntime"
RUNTIMES = ("onnxruntime", "ai-edge-litert", "tflite-runtime")
TOKENIZERS = "tokenizers"  # beside a runtime, for a release's own run.py
STAND_INS = {"tflite-runtime": "ai-edge-litert"}  # what runs the files of another runtime, too


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
        UsageError: the folder that it is to have is somebody's already.
    """
    program, digest = agent_program()
    local = entry.transport == "local"
    root = entry.root or (str(data_home() / "device-root") if local else REMOTE_ROOT)
    found = _find_python(transport, [sys.executable] if local else list(INTERPRETERS), root, digest)
    if others := found.get("others"):
        there = clean_text(", ".join(map(str, others)) if isinstance(others, list) else others, 100)
        raise UsageError(
            f"{transport.description}: {clean_text(found['root'], 300)} holds other things ({there})",
            hint="name a folder of its own there, that need not exist: --root FOLDER/merino-edge",
        )
    path = str(found["path"])
    if not found["have"]:
        transport.put(program, path, mode=0o600)
    link = AgentLink(transport.open([str(found["python"]), path, "--root", str(found["root"])]), transport.description)
    if link.hello.get("digest") != digest:
        link.close()
        raise DeviceError(f"{transport.description}: the agent there is not the one that was sent", hint="try again")
    return link


def _find_python(transport: Transport, interpreters: list[str], root: str, digest: str) -> dict[str, Any]:
    """Return what the probe found of the best interpreter.

    That is one that has the runtime already, then one there are wheels for, then the newest.
    """
    argv = ["sh", "-c", _PROBE_ALL, "probe", _PROBE, root, digest, *interpreters]
    done = transport.run(argv, f"{digest}\n".encode(), timeout_s=60.0)
    _check_shell(done, digest, transport.description)
    found = list(_probe_answers(done.stdout))
    good = [f for f in found if tuple(f["version"]) >= LOWEST_PYTHON]
    if good:
        served = {wheels.python for wheels in locked_sets() if wheels.runtime in RUNTIMES}
        return max(good, key=lambda f: (f["runtime"] is True, "{}.{}".format(*f["version"]) in served, f["version"]))
    lacking = re.search(r"No module named '([\w.]+)'", done.stderr.decode("utf-8", "replace"))
    if lacking and not found:
        raise DeviceError(
            f"{transport.description}: its Python lacks a part of the standard library ({lacking[1]})",
            hint="on the device: sudo apt install python3 (python3-minimal is not enough)",
        )
    versions = ", ".join(sorted({".".join(str(n) for n in f["version"]) for f in found}))
    raise DeviceError(
        f"{transport.description} has {f'only Python {versions}' if versions else 'no Python 3'}; "
        f"the agent needs {'.'.join(str(n) for n in LOWEST_PYTHON)} or newer",
        hint="on the device: sudo apt install python3.8 (or a newer one); nothing else is needed",
    )


def _check_shell(done: Completed, word: str, where: str) -> None:
    """Raise where no shell has run the probe, or where something else has taken the probe's input."""
    said = done.stdout.decode("utf-8", "replace")
    if "probe-input" not in said:
        words = clean_text(said + done.stderr.decode("utf-8", "replace"), 200)
        raise DeviceError(
            f"{where} starts no programs for this account" + (f"; it says: {words}" if words else ""),
            hint="it takes an account with a shell: no sftp-only one, no ForceCommand, "
            "no start-up file (~/.bashrc) that runs another program instead",
        )
    if f"probe-input {word}" not in said:
        raise DeviceError(
            f"{where}: a start-up file of the login shell there reads what is meant for the program",
            hint="on the device: look for `read` or `cat` in ~/.bashrc, and guard it: [ -t 0 ] && ...",
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
    link: AgentLink,
    entry: DeviceEntry,
    progress: Progress | None = None,
    package: str = RUNTIME,
    beside: str | None = None,
) -> str:
    """Return the name of a checked runtime on the device, making one where there is none.

    Args:
        link: To the device.
        entry: Which device.
        progress: Of what is sent.
        package: The runtime that a manifest names.
        beside: The runtime that gives `tokenizers` its numpy.

    Raises:
        DeviceError: none can be had; the message says what to type.
    """
    if package not in (*RUNTIMES, TOKENIZERS):
        raise DeviceError(f"no device runs '{package}'; known runtimes: {', '.join(RUNTIMES)}")
    facts = link.ask("facts")
    runtimes = [r for r in facts.get("runtimes") or [] if isinstance(r, dict)]
    if entry.transport == "local":
        name = _local_name(package)
        if all(r.get("name") != name for r in runtimes):
            link.ask("runtime", name=name, package=package, beside=beside)
        return name
    fitting = (package, STAND_INS.get(package))
    python = next((r.get("python") for r in runtimes if r.get("name") == beside), None)
    usable = [r for r in runtimes if r.get("runtime") in fitting and r.get("python") and not _fault(r, facts)]
    usable = [r for r in usable if beside is None or r.get("python") == python]
    if usable:
        return str(usable[-1]["name"])
    try:
        name = "installed" if package == RUNTIME else f"installed-{package}"
        found = link.ask("runtime", name=name, package=package, beside=beside)
        fault = _fault(found, facts)
        if fault is None:
            return clean_text(found.get("name"), 128)
        cause = DeviceError(f"its {package} {clean_text(found.get('runtime_version'), 30)} {fault}")
    except DeviceError as error:
        cause = error
    return _push_wheels(link, facts, cause, progress, package, beside)


def ensure_tokenizers(link: AgentLink, entry: DeviceEntry, beside: str, push: bool) -> str | None:
    """Return the name of checked tokenizers on the device, None where there are none and none are to be sent.

    Args:
        link: To the device.
        entry: Which device.
        beside: The runtime that they are used with.
        push: Make them where there are none.
    """
    there = [r for r in link.ask("facts").get("runtimes") or [] if isinstance(r, dict)]
    if push or entry.transport == "local" or any(r.get("runtime") == TOKENIZERS for r in there):
        return ensure_runtime(link, entry, None, TOKENIZERS, beside)
    return None


def _features(facts: Mapping[str, Any]) -> list[str]:
    """Return what the kernel says the CPU can do."""
    cpu = facts.get("cpu")
    flags = cpu.get("flags") if isinstance(cpu, dict) else None
    return [str(flag) for flag in flags] if isinstance(flags, list) else []


def _fault(record: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Return how the runtime of a record is known to fail on this CPU, though its check has passed."""
    runtime, version = str(record.get("runtime")), str(record.get("runtime_version"))
    return known_fault(runtime, version, str(facts.get("architecture")), _features(facts))


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


def _push_wheels(
    link: AgentLink,
    facts: dict[str, Any],
    cause: DeviceError,
    progress: Progress | None,
    package: str,
    beside: str | None,
) -> str:
    """Push the wheels that fit, have them unzipped and checked; where they fail the check, the version before."""
    failures = []
    for wheels in _candidates(package, facts):
        try:
            files = fetch(wheels)
        except DeviceError as error:
            version = wheels.python
            raise DeviceError(
                f"no {package} for the device: it has none that works ({cause.message}), and {error.message}",
                hint=f"{error.hint}; or on the device: python{version} -m pip install --user {package} numpy",
            ) from cause
        push_files(link, files, progress)
        digest = hashlib.sha256("".join(sorted(files)).encode()).hexdigest()[:12]
        named = [{"name": path.name, "sha256": sha} for sha, path in files.items()]
        name = f"{wheels.runtime}-{digest}"
        try:
            found = link.ask("runtime", name=name, wheels=named, package=wheels.runtime, beside=beside)
        except DeviceBusyError:
            raise
        except DeviceError as error:
            if _NOEXEC in error.message:
                raise DeviceError(
                    f"{link.where}: the file system of {clean_text(link.hello.get('root'), 300)} is mounted noexec, "
                    "so that no program may run from there",
                    hint="give it another folder there: merino-edge devices add NAME --host HOST --root FOLDER",
                ) from error
            failures.append(f"{wheels.runtime} {wheels.version}: {error.message}")
            continue
        return clean_text(found.get("name"), 128)
    raise DeviceError(
        f"no version of {package} works on the device; " + "; ".join(failures),
        hint=f"install one that does on the device by hand, for {facts.get('python', {}).get('executable')}; "
        "it is found and checked by itself",
    ) from cause


def _candidates(package: str, facts: Mapping[str, Any]) -> list[WheelSet]:
    """Return what is worth a try on a device, the best first; where a runtime has no wheels, its stand-in's."""
    python = facts.get("python") or {}
    try:
        return fitting_sets(package, python, _features(facts))[:MAX_TRIES]
    except DeviceError:
        if package not in STAND_INS:
            raise
        return fitting_sets(STAND_INS[package], python, _features(facts))[:MAX_TRIES]
