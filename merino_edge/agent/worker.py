"""The measuring child: the one process that imports numpy and a runtime.

It speaks frames with the agent over stdin and stdout. Whatever a runtime prints goes to stderr. It
ends when the agent does, and it offers itself first when memory runs out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

from merino_edge.agent import conditions, core_distance, frames, measure, watch
from merino_edge.agent.errors import AgentError
from merino_edge.agent.facts import Machine, memory
from merino_edge.agent.large_pages import use_large_pages
from merino_edge.agent.opening import open_session
from merino_edge.agent.runtime_check import check_runtime, check_tokenizer
from merino_edge.agent.sampling import Sampler
from merino_edge.agent.session import Session
from merino_edge.agent.store import read_json, whole_number

ENERGY_S = 2.0  # of running, for the energy of a token where there is a sensor
SPARE_MEMORY_BYTES = 48 << 20  # interpreter, runtime and activations of a small model


class Worker:
    """Answers requests one after the other.

    Args:
        output: Descriptor for frames.
    """

    def __init__(self, output: int) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._request = 0
        self._session: Session | None = None
        self._opened: dict[str, object] = {}
        self._machine = Machine.here()
        self._distance: core_distance.Distance = lambda: None
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, object]]] = {
            "check": lambda request: check_runtime(str(request["runtime"])),
            "trial": self._trial,
            "measure": self._measure,
            "perplexity": self._perplexity,
            "open": self._open,
            "generate": self._generate,
        }

    def send(self, kind: int, value: dict[str, object]) -> None:
        """Send one frame to the agent."""
        data = frames.encode_json(kind, self._request, value)
        with self._lock:
            while data:
                data = data[os.write(self._output, data) :]

    def serve(self, requests: Any) -> None:
        """Answer each request until `requests` (a queue) gives None."""
        while True:
            frame = requests.get()
            if frame is None:
                return
            self._cancelled.clear()
            self._request = frame.request
            try:
                request = frame.json()
                operation = self._operations.get(str(request.get("op")))
                if operation is None:
                    raise AgentError("request", f"the measuring child knows no {request.get('op')!r}")
                self.send(frames.RESULT, operation(request))
            except AgentError as error:
                self.send(frames.ERROR, error.to_json())
            except MemoryError:
                self.send(frames.ERROR, AgentError("memory", "memory ran out while the model was running").to_json())
            except Exception as error:  # noqa: BLE001  a runtime may raise anything; the agent must hear of it
                self.send(frames.ERROR, AgentError("failed", f"{type(error).__name__}: {error}").to_json())

    def cancel(self) -> None:
        """Stop at the next token or pass (called by the reading thread)."""
        self._cancelled.set()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise AgentError("cancelled", "stopped as asked")

    def _check_runtime(self, request: dict[str, Any]) -> dict[str, object]:
        """Check the runtime that a laid-out bundle names."""
        return check_runtime(str(read_json(Path(str(request["folder"])) / "manifest.json").get("runtime")))

    def _load(self, request: dict[str, Any]) -> tuple[Session, dict[str, Any], int]:
        """Open a bundle, its weights in large pages; returns (session, manifest, nanoseconds it took)."""
        folder = Path(str(request["folder"]))
        manifest: dict[str, Any] = dict(read_json(folder / "manifest.json"))
        self._check_memory(manifest, int(request.get("context_length") or 0))
        begin = time.perf_counter_ns()
        session = open_session(folder, manifest, int(request["threads"]))
        use_large_pages()
        return session, manifest, time.perf_counter_ns() - begin

    def _check_memory(self, manifest: dict[str, Any], context_length: int) -> None:
        """Never load what does not fit: a board that swaps or kills is worse than a clear word."""
        free = memory(self._machine)["available"]
        form, weights = manifest.get("form"), int(manifest["file_bytes"])
        needed = needed_bytes(manifest["architecture"], weights, context_length, form)
        if free is not None and needed > free:
            raise AgentError(
                "memory",
                f"the model needs about {needed >> 20} MiB and {free >> 20} MiB are free on the device",
                "choose a smaller model with: merino-edge search --memory",
                needed_bytes=needed,
                free_bytes=free,
            )

    def _trial(self, request: dict[str, Any]) -> dict[str, object]:
        """Open a bundle and compare what it answers with its manifest."""
        import numpy as np

        versions = self._check_runtime(request)
        session, manifest, load_ns = self._load(request)
        check = manifest["check"]
        prompt = [int(token) for token in check["token_ids"]]
        logits = session.feed(prompt, [len(prompt) - 1])[0]
        worst = max(abs(float(logits[int(token)]) - float(value)) for token, value in check["top"])
        if not np.isfinite(logits).all() or not worst <= float(check["tolerance"]):
            raise AgentError(
                "smoke",
                f"the bundle answers differently on the device: a logit is off by {worst:.3g}, "
                f"{float(check['tolerance']):.3g} is allowed",
                "export again; if it stays, this runtime computes wrongly on this CPU",
                max_abs_diff=worst if np.isfinite(worst) else None,
            )
        if not np.isfinite(session.feed([int(np.argmax(logits))], [0])).all():
            raise AgentError("smoke", "the bundle cannot generate a token from its cache")
        session.close()
        text = request.get("text")
        if text is not None:
            check_tokenizer(str(Path(str(request["folder"])) / "tokenizer.json"), str(text["text"]), text["token_ids"])
        return {"max_abs_diff": worst, "load_ns": load_ns, "provider": session.provider, **versions}

    def _measure(self, request: dict[str, Any]) -> dict[str, object]:
        """Time a bundle; see `measure.py`."""
        versions = self._check_runtime(request)
        empty = measure.memory_bytes()
        threads, context = int(request["threads"]), int(request["context_length"])
        session, _, load_ns = self._load(request)
        loaded = measure.memory_bytes()
        tests = request["tests"]
        state = {"test": "load", "done": 0, "of": len(tests)}

        def progress(share: float) -> None:
            self.send(frames.EVENT, {**state, "share": share})

        budget = float(request["budget_s"])
        queued = conditions.queued_per_thread(threads)
        timer = measure.Timer(session, budget, progress, self._check, queued, seed=int(request.get("seed", 0)))
        state["test"] = "memory"
        progress(0.0)
        timer.fill(context)
        full = measure.memory_bytes()
        results = []
        self._distance = core_distance.meter(self._machine, threads)
        request["patience_s"] = watch.MOVED_LIMIT_S
        for number, test in enumerate(tests):
            state.update(test=str(test["test"]), done=number)
            results.append(self._one_test(timer, test, request, state))
        session.close()
        found = measure.process_memory(empty, loaded, full)
        found["memory"]["end"] = measure.memory_bytes()
        return {
            **versions,
            "provider": session.provider,
            "threads": threads,
            "load_ns": load_ns,
            **found,
            "tests": results,
            "steady_c": request.get("steady_c"),
        }

    def _one_test(
        self, timer: measure.Timer, test: dict[str, Any], request: dict[str, Any], state: dict[str, object]
    ) -> dict[str, object]:
        """Run one test, a second time where heat or the machine's host disturbed the first."""
        sustained, usual_ns = request.get("sustained") is True, request.get("core_distance_ns")
        name, tokens, depth = str(test["test"]), int(test["tokens"]), int(test["depth"])
        warmup, repeats = _times(test, "warmup"), _times(test, "repeats")

        def say(text: str) -> None:
            self.send(frames.EVENT, {**state, "share": 0.0, "note": text})

        if sustained:
            once, before_c = (lambda: timer.once(name, tokens, depth)), request.get("steady_c")
            watch.run_until_steady(self._machine, once, say, self._check, before_c)
        for attempt in (1, 2):
            waited_s = 0.0 if sustained else watch.wait_until_cool(self._machine, say, self._check)
            request["patience_s"] -= watch.wait_until_back(
                self._distance, usual_ns, request["patience_s"], say, self._check
            )
            watching = watch.Watch(self._machine, self._distance)
            timer.between = watching.between
            timed = timer.run(name, tokens, depth, warmup, repeats)
            reason, seen = watching.reason(timed.queued_share, sustained, usual_ns)
            moved = core_distance.moved(watching.distances, usual_ns) is not None and request["patience_s"] > 0
            if reason is None or attempt == 2 or not (moved or conditions.is_hot(conditions.snapshot(self._machine))):
                break
            say(f"{reason}: once more")
        energy_mj, energy_reason = self._energy(timer, name, tokens, depth)
        if sustained:
            request["steady_c"] = watching.before.get("temperature_c")  # the next test begins hot
        return {
            "samples_ns": timed.samples,
            "warmup_ns": timed.warmup,
            "conditions": {**seen, "cooled_for_s": waited_s, "disturbed_ns": timed.set_aside},
            "invalid_reason": reason,
            "energy_mj": energy_mj,
            "energy_reason": energy_reason,
        }

    def _energy(self, timer: measure.Timer, name: str, tokens: int, depth: int) -> tuple[float | None, str | None]:
        """Return the energy of one token (of one prompt where prompts are timed) in millijoules, or None and why."""
        meter = watch.Meter(self._machine)
        if meter.reason is not None:
            return None, meter.reason
        passes, started = 0, time.monotonic()
        with meter:
            while time.monotonic() - started < ENERGY_S:
                self._check()
                timer.once(name, tokens, depth)
                passes += 1
            elapsed = time.monotonic() - started
        energy = meter.energy_mj()
        if energy is None:
            return None, meter.reason
        units = passes * (tokens if name == "tg" else 1)
        return energy * (elapsed / meter.seconds()) / units, None

    def _perplexity(self, request: dict[str, Any]) -> dict[str, object]:
        """Sum the negative log likelihood of a file of little-endian int32 tokens."""
        import numpy as np

        self._check_runtime(request)
        token_ids = np.fromfile(str(request["tokens_file"]), "<i4")
        if len(token_ids) < 2:
            raise AgentError("request", "a perplexity needs at least two tokens")
        session, _, _ = self._load(request)

        def progress(count: int) -> None:
            self._check()
            self.send(frames.EVENT, {"done": count, "of": len(token_ids) - 1})

        total, count = measure.negative_log_likelihood(session, token_ids, int(request["context_length"]), progress)
        session.close()
        return {"nll_nats_sum": total, "tokens": count}

    def _open(self, request: dict[str, Any]) -> dict[str, object]:
        """Load a bundle and keep it for `generate`."""
        versions = self._check_runtime(request)
        self._session, _, load_ns = self._load(request)
        self._opened = {"load_ns": load_ns, "provider": self._session.provider, **versions}
        return self._opened

    def _generate(self, request: dict[str, Any]) -> dict[str, object]:
        """Sample tokens after a prompt; each goes out as an event at once."""
        session = self._session
        if session is None:
            raise AgentError("request", "no bundle is open")
        prompt = [int(token) for token in request["token_ids"]]
        context, limit = int(request["context_length"]), int(request["max_tokens"])
        if not 0 < len(prompt) < context:
            raise AgentError("request", f"a prompt needs 1 to {context - 1} tokens, this one has {len(prompt)}")
        stop = {int(token) for token in request["stop_ids"]}
        sample = Sampler(
            float(request["temperature"]), float(request["top_p"]), int(request["top_k"]), int(request["seed"])
        )
        session.truncate(0)
        begin = time.perf_counter()
        logits = session.prefill(prompt)
        prefill_s = time.perf_counter() - begin
        count, ended = 0, "length"
        while count < limit:
            self._check()
            token = sample(logits)
            if token in stop:
                ended = "stop"
                break
            count += 1
            self.send(frames.EVENT, {"token": token})
            if session.length >= context:
                ended = "context"
                break
            if count < limit:
                logits = session.feed([token], [0])[0]
        seconds = time.perf_counter() - begin
        return {"tokens": count, "seconds": seconds, "prefill_ms": prefill_s * 1e3, "ended": ended, **self._opened}


def needed_bytes(architecture: dict[str, Any], weights: int, context_length: int, form: str | None) -> int:
    """Return how much memory must be free before a model is loaded, its cache included."""
    copies = 1 if form == "fast" else 2  # that form writes into the cache it reads
    cache: int = sum(2 * 4 * b["depth"] * b["width"] for b in architecture["blocks"]) * context_length * copies
    return weights + cache + SPARE_MEMORY_BYTES


def _times(test: dict[str, Any], key: str) -> int | None:
    """Return how many passes are asked for, None where that is left to the timer."""
    return None if test.get(key) is None else whole_number(test[key], key, 1)


def _read_requests(worker: Worker, requests: Any) -> None:
    """Turn stdin into requests; the end of stdin is the end of this process."""
    decoder = frames.Decoder()
    while True:
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)
        for frame in decoder.feed(data):
            if frame.type == frames.CANCEL:
                worker.cancel()
            elif frame.type == frames.REQUEST:
                requests.put(frame)
            elif frame.type == frames.END:
                requests.put(None)


def die_with_parent() -> None:
    """Ask Linux to kill this process when the agent dies, however it dies."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)
        with contextlib.suppress(OSError):  # some containers forbid it; then nobody is first
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def main() -> int:
    """Run the child until the agent ends it."""
    import queue

    output = os.dup(1)
    os.dup2(2, 1)  # what a runtime prints must not reach the frames
    die_with_parent()
    requests: queue.Queue[frames.Frame | None] = queue.Queue()
    worker = Worker(output)
    threading.Thread(target=_read_requests, args=(worker, requests), daemon=True).start()
    worker.serve(requests)
    return 0
