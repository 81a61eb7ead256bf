"""What tests need, ours and yours: a device with an analytic clock, and models small enough to run anywhere.

`FakeDevice` speaks the `Device` protocol without a process, a runtime or a file of its own. Its
times follow from operations and bytes alone, so that the same call gives the same samples on every
machine; nothing of it may be shown as a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import Bundle, Manifest, describe_file, read_bundle, write_manifest
from merino_edge.device.client import (
    GenerateOptions,
    InstallResult,
    Perplexity,
    Progress,
    PushResult,
    TestResult,
    TestSpec,
    TextCheck,
)
from merino_edge.errors import DeployError, InvalidFileError
from merino_edge.exporting import Exporter, ExportOptions
from merino_edge.files import sha256_file
from merino_edge.reference import random_tensors

TINY_SPACE_TOML = """\
# 2 x (2 x 2)^2 = 32 architectures, each of which trains and runs in a moment.
schema_version = 1
name = "tiny"
title = "two blocks of one narrow width, for tests"

vocab_size = 256
head_dim = 16
width = [32, 64]
embedding_width = "width"

[[block]]
count = 2
depth = [1, 2]
ffn_ratio = [1, 2]
"""


def write_tiny_space(folder: Path) -> Path:
    """Write the tiny space's TOML and return its path, for `--space` and `load_space`."""
    path = folder / "tiny.toml"
    path.write_text(TINY_SPACE_TOML, encoding="utf-8")
    return path


def tiny_architecture(vocab_size: int = 256) -> Architecture:
    """Return a model with all that can differ: two widths, shared layers, both projections."""
    return Architecture((Block(32, 2, 2), Block(64, 1, 1)), embedding_width=48, vocab_size=vocab_size, head_dim=16)


def tiny_architectures() -> tuple[Architecture, ...]:
    """Return models that each show one thing: the least, sharing, a change of width, norms of their own."""
    return (
        Architecture((Block(32, 1, 1),), 32, 64, head_dim=16),
        Architecture((Block(32, 2, 3),), 32, 64, head_dim=16),
        tiny_architecture(),
        Architecture((Block(32, 2, 2),), 32, 64, head_dim=16, per_layer_norms=True),
    )


def write_bundle(
    folder: Path,
    export: Exporter,
    architecture: Architecture,
    recipe: str = "fp32",
    context_length: int = 256,
    seed: int = 0,
    form: str = "standard",
) -> Bundle:
    """Export random weights with any exporter and write the manifest around them; no tokenizer.

    Args:
        folder: Made where it is missing.
        export: `merino_edge.exporters.to_onnx.export`, or yours.
        architecture: The model.
        recipe: Of the exporter.
        context_length: Tokens the cache may hold.
        seed: Of the weights.
        form: Of the exporter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(architecture, seed, scale=0.05)
    options = ExportOptions(form=form, context_length=context_length)
    result = export(architecture, tensors, folder, recipe, options)
    files = tuple(describe_file(folder, name) for name in result.files)
    manifest = Manifest(
        architecture=architecture,
        format=Path(result.files[0]).suffix[1:],
        recipe=recipe,
        form=result.form,
        exporter_version=result.exporter_version,
        runtime=result.runtime,
        runtime_min_version=result.runtime_min_version,
        files=files,
        context_length=context_length,
        file_bytes=sum(f.bytes for f in files),
        unique_bytes=result.unique_bytes,
        parity=result.parity,
        quality=None,
        trained=False,
        trained_tokens=0,
        check=result.check,
    )
    return write_manifest(folder, manifest)


@dataclass(frozen=True)
class FakeBoard:
    """The rates a `FakeDevice` computes its times from."""

    bandwidth_bytes_per_s: float = 4e9
    macs_per_s: float = 16e9
    layer_overhead_ms: float = 0.05
    token_overhead_ms: float = 0.2
    runtime_memory_bytes: int = 60_000_000
    cores: int = 4

    def milliseconds(self, architecture: Architecture, tokens: int, past: int, logits: int, weight_bytes: int) -> float:
        """Return the time of one call.

        Args:
            architecture: The model.
            tokens: New tokens.
            past: Tokens in the cache before.
            logits: Positions whose logits are wanted.
            weight_bytes: Bytes of one weight, in the recipe's precision.
        """
        table = architecture.vocab_size * architecture.embedding_width
        body = architecture.executed_parameters - 2 * table
        attention = sum(2 * b.depth * b.width for b in architecture.blocks) * tokens * (past + tokens)
        macs = body * tokens + table * logits + attention
        read = (body + table) * weight_bytes + architecture.kv_cache_bytes(past + tokens)
        compute_ms = 1e3 * max(macs / self.macs_per_s, read / self.bandwidth_bytes_per_s)
        return compute_ms + self.layer_overhead_ms * architecture.depth + self.token_overhead_ms


class FakeDevice:
    """A device that computes its answers; a context manager.

    Args:
        name: How it is called.
        board: Its rates.
        invalid_reason: Every measurement is invalid for this reason, where one is given.
        facts: Replace or extend what it says of itself.
    """

    def __init__(
        self,
        name: str = "fake",
        board: FakeBoard | None = None,
        invalid_reason: str | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Start empty: no objects, no releases."""
        self.name = name
        self.board = board or FakeBoard()
        self.invalid_reason = invalid_reason
        self.sustained = False
        self.core_distance_ns: float | None = None
        self.on_note: Callable[[str], None] | None = None
        self.holding = False
        self.last_generation: dict[str, float] | None = None
        self.measured: list[tuple[str, TestSpec]] = []
        self.closed = False
        self._facts = facts or {}
        self._objects: set[str] = set()
        self._releases: list[dict[str, Any]] = []
        self._current: int | None = None

    def __enter__(self) -> Self:
        """Return the device."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def facts(self, bandwidth: bool = False, core_distance: bool = False) -> dict[str, Any]:
        """See `Device.facts`."""
        del bandwidth, core_distance
        return {
            "device_id": "fake-0000000000",
            "os_image": "Fake OS 1, kernel 1.0",
            "board_model": "Fake Board",
            "emulated": None,
            "jetson": None,
            "architecture": "fake64",
            "cpu": {
                "model": "Fake Core",
                "cores": self.board.cores,
                "performance_cores": self.board.cores,
                "flags": [],
                "caches": [{"level": 2, "type": "Unified", "bytes": 1 << 20, "shared_by": self.board.cores}],
                "last_level_cache_bytes": 1 << 20,
                "max_frequency_khz": 1_500_000,
            },
            "memory": {"total": 4_000_000_000, "available": 3_500_000_000, "swap_used": 0},
            "python": {"version": "3.11.2", "platform": "linux-fake64", "bits": 64},
            "governor": "performance",
            "power_mode": "performance",
            "temperature_c": 40.0,
            "throttled": False,
            "throttled_bits": 0,
            "load1": 0.0,
            "power_w": None,
            "power_sensor": None,
            "power_reason": "a fake board has no power sensor",
            "memory_bandwidth": {"bytes_per_s": self.board.bandwidth_bytes_per_s, "threads": self.board.cores},
            "unknown": {"power_w": "a fake board has no power sensor"},
            "runtimes": [{"name": "fake", "runtime": "onnxruntime", "runtime_version": "1.99.0"}],
            **self._facts,
        }

    def missing_bytes(self, bundle: Bundle) -> int:
        """See `Device.missing_bytes`."""
        return sum(size for digest, size in self._sizes(bundle).items() if digest not in self._objects)

    def _sizes(self, bundle: Bundle) -> dict[str, int]:
        """Bytes of all that is kept of a bundle, the manifest with it, by digest."""
        manifest = bundle.folder / "manifest.json"
        sizes = {f.sha256: f.bytes for f in bundle.manifest.files}
        return {**sizes, sha256_file(manifest): manifest.stat().st_size}

    def push(self, bundle: Bundle, progress: Progress | None = None) -> PushResult:
        """See `Device.push`; the bundle is verified as a device would."""
        try:
            read_bundle(bundle.folder, verify=True)
        except InvalidFileError as error:
            raise DeployError(f"{self.name}: {error.message}", hint=error.hint) from error
        sizes = self._sizes(bundle)
        sent = sum(size for digest, size in sizes.items() if digest not in self._objects)
        self._objects.update(sizes)
        if progress is not None:
            progress(sent, sent)
        return PushResult(bytes_sent=sent, bytes_total=sum(sizes.values()))

    def install(
        self,
        bundle: Bundle,
        progress: Progress | None = None,
        text: TextCheck | None = None,
        standalone: bool = False,
    ) -> InstallResult:
        """See `Device.install`; a fake device has no `run.py`."""
        del text, standalone
        pushed = self.push(bundle, progress)
        digest, previous = sha256_file(bundle.folder / "manifest.json"), self._current
        number = len(self._releases) + 1
        release = {"release": number, "runtime": "fake", "manifest_sha256": digest}
        self._releases.append({**release, "manifest": bundle.manifest.to_json()})
        self._current = number
        return InstallResult(number, digest, pushed.bytes_sent, previous)

    def current(self) -> dict[str, Any] | None:
        """See `Device.current`."""
        return next((r for r in self._releases if r["release"] == self._current), None)

    def releases(self) -> list[dict[str, Any]]:
        """See `Device.releases`."""
        return list(self._releases)

    def activate(self, release: int) -> int | None:
        """See `Device.activate`."""
        if release not in [r["release"] for r in self._releases]:
            raise DeployError(f"{self.name}: there is no release {release}")
        self._current, previous = release, self._current
        return previous

    def collect(self, keep: int | None = None) -> int:
        """See `Device.collect`."""
        if keep is not None:
            kept = {r["release"] for r in self._releases[-keep:]} | {self._current}
            self._releases = [r for r in self._releases if r["release"] in kept]
        needed = {f["sha256"] for r in self._releases for f in r["manifest"]["files"]}
        freed = len(self._objects - needed)
        self._objects &= needed
        return freed

    def measure(
        self,
        bundle: Bundle,
        tests: Sequence[TestSpec],
        threads: int | None = None,
        context_length: int | None = None,
        budget_s: float | None = None,
        progress: Progress | None = None,
    ) -> list[TestResult]:
        """See `Device.measure`: the same samples at every call but for `slower`, a thousandth apart from each other."""
        del budget_s
        slower = self.slower()
        self.push(bundle)
        manifest = bundle.manifest
        context = context_length or manifest.context_length
        model_memory = manifest.unique_bytes + manifest.architecture.kv_cache_bytes(context)
        results = []
        for number, spec in enumerate(tests, start=1):
            self.measured.append((manifest.architecture.digest, spec))
            base_ns = self._sample_ns(bundle, spec)
            passes = spec.repeats or (1 if spec.test == "tg" else 5)
            count = passes * (spec.tokens if spec.test == "tg" else 1)
            results.append(
                TestResult(
                    spec=spec,
                    samples_ns=tuple(int(slower * (base_ns + base_ns * (i % 3 - 1) // 1000)) for i in range(count)),
                    warmup_ns=(2 * base_ns,) * (spec.warmup or 1),
                    load_ns=max(1, manifest.file_bytes),
                    peak_memory_bytes=self.board.runtime_memory_bytes + model_memory,
                    model_memory_bytes=model_memory,
                    file_backed_bytes=manifest.file_bytes,
                    runtime=manifest.runtime,
                    runtime_version="0.0.0",
                    provider="FakeExecutionProvider",
                    threads=threads or self.board.cores,
                    conditions={
                        "before": {"temperature_c": 40.0, "throttled_bits": 0},
                        "after": {"temperature_c": 41.0, "throttled_bits": 0},
                        "memory": {
                            "empty_runtime": {"anonymous": 1_000_000, "file_backed": 0},
                            "loaded": {"anonymous": 1_000_000 + manifest.unique_bytes, "file_backed": 0},
                            "cache_full": {"anonymous": 1_000_000 + model_memory, "file_backed": 0},
                        },
                        **({"state": "sustained"} if self.sustained else {}),
                    },
                    valid=self.invalid_reason is None,
                    invalid_reason=self.invalid_reason,
                )
            )
            if progress is not None:
                progress(number, len(tests))
        return results

    def slower(self) -> float:
        """Return how many times as long everything takes in this call: to override, for a device with neighbours."""
        return 1.0

    def _sample_ns(self, bundle: Bundle, spec: TestSpec) -> int:
        manifest = bundle.manifest
        weight_bytes = 4 if manifest.recipe == "fp32" else 1
        tokens, past = (1, spec.depth + spec.tokens // 2) if spec.test == "tg" else (spec.tokens, spec.depth)
        logits = spec.tokens if spec.test == "full" else 1
        return max(1, int(1e6 * self.board.milliseconds(manifest.architecture, tokens, past, logits, weight_bytes)))

    def perplexity(
        self,
        bundle: Bundle,
        token_ids: npt.NDArray[np.integer],
        context_length: int | None = None,
        progress: Progress | None = None,
    ) -> Perplexity:
        """See `Device.perplexity`: what a model that knows nothing scores, log V a token."""
        del context_length
        self.push(bundle)
        count = len(token_ids) - 1
        if progress is not None:
            progress(count, count)
        return Perplexity(count * math.log(bundle.manifest.architecture.vocab_size), count)

    def generate(self, token_ids: Sequence[int], options: GenerateOptions) -> Generator[int, None, None]:
        """See `Device.generate`: seeded random tokens of the deployed model's vocabulary."""
        current = self.current()
        if current is None:
            raise DeployError(f"{self.name}: nothing is deployed on the device", hint="merino-edge deploy")
        random = np.random.default_rng([options.seed, *token_ids])
        vocab_size = int(current["manifest"]["architecture"]["vocab_size"])
        count = 0
        for token in random.integers(0, vocab_size, options.max_tokens):
            if int(token) in options.stop_ids:
                break
            count += 1
            yield int(token)
        self.last_generation = {"tokens": count, "seconds": 0.01 * max(1, count), "load_ms": 10.0, "prefill_ms": 1.0}
