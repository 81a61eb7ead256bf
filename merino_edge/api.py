"""The commands as functions: what `merino-edge` does, from Python, in the same words and with the same units.

    from merino_edge import *

    profile_device("pi4", host="pi@kitchen.local")
    found = search_architecture("pi4", latency="50ms", memory="200MB")
    train_model(found["run"], data="stories.txt", time="1h")
    export_model(found["run"])
    deploy_model(found["run"], standalone=True)
    print(generate_text("Once upon a time", "pi4")["text"])
    for row in bench_models(found["run"])["rows"]:
        print(row["recipe"], row["test"], row["p50_ms"])

Each returns the document that its command prints with `--json` (schemas: `merino_edge/cli/schemas/`), and raises
what the command would end with: see the tree in `merino_edge.errors`. Nothing is printed; `progress` hears what the
command writes to stderr. `ask` may answer questions (an unknown host key, a password); without it they are refused.
Flows are imported when they are called, so that `import merino_edge` costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merino_edge.errors import MerinoEdgeError, UsageError, did_you_mean
from merino_edge.progress import SILENT, Progress
from merino_edge.units import Limit, parse_bytes, parse_count, parse_energy_mj, parse_limit, parse_ms, parse_seconds

__all__ = [
    "MerinoEdgeError",
    "bench_models",
    "deploy_model",
    "export_model",
    "generate_text",
    "profile_device",
    "search_architecture",
    "train_model",
]

Ask = Callable[..., "str | None"]
Document = dict[str, Any]
Subject = str | Path | None
"""A run, checkpoint folder, bundle, preset or architecture file; None for the latest run."""


def profile_device(
    device: str | None = None,
    *,
    host: str | None = None,
    estimate: bool = False,
    time: str = "5m",
    space: str | Path = "free",
    recipe: str | None = None,
    vocab: int | None = None,
    context: int | None = None,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Document:
    """Measure a device once, so that every other model's time and memory on it can be predicted.

    Args:
        device: Its name; None for the configured default, else this machine (`local`).
        host: `user@address`, which registers it first.
        estimate: Return what ships for its kind of board, and measure nothing.
        time: How long it may take: `5m`.
        space: Name or TOML file of the space whose architectures are measured.
        recipe: Of the files that are measured; None for `dynamic_wi8_afp32`.
        vocab: Vocabulary size V; None for 16384.
        context: Tokens the cache is filled to; None for 1024.
        ask: Answers questions.
        progress: Hears how far it is.

    Returns:
        `latency_model` (`mape`, `within_10pct`, `kendall`, all shares), `reach` (the smallest and the largest model:
        `tg_ms`, `pp128_ms`, `memory_bytes`), `facts`, and more.

    Raises:
        DeviceError: it cannot be reached, or refused.
        MeasurementError: what was measured is not valid.
    """
    from merino_edge.flows.conditions import Conditions
    from merino_edge.flows.profile import ProfileOptions, profile

    conditions = Conditions().with_(recipe=recipe, vocab_size=vocab, context_length=context)
    options = ProfileOptions(parse_seconds(time), str(space), conditions, host, estimate)
    return profile(device, options, ask, progress)


LIMITS: Mapping[str, tuple[str, Callable[[str], float]]] = {
    "latency": ("latency_ms", parse_ms),
    "memory": ("memory_bytes", parse_bytes),
    "file_size": ("file_bytes", parse_bytes),
    "parameters": ("parameters", parse_count),
    "flops": ("flops", parse_count),
    "energy": ("energy_mj", parse_energy_mj),
}
"""What `search_architecture` takes as a limit: the name a search knows it by, and how it is read."""


def search_architecture(
    device: str | None = None,
    *,
    space: str | Path | None = None,
    vocab: int | None = None,
    embedding_skip: bool | None = None,
    conditions: Mapping[str, Any] | None = None,
    score: str | None = None,
    mode: str = "auto",
    seed: int = 0,
    run: str | None = None,
    verify: bool = True,
    progress: Progress = SILENT,
    **limits: str,
) -> Document:
    """Find the architecture with the best score that meets every limit, and write it into a run.

    Args:
        device: Its name; None for the configured default, else this machine.
        space: Name or TOML file; None for `free`, with a score that is no sum or the evolutionary search for `poster`.
        vocab: Vocabulary size V, instead of the space's choices.
        embedding_skip: Add the normed embedding before each layer; None where the model has one width.
        conditions: What the limits mean, by the names of `merino_edge.flows.conditions.Conditions`: `latency_of`,
            `percentile`, `depth`, `recipe`, `context_length`, `threads`, `train_tokens`, ...
        score: Name of the score to maximise; None for the default.
        mode: `auto`, `exact`, `dp`, `evolution`.
        seed: Of the evolutionary search.
        run: Name of the run; None for the next free one.
        verify: Measure the winner on the device, and search again until it keeps the limits there.
        progress: Hears how far it is.
        limits: Each an upper one (`"50ms"`) or a range (`"50M..53M"`), with its unit: `latency` of a token, `memory` of
            the whole process, `file_size`, unique `parameters`, `flops` over 1,024 tokens without the head, `energy`.

    Returns:
        `run`, `architecture`, `score`, `predicted` and `measured` (`tg_ms`, `pp128_ms`, bytes), and more.

    Raises:
        InfeasibleError: nothing meets the limits; it names the binding one and the nearest candidate.
        UsageError: a quantity without its unit, or a name that nothing has.
    """
    from merino_edge.flows.conditions import Conditions
    from merino_edge.flows.search import search
    from merino_edge.flows.verify import SearchOptions, score_options

    options = SearchOptions(
        device=device,
        limits=_limits(limits),
        conditions=Conditions(**dict(conditions or {})),
        space=None if space is None else str(space),
        vocab_size=vocab,
        embedding_skip=embedding_skip,
        score=score_options(name=score),
        study_beta=True,
        mode=mode,
        seed=seed,
        run=run,
        verify=verify,
    )
    return search(options, progress)


def _limits(given: Mapping[str, str]) -> dict[str, Limit]:
    """Read limits as the command line does."""
    for name in given:
        if name not in LIMITS:
            raise UsageError(f"unknown limit '{name}'{did_you_mean(name, LIMITS)}")
    return {LIMITS[name][0]: parse_limit(text, LIMITS[name][1]) for name, text in given.items()}


def train_model(
    subject: Subject = None,
    *,
    data: str | Path | Sequence[str | Path] = (),
    tokens: str | None = None,
    steps: int | None = None,
    time: str | None = None,
    context: int = 256,
    progress: Progress = SILENT,
    **options: Any,
) -> Document:
    """Train a run's architecture on text; an interrupted training goes on where it was.

    Args:
        subject: What is trained.
        data: Text files, folders, or `hf:NAME`; empty for the default text.
        tokens: Budget: `20M`. At most one of the three budgets; without any, one epoch.
        steps: Budget in optimizer steps.
        time: Budget: `3m`.
        context: Tokens of one sequence.
        progress: Hears how far it is.
        options: More of `merino_edge.flows.train.TrainOptions`: `learning_rate`, `batch_tokens`, `seed`, ...

    Returns:
        `checkpoint`, `tokens`, `validation_loss` (nats a token), `perplexity`, `bits_per_byte`, and more.

    Raises:
        DataError: the text is too short, or yields another vocabulary.
        MerinoEdgeError: torch is not installed (`pip install 'merino-edge[train]'`).
    """
    from merino_edge.flows.train import TrainOptions, train

    sources = [data] if isinstance(data, str | Path) else data
    wish = TrainOptions(
        data=tuple(str(source) for source in sources),
        tokens=None if tokens is None else parse_count(tokens),
        steps=steps,
        seconds=None if time is None else parse_seconds(time),
        context_length=context,
        **options,
    )
    return train(_name(subject), wish, progress)


def export_model(
    subject: Subject = None,
    *,
    format: str = "onnx",
    recipe: str = "dynamic_wi8_afp32",
    form: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Document:
    """Write a checkpoint (random weights where there is none) as a bundle that is checked before it appears.

    Args:
        subject: What is exported.
        format: `onnx`, `tflite`.
        recipe: `fp32`, `dynamic_wi8_afp32`, `int4`, ...
        form: How the graph is written; None for what the run's device runs fastest.
        progress: Hears how far it is.
        options: More of `merino_edge.flows.export.ExportWish`: `quantizer`, `text`, `max_perplexity_change` (a share).

    Returns:
        `bundle` (its folder), `file_bytes`, `unique_bytes`, `parity`, `quality`, and more.

    Raises:
        ExportError: the file does not compute what it should, or is worse than allowed.
    """
    from merino_edge.flows.export import ExportWish, export

    return export(_name(subject), ExportWish(format, recipe, form, **options), progress)


def deploy_model(
    subject: Subject = None,
    device: str | None = None,
    *,
    format: str | None = None,
    recipe: str | None = None,
    keep: int | None = None,
    standalone: bool = False,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Document:
    """Put a model onto a device, verify it there, and switch to it; exports first where that is missing or old.

    Args:
        subject: What is deployed.
        device: Its name; None for the run's.
        format: None for the board's first choice.
        recipe: None for the board's first choice.
        keep: First remove all but the newest so many releases.
        standalone: Send a tokenizer too, so that the release's own `run.py` generates with no host.
        ask: Answers questions.
        progress: Hears how far it is.

    Returns:
        `release`, `sha256`, `bytes_sent`, `previous`, `run_py` (a path on the device, or None), and more.

    Raises:
        DeployError: the device refused it; the release before still serves.
    """
    from merino_edge.flows.deploy import deploy

    return deploy(_name(subject), device, format, recipe, keep, ask, progress, standalone)


def generate_text(
    prompt: str,
    device: str | None = None,
    *,
    max_tokens: int = 64,
    temperature: float = 0.8,
    top_p: float = 0.95,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Document:
    """Continue a prompt with the model deployed on a device.

    Args:
        prompt: What to continue.
        device: Its name; None for the configured default, else this machine.
        max_tokens: At most so many new tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: Smallest set of tokens with this probability.
        top_k: At most so many candidates; 0 for all.
        seed: Same seed, same text.
        stop: Texts at which to stop; they are not part of the answer.
        on_text: Takes each piece of text as it comes.
        ask: Answers questions.
        progress: Hears how far it is.

    Returns:
        `text` (without the prompt), `tokens`, `tokens_per_s`, `load_ms`, `prefill_ms`, and more.

    Raises:
        UsageError: nothing trained is deployed there, or the prompt is longer than the context.
    """
    from merino_edge.flows.generate import Sampling, generate

    sampling = Sampling(max_tokens, temperature, top_p, top_k, seed, tuple(stop))
    return generate(prompt, device, sampling, on_text or _hear_nothing, ask, progress)


def bench_models(
    subjects: Subject | Sequence[str | Path] = None,
    device: str | Sequence[str] | None = None,
    *,
    recipes: Sequence[str] = (),
    tests: Sequence[str] = (),
    time: str = "10s",
    tokens: int = 4096,
    text: str | Path | None = None,
    threads: int | None = None,
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> Document:
    """Measure models side by side on devices: speed, memory, size, perplexity of the file.

    Args:
        subjects: One or several runs, presets, bundles, files, or `hf:NAME`; None for the latest run.
        device: One name or several; None for the run's.
        recipes: `RECIPE` or `FORMAT/RECIPE`; empty for those exported, else fp32 and int8.
        tests: `pp128`, `tg64@128`, `full1024`, ...; empty for those of a profile.
        time: For each bundle's speed.
        tokens: Held-out tokens for perplexity; 0 leaves it out.
        text: Score all on this text instead of each one's held-out tokens.
        threads: Of the runtime; None for all performance cores.
        ask: Answers questions.
        progress: Hears how far it is.

    Returns:
        `rows`: `model`, `recipe`, `test`, `p50_ms`, `tokens_per_s`, `peak_memory_bytes`, `perplexity`, `samples_ns`,
        and more.

    Raises:
        PartialFailureError: some models or devices failed; the rows of the others are in its `partial`.
    """
    from merino_edge.flows.bench import BenchOptions, bench

    options = BenchOptions(
        devices=(device,) if isinstance(device, str) else tuple(device or ()),
        recipes=tuple(recipes),
        tests=tuple(tests),
        seconds=parse_seconds(time),
        tokens=tokens,
        text=None if text is None else str(text),
        threads=threads,
    )
    names = [subjects] if isinstance(subjects, str | Path) else list(subjects or ())
    return bench([str(name) for name in names], options, ask, progress)


def _name(subject: Subject) -> str | None:
    return None if subject is None else str(subject)


def _hear_nothing(text: str) -> None:
    """Take a piece of text that nobody waits for."""
