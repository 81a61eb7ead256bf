"""What is asked of a device, and what it answers: checked once, here, because a device may say anything."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from merino_edge.errors import ProtocolError, UsageError

Progress = Callable[[float, float], None]  # (done, in all): bytes, tokens, or tests

TestName = Literal["tg", "pp", "full"]
_MAX_TEXT = 2000
_MAX_DEPTH = 24  # of nested tables and lists
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TestSpec:
    """One test of a bundle.

    Attributes:
        test: `tg` (one token at a time), `pp` (one prompt), `full` (one prompt, logits of all positions).
        tokens: Tokens of one pass.
        depth: Tokens in the cache before it.
        warmup: Passes before, not counted; None leaves it to the timing code.
        repeats: Passes that count, whatever they take; None for as many as there is time.
    """

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest thinks

    test: TestName
    tokens: int
    depth: int = 0
    warmup: int | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no test."""
        if any(times is not None and times < 1 for times in (self.warmup, self.repeats)):
            raise UsageError(
                f"a test has at least one pass, not {self.warmup} to warm up and {self.repeats} that count"
            )
        if self.test not in get_args(TestName) or self.tokens < 1 or self.depth < 0:
            raise UsageError(f"there is no test '{self.test}' of {self.tokens} tokens at depth {self.depth}")


@dataclass(frozen=True)
class TestResult:
    """Raw samples of one test, and what the process that took them looked like.

    See `merino_edge.measurement.Measurement` for the meaning of each number.
    """

    __test__: ClassVar[bool] = False

    spec: TestSpec
    samples_ns: tuple[int, ...]
    warmup_ns: tuple[int, ...]
    load_ns: int
    peak_memory_bytes: int
    model_memory_bytes: int
    file_backed_bytes: int
    runtime: str
    runtime_version: str
    provider: str
    threads: int
    conditions: dict[str, Any] = field(default_factory=dict)
    valid: bool = True
    invalid_reason: str | None = None
    energy_mj: float | None = None
    energy_reason: str | None = None


@dataclass(frozen=True)
class PushResult:
    """What a push moved: payload bytes sent, and the size of all files of the bundle."""

    bytes_sent: int
    bytes_total: int


@dataclass(frozen=True)
class InstallResult:
    """A release: its number, the digest of its manifest, bytes sent for it, and the release before.

    Attributes:
        run_py: Path on the device of the `run.py` of the release in use; None where it could not tokenize.
    """

    release: int
    sha256: str
    bytes_sent: int
    previous: int | None
    run_py: str | None = None


@dataclass(frozen=True)
class TextCheck:
    """A text and what the host's tokenizer makes of it: the device's must agree before its `run.py` may use it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Perplexity:
    """Sum of negative log likelihoods in nats, and how many tokens it is over."""

    nll_nats_sum: float
    tokens: int

    @property
    def value(self) -> float:
        """The exponential of the mean."""
        return math.exp(min(700.0, self.nll_nats_sum / self.tokens))


@dataclass(frozen=True)
class GenerateOptions:
    """How to sample: see `merino_edge.agent.sampling.Sampler`.

    Attributes:
        max_tokens: At most so many.
        temperature: 0 takes the likeliest token.
        top_p: Keep the likeliest that together reach this probability.
        top_k: Keep so many of the likeliest; 0 keeps all.
        seed: Same seed, same text.
        stop_ids: End before one of these.
    """

    max_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled with."""
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"a temperature lies between 0 and 100, not at {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p lies above 0 and at most at 1, not at {self.top_p}")
        if self.top_k < 0 or self.seed < 0 or self.max_tokens < 1:
            raise UsageError("top_k and seed cannot be negative, and at least one token must be asked for")


def clean_text(text: object, limit: int = _MAX_TEXT) -> str:
    """Return a device's text without anything that could steer a terminal, cut to `limit` characters."""
    kept = "".join(c if c.isprintable() else " " for c in str(text)[: 2 * limit])
    return " ".join(kept.split())[:limit]


def clean(value: Any, depth: int = 0) -> Any:
    """Return a device's JSON value with every text in it cleaned.

    Raises:
        ProtocolError: it is nested deeper than anything that a device has to say.
    """
    if depth > _MAX_DEPTH:
        raise ProtocolError("the device answered something nested without end")
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {clean_text(key, 100): clean(item, depth + 1) for key, item in value.items()}
    return value


def table(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a table of an answer, cleaned; empty where there is none.

    Raises:
        ProtocolError: it is something else.
    """
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ProtocolError(f"the device answered {key} = {clean_text(found, 40)}, which is no table")
    cleaned: dict[str, Any] = clean(found)
    return cleaned


def tables(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of tables of an answer, cleaned."""
    found = value.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ProtocolError(f"the device answered no list of {key}")
    cleaned: list[dict[str, Any]] = clean(found)
    return cleaned


def _check_text(value: Mapping[str, Any], key: str) -> None:
    if not isinstance(value.get(key), str) or not value[key]:
        raise ProtocolError(f"the device does not say its {key}")


def _check_counts(value: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if value.get(key) is not None:
            whole(value, key)


def read_facts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Read the answer to `facts`: what the flows rely on is there, and of its kind; what is not known is None."""
    facts: dict[str, Any] = clean(dict(answer))
    for key in ("device_id", "os_image", "power_mode"):
        _check_text(facts, key)
    facts["cpu"], facts["memory"] = table(facts, "cpu"), table(facts, "memory")
    facts["python"] = table(facts, "python")
    facts["runtimes"] = tables({"runtimes": facts.get("runtimes") or []}, "runtimes")
    for key in ("model", "cores", "last_level_cache_bytes", "performance_cores"):
        facts["cpu"].setdefault(key, None)
    for key in ("total", "available", "swap_used"):
        facts["memory"].setdefault(key, None)
    _check_counts(facts["cpu"], ("cores", "last_level_cache_bytes", "performance_cores"))
    _check_counts(facts["memory"], ("total", "available", "swap_used"))
    return facts


def read_releases(answer: Mapping[str, Any]) -> tuple[int | None, list[dict[str, Any]]]:
    """Read the answer to `releases`: (the number in use, every release)."""
    found = tables(answer, "releases")
    for release in found:
        whole(release, "release", 1)
        manifest = release["manifest"] = table(release, "manifest")
        whole(manifest, "context_length", 1)
        if not isinstance(manifest.get("trained"), bool):
            raise ProtocolError("the device does not say whether its release is trained")
        for file in tables(manifest, "files"):
            _check_text(file, "name")
            if not _SHA256.fullmatch(str(file.get("sha256"))):
                raise ProtocolError("the device names a file of its release by something that is no SHA-256")
    return None if answer.get("current") is None else whole(answer, "current", 1), found


def whole(value: Mapping[str, Any], key: str, least: int = 0) -> int:
    """Return a whole number of an answer.

    Raises:
        ProtocolError: it is missing, no whole number, or too small.
    """
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 1 << 62:
        raise ProtocolError(f"the device answered {key} = {clean_text(number, 40)}, which is no whole number")
    return number


def positive(value: Mapping[str, Any], key: str) -> float:
    """Return a number of an answer that must not be negative."""
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e18:
        raise ProtocolError(f"the device answered {key} = {clean_text(number, 40)}, which is no such number")
    return float(number)


def samples(value: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return raw samples of an answer: whole nanoseconds above zero, less than a day each."""
    found = value.get(key)
    if not isinstance(found, list) or not found:
        raise ProtocolError(f"the device answered no {key}")
    if any(isinstance(s, bool) or not isinstance(s, int) or not 0 < s < 86_400 * 10**9 for s in found):
        raise ProtocolError(f"the device answered {key} that no clock gives")
    return tuple(found)


def read_results(answer: Mapping[str, Any], specs: tuple[TestSpec, ...]) -> list[TestResult]:
    """Read the answer to `measure`."""
    tests = answer.get("tests")
    if not isinstance(tests, list) or len(tests) != len(specs) or not all(isinstance(t, dict) for t in tests):
        raise ProtocolError(f"the device was asked for {len(specs)} tests and answered something else")
    result = []
    for spec, test in zip(specs, tests, strict=True):
        reason = test.get("invalid_reason")
        result.append(
            TestResult(
                spec=spec,
                samples_ns=samples(test, "samples_ns"),
                warmup_ns=samples(test, "warmup_ns"),
                load_ns=whole(answer, "load_ns", 1),
                peak_memory_bytes=whole(answer, "peak_memory_bytes", 1),
                model_memory_bytes=whole(answer, "model_memory_bytes"),
                file_backed_bytes=whole(answer, "file_backed_bytes"),
                runtime=clean_text(answer.get("runtime"), 100),
                runtime_version=clean_text(answer.get("runtime_version"), 100),
                provider=clean_text(answer.get("provider"), 100),
                threads=whole(answer, "threads", 1),
                conditions={**table(test, "conditions"), "memory": table(answer, "memory")},
                valid=reason is None,
                invalid_reason=None if reason is None else clean_text(reason),
                energy_mj=None if test.get("energy_mj") is None else positive(test, "energy_mj"),
                energy_reason=None if test.get("energy_reason") is None else clean_text(test["energy_reason"]),
            )
        )
    return result
