"""`train`: the run's architecture is trained on text; the checkpoint lies in the run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merino_edge.checkpoint import WEIGHTS, is_checkpoint, read_config
from merino_edge.errors import MerinoEdgeError, UsageError
from merino_edge.flows.conditions import run_conditions
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.progress import SILENT, Progress, Task
from merino_edge.search.cost import count_flops
from merino_edge.units import format_bytes

if TYPE_CHECKING:
    from merino_edge.training.request import TrainRequest


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says; None leaves it to `TrainRequest`.

    Attributes:
        data: Sources of text.
        tokenizer: `gpt2` or a path; None trains one on the text.
        start_from: A run or checkpoint folder to continue from.
        teacher: A run or checkpoint folder to learn from beside the text.
        teacher_share: Its share of the loss.
        tokens: Budget in tokens.
        steps: Budget in steps.
        seconds: Budget in seconds.
        context_length: Tokens of one sequence.
        batch_tokens: Tokens of one step.
        micro_batch: Sequences of one forward pass.
        learning_rate: At its highest.
        schedule: `cosine`, `wsd`, `constant`.
        seed: Of weights, order and split.
        resume: Go on with an interrupted training.
        threads: Of the CPU.
        compile: Use torch.compile; None does where there is a GPU.
        tensorboard: Write the run's `tensorboard/`.
    """

    data: tuple[str, ...] = ()
    tokenizer: str | None = None
    start_from: str | None = None
    teacher: str | None = None
    teacher_share: float | None = None
    tokens: int | None = None
    steps: int | None = None
    seconds: float | None = None
    context_length: int = 256
    batch_tokens: int | None = None
    micro_batch: int | None = None
    learning_rate: float | None = None
    schedule: str = "cosine"
    seed: int = 0
    resume: bool = True
    threads: int | None = None
    compile: bool | None = None
    tensorboard: bool = False


def train(subject_name: str | None, options: TrainOptions, progress: Progress = SILENT) -> dict[str, Any]:
    """Train a run's architecture and write its checkpoint.

    Returns:
        The document of `merino-edge train --json`.
    """
    subject = resolve_subject(subject_name)
    run = subject.require_run()
    try:
        from merino_edge.training.train import train as run_training
    except ModuleNotFoundError as error:
        raise MerinoEdgeError(
            f"training needs the package '{error.name}', which is not installed",
            hint="pip install 'merino-edge[train]'",
        ) from error
    request = _request(subject, options)
    with progress.task("training", 1.0) as task:
        result = run_training(request, _Reporter(task, progress, subject))
    return {
        "run": run.name,
        "checkpoint": str(result.checkpoint),
        "steps": result.steps,
        "tokens": result.tokens,
        "train_loss": result.train_loss,
        "validation_loss": result.validation_loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "validation_tokens": result.validation_tokens,
        "context_length": request.context_length,
        "stride": request.context_length,
        "tokens_per_s": result.tokens_per_s,
        "seconds": result.seconds,
        "startup_seconds": result.startup_seconds,
        "steady_tokens_per_s": result.steady_tokens_per_s,
        "mfu": result.mfu,
        "memory_bytes": result.memory_bytes,
        "parameters": subject.architecture.unique_parameters,
        "architecture": subject.architecture.to_json(),
        "teacher": dict(result.teacher) if result.teacher else None,
        "curve": [dict(point) for point in result.curve],
    }


def _request(subject: Subject, options: TrainOptions) -> TrainRequest:
    from merino_edge.training.request import TrainRequest

    start_from = _checkpoint_of(options.start_from) if options.start_from else None
    if start_from is not None and read_config(start_from)[0] != subject.architecture:
        raise UsageError(
            f"{start_from} holds {read_config(start_from)[0].describe()}, the run's architecture is "
            f"{subject.architecture.describe()}",
            hint="train without --from, or name the run it belongs to",
        )
    context = options.context_length
    return TrainRequest(
        architecture=subject.architecture,
        output=subject.require_run().checkpoint,
        data=options.data or None,
        tokenizer=options.tokenizer,
        start_from=start_from,
        teacher=_teacher(options.teacher) if options.teacher else None,
        teacher_share=options.teacher_share,
        tokens=options.tokens,
        steps=options.steps,
        seconds=options.seconds,
        context_length=context,
        tokens_per_batch=options.batch_tokens,
        micro_batch=options.micro_batch,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        seed=options.seed,
        resume=options.resume,
        flops_per_token=count_flops(subject.architecture, tokens=context, head=True) / context,
        threads=options.threads,
        compile=options.compile,
        log_folder=subject.require_run().folder / "tensorboard" if options.tensorboard else None,
    )


def note_budget(subject: Subject, tokens: int, progress: Progress) -> None:
    """Point out a budget far from the one that the search was told."""
    conditions = run_conditions(subject.run)
    if conditions is None:
        return
    told = conditions.train_tokens
    if not told / 3 <= tokens <= told * 3:
        progress.note(f"the search was told {told:,} training tokens, this training has {tokens:,}")


def _named_checkpoint(name: str) -> Path | None:
    """Return the checkpoint that a folder is, or that a run has."""
    path = Path(name)
    return path if is_checkpoint(path) else resolve_subject(name, make_run=False).checkpoint


def _checkpoint_of(name: str) -> Path:
    checkpoint = _named_checkpoint(name)
    if checkpoint is None or not (checkpoint / WEIGHTS).is_file():
        raise UsageError(
            f"'{name}' has no checkpoint to continue from", hint="train it first: merino-edge train " + name
        )
    return checkpoint


def _teacher(name: str) -> Path:
    try:
        checkpoint = _named_checkpoint(name)
    except UsageError as error:
        raise UsageError(f"--teacher: {error.message}", hint="name a trained run, or its checkpoint folder") from error
    if checkpoint is None:
        raise UsageError(
            f"--teacher: '{name}' has no trained weights", hint=f"train it first: merino-edge train {name}"
        )
    return checkpoint


class _Reporter:
    """Turns what training tells into one bar with a line of text."""

    def __init__(self, task: Task, progress: Progress, subject: Subject) -> None:
        self._task, self._progress, self._subject, self._told = task, progress, subject, False

    def __call__(self, facts: Mapping[str, Any]) -> None:
        if facts.get("note"):
            self._progress.note(str(facts["note"]))
            return
        step, steps = facts.get("step"), facts.get("steps")
        done = step / steps if step is not None and steps else 0.0
        text = {"tokenizer": "training the tokenizer", "tokens": "reading the text", "validation": "validating"}.get(
            str(facts["stage"]), "training"
        )
        if facts.get("loss") is not None:
            text += f" step {step}, loss {facts['loss']:.3f}, {facts['tokens_per_s']:,.0f} tokens/s"
            text += f", MFU {100 * facts['mfu']:.0f} %" if facts.get("mfu") else ""
        self._task.update(min(1.0, done), text)
        if not self._told and step is not None and step >= 20 and facts.get("steady"):
            self._told = True
            self._tell(facts)

    def _tell(self, facts: Mapping[str, Any]) -> None:
        """Say once how long it will take, and what it takes of memory and disk."""
        folder = self._subject.require_run().folder
        needed, free = 28 * self._subject.architecture.unique_parameters, shutil.disk_usage(folder).free
        self._progress.note(
            f"{facts['tokens_per_s']:,.0f} tokens/s, about {facts['seconds_left']:.0f} s left for {facts['steps']} "
            f"steps; memory {format_bytes(facts['memory_bytes'])}; disk up to {format_bytes(needed)} of "
            f"{format_bytes(free)} free"
        )
        if needed > free:
            self._progress.note("the disk may not hold the saves: free some space, the training goes on meanwhile")
        note_budget(self._subject, facts["steps"] * facts["tokens"] // max(1, facts["step"]), self._progress)
