"""Train an architecture on text: from a request to a checkpoint folder.

The work goes on in a hidden folder beside the checkpoint (`.checkpoint.training`), which a killed
training continues from; the finished checkpoint is written to another and renamed. The same request
on the same machine gives the same loss, to the last bit on a CPU; a budget in seconds turns the
clock into a number of steps, so there only the request with that number of steps repeats.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from merino_edge.checkpoint import WEIGHTS, read_config
from merino_edge.errors import InvalidFileError, TrainingError, writing_hint
from merino_edge.files import read_json, sha256_file, write_json
from merino_edge.settings import cache_home
from merino_edge.training import processes
from merino_edge.training.data import TokenData, prepare_data
from merino_edge.training.evaluate import evaluate_tokens, load_model
from merino_edge.training.loop import (
    ENDLESS,
    OrderedTrainer,
    PackedTokens,
    Plan,
    Watch,
    last_save,
    make_optimizer,
    quiet,
    stack,
)
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM
from merino_edge.training.request import Report, TrainRequest, TrainResult, smaller_micro_batch, with_defaults
from merino_edge.training.save import LEAST_VALIDATION, held_out_tokens, write_checkpoint
from merino_edge.training.teacher import Teacher, check_teacher, open_teacher

__all__ = ["TrainRequest", "TrainResult", "train"]

PLAN = "plan.json"
TORCH_WRITING = ("PytorchStreamWriter", "file write failed", "unexpected pos")  # what torch.save says of a full disk
LAYER_SHAPES = 64  # compiled at most
RESERVE = 0.05  # of a time budget, for scoring and writing


def train(request: TrainRequest, progress: Report | None = None) -> TrainResult:
    """Train, and write the checkpoint folder.

    Args:
        request: What to do.
        progress: Told `stage`, `step`, `steps`, `tokens`, `loss`, `tokens_per_s`, `seconds_left`;
            the stages are `tokenizer`, `tokens`, `training`, `validation`. With `note`: a line for a person.

    Raises:
        DataError: the text cannot be used, or the teacher has other tokens.
        InvalidFileError: the teacher is no checkpoint of ours, or is damaged.
        TrainingError: the disk is full, the loss is no number, or another training is unfinished here.
    """
    started = time.monotonic()

    def report(facts: Mapping[str, Any]) -> None:
        if progress and processes.is_main():
            empty = dict.fromkeys(("step", "steps", "tokens", "loss", "tokens_per_s", "seconds_left"))
            progress({"stage": "training", **empty, **facts})

    if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise TrainingError(
            "FSDP does not work on GPUs: the loss reads the token table, which FSDP has cut up",
            hint="start the same command with torchrun; every GPU then holds the whole model",
        )
    threads = torch.get_num_threads()
    try:
        with quiet():
            if request.threads:
                torch.set_num_threads(request.threads)
            processes.connect()
            with processes.main_first():
                data = _data(request, report)
            request = with_defaults(request, data.train_tokens, torch.cuda.is_available(), processes.count())
            result = _train(request, data, started, report)
            processes.disconnect()
            return result
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"training into {request.output} stopped: {error}", hint=_hint(error)) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in TORCH_WRITING):
            raise
        raise TrainingError(
            f"cannot save the training of {request.output}: {error}", hint="free some space; the same command goes on"
        ) from error
    finally:
        torch.set_num_threads(threads)


def _hint(error: OSError | SafetensorError) -> str:
    """Return what to do where a training could not be written: what was saved stays."""
    space = writing_hint(error, "move the run to another disk") if isinstance(error, OSError) else "free some space"
    return f"{space}; the same command goes on"


def _data(request: TrainRequest, report: Report) -> TokenData:
    tokenizer = request.tokenizer
    if request.start_from is not None:
        architecture, _ = read_config(request.start_from)
        if architecture.digest != request.architecture.digest:
            raise TrainingError(
                f"{request.start_from} holds another architecture: {architecture.describe()},"
                f" not {request.architecture.describe()}"
            )
        tokenizer = tokenizer or str(request.start_from / "tokenizer.json")
    check_teacher(request)
    if request.teacher is not None:
        tokenizer = tokenizer or str(request.teacher / "tokenizer.json")
    return prepare_data(
        request.data,
        vocab_size=request.architecture.vocab_size,
        tokenizer=tokenizer,
        context_length=request.context_length,
        seed=request.seed,
        folder=request.token_folder or cache_home() / "tokens",
        progress=report,
    )


def _train(request: TrainRequest, data: TokenData, started: float, report: Report) -> TrainResult:
    work = request.output.parent / f".{request.output.name}.training"
    teacher = open_teacher(request, data, report)
    with processes.main_first():
        plan, record = _open_work(work, request, data, teacher)
    trained_before = read_config(request.start_from)[1].get("trained_tokens", 0) if request.start_from else 0
    if plan.seconds is not None:
        plan.seconds -= time.monotonic() - started  # reading the text costs time too
    while True:
        try:
            model, watch, steps = _run(request, data, work, plan, record, report, started, teacher)
            break
        except torch.OutOfMemoryError as error:
            request = _halved(request, error)
        gc.collect()  # the failed step's tensors hang on the error, which is gone only here
        torch.cuda.empty_cache()
        report({"note": f"out of GPU memory: going on with micro-batches of {request.micro_batch}"})
    tokens = steps * (request.tokens_per_batch or 0)
    model.config.trained_tokens = int(trained_before) + tokens
    result = None
    if processes.is_main():
        result = _finish(request, data, model, watch, tokens, started, report, teacher)
    result = processes.agree(result)
    assert result is not None
    if processes.is_main():
        shutil.rmtree(work)
    return result


def _halved(request: TrainRequest, error: torch.OutOfMemoryError) -> TrainRequest:
    """Return the request with half the micro-batch; refuse where the processes could not agree on that, or at 1."""
    if request.micro_batch == 1 or request.micro_batch is None:
        raise TrainingError(
            "one sequence does not fit the memory of the GPU",
            hint="use a shorter --context" + (", or a smaller --teacher" if request.teacher else ""),
        ) from error
    smaller = smaller_micro_batch(request, processes.count())
    if processes.count() > 1:
        raise TrainingError(
            f"micro-batches of {request.micro_batch} do not fit the memory of a GPU",
            hint=f"the same command with --micro-batch {smaller.micro_batch} goes on",
        ) from error
    return smaller


def _finish(
    request: TrainRequest,
    data: TokenData,
    model: MerinoForCausalLM,
    watch: Watch,
    tokens: int,
    started: float,
    report: Report,
    teacher: Teacher | None,
) -> TrainResult:
    """Score the held-out tokens, as many as a time budget leaves time for, and write the checkpoint."""
    limit = watch.plan.seconds
    evaluation = evaluate_tokens(
        model,
        data.validation()[: held_out_tokens(tokens)],
        request.context_length,
        progress=lambda share: report({"stage": "validation", "step": round(100 * share), "steps": 100}),
        seconds=None if limit is None else max(limit - watch.elapsed(), RESERVE * limit),
    )
    return write_checkpoint(request, data, model, watch, evaluation, tokens, started, teacher)


def _open_work(
    work: Path, request: TrainRequest, data: TokenData, teacher: Teacher | None
) -> tuple[Plan, dict[str, Any]]:
    """Open the folder of an unfinished training, or begin one; return its plan and its record."""
    record = {**request.to_json(), "tokens_digest": data.digest}
    record["start_from"] = sha256_file(request.start_from / WEIGHTS) if request.start_from else None
    record |= {"teacher": teacher.sha256 if teacher else None, "teacher_share": request.teacher_share}
    used, steps = 0.0, _steps(request, data)
    if not request.resume and work.exists() and processes.is_main():
        shutil.rmtree(work)
    if (work / PLAN).exists():
        old = _read_plan(work)
        different = [key for key in record if old.get("request", {}).get(key) != record[key]]
        if different:
            raise TrainingError(
                f"an unfinished training with other settings lies in {work}: {', '.join(different)} differ",
                hint="give the same settings to go on, or --no-resume to drop it",
            )
        if request.seconds is not None:
            used, steps = old.get("seconds_used", 0.0), old.get("steps")
    elif processes.is_main():
        write_json(work / PLAN, {"request": record, "steps": steps, "seconds_used": 0.0})
    return Plan(steps, request.seconds, request.warmup, request.schedule, used, RESERVE, LEAST_VALIDATION), record


def _read_plan(work: Path) -> dict[str, Any]:
    try:
        return read_json(work / PLAN, "training plan")
    except InvalidFileError as error:
        raise TrainingError(error.message, hint="--no-resume drops the unfinished training") from error


def _steps(request: TrainRequest, data: TokenData) -> int | None:
    batch = request.tokens_per_batch or 1
    if request.seconds is not None:
        return None
    if request.steps is not None:
        return request.steps
    return max(1, math.ceil((request.tokens or data.train_tokens) / batch))


def _run(
    request: TrainRequest,
    data: TokenData,
    work: Path,
    plan: Plan,
    record: dict[str, Any],
    report: Report,
    started: float,
    teacher: Teacher | None,
) -> tuple[MerinoForCausalLM, Watch, int]:
    """Train to the end of the plan, from the last complete save where there is one."""
    assert request.tokens_per_batch and request.learning_rate
    model = _model(request)
    if teacher is not None:
        teacher.place(bool(request.compile))
    watch: Watch

    def keep(plan: Plan) -> None:
        if processes.is_main():
            write_json(work / PLAN, {"request": record, "steps": plan.steps, "seconds_used": watch.elapsed()})

    log_steps = max(1, min(10, (plan.steps or ENDLESS) // 20)) if request.seconds is None else 10
    with processes.main_first():
        save = last_save(work, lambda text: report({"note": text}))
    writer = _writer(request, save)
    watch = Watch(
        plan, request.tokens_per_batch, request.save_seconds, report, log_steps, keep, request.flops_per_token,
        writer, started,
    )  # fmt: skip
    sequences = request.tokens_per_batch // request.context_length
    windows = (plan.steps or ENDLESS) * sequences
    trainer = OrderedTrainer(
        model=model,
        args=_arguments(request, work, plan.steps or ENDLESS, sequences),
        train_dataset=PackedTokens(data.train(), request.context_length, request.seed, windows),
        data_collator=stack,
        callbacks=[watch],
    )
    rate, decay = request.learning_rate, request.weight_decay
    trainer.make = functools.partial(make_optimizer, learning_rate=rate, weight_decay=decay)
    trainer.factor, trainer.teacher = plan.factor, teacher
    trainer.remove_callback(PrinterCallback)
    with _compiling(bool(request.compile)):
        trainer.train(resume_from_checkpoint=str(save) if save else None)
    if writer is not None:
        writer.close()
    return _whole(trainer, model), watch, trainer.state.global_step


def _compiling(compiled: bool) -> AbstractContextManager[Any]:
    """Let each shape of layer be compiled, the teacher's too: after eight of one function torch computes as written."""
    if not compiled:
        return nullcontext()
    config: Any = torch._dynamo.config
    patched: AbstractContextManager[Any] = config.patch(recompile_limit=LAYER_SHAPES)
    return patched


def _whole(trainer: OrderedTrainer, model: MerinoForCausalLM) -> MerinoForCausalLM:
    """Return the trained model with all its weights, in the main process at least."""
    if trainer.is_fsdp_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        model = MerinoForCausalLM(model.config)
        if processes.is_main():
            model.load_state_dict(weights)
    model.plain_parts()
    return model


def _writer(request: TrainRequest, save: Path | None) -> Any:
    """Open TensorBoard's log in the main process; a training that goes on continues it."""
    if request.log_folder is None or not processes.is_main():
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "logs for TensorBoard need the package 'tensorboard'", hint="pip install 'merino-edge[train]'"
        ) from error
    purge = int(save.name.rpartition("-")[2]) + 1 if save else None
    return SummaryWriter(str(request.log_folder), purge_step=purge)


def _model(request: TrainRequest) -> MerinoForCausalLM:
    """Make the model by the seed, or load the one to start from, on the device it will be trained on."""
    torch.manual_seed(request.seed)
    if request.start_from is not None:
        model = load_model(request.start_from)
        model.config.max_position_embeddings = request.context_length
    else:
        model = MerinoForCausalLM(
            MerinoConfig(architecture=request.architecture.to_json(), max_position_embeddings=request.context_length)
        )
    if torch.cuda.is_available():
        model.to(torch.device("cuda"))  # type: ignore[arg-type]  # transformers types its wrapper wrongly
    if request.compile:
        model.compile_parts()
    return model


def _arguments(request: TrainRequest, work: Path, steps: int, sequences: int) -> TrainingArguments:
    """Return the Trainer's settings: what `Watch` decides is switched off here."""
    assert request.micro_batch
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=request.micro_batch,
        gradient_accumulation_steps=max(1, sequences // (request.micro_batch * processes.count())),
        seed=request.seed,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        max_grad_norm=1.0,
        use_cpu=not cuda,
        ddp_backend=None if cuda or processes.count() == 1 else "gloo",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,
        disable_tqdm=True,
        log_level="error",
        report_to=[],
    )
