"""What a finished training leaves: a Hugging Face folder, complete or not there at all.

`config.json model.safetensors generation_config.json tokenizer.json tokenizer_config.json`, and of
our own `training.json` (request, data, curve, result), `validation_tokens.npy`, `validation.json`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from merino_edge.checkpoint import WEIGHTS
from merino_edge.errors import TrainingError
from merino_edge.files import move_into_place, write_json
from merino_edge.tokenizer_settings import CONFIG, tokenizer_settings
from merino_edge.training import processes, speed
from merino_edge.training.data import TokenData, end_of_text_id, held_out_text, write_validation
from merino_edge.training.evaluate import Evaluation
from merino_edge.training.loop import Watch
from merino_edge.training.model import MerinoForCausalLM
from merino_edge.training.request import TrainRequest, TrainResult
from merino_edge.training.teacher import Teacher

VALIDATION_SHARE = 1 / 16  # held-out tokens scored for each token trained on, so that it takes little time
LEAST_VALIDATION = 8_192  # tokens


def held_out_tokens(trained: int) -> int:
    """Return how many held-out tokens a checkpoint keeps, and is scored on where the time suffices."""
    return max(LEAST_VALIDATION, int(VALIDATION_SHARE * trained))


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; put it in the place of `folder` if all went well."""
    temporary = folder.parent / f".{folder.name}.new"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        move_into_place(temporary, folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_checkpoint(
    request: TrainRequest,
    data: TokenData,
    model: MerinoForCausalLM,
    watch: Watch,
    evaluation: Evaluation,
    tokens: int,
    started: float,
    teacher: Teacher | None = None,
) -> TrainResult:
    """Write the checkpoint folder and return what it records."""
    if not math.isfinite(evaluation.loss):
        raise TrainingError(
            "the validation loss is no number", hint="train again with a lower --learning-rate and --no-resume"
        )
    with _replacing(request.output) as folder:
        _write_model(model, data, request, folder)
        write_validation(data, folder, held_out_tokens(tokens))
        scored = held_out_text(data, evaluation.tokens + 1)
        seconds = time.monotonic() - started
        rate = tokens / watch.elapsed() if watch.elapsed() else 0.0
        result = TrainResult(
            checkpoint=request.output,
            steps=tokens // (request.tokens_per_batch or 1),
            tokens=tokens,
            train_loss=watch.curve[-1]["loss"] if watch.curve else float("nan"),
            validation_loss=evaluation.loss,
            perplexity=evaluation.perplexity,
            bits_per_byte=evaluation.bits_per_byte(len(scored.encode())),
            validation_tokens=evaluation.tokens,
            tokens_per_s=rate,
            seconds=seconds,
            startup_seconds=watch.startup_seconds(),
            steady_tokens_per_s=watch.steady_tokens_per_s(),
            mfu=watch.mfu(),
            memory_bytes=speed.memory_bytes(),
            curve=tuple(watch.curve),
            teacher=teacher.facts() if teacher else None,
        )
        write_json(folder / "training.json", _record(request, data, result))
    return result


def _record(request: TrainRequest, data: TokenData, result: TrainResult) -> dict[str, Any]:
    names = ["steps", "tokens", "train_loss", "validation_loss", "perplexity", "bits_per_byte", "validation_tokens"]
    names += ["tokens_per_s", "seconds", "startup_seconds", "steady_tokens_per_s", "mfu", "memory_bytes"]
    cuda = torch.cuda.is_available()
    return {
        "request": request.to_json(),
        "micro_batch": request.micro_batch,
        "processes": processes.count(),
        "compiled": request.compile,
        "teacher": result.teacher,
        "data": {"source": data.source, "train_tokens": data.train_tokens, "digest": data.digest},
        "result": {name: getattr(result, name) for name in names},
        "model_flops_per_s": 3 * request.flops_per_token * result.tokens_per_s if request.flops_per_token else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "curve": [dict(point) for point in result.curve],
    }


def _write_model(model: MerinoForCausalLM, data: TokenData, request: TrainRequest, folder: Path) -> None:
    """Write the Hugging Face part: weights, configs, tokenizer."""
    tokenizer = Tokenizer.from_file(str(data.tokenizer))
    end = end_of_text_id(tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    (folder / WEIGHTS).chmod(0o644)  # as every other file
    shutil.copyfile(data.tokenizer, folder / "tokenizer.json")
    word = None if end is None else tokenizer.id_to_token(end)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": request.context_length}
    own = _chat_settings(request)
    write_json(folder / CONFIG, {**settings, "eos_token": word, "pad_token": word, **own})


def _chat_settings(request: TrainRequest) -> dict[str, str]:
    """Return the chat template and the special tokens that the named tokenizer has beside it."""
    named = request.tokenizer if request.tokenizer != "gpt2" else None
    beside = request.start_from or request.teacher
    source = Path(named).parent if named else beside if request.tokenizer is None else None
    template, words = tokenizer_settings(source) if source is not None else (None, {})
    return words if template is None else {**words, "chat_template": template}
