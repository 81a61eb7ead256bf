"""What can be asked of a training, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.errors import UsageError, did_you_mean

Report = Callable[[Mapping[str, Any]], None]
SCHEDULES = ("cosine", "wsd", "constant")
TEACHER_SHARE = 0.5  # of the loss, unless told
LARGE_BATCH = 32_768  # tokens of a step: from here on the learning rate of `bench/space_study.py` holds
GPU_MICRO_BATCH_TOKENS = 32_768  # of one forward pass, unless told: enough to fill a GPU


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what, for how long.

    Attributes:
        architecture: The model.
        output: The checkpoint folder to write.
        data: Sources as for `open_text`; None for the default text.
        tokenizer: None for a BPE of the text (or that of `start_from`, or of `teacher`), `gpt2`, or a path.
        start_from: A checkpoint to continue from, with its tokenizer.
        teacher: A checkpoint whose probabilities are learnt beside the text, with its tokenizer.
        teacher_share: Its share of the loss, above 0 and up to 1; None for `TEACHER_SHARE`.
        tokens: Budget in tokens. At most one of the three budgets; without any, one epoch.
        steps: Budget in optimizer steps.
        seconds: Budget in seconds of the whole call, text and validation included.
        context_length: Tokens of one sequence.
        tokens_per_batch: Of one optimizer step, all processes together; None for `default_batch`.
        micro_batch: Sequences of one forward pass; halved where the GPU's memory is too small.
        learning_rate: At its highest; None for `default_learning_rate`.
        weight_decay: For matrices.
        warmup: Steps of rising learning rate; None for a twentieth of the steps, at least 40 of 160 or more.
        schedule: `cosine`, `wsd` (falls over the last fifth) or `constant`.
        seed: Of weights, order and held-out text.
        resume: Go on where an unfinished training of the same request stopped; else drop it.
        flops_per_token: Of one forward pass, head included; recorded as FLOP/s.
        threads: Of the CPU; None for torch's choice.
        compile: Use `torch.compile`; None does where there is a GPU.
        save_seconds: Time between saves.
        token_folder: Where token files are kept; None for the user's cache folder.
        log_folder: Where TensorBoard finds loss, learning rate, tokens/s and MFU; None writes none.
    """

    architecture: Architecture
    output: Path
    data: tuple[str, ...] | None = None
    tokenizer: str | None = None
    start_from: Path | None = None
    teacher: Path | None = None
    teacher_share: float | None = None
    tokens: int | None = None
    steps: int | None = None
    seconds: float | None = None
    context_length: int = 256
    tokens_per_batch: int | None = None
    micro_batch: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.1
    warmup: int | None = None
    schedule: str = "cosine"
    seed: int = 0
    resume: bool = True
    flops_per_token: float | None = None
    threads: int | None = None
    compile: bool | None = None
    save_seconds: float = 60.0
    token_folder: Path | None = None
    log_folder: Path | None = None

    def __post_init__(self) -> None:
        """Check the numbers once, at the door."""
        if sum(budget is not None for budget in (self.tokens, self.steps, self.seconds)) > 1:
            raise UsageError("more than one budget", hint="give one of --tokens, --steps, --time")
        for name in ("tokens", "steps", "seconds", "tokens_per_batch", "micro_batch", "learning_rate", "threads"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be greater than zero, not {value}")
        if self.teacher_share is not None and self.teacher is None:
            raise UsageError("--teacher-share is nothing without a teacher", hint="give --teacher, or leave it out")
        if self.teacher_share is not None and not 0 < self.teacher_share <= 1:
            raise UsageError(
                f"--teacher-share must be above 0 and at most 1, not {self.teacher_share}",
                hint="0.5 listens to text and teacher alike",
            )
        if not 2 <= self.context_length <= 1 << 20:
            raise UsageError(f"context_length must be 2 to {1 << 20}, not {self.context_length}")
        if self.seed < 0 or self.weight_decay < 0 or (self.warmup or 0) < 0:
            raise UsageError("seed, weight_decay and warmup must not be negative")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"unknown schedule '{self.schedule}'{did_you_mean(self.schedule, SCHEDULES)}")

    def to_json(self) -> dict[str, Any]:
        """Return what decides the result, free of this host's paths: the record, and the key of a resume."""
        names = ["tokens", "steps", "seconds", "context_length", "tokens_per_batch", "learning_rate"]
        names += ["weight_decay", "warmup", "schedule", "seed"]
        return {"architecture": self.architecture.digest, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        checkpoint: The folder written.
        steps: Optimizer steps.
        tokens: Tokens trained on, in this training.
        train_loss: Mean of the last recorded steps, nats per token; with a teacher, of both together.
        validation_loss: On the held-out tokens that lie in the checkpoint, nats per token.
        perplexity: Exp of it.
        bits_per_byte: The same for each byte of the held-out text.
        validation_tokens: Scored ones; windows of the context's length that do not overlap.
        tokens_per_s: Over all steps, the first ones included.
        seconds: Of the whole call (earlier, killed calls apart).
        startup_seconds: Of the call until steps took their usual time: text, model, compilation.
        steady_tokens_per_s: Of the steps after that; None where there were too few.
        mfu: Share of the GPU's dense bf16 peak that these steps used, a teacher's work not counted; None without
            a known GPU.
        memory_bytes: The most of the GPU's memory, or the process's on a CPU.
        curve: `step`, `tokens`, `loss`, `learning_rate` of each recorded point.
        teacher: What it learnt from beside the text; None where there was no teacher.
    """

    checkpoint: Path
    steps: int
    tokens: int
    train_loss: float
    validation_loss: float
    perplexity: float
    bits_per_byte: float
    validation_tokens: int
    tokens_per_s: float
    seconds: float
    startup_seconds: float
    steady_tokens_per_s: float | None
    mfu: float | None
    memory_bytes: int
    curve: tuple[Mapping[str, float], ...]
    teacher: Mapping[str, Any] | None = None


def default_batch(request: TrainRequest, tokens: int, cuda: bool) -> int:
    """Tokens of one step: about a thousandth of all, a power of two from 1,024 to 131,072.

    A short training needs many small steps more than it needs smooth ones.

    Args:
        request: Of it the time budget counts, at a plain guess of the machine's speed.
        tokens: Of one epoch, where the request says nothing.
        cuda: Whether there is a GPU.
    """
    if request.seconds is not None:
        tokens = int(request.seconds * (500_000 if cuda else 2_000))
    elif request.tokens is not None:
        tokens = request.tokens
    return max(request.context_length, min(1 << 17, max(1 << 10, 1 << int(math.log2(max(1, tokens / 1024))))))


def default_learning_rate(architecture: Architecture, batch: int) -> float:
    """Highest learning rate: falls with the width, and is lower for small steps.

    1.1 over the width is what decoders of 10 to 81 M parameters and steps of 32,768 tokens learn best at
    (`bench/space_study.py`); the rate of smaller steps was tried on models of 4 to 15 M parameters.

    Args:
        architecture: Of it the widest block counts.
        batch: Tokens of one step.
    """
    width = max(block.width for block in architecture.blocks)
    return (4.3e-3 if batch >= LARGE_BATCH else 3e-3) * min(1.0, 256 / width)


def with_defaults(request: TrainRequest, epoch_tokens: int, cuda: bool, processes: int = 1) -> TrainRequest:
    """Fill in what was left open; batch and micro-batch become whole numbers of sequences of each process."""
    batch = request.tokens_per_batch or default_batch(request, epoch_tokens, cuda)
    share = request.context_length * processes
    if batch % share:
        batch = max(1, round(batch / share)) * share
    rate = request.learning_rate or default_learning_rate(request.architecture, batch)
    compiled = cuda if request.compile is None else request.compile
    request = replace(request, tokens_per_batch=batch, learning_rate=rate, compile=compiled)
    if request.teacher is not None and request.teacher_share is None:
        request = replace(request, teacher_share=TEACHER_SHARE)
    micro = request.micro_batch or (max(1, GPU_MICRO_BATCH_TOKENS // request.context_length) if cuda else 8)
    return replace(request, micro_batch=_dividing(micro, batch // share))


def smaller_micro_batch(request: TrainRequest, processes: int = 1) -> TrainRequest:
    """Halve the micro-batch, to a number that divides the batch."""
    sequences = (request.tokens_per_batch or 0) // (request.context_length * processes)
    return replace(request, micro_batch=_dividing((request.micro_batch or 2) // 2, sequences))


def _dividing(wanted: int, sequences: int) -> int:
    """Return the largest number up to `wanted` that divides the sequences, at least 1."""
    return next((micro for micro in range(min(wanted, sequences), 1, -1) if sequences % micro == 0), 1)
