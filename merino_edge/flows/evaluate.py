"""`evaluate`: perplexity on texts, zero-shot accuracy, and what an exported file loses against its checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merino_edge.bundle import Bundle
from merino_edge.errors import MerinoEdgeError, UsageError
from merino_edge.flows.devices import Ask, find_entry, opened
from merino_edge.flows.export import brought_up_to_date, exported_bundles
from merino_edge.flows.quality import read_validation
from merino_edge.flows.subject import Subject, resolve_subject
from merino_edge.progress import SILENT, Progress

if TYPE_CHECKING:
    from merino_edge.training.standard_texts import Opened

HUB = "hf:"


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line says.

    Attributes:
        model: `hf:NAME` instead of a run.
        data: Texts; the standard ones where none is named.
        context_length: Tokens of a window; None for the model's own.
        stride: Tokens from one window to the next; None for half the context.
        tokens: At most so many of each text.
        tasks: Zero-shot tasks; `all` for the 14.
        limit: Documents of each task.
        exports: Score the run's exported files too, on the held-out tokens.
        export_tokens: So many of them.
    """

    model: str | None = None
    data: tuple[str, ...] = ()
    context_length: int | None = None
    stride: int | None = None
    tokens: int | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    exports: bool = False
    export_tokens: int = 4096


def evaluate(
    subject_name: str | None, options: EvaluateOptions, ask: Ask | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Score a trained run, a checkpoint or a model of the hub.

    Returns:
        The document of `merino-edge evaluate --json`.
    """
    _check_tasks(options)
    subject, model, name = _open(subject_name, options)
    if options.exports and subject is not None and not exported_bundles(subject):
        raise UsageError(f"{subject.name} has no export", hint=f"merino-edge export {subject.name}")
    context = options.context_length or model.context_length
    if context > model.context_length:
        raise UsageError(f"{name} reads {model.context_length} tokens, not {context}", hint="give a shorter --context")
    stride = options.stride or max(1, context // 2)
    if stride > context:
        raise UsageError(f"--stride {stride} skips tokens of windows of {context}", hint=f"--stride {context} or less")
    document: dict[str, Any] = {"model": name, "run": subject.run.name if subject and subject.run else None}
    document["texts"] = _texts(model, options, context, stride, progress)
    document["tasks"], document["average"] = _tasks(model, options, progress)
    document["exports"] = _exports(subject, model, options, ask, progress) if options.exports else []
    if not any(document[key] for key in ("texts", "tasks", "exports")):
        raise UsageError(
            "nothing to evaluate on",
            hint="give --data FILE or --tasks NAME, or set MERINO_EDGE_DATA to the data folder",
        )
    return document


def _check_tasks(options: EvaluateOptions) -> None:
    """Refuse an unknown task before a model is loaded."""
    if not options.tasks:
        return
    if find_spec("lm_eval") is None:
        raise UsageError("zero-shot tasks need lm-eval", hint="pip install 'merino-edge[eval]'")
    from merino_edge.training.zero_shot import check_tasks

    check_tasks([name for name in options.tasks if name != "all"])


def _open(subject_name: str | None, options: EvaluateOptions) -> tuple[Subject | None, Opened, str]:
    try:
        from merino_edge.training.standard_texts import open_checkpoint, open_hub
    except ModuleNotFoundError as error:
        raise MerinoEdgeError(
            f"evaluating needs the package '{error.name}', which is not installed",
            hint="pip install 'merino-edge[train]'",
        ) from error
    if options.model is not None:
        if subject_name is not None or options.exports:
            raise UsageError("--model stands alone", hint="leave out the run and --exports")
        if not options.model.startswith(HUB):
            raise UsageError(
                f"--model must be hf:NAME, not '{options.model}'", hint="--model hf:gpt2; a run needs none"
            )
        return None, open_hub(options.model.removeprefix(HUB)), options.model
    subject = resolve_subject(subject_name, make_run=options.exports)  # exports lie in a run
    if subject.checkpoint is None:
        raise UsageError(
            f"{subject.name} has no trained weights", hint=f"train it first: merino-edge train {subject.name}"
        )
    return subject, open_checkpoint(subject.checkpoint), subject.name


def _texts(
    model: Opened, options: EvaluateOptions, context: int, stride: int, progress: Progress
) -> list[dict[str, Any]]:
    from merino_edge.training.standard_texts import read_texts, score_text

    rows = []
    for name, text in read_texts(options.data).items():
        with progress.task(f"reading {name}", 1.0) as task:
            rows.append(score_text(model, name, text, context, stride, task.update, options.tokens).to_json())
    return rows


def _tasks(
    model: Opened, options: EvaluateOptions, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    if not options.tasks:
        return [], None
    from merino_edge.training.zero_shot import TASKS, average, run_tasks

    names = [n for name in options.tasks for n in (TASKS if name == "all" else [name])]
    scores = []
    with progress.task("asking", float(len(names))) as task:
        for done, name in enumerate(names):
            task.update(float(done), f"asking {Path(name).name}")
            scores += run_tasks(model.model, model.tokenizer, [name], options.limit)
    return [asdict(score) for score in scores], average(scores)


def _exports(
    subject: Subject | None, model: Opened, options: EvaluateOptions, ask: Ask | None, progress: Progress
) -> list[dict[str, Any]]:
    """Score each exported file on this machine, and the checkpoint on the same tokens in the same windows."""
    assert subject is not None and subject.checkpoint is not None
    bundles = [brought_up_to_date(subject, bundle, progress) for bundle in exported_bundles(subject)]
    held_out = read_validation(subject.checkpoint)
    if held_out is None:
        raise UsageError(f"{subject.checkpoint} holds no held-out tokens", hint="train again")
    tokens, bytes_per_token = held_out[0][: options.export_tokens], held_out[1]
    rows = []
    with opened(find_entry("local"), ask) as device:
        for bundle in bundles:
            context = bundle.manifest.context_length
            with progress.task(f"reading with {bundle.label}", 1.0):
                result = device.perplexity(bundle, tokens, context, None)
            rows.append(_export_row(bundle, result.nll_nats_sum, result.tokens, model, tokens, bytes_per_token))
    return rows


def _export_row(
    bundle: Bundle, nats: float, scored: int, model: Opened, tokens: Any, bytes_per_token: float
) -> dict[str, Any]:
    from merino_edge.training.evaluate import Evaluation, evaluate_tokens

    context = bundle.manifest.context_length
    mine, theirs = Evaluation(nats, scored, context, context), evaluate_tokens(model.model, tokens, context)
    return {
        "bundle": bundle.label,
        "tokens": scored,
        "context_length": context,
        "stride": context,
        "perplexity": mine.perplexity,
        "bits_per_byte": mine.bits_per_byte(1) / (scored * bytes_per_token),
        "checkpoint_perplexity": theirs.perplexity,
        "change": mine.perplexity / theirs.perplexity - 1,
    }
