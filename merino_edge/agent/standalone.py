"""Text from the deployed model on this machine, with no host: what a release's own `run.py` does.

The model runs in the same measuring child as when a host asks, so the same seed gives the same
text; only the tokenizer is loaded here, from the wheels that `merino-edge deploy --standalone` brought.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable

from merino_edge.agent import facts
from merino_edge.agent.children import Child
from merino_edge.agent.errors import AgentError
from merino_edge.agent.releases import Releases
from merino_edge.agent.runtimes import Runtimes
from merino_edge.agent.store import Store
from merino_edge.agent.text import TextStream, end_of_text

DEFAULTS = {"max_tokens": 64, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "seed": 0}


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of one generation, checked; what is missing has its default.

    Raises:
        AgentError: `request`, for an unknown one or a number that means nothing.
    """
    unknown = [name for name in options if name not in (*DEFAULTS, "stop")]
    if unknown:
        raise AgentError("request", f"unknown key '{unknown[0]}'; known: prompt, {', '.join(DEFAULTS)}, stop")
    found: dict[str, Any] = {**DEFAULTS, "stop": [], **options}
    for name, default in DEFAULTS.items():
        value = found[name]
        good = isinstance(value, (int, float)) if isinstance(default, float) else isinstance(value, int)
        if not good or isinstance(value, bool):
            raise AgentError("request", f"{name} cannot be {value!r}")
    stops = [found["stop"]] if isinstance(found["stop"], str) else found["stop"]
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise AgentError("request", "stop must be a text or a list of texts")
    if found["max_tokens"] < 1 or found["top_k"] < 0 or found["seed"] < 0:
        raise AgentError("request", "max_tokens must be at least 1, top_k and seed at least 0")
    if not 0 <= found["temperature"] <= 100 or not 0 < found["top_p"] <= 1:
        raise AgentError("request", "temperature must lie between 0 and 100, top_p above 0 and at most 1")
    return {**found, "stop": stops}


class Model:
    """One release of this machine, with its tokenizer; the child that holds it is kept between texts.

    Args:
        folder: The release's.
        threads: For the model; None takes all performance cores.

    Raises:
        AgentError: there is nothing trained in it, or nothing to tokenize with.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.store = Store(folder.parent.parent)
        self.folder = folder
        note = Releases(self.store).describe(int(folder.name))
        self.manifest: dict[str, Any] = dict(note["manifest"])  # type: ignore[call-overload]
        if not self.manifest.get("trained"):
            raise AgentError("missing", "the weights of this release are random", "on the host: merino-edge train")
        self._runtimes = Runtimes(self.store)
        self._runtime = self._runtimes.get(note["runtime"])
        self._tokenizer = self._load_tokenizer(note.get("tokenizers"))
        self._threads = threads or len(facts.performance_cores(facts.Machine.here()))
        self._child: Child | None = None
        self._began = 0.0

    def _load_tokenizer(self, name: object) -> Any:
        """Load the release's tokenizer with the wheel it was checked with."""
        hint = "on the host: merino-edge deploy --standalone"
        if name is None:
            raise AgentError("missing", "the tokenizers wheel is not here", hint)
        folder = self._runtimes.get(name)[1]
        if folder is not None:
            sys.path.insert(0, folder)
        try:
            import tokenizers

            return tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:
            raise AgentError("missing", f"this release's tokenizer cannot be loaded: {error}", hint) from error

    def generate(self, prompt: str, options: dict[str, Any], emit: Callable[[str], None]) -> dict[str, object]:
        """Continue a prompt.

        Args:
            prompt: What to continue.
            options: See `check_options`.
            emit: Takes each piece of text; what it raises ends the generation.

        Returns:
            `tokens`, `seconds`, `tokens_per_s` and `ended`: `length`, `stop` or `context`.
        """
        asked = check_options(options)
        if any("\ud800" <= c <= "\udfff" for c in prompt):
            raise AgentError("request", "the prompt is not valid UTF-8", "convert it with: iconv -t UTF-8")
        end = end_of_text(self._tokenizer)
        ids = list(self._tokenizer.encode(prompt).ids) or [end or 0]
        room = int(self.manifest["context_length"]) - len(ids)
        if room < 1:
            text = f"the prompt has {len(ids)} tokens, the context holds {self.manifest['context_length']}"
            raise AgentError("request", text, "shorten it")
        stream, count = TextStream(self._tokenizer, asked.pop("stop")), 0

        def on_event(event: dict[str, object]) -> None:
            nonlocal count
            piece = stream.push(int(str(event["token"])))
            count += 1
            if piece:
                emit(piece)

        request = {**asked, "op": "generate", "token_ids": ids, "stop_ids": [] if end is None else [end]}
        request["max_tokens"] = min(asked["max_tokens"], room)
        ended = "stop"
        try:
            ended = str(self._ask(request, on_event, lambda: stream.stopped)["ended"])
        except AgentError as error:
            if error.kind != "cancelled" or not stream.stopped:
                raise
        rest = stream.end()
        if rest:
            emit(rest)
        seconds = time.monotonic() - self._began  # without loading the model
        return {"tokens": count, "seconds": seconds, "tokens_per_s": count / max(seconds, 1e-9), "ended": ended}

    def _ask(
        self, request: dict[str, Any], on_event: Callable[[dict[str, object]], None], stopped: Callable[[], bool]
    ) -> dict[str, object]:
        """Ask the child, starting it where there is none; only a refusal leaves it alive."""
        context = int(self.manifest["context_length"])
        with self.store.lock("run.py") as lock:
            good = False
            try:
                if self._child is None:
                    Releases(self.store).verify(int(self.folder.name))
                    self._child = _start(*self._runtime, lock, str(self._runtimes.folder / "cache"))
                    opened = {"op": "open", "folder": str(self.folder), "threads": self._threads}
                    self._child.ask({**opened, "context_length": context}, on_event, lambda: False)
                self._began = time.monotonic()
                answer = self._child.ask({**request, "context_length": context}, on_event, stopped)
                good = True
                return answer
            except AgentError as error:
                good = error.kind in ("request", "cancelled")
                raise
            finally:
                if not good:
                    self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def _start(python: str, path: str | None, lock: int, cache: str) -> Child:
    """Start a child that leaves Ctrl-C to us."""
    if not hasattr(signal, "pthread_sigmask"):
        return Child(python, path, lock, cache)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # a child inherits what is blocked
    try:
        return Child(python, path, lock, cache)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
