"""A device as the flows see it: one protocol, spoken by a board, by this machine, and by a fake.

`open_device` connects, pushes the agent where it is missing, and returns an `AgentDevice`; the
`FakeDevice` of `merino_edge.testing` speaks the same protocol with an analytic clock.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from merino_edge.bundle import Bundle
from merino_edge.device.agent_link import AgentLink
from merino_edge.device.provision import RUNTIME, ensure_runtime, ensure_tokenizers, start_agent
from merino_edge.device.records import (
    GenerateOptions,
    InstallResult,
    Perplexity,
    Progress,
    PushResult,
    TestResult,
    TestSpec,
    TextCheck,
    clean_text,
    positive,
    read_facts,
    read_releases,
    read_results,
    whole,
)
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.releases import install_bundle, missing_bytes, push_bundle, push_files
from merino_edge.device.transport import LocalTransport, Transport
from merino_edge.errors import ProtocolError, UsageError

__all__ = [
    "AgentDevice",
    "Device",
    "GenerateOptions",
    "InstallResult",
    "Perplexity",
    "Progress",
    "PushResult",
    "TestResult",
    "TestSpec",
    "TextCheck",
    "open_device",
]

MAX_TESTS = 32  # of one request


class Device(Protocol):
    """Anything that bundles can be installed, measured and run on."""

    sustained: bool
    """Measure in the hot state that lasts, and say so, instead of waiting for the board to cool."""
    core_distance_ns: float | None
    """How far apart its cores usually stand; a measurement waits for that, and does not count elsewhere. None waits
    for nothing."""
    on_note: Callable[[str], None] | None
    """Hears what keeps a measurement waiting, for instance a board that must cool first."""
    holding: bool
    """Keep what is sent from now on as long as this conversation lasts: for models that are measured in turn."""

    @property
    def name(self) -> str:
        """How the user calls it."""

    @property
    def last_generation(self) -> dict[str, float] | None:
        """`tokens`, `seconds`, `load_ms`, `prefill_ms` of the last complete generation."""

    def facts(self, bandwidth: bool = False, core_distance: bool = False) -> dict[str, Any]:
        """Return what the device is: see `merino_edge.agent.facts.gather`, and `runtimes`.

        Args:
            bandwidth: Also measure how fast it reads its memory: `memory_bandwidth`.
            core_distance: Also measure how far apart its cores stand: `core_distance_ns`, None where that is not known.
        """

    def push(self, bundle: Bundle, progress: Progress | None = None) -> PushResult:
        """Send those files of a bundle that the device lacks."""

    def missing_bytes(self, bundle: Bundle) -> int:
        """Return how many bytes of a bundle would have to be sent."""

    def install(
        self,
        bundle: Bundle,
        progress: Progress | None = None,
        text: TextCheck | None = None,
        standalone: bool = False,
    ) -> InstallResult:
        """Send, verify, try and switch to a bundle; until then the former one serves.

        Args:
            bundle: What is installed.
            progress: Of what is sent.
            text: What the bundle's tokenizer makes of a text; without it the release's `run.py` cannot tokenize.
            standalone: Send a tokenizers wheel for `run.py` where the device has none; else one is only used
                where it is there already.
        """

    def current(self) -> dict[str, Any] | None:
        """Return the release in use (`release`, `runtime`, `manifest`, ...), None where there is none."""

    def releases(self) -> list[dict[str, Any]]:
        """Return all releases as `current` does, the oldest first."""

    def activate(self, release: int) -> int | None:
        """Switch to an installed release after checking its files; returns the one before."""

    def collect(self, keep: int | None = None) -> int:
        """Remove what no release needs, and all but the newest `keep` releases; returns bytes freed."""

    def measure(
        self,
        bundle: Bundle,
        tests: Sequence[TestSpec],
        threads: int | None = None,
        context_length: int | None = None,
        budget_s: float | None = None,
        progress: Progress | None = None,
    ) -> list[TestResult]:
        """Time a bundle without switching to it.

        Args:
            bundle: What is measured; sent where the device lacks it.
            tests: One result each, in order.
            threads: None takes all performance cores.
            context_length: Tokens the cache is filled to for the memory reading; None takes the manifest's.
            budget_s: Seconds of timing for all tests together (a first pass of each is always completed); None
                allows 10 for each.
            progress: Called with (tests done, tests in all); fractions while one runs.
        """

    def perplexity(
        self,
        bundle: Bundle,
        token_ids: npt.NDArray[np.integer],
        context_length: int | None = None,
        progress: Progress | None = None,
    ) -> Perplexity:
        """Sum the negative log likelihood of a text `(N,)` on the device, window by window."""

    def generate(self, token_ids: Sequence[int], options: GenerateOptions) -> Generator[int, None, None]:
        """Yield tokens after a prompt from the release in use; closing the iterator stops the device."""

    def close(self) -> None:
        """End the conversation."""

    def __enter__(self) -> Self:
        """Return the device."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""


def open_device(entry: DeviceEntry, ask: Callable[..., Any] | None = None) -> AgentDevice:
    """Connect to a device and start its agent.

    Args:
        entry: From the registry.
        ask: Asks the user about an unknown host key or a password; None where nobody can be asked.

    Raises:
        DeviceError: it cannot be reached, or refused.
    """
    transport = open_transport(entry, ask)
    try:
        return AgentDevice(entry, transport, start_agent(transport, entry))
    except BaseException:
        transport.close()
        raise


def open_transport(entry: DeviceEntry, ask: Callable[..., Any] | None) -> Transport:
    """Connect to a device and start nothing there."""
    if entry.transport == "local":
        return LocalTransport()
    from merino_edge.device.ssh import open_ssh  # paramiko takes its time to import

    return open_ssh(entry, ask)


class AgentDevice:
    """A device reached through its agent; a context manager.

    Args:
        entry: Which one.
        transport: The way to it.
        link: The conversation with its agent.
    """

    def __init__(self, entry: DeviceEntry, transport: Transport, link: AgentLink) -> None:
        """Keep the parts; nothing is asked yet."""
        self.name = entry.name
        self.sustained = False
        self.core_distance_ns: float | None = None
        self.on_note: Callable[[str], None] | None = None
        self.holding = False
        self.last_generation: dict[str, float] | None = None
        self._entry = entry
        self._transport = transport
        self._link = link
        self._runtimes: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Return the device."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End agent and connection."""
        self._link.close()
        self._transport.close()

    def runtime(self, progress: Progress | None = None, package: str = RUNTIME) -> str:
        """Return the name of the runtime that bundles of a package are run with, provisioned where there is none."""
        if package not in self._runtimes:
            self._runtimes[package] = ensure_runtime(self._link, self._entry, progress, package)
        return self._runtimes[package]

    def facts(self, bandwidth: bool = False, core_distance: bool = False) -> dict[str, Any]:
        """See `Device.facts`."""
        return read_facts(self._link.ask("facts", bandwidth=bandwidth, core_distance=core_distance))

    def push(self, bundle: Bundle, progress: Progress | None = None) -> PushResult:
        """See `Device.push`."""
        return push_bundle(self._link, bundle, progress, self.holding)[0]

    def missing_bytes(self, bundle: Bundle) -> int:
        """See `Device.missing_bytes`."""
        return missing_bytes(self._link, bundle)

    def install(
        self,
        bundle: Bundle,
        progress: Progress | None = None,
        text: TextCheck | None = None,
        standalone: bool = False,
    ) -> InstallResult:
        """See `Device.install`."""
        runtime, tokenizers = self.runtime(package=bundle.manifest.runtime), None
        if text is not None:
            tokenizers = ensure_tokenizers(self._link, self._entry, runtime, standalone)
        return install_bundle(self._link, bundle, runtime, progress, tokenizers, text)

    def current(self) -> dict[str, Any] | None:
        """See `Device.current`."""
        current, found = read_releases(self._link.ask("releases"))
        return next((r for r in found if r["release"] == current), None)

    def releases(self) -> list[dict[str, Any]]:
        """See `Device.releases`."""
        return read_releases(self._link.ask("releases"))[1]

    def activate(self, release: int) -> int | None:
        """See `Device.activate`."""
        answer = self._link.ask("activate", release=release)
        return None if answer.get("previous") is None else whole(answer, "previous", 1)

    def collect(self, keep: int | None = None) -> int:
        """See `Device.collect`."""
        return whole(self._link.ask("collect", keep=keep), "bytes_freed")

    def measure(
        self,
        bundle: Bundle,
        tests: Sequence[TestSpec],
        threads: int | None = None,
        context_length: int | None = None,
        budget_s: float | None = None,
        progress: Progress | None = None,
    ) -> list[TestResult]:
        """See `Device.measure`."""
        specs = tuple(tests)
        if not 1 <= len(specs) <= MAX_TESTS:
            raise UsageError(f"1 to {MAX_TESTS} tests can be asked for at once, not {len(specs)}")
        _, digest = push_bundle(self._link, bundle, hold=self.holding)

        def on_event(event: dict[str, Any]) -> None:
            if self.on_note is not None and event.get("note") is not None:
                self.on_note(clean_text(event["note"], 200))
            if progress is not None:
                progress(whole(event, "done") + min(1.0, positive(event, "share")), len(specs))

        answer = self._link.ask(
            "measure",
            on_event,
            manifest_sha256=digest,
            runtime=self.runtime(package=bundle.manifest.runtime),
            tests=[asdict(spec) for spec in specs],
            threads=threads,
            context_length=context_length or bundle.manifest.context_length,
            budget_s=None if budget_s is None else budget_s / len(specs),
            sustained=self.sustained,
            core_distance_ns=self.core_distance_ns,
        )
        return read_results(answer, specs)

    def perplexity(
        self,
        bundle: Bundle,
        token_ids: npt.NDArray[np.integer],
        context_length: int | None = None,
        progress: Progress | None = None,
    ) -> Perplexity:
        """See `Device.perplexity`."""
        _, digest = push_bundle(self._link, bundle)
        content = np.ascontiguousarray(token_ids, "<i4").tobytes()
        tokens = hashlib.sha256(content).hexdigest()
        with tempfile.TemporaryDirectory(prefix="merino-edge-") as folder:
            path = Path(folder) / "token_ids"
            path.write_bytes(content)
            push_files(self._link, {tokens: path})

        def on_event(event: dict[str, Any]) -> None:
            if progress is not None:
                progress(whole(event, "done"), whole(event, "of"))

        answer = self._link.ask(
            "perplexity",
            on_event,
            manifest_sha256=digest,
            tokens_sha256=tokens,
            runtime=self.runtime(package=bundle.manifest.runtime),
            context_length=context_length or bundle.manifest.context_length,
        )
        return Perplexity(positive(answer, "nll_nats_sum"), whole(answer, "tokens", 1))

    def generate(self, token_ids: Sequence[int], options: GenerateOptions) -> Generator[int, None, None]:
        """See `Device.generate`."""
        exchange = self._link.exchange(
            "generate",
            token_ids=[int(token) for token in token_ids],
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            seed=options.seed,
            stop_ids=list(options.stop_ids),
        )
        try:
            for _ in range(options.max_tokens):
                yield whole(next(exchange), "token")
            next(exchange)
            raise ProtocolError("the device generates more than it was asked for")
        except StopIteration as end:
            answer = end.value
            self.last_generation = {
                "tokens": whole(answer, "tokens"),
                "seconds": positive(answer, "seconds"),
                "load_ms": positive(answer, "load_ns") / 1e6,
                "prefill_ms": positive(answer, "prefill_ms"),
            }
        finally:
            exchange.close()
