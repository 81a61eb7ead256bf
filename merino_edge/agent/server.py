"""The agent: reads requests, answers them one after the other, and ends when the host goes quiet.

Three threads. One reads stdin and notes that the host lives; one sends a heartbeat and watches for
silence; the main one works. Ending is always the same: kill the child, exit. What an installation
was doing stands in the journal, so no way of dying needs care.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

from merino_edge.agent import PROTOCOL, facts, frames, synthetic
from merino_edge.agent.bandwidth import read_bytes_per_s
from merino_edge.agent.children import Child
from merino_edge.agent.core_distance import meter
from merino_edge.agent.errors import AgentError
from merino_edge.agent.releases import Releases
from merino_edge.agent.runtimes import Runtimes
from merino_edge.agent.store import Store, check_digest, disk_error, positive_number, sha256_file, whole_number

BEAT_S = 2.0
SILENCE_S = 8.0
DEFAULT_BUDGET_S = 10.0  # per test
SPARE_OBJECT_BYTES = 256 << 20  # of bundles that were measured and not deployed
DATA_WINDOW = 16  # data frames that a host may send ahead of their acknowledgement
PIPE_BYTES = 1 << 20  # that sshd may write before this program must be woken
_MAX_QUEUED = 2 * DATA_WINDOW
_SET_PIPE_BYTES = 1031  # F_SETPIPE_SZ of Linux, which Python names from 3.10 on


def own_digest() -> str | None:
    """Return the SHA-256 of this very program, None where it is no file."""
    return sha256_file(Path(sys.argv[0])) if os.path.isfile(sys.argv[0]) else None


class Wire:
    """Frames to and from the host.

    Args:
        source: Descriptor frames are read from.
        sink: Descriptor frames are written to.
        die: Called when the host is gone.
    """

    def __init__(self, source: int, sink: int, die: Callable[[], None]) -> None:
        self._source = source
        self._sink = sink
        self._die = die
        self._lock = threading.Lock()
        self._pulse = frames.Pulse()
        self._cancelled: set[int] = set()
        self.frames: queue.Queue[frames.Frame] = queue.Queue(_MAX_QUEUED)

    def start(self) -> None:
        """Start reading, beating and watching."""
        with contextlib.suppress(OSError):  # no pipe, or no Linux: an upload takes more turns then
            fcntl.fcntl(self._source, _SET_PIPE_BYTES, PIPE_BYTES)
        for work in (self._read, self._beat, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def send(self, kind: int, request: int, value: dict[str, object]) -> None:
        """Send one frame."""
        data = frames.encode_json(kind, request, value)
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._sink, data) :]
        except BrokenPipeError:
            self._die()

    def is_cancelled(self, request: int) -> bool:
        """Say whether the host has taken a request back."""
        return request in self._cancelled

    def _read(self) -> None:
        decoder = frames.Decoder()
        while True:
            data = os.read(self._source, 1 << 18)
            if not data:
                self._die()
            try:
                received = decoder.feed(data)
                self._pulse.note(len(data), len(received))
                for frame in received:
                    if frame.type == frames.CANCEL:
                        self._cancelled.add(frame.request)
                    if frame.type != frames.PING:
                        self.frames.put_nowait(frame)
            except (frames.FrameError, queue.Full) as error:
                message = "the host sent more than was asked for" if isinstance(error, queue.Full) else str(error)
                self.send(frames.ERROR, 0, AgentError("request", message).to_json())
                self._die()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self.send(frames.PING, 0, {})

    def _watch(self) -> None:
        while True:
            time.sleep(0.5)
            if self._pulse.silent_s > SILENCE_S:
                self._die()


class Agent:
    """Answers requests on one store."""

    def __init__(self, root: Path) -> None:
        self._child: Child | None = None
        self._child_key: tuple[object, ...] = ()
        self.store = Store(root)
        self.releases = Releases(self.store)
        self.runtimes = Runtimes(self.store)
        self._cache = str(self.runtimes.folder / "cache")
        self.machine = facts.Machine.here()
        self.wire: Wire | None = None
        self._request = 0
        self._held: set[str] = set()  # objects that the host will come back to in this conversation
        self._steady_c: object = None  # how hot the last sustained measurement was
        self._tidy()
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, object]]] = {
            "facts": self._facts,
            "have": self._have,
            "put": self._put,
            "synthesize": self._synthesize,
            "install": self._install,
            "releases": self._list,
            "activate": self._activate,
            "verify": self._verify,
            "collect": self._collect,
            "runtime": self._runtime,
            "measure": self._measure,
            "perplexity": self._perplexity,
            "generate": self._generate,
        }

    def _tidy(self) -> None:
        """Finish or undo what a cut installation left, unless somebody else is at work."""
        if self.releases.was_cut():
            try:
                with self.store.lock("recovery"):
                    self.releases.recover()
            except AgentError as error:
                if error.kind != "busy":
                    raise

    def serve(self, wire: Wire) -> int:
        """Answer requests until the host sends its end frame."""
        self.wire = wire
        wire.send(
            frames.HELLO,
            0,
            {
                "protocol": PROTOCOL,
                "digest": own_digest() or "",
                "pid": os.getpid(),
                "root": str(self.store.root),
                "python": ".".join(str(n) for n in sys.version_info[:3]),
            },
        )
        wire.start()
        while True:
            frame = wire.frames.get()
            if frame.type == frames.END:
                self.kill_child()
                wire.send(frames.END, 0, {})
                return 0
            if frame.type == frames.HELLO and frame.json().get("protocol") != PROTOCOL:
                error = AgentError("request", f"this agent speaks protocol {PROTOCOL}, the host another")
                wire.send(frames.ERROR, 0, error.to_json())
            if frame.type == frames.REQUEST:
                self._answer(wire, frame)

    def _answer(self, wire: Wire, frame: frames.Frame) -> None:
        self._request = frame.request
        try:
            request = frame.json()
            operation = self._operations.get(str(request.get("op")))
            if operation is None:
                raise AgentError("request", f"this agent knows no {request.get('op')!r}")
            wire.send(frames.RESULT, frame.request, operation(request))
        except AgentError as error:
            wire.send(frames.ERROR, frame.request, error.to_json())
        except OSError as error:
            wire.send(frames.ERROR, frame.request, disk_error(error, error.filename or self.store.root).to_json())
        except (frames.FrameError, KeyError, TypeError, ValueError) as error:
            message = f"the agent cannot answer: {type(error).__name__}: {error}"
            wire.send(frames.ERROR, frame.request, AgentError("failed", message).to_json())

    def _event(self, value: dict[str, object]) -> None:
        assert self.wire is not None
        self.wire.send(frames.EVENT, self._request, value)

    def _is_cancelled(self) -> bool:
        assert self.wire is not None
        return self.wire.is_cancelled(self._request)

    # -- objects --

    def _have(self, request: dict[str, Any]) -> dict[str, object]:
        wanted = [(check_digest(o["sha256"]), whole_number(o["bytes"], "bytes")) for o in request["objects"]]
        sizes = dict(wanted)
        if request.get("hold") is True:
            self._held.update(sizes)
        with contextlib.suppress(AgentError):  # where somebody works, another time
            self.releases.trim(SPARE_OBJECT_BYTES, self._held.union(sizes))
        missing = self.store.missing(wanted)
        self.store.check_space(sum(sizes[digest] - held for digest, held in missing))
        return {"missing": [{"sha256": digest, "offset": held} for digest, held in missing]}

    def _put(self, request: dict[str, Any]) -> dict[str, object]:
        """Take the data frames that follow; each is acknowledged by an event."""
        assert self.wire is not None
        digest, size = check_digest(request["sha256"]), whole_number(request["bytes"], "bytes")
        at = whole_number(request["offset"], "offset")
        with self.store.open_part(digest, at) as part:
            while at < size:
                frame = self.wire.frames.get()
                if frame.request != self._request or frame.type not in (frames.DATA, frames.CANCEL):
                    raise AgentError("request", f"expected data of {digest[:12]}, not {frame!r}")
                if frame.type == frames.CANCEL:
                    part.flush()
                    raise AgentError("cancelled", "stopped as asked; the upload can be resumed")
                at += len(frame.payload)
                if at > size or not frame.payload:
                    raise AgentError("request", f"{digest[:12]} is longer than it was said to be")
                part.write(frame.payload)
                self._event({"done": at})
            self.store.finish_part(digest, part)
        return {}

    def _synthesize(self, request: dict[str, Any]) -> dict[str, object]:
        """Make a file of weights from its description instead of taking it from the host."""
        digest, size = check_digest(request["sha256"]), whole_number(request["bytes"], "bytes")
        seed = whole_number(request["seed"], "seed")
        pieces = synthetic.check(request["pieces"])
        if sum(count for _, count, _ in pieces) != size:
            raise AgentError("request", f"the pieces of {digest[:12]} are not {size} bytes")
        self.store.check_space(size)
        with self.store.open_part(digest, 0) as part:
            for chunk in synthetic.generate(request["pieces"], seed):
                if self._is_cancelled():
                    raise AgentError("cancelled", "stopped as asked")
                part.write(chunk)
            self.store.finish_part(digest, part)
        return {}

    # -- releases --

    def _install(self, request: dict[str, Any]) -> dict[str, object]:
        digest, runtime = check_digest(request["manifest_sha256"]), str(request["runtime"])
        tokenizers, text = request.get("tokenizers"), request.get("text")
        with self.store.lock("install") as lock:

            def trial(folder: Path) -> dict[str, object]:
                asked: dict[str, object] = {"op": "trial", "folder": str(folder), "threads": self._threads(request)}
                if tokenizers is None:
                    return self._ask(lock, runtime, asked)
                return self._ask(lock, runtime, {**asked, "text": text}, self.runtimes.get(tokenizers)[1])

            return self.releases.install(digest, runtime, trial, own_digest(), tokenizers)

    def _list(self, request: dict[str, Any]) -> dict[str, object]:
        numbers = self.releases.numbers()
        return {"current": self.releases.current(), "releases": [self.releases.describe(n) for n in numbers]}

    def _activate(self, request: dict[str, Any]) -> dict[str, object]:
        with self.store.lock("activate"):
            self.releases.recover()
            return self.releases.activate(whole_number(request["release"], "release", 1))

    def _verify(self, request: dict[str, Any]) -> dict[str, object]:
        self.releases.verify(whole_number(request["release"], "release", 1))
        return {}

    def _collect(self, request: dict[str, Any]) -> dict[str, object]:
        keep = request.get("keep")
        with self.store.lock("collect"):
            return self.releases.collect(None if keep is None else whole_number(keep, "keep", 1))

    # -- runtimes and models --

    def _facts(self, request: dict[str, Any]) -> dict[str, object]:
        """Tell what this machine is; where asked, how fast it reads its memory and how far apart its cores stand."""
        found = {**facts.gather(self.machine), "runtimes": self.runtimes.all()}
        if request.get("core_distance") is True:
            found["core_distance_ns"] = meter(self.machine, self._threads(request))()
        if request.get("bandwidth") is True:
            with self.store.lock("bandwidth"):
                cache, free = facts.cpu_cache_bytes(self.machine), facts.memory(self.machine)["available"]
                found["memory_bandwidth"] = read_bytes_per_s(self._threads(request), cache, free)
        return found

    def _runtime(self, request: dict[str, Any]) -> dict[str, object]:
        """Register a runtime: unzip its wheels where it has some, check it in a child, keep the record."""
        wheels = [(str(w["name"]), check_digest(w["sha256"])) for w in request.get("wheels") or []]
        with self.store.lock("runtime") as lock:
            folder = self.runtimes.unzip(request["name"], wheels) if wheels else None
            beside = self.runtimes.get(request["beside"])[1] if request.get("beside") else None

            def check(python: str, path: str | None) -> dict[str, object]:
                package = str(request.get("package", "onnxruntime"))
                child = Child(python, path, lock, self._cache, beside)
                return self._ask_child(child, {"op": "check", "runtime": package})

            record = self.runtimes.add(request["name"], folder, check)
            self.runtimes.forget_wheels(wheels)
            return record

    def _threads(self, request: dict[str, Any]) -> int:
        best = len(facts.performance_cores(self.machine))
        if request.get("threads") is None:
            return best
        threads, most = whole_number(request["threads"], "threads", 1), max(best, os.cpu_count() or 1)
        if threads > most:  # they would only wait for one another, and the machine for all of them
            hint = f"--threads {most} at most; without it: {best}"
            raise AgentError("usage", f"{threads} threads are more than the device's {most} cores", hint)
        return threads

    def _ask(self, lock: int, runtime: str, asked: dict[str, object], beside: str | None = None) -> dict[str, object]:
        """Ask a fresh child of a runtime; the kept one, which holds memory, ends first."""
        self.kill_child()
        return self._ask_child(Child(*self.runtimes.get(runtime), lock, self._cache, beside), asked)

    def _ask_child(self, child: Child, asked: dict[str, object]) -> dict[str, object]:
        self._child, self._child_key = child, ()
        try:
            return child.ask(asked, self._event, self._is_cancelled)
        finally:
            self.kill_child()

    def _measure(self, request: dict[str, Any]) -> dict[str, object]:
        budget = request.get("budget_s")
        with self.store.lock("measure") as lock:
            folder = self.releases.stage(check_digest(request["manifest_sha256"]))
            try:
                asked: dict[str, object] = {
                    "op": "measure",
                    "folder": str(folder),
                    "tests": request["tests"],
                    "threads": self._threads(request),
                    "context_length": whole_number(request["context_length"], "context_length", 1),
                    "budget_s": DEFAULT_BUDGET_S if budget is None else budget,
                    "sustained": request.get("sustained") is True,
                    "steady_c": self._steady_c,
                    "core_distance_ns": positive_number(request.get("core_distance_ns"), "core_distance_ns"),
                }
                answer = self._ask(lock, str(request["runtime"]), asked)
                self._steady_c = answer.pop("steady_c", None)
                return answer
            finally:
                shutil.rmtree(str(folder), ignore_errors=True)

    def _perplexity(self, request: dict[str, Any]) -> dict[str, object]:
        tokens = self.store.object_path(check_digest(request["tokens_sha256"]))
        with self.store.lock("perplexity") as lock:
            folder = self.releases.stage(check_digest(request["manifest_sha256"]))
            try:
                asked: dict[str, object] = {
                    "op": "perplexity",
                    "folder": str(folder),
                    "tokens_file": str(tokens),
                    "threads": self._threads(request),
                    "context_length": whole_number(request["context_length"], "context_length", 1),
                }
                return self._ask(lock, str(request["runtime"]), asked)
            finally:
                shutil.rmtree(str(folder), ignore_errors=True)
                tokens.unlink()

    def _generate(self, request: dict[str, Any]) -> dict[str, object]:
        """Generate with the release in use; its child is kept for the next prompt."""
        number = self.releases.current()
        if number is None:
            raise AgentError("missing", "nothing is deployed on the device", "deploy with: merino-edge deploy")
        threads = self._threads(request)
        with self.store.lock("generate") as lock:
            manifest = self.releases.describe(number)
            details = manifest["manifest"]
            assert isinstance(details, dict)
            context = int(details["context_length"])
            key = (number, threads)
            if self._child is None or self._child_key != key:
                self.kill_child()
                self.releases.verify(number)  # a card ages, and wrong weights only make other text
                self._child = Child(*self.runtimes.get(manifest["runtime"]), lock, self._cache)
                folder = str(self.releases.path(number))
                opened: dict[str, object] = {"op": "open", "folder": folder, "threads": threads}
                self._keep({**opened, "context_length": context})
                self._child_key = key
            return self._keep({**request, "context_length": context})

    def _keep(self, asked: dict[str, object]) -> dict[str, object]:
        """Ask the kept child; any failure but a refusal ends it."""
        assert self._child is not None
        try:
            return self._child.ask(asked, self._event, self._is_cancelled)
        except AgentError as error:
            if error.kind not in ("request", "cancelled"):
                self.kill_child()
            raise

    def kill_child(self) -> None:
        """End the measuring child, if there is one."""
        child, self._child, self._child_key = self._child, None, ()
        if child is not None:
            child.kill()
