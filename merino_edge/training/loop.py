"""Hugging Face's Trainer as it is used here: order of the data, schedule, saving, reporting.

All that a step depends on is saved or follows from the seed and the step's number, so a training
that was killed goes on exactly where its last complete save was.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as hf_logging

from merino_edge.errors import InvalidFileError, TrainingError
from merino_edge.files import read_json, sha256_file, sync_folder, write_json
from merino_edge.training import processes, speed
from merino_edge.training.data import TokenArray
from merino_edge.training.request import Report
from merino_edge.training.teacher import Teacher

WARMUP_SHARE = 0.05  # of the steps, as for the rows of `bench/poster_train.py`
LEAST_WARMUP = 40  # steps, where there are 160
FINAL_SHARE = 0.1  # of the learning rate, where a schedule ends
DECAY_SHARE = 0.2  # of the steps, at the end of warm-up, stable, decay
PROBE_STEPS = 10  # after which a time budget becomes a number of steps
PROBE_SHARE = 0.1  # of the time, where even so few steps take longer
REFITS = (0.25, 0.5, 0.75, 0.9)  # shares of the time at which that number is looked at again
SCORING_SPEED = 2.5  # tokens scored in the time that training takes for one: a third of the FLOPs, and a margin
MOST_RESERVED = 0.2  # of the time, however long scoring would take
ENDLESS = 1 << 40  # steps, while their number is unknown
COMPLETE = "complete.json"  # the last file of a save: a save without it was interrupted


class PackedTokens(Dataset[dict[str, torch.Tensor]]):
    """Windows of one long token sequence in an order that follows from the seed alone.

    Each epoch starts at another offset within the first window and takes its windows in another
    order. The length is that of the whole training, so the place in the data is the step's number.
    """

    def __init__(self, tokens: TokenArray, context_length: int, seed: int, length: int) -> None:
        """Keep the mapped tokens; `length` windows are asked for in the whole training."""
        self.tokens, self.context_length, self.seed, self.length = tokens, context_length, seed, length
        self.windows = max(1, (len(tokens) - context_length) // context_length)
        self._epoch, self._order, self._offset = -1, np.zeros(0, np.int64), 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, self.windows)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            spare = len(self.tokens) - self.windows * self.context_length
            self._epoch, self._order = epoch, rng.permutation(self.windows)
            self._offset = int(rng.integers(0, min(spare, self.context_length) + 1))
        start = self._offset + int(self._order[place]) * self.context_length
        ids = torch.from_numpy(self.tokens[start : start + self.context_length].astype(np.int64))  # (T,)
        return {"input_ids": ids, "labels": ids}


def stack(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Join windows `(T,)` to a batch `(B, T)`."""
    ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": ids, "labels": ids}


@dataclass
class Plan:
    """How many steps there will be; under a time budget that is found out on the way.

    Attributes:
        steps: None until the first steps of a time budget have been timed.
        seconds: The time budget of the steps, None where their number was given.
        warmup: Steps of rising learning rate; None for a twentieth of the steps, at least 40 of 160 or more.
        schedule: One of `request.SCHEDULES`.
        seconds_used: By earlier processes of the same training.
        reserve: Share of the time budget to leave for what comes after the last step, at least.
        scored: Tokens that are scored then.
        reserved: Seconds that are left for that, as far as is known.
    """

    steps: int | None
    seconds: float | None
    warmup: int | None
    schedule: str
    seconds_used: float = 0.0
    reserve: float = 0.0
    scored: int = 0
    reserved: float = 0.0

    def _warmup(self) -> int:
        """Steps that a training of this length warms up for, as far as its length is known."""
        if self.steps is None:
            return LEAST_WARMUP
        return max(min(LEAST_WARMUP, self.steps // 4), round(WARMUP_SHARE * self.steps))

    def factor(self, step: int) -> float:
        """Share of the learning rate at a step."""
        warmup = self._warmup() if self.warmup is None else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.schedule == "constant" or self.steps is None:
            return 1.0
        done = min(1.0, (step - warmup) / max(1, self.steps - warmup))
        if self.schedule == "wsd":
            return 1.0 - (1.0 - FINAL_SHARE) * max(0.0, (done - (1.0 - DECAY_SHARE)) / DECAY_SHARE)
        return FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))

    def refit(self, step: int, elapsed: float, step_seconds: float, tokens_per_step: int) -> None:
        """Fit the number of steps to the time that is left when the held-out tokens will have been scored."""
        if self.seconds is not None:
            scoring = self.scored / tokens_per_step * step_seconds / SCORING_SPEED
            self.reserved = min(MOST_RESERVED * self.seconds, max(self.reserve * self.seconds, scoring))
            left = self.seconds - self.reserved - elapsed
            self.steps = max(step, step + int(left / step_seconds))


@dataclass
class Watch(TrainerCallback):
    """Stops, saves and reports; its numbers become the curve.

    Attributes:
        plan: See `Plan`.
        tokens_per_step: Tokens of one batch, all processes together.
        save_seconds: Time from one save to the next.
        report: Told how far the training is, at most twice a second.
        log_steps: Steps from one recorded loss to the next.
        on_plan: Called when the plan has changed or a save is complete.
        flops_per_token: Of one forward pass, head included; for the MFU.
        writer: TensorBoard's, in the main process; None writes nothing there.
        began: The clock when the whole call began.
    """

    plan: Plan
    tokens_per_step: int
    save_seconds: float
    report: Report
    log_steps: int
    on_plan: Callable[[Plan], None]
    flops_per_token: float | None = None
    writer: Any = None
    began: float = field(default_factory=time.monotonic)
    curve: list[dict[str, float]] = field(default_factory=list)
    _started: float = 0.0
    _first_step: int = 0
    _probed: tuple[int, float] = (0, 0.0)
    _reported: float = 0.0
    _saved: float = 0.0
    _refits: int = 0
    _marks: list[tuple[int, float]] = field(default_factory=list)  # steps that were done for certain, and when

    def elapsed(self) -> float:
        """Seconds spent on steps, those of earlier processes included."""
        return self.plan.seconds_used + time.monotonic() - self._started

    def steady_tokens_per_s(self) -> float | None:
        """Tokens/s since the first recorded loss: compilation and warm-up apart; None while there is no second."""
        if len(self._marks) < 2:
            return None
        (first, since), (last, now) = self._marks[0], self._marks[-1]
        return (last - first) * self.tokens_per_step / (now - since)

    def startup_seconds(self) -> float:
        """Seconds of the call until steps took their usual time."""
        rate = self.steady_tokens_per_s()
        if rate is None:
            return self._started - self.began
        step, when = self._marks[0]
        return max(0.0, when - self.began - (step - self._first_step) * self.tokens_per_step / rate)

    def mfu(self) -> float | None:
        """Share of the GPUs' peak that the model's own FLOPs used; a teacher's are not counted."""
        rate = self.steady_tokens_per_s()
        if rate is None:
            return None
        return speed.utilisation(rate, self.flops_per_token, processes.count(), speed.peak_flops())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; a continued training keeps its curve."""
        self._started = self._saved = time.monotonic()
        self._first_step = state.global_step
        self._refits = sum(self.plan.seconds_used >= share * (self.plan.seconds or 0.0) for share in REFITS)
        self.curve = [_point(entry) for entry in state.log_history if "loss" in entry]
        state.max_steps = self.plan.steps or ENDLESS

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Fit the plan to the clock, and decide whether to log, save or stop."""
        step, here = state.global_step, state.global_step - self._first_step
        self._refit(step, here)
        due = time.monotonic() - self._saved >= self.save_seconds
        if self.plan.seconds is not None or step % self.log_steps == 0:
            self.plan.steps, due = processes.agree((self.plan.steps, due))
        state.max_steps = self.plan.steps or ENDLESS
        control.should_training_stop = step >= state.max_steps
        control.should_log = step % self.log_steps == 0 or control.should_training_stop
        control.should_save = due and step % self.log_steps == 0 and not control.should_training_stop
        if time.monotonic() - self._reported >= 0.5 or control.should_training_stop:
            self._reported = time.monotonic()
            self._tell(step, here)

    def _refit(self, step: int, here: int) -> None:
        if self.plan.seconds is None or not processes.is_main():
            return
        now = time.monotonic()
        if here == 2:
            self._probed = (here, now)  # the first steps warm up caches and kernels
        timed = here - self._probed[0]
        share = self.elapsed() / self.plan.seconds
        if self.plan.steps is None:
            due = here >= PROBE_STEPS or share >= PROBE_SHARE
        else:
            due = self._refits < len(REFITS) and share >= REFITS[self._refits]
        if due and self._probed[0] and timed:
            self._refits = sum(share >= s for s in REFITS)
            self.plan.refit(step, self.elapsed(), (now - self._probed[1]) / timed, self.tokens_per_step)
            self.on_plan(self.plan)
        if self.elapsed() >= self.plan.seconds - self.plan.reserved:
            self.plan.steps = step

    def _tell(self, step: int, here: int) -> None:
        steady = self.steady_tokens_per_s()
        if steady:
            rate = steady / self.tokens_per_step
        elif self._marks:  # a GPU may have been given more steps than it has done
            rate = (self._marks[0][0] - self._first_step) / (self._marks[0][1] - self._started)
        else:
            rate = here / (time.monotonic() - self._started)
        left = (self.plan.steps - step) / rate if self.plan.steps else (self.plan.seconds or 0.0) - self.elapsed()
        self.report(
            {
                "stage": "training",
                "step": step,
                "steps": self.plan.steps or step + max(1, round(left * rate)),
                "tokens": step * self.tokens_per_step,
                "loss": self.curve[-1]["loss"] if self.curve else None,
                "tokens_per_s": rate * self.tokens_per_step,
                "steady": steady is not None,
                "seconds_left": max(0.0, left),
                "mfu": self.mfu(),
                "memory_bytes": speed.memory_bytes(),
            }
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the loss for the curve; stop where it is no number."""
        if not logs or "loss" not in logs:
            return
        entry = state.log_history[-1]
        entry["tokens"] = state.global_step * self.tokens_per_step
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"the loss became {logs['loss']} at step {state.global_step}",
                hint="train again with a lower --learning-rate and --no-resume",
            )
        self._marks = [*self._marks[:1], (state.global_step, time.monotonic())]
        self.curve.append(_point(entry))
        if self.writer is not None:
            values = {"loss": logs["loss"], "learning_rate": logs.get("learning_rate"), "mfu": self.mfu()}
            values |= {"gradient_norm": logs.get("grad_norm"), "tokens_per_s": self.steady_tokens_per_s()}
            for name, value in values.items():
                if value is not None:
                    self.writer.add_scalar(f"training/{name}", float(value), state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the save as complete once all of it is on the disk."""
        assert args.output_dir is not None
        processes.wait_for_all()  # each process writes the state of its own random numbers
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for file in folder.iterdir():
                handle = os.open(file, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
            sync_folder(folder)
            files = {file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
            write_json(folder / COMPLETE, {"step": state.global_step, "files": files})
            self.on_plan(self.plan)
        self._saved = time.monotonic()


def _point(entry: Mapping[str, float]) -> dict[str, float]:
    return {key: entry[key] for key in ("step", "tokens", "loss", "learning_rate") if key in entry}


def last_save(folder: Path, note: Callable[[str], None] | None = None) -> Path | None:
    """Return the newest save that is complete and undamaged; newer ones that are not are removed.

    Args:
        folder: Where the saves lie.
        note: Told of each save that was complete once and is damaged.
    """
    saves = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for save in [save for save in saves if not (save / COMPLETE).is_file()]:
        shutil.rmtree(save)  # what an interruption left half-written
        saves.remove(save)
    for save in reversed(saves):
        if _undamaged(save):
            return save
        shutil.rmtree(save)
        if note is not None:
            note(f"the save of step {save.name.rpartition('-')[2]} is damaged: going on from an earlier one")
    return None


def _undamaged(save: Path) -> bool:
    """Say whether every file of a save is what was written; one of an earlier release has no digests to tell."""
    try:
        files = read_json(save / COMPLETE, "save").get("files", {})
        return isinstance(files, dict) and all(sha256_file(save / name) == digest for name, digest in files.items())
    except InvalidFileError:
        return False


class OrderedTrainer(Trainer):
    """A Trainer that takes the data in the order of the data set, which is random already.

    Attributes:
        make: Makes the optimizer of a model.
        factor: Share of the learning rate at a step.
        teacher: Looked at in every step, under the student's autocast; None where there is none.
    """

    make: Callable[[torch.nn.Module], torch.optim.Optimizer]
    factor: Callable[[int], float]
    teacher: Teacher | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        assert isinstance(self.train_dataset, PackedTokens)
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **_: Any
    ) -> Any:
        """Ask for the loss alone: logits of a whole batch are larger than the model."""
        looked_at = None
        if self.teacher is not None:
            with self.accelerator.autocast():
                looked_at = self.teacher.look(inputs["input_ids"])
        outputs = model(**inputs, loss_only=True, teacher=looked_at)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer late enough for parameters that FSDP has cut up."""
        if self.optimizer is None:
            target: Any = self.model if model is None else model
            self.optimizer = self.make(target)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Let the plan set the learning rate."""
        if self.lr_scheduler is None:
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(chosen, self.factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler


def make_optimizer(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; weight decay for matrices, none for norm gains."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


class quiet(AbstractContextManager[None]):
    """Keeps transformers from printing and from drawing bars; restores what was."""

    def __enter__(self) -> None:
        self.level, self.bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        hf_logging.set_verbosity(self.level)
        if self.bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
