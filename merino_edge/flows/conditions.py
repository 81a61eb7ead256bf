"""What a latency or memory limit means: the conditions that search stores and later commands keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from merino_edge.errors import InvalidFileError, UsageError, check_keys
from merino_edge.run import Run

TESTS = ("tg", "pp128")
DEFAULT_RECIPE = "dynamic_wi8_afp32"
PROMPT_TOKENS = 128
GENERATED_TOKENS = 64
LATENCIES = "tg, ppN (pp128) or ttft"
DEFAULT_SPACE = "free"  # four blocks, as the poster has, cannot hold the decoders that trained best (docs/training.md)
_PROMPT = re.compile(r"^pp([1-9][0-9]{0,5})$")


@dataclass(frozen=True)
class Conditions:
    """How latency and memory are meant.

    Attributes:
        latency_of: `tg` (ms a generated token), `ppN` (ms to read a prompt of N tokens) or `ttft` (`pp128` and
            one token).
        percentile: Of the samples of one process: 50, the median, or for instance 90.
        depth: Tokens in the cache before the generated ones.
        format: Export format.
        recipe: Quantization recipe.
        form: How the graph is written.
        threads: Threads of the runtime; None means all performance cores.
        vocab_size: V of the architectures.
        context_length: Tokens the cache is filled to for memory.
        train_tokens: Tokens the model will be trained on.
    """

    latency_of: str = "tg"
    percentile: int = 50
    depth: int = 128
    format: str = "onnx"
    recipe: str = DEFAULT_RECIPE
    form: str = "standard"
    threads: int | None = None
    vocab_size: int = 16384
    context_length: int = 1024
    train_tokens: int = 300_000_000

    def __post_init__(self) -> None:
        """Check the words and numbers of the command line."""
        prompt = _PROMPT.match(self.latency_of)
        if prompt is None and self.latency_of not in ("tg", "ttft"):
            raise UsageError(f"--latency-of '{self.latency_of}' is no latency", hint=f"use {LATENCIES}")
        if isinstance(self.percentile, bool) or not 1 <= self.percentile <= 99:
            raise UsageError(f"--percentile must be a whole number from 1 to 99, not {self.percentile}")
        for name in ("depth", "vocab_size", "context_length", "train_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
        if self.depth + GENERATED_TOKENS > self.context_length:
            raise UsageError(
                f"a depth of {self.depth} and {GENERATED_TOKENS} generated tokens "
                f"do not fit a context of {self.context_length}"
            )
        if self.prompt_tokens > self.context_length:
            raise UsageError(
                f"a prompt of {self.prompt_tokens} tokens does not fit a context of {self.context_length}",
                hint=f"--context {self.prompt_tokens}",
            )

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt that is timed: N of `ppN`, else 128."""
        prompt = _PROMPT.match(self.latency_of)
        return int(prompt[1]) if prompt else PROMPT_TOKENS

    def sentence(self, device: str, vocabulary: str | None = None) -> str:
        """Say in one line what a latency limit means; `vocabulary` where it is still to be chosen."""
        threads = "all performance cores" if self.threads is None else f"{self.threads} threads"
        generated = f"ms per generated token after {self.depth} tokens"
        prompt = f"ms to read a prompt of {self.prompt_tokens} tokens"
        what = {"tg": generated, "ttft": f"{prompt} and generate one after {self.depth}"}.get(self.latency_of, prompt)
        statistic = "median" if self.percentile == 50 else f"{self.percentile}th percentile of"
        return (
            f"latency: {statistic} {what} on {device}, {self.format} {self.recipe} ({self.form}), {threads}, "
            f"vocabulary {vocabulary or self.vocab_size}, context {self.context_length}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that a run keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Conditions:
        """Read the JSON object; unknown keys are errors."""
        check_keys(value, (f.name for f in fields(cls)), where)
        try:
            return cls(**value)
        except (TypeError, UsageError) as error:
            raise InvalidFileError(f"{where}: {error}") from error

    def with_(self, **changes: Any) -> Conditions:
        """Return a copy; values of None change nothing."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})


DEFAULT_CONDITIONS = Conditions()


def run_conditions(run: Run | None) -> Conditions | None:
    """Return the conditions that a run was searched under, None where nothing was searched."""
    searched = run.search() if run is not None else None
    if run is None or searched is None:
        return None
    if not isinstance(searched.get("conditions"), Mapping):
        raise InvalidFileError(f"search {run.search_file}: 'conditions' is missing", hint="merino-edge search")
    return Conditions.from_json(searched["conditions"], f"search {run.search_file}")


def check_threads(device: str, facts: Mapping[str, Any], threads: int | None) -> None:
    """Refuse more threads than a device has cores: they would wait for each other, and every time be noise."""
    cores = facts.get("cpu", {}).get("cores")
    if threads is not None and isinstance(cores, int) and threads > cores:
        raise UsageError(f"--threads {threads}: {device} has {cores} cores", hint=f"--threads {cores}, or leave it out")
