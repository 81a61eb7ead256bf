"""Train the models of a plan, several in flight on one GPU; one JSON line as each one ends.

    PYTHONPATH=. python bench/proxy/train.py --plan plan.jsonl --data .proxy --out results.jsonl --workers 4

The recipe, the same for every model: AdamW (0.9, 0.95), weight decay 0.1 on matrices, warm-up over 8 %
of the steps, then a cosine to zero that ends with the budget; gradient norm clipped to 1; bf16 weights
and activations beside fp32 masters; windows of one length cut from one stream, their order set by the seed.
A layer is compiled once a shape; the whole step (forward, backward, optimiser) is one CUDA graph.
A plan that was cut short goes on where it stopped: jobs whose id the results hold are left out.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy.data import load
from proxy.recipe import RECIPE, initialise, learning_rate, peak_rates, training_flops, window_order

from merino_edge.architecture import Architecture
from merino_edge.training.model import MerinoBlock, MerinoConfig, MerinoForCausalLM, next_token_loss

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
EAGER_STEPS = 3  # before the step is captured; they train too


@dataclass(frozen=True)
class Settings:
    """What all jobs of a call share."""

    data: str
    out: str
    context_length: int
    batch: int
    valid_windows: int
    compile: bool
    graph: bool
    deadline: float  # time.time() after which no job may still run
    recipe: dict[str, Any]
    rate: float  # training FLOPs a second that one worker reaches, for the first estimate

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.batch * self.context_length


class Trainer:
    """One model, its fp32 masters and its step."""

    def __init__(self, job: dict[str, Any], settings: Settings, stream: Tensor) -> None:
        """Make the model of a job on the device that holds the token stream."""
        self.settings, self.stream, self.device = settings, stream, stream.device
        self.on_gpu = self.device.type == "cuda"
        torch._dynamo.reset()
        torch.manual_seed(job["seed"])
        self.architecture = Architecture.from_json(job["architecture"])
        config = MerinoConfig(architecture=job["architecture"])
        master = MerinoForCausalLM(config).to(self.device)  # type: ignore[arg-type]
        recipe = {**settings.recipe, **job["override"]}
        initialise(master, recipe["init"])
        self.model = copy.deepcopy(master).to(torch.bfloat16) if self.on_gpu else copy.deepcopy(master)
        self.masters, self.weights = list(master.parameters()), list(self.model.parameters())
        self.loss_of: Any = next_token_loss
        if settings.compile:
            layer = torch.compile(MerinoBlock.layer, dynamic=False)
            for block in self.model.blocks:
                block.layer = functools.partial(layer, block)
            self.loss_of = torch.compile(next_token_loss, dynamic=False)
        for p in self.masters:
            p.grad = torch.zeros_like(p)
        self.peaks = peak_rates(self.architecture, recipe)
        self.rates = [torch.zeros((), device=self.device) for _ in range(3)]
        self.optimizer = torch.optim.AdamW(
            self._groups(master), betas=BETAS, fused=self.on_gpu, capturable=self.on_gpu, lr=self.rates[0]
        )
        self.ids = torch.zeros((settings.batch, settings.context_length), dtype=torch.long, device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def _groups(self, master: MerinoForCausalLM) -> list[dict[str, Any]]:
        """Matrices, table, gains: each with its learning rate and decay."""
        table = [master.embedding.weight]
        matrices = [p for p in self.masters if p.ndim == 2 and p is not table[0]]
        gains = [p for p in self.masters if p.ndim != 2]
        decay = (WEIGHT_DECAY, WEIGHT_DECAY, 0.0)
        return [
            {"params": params, "lr": rate, "weight_decay": wd}
            for params, rate, wd in zip((matrices, table, gains), self.rates, decay, strict=True)
        ]

    def step(self) -> None:
        """Forward, backward, update: what the graph captures."""
        for p in self.weights:
            p.grad = None
        loss = self.loss_of(self.model(self.ids).logits, self.ids)
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_([p.grad for p in self.masters], [p.grad for p in self.weights])
            torch.nn.utils.clip_grad_norm_(self.masters, CLIP, foreach=True)
            self.optimizer.step()
            torch._foreach_copy_(self.weights, self.masters)
            self.loss.copy_(loss)

    def capture(self) -> None:
        """Record the step once; from now on it is one launch."""
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.step()

    def train(self, steps: int, seed: int, stop: float) -> tuple[Tensor, float]:
        """Run all steps; returns the loss of each and the seconds of the captured ones.

        Raises:
            TimeoutError: the deadline came first.
        """
        length = self.settings.context_length
        windows = (len(self.stream) - 1) // length
        order = window_order(windows, steps * self.settings.batch, seed).to(self.device) * length
        offsets = torch.arange(length, device=self.device)
        losses = torch.zeros(steps, device=self.device)
        started = time.time()
        for step in range(steps):
            if step == EAGER_STEPS and self.on_gpu:
                if self.settings.graph:
                    self.capture()
                torch.cuda.synchronize()
                started = time.time()
            starts = order[step * self.settings.batch : (step + 1) * self.settings.batch]
            self.ids.copy_(self.stream[starts[:, None] + offsets])
            share = learning_rate(step, steps)
            for rate, peak in zip(self.rates, (*self.peaks, self.peaks[1]), strict=True):
                rate.fill_(share * peak)
            if self.graph is not None:
                self.graph.replay()
            else:
                self.step()
            losses[step].copy_(self.loss)
            if step % 32 == 31:
                if self.on_gpu:
                    torch.cuda.current_stream().synchronize()
                if time.time() > stop:
                    raise TimeoutError(f"stopped at step {step} of {steps}")
        if self.on_gpu:
            torch.cuda.synchronize()
        return losses.cpu(), time.time() - started

    @torch.no_grad()
    def evaluate(self, valid: Tensor) -> float:
        """Mean nats a token over the held-out windows."""
        length, windows = self.settings.context_length, self.settings.valid_windows
        for block in self.model.blocks:
            block.__dict__.pop("layer", None)
        windows = min(windows, len(valid) // length)
        batches = valid[: windows * length].view(windows, length).split(64)  # type: ignore[no-untyped-call]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for ids in batches:
            logits = self.model(ids.long()).logits[:, :-1].float()
            total += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].long().flatten(), reduction="sum").double()
        return float(total / (windows * (length - 1)))


def run_job(job: dict[str, Any], settings: Settings, stream: Tensor, valid: Tensor) -> dict[str, Any]:
    """Train and judge one model."""
    started = time.time()
    trainer = Trainer(job, settings, stream)
    steps = max(EAGER_STEPS + 1, round(job["tokens"] / settings.step_tokens))
    losses, seconds = trainer.train(steps, job["seed"], settings.deadline)
    tail = losses[-max(1, steps // 50) :].mean()
    trained = time.time()
    valid_loss = trainer.evaluate(valid)
    flops = training_flops(trainer.architecture, settings.context_length)
    ticks = np.linspace(0, steps - 1, 33).astype(int)
    return {
        **job,
        "recipe": settings.recipe,
        "init": {**settings.recipe, **job["override"]}["init"],
        "matrix_lr": trainer.peaks[0],
        "table_lr": trainer.peaks[1],
        "trained_tokens": steps * settings.step_tokens,
        "steps": steps,
        "valid_loss": valid_loss if math.isfinite(valid_loss) else None,
        "train_loss_tail": float(tail),
        "train_loss_curve": [round(float(losses[max(0, i - 3) : i + 4].mean()), 4) for i in ticks],
        "training_flops": flops * steps * settings.step_tokens,
        "flops_per_s": flops * (steps - EAGER_STEPS) * settings.step_tokens / max(seconds, 1e-9),
        "seconds": {
            "setup": round(trained - started - seconds, 3),
            "steps": round(seconds, 3),
            "evaluate": round(time.time() - trained, 3),
        },
    }


def append_line(path: str, record: dict[str, Any]) -> None:
    """Append one JSON line; several processes may do so."""
    with open(path, "a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(json.dumps(record, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def worker(number: int, jobs: list[dict[str, Any]], settings: Settings, device: str, claimed: Any, lock: Any) -> None:
    """Take jobs that still fit until none does."""
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    stream, valid = (torch.from_numpy(np.load(f"{settings.data}/{kind}.npy")).to(device) for kind in ("train", "valid"))
    rate, setup = settings.rate, 15.0
    while True:
        job = _claim(jobs, settings, claimed, lock, rate, setup)
        if job is None:
            print(f"[{number}] nothing more fits", flush=True)
            return
        try:
            result = run_job(job, settings, stream, valid)
        except TimeoutError as error:
            print(f"[{number}] {job['id']}: {error}", flush=True)
            return
        append_line(settings.out, result)
        rate = 0.5 * rate + 0.5 * result["flops_per_s"]
        setup = 0.5 * setup + 0.5 * (result["seconds"]["setup"] + result["seconds"]["evaluate"])
        left = settings.deadline - time.time()
        print(
            f"[{number}] {job['id']} loss {result['valid_loss']:.4f} {result['flops_per_s'] / 1e12:.0f} TFLOP/s "
            f"{result['seconds']} left {left:.0f} s",
            flush=True,
        )
        torch.cuda.empty_cache()


def _claim(
    jobs: list[dict[str, Any]], settings: Settings, claimed: Any, lock: Any, rate: float, setup: float
) -> dict[str, Any] | None:
    with lock:
        for i, job in enumerate(jobs):
            if claimed[i]:
                continue
            architecture = Architecture.from_json(job["architecture"])
            flops = training_flops(architecture, settings.context_length) * job["tokens"]
            if time.time() + setup + 1.1 * flops / rate > settings.deadline:
                continue
            claimed[i] = 1
            return job
    return None


def start_mps() -> bool:
    """Start CUDA's multi-process service for our own workers where the machine has it."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        return False
    for name in ("pipe", "log"):
        Path(f"/tmp/proxy-mps-{name}").mkdir(exist_ok=True)  # noqa: S108
    os.environ["CUDA_MPS_PIPE_DIRECTORY"] = "/tmp/proxy-mps-pipe"  # noqa: S108
    os.environ["CUDA_MPS_LOG_DIRECTORY"] = "/tmp/proxy-mps-log"  # noqa: S108
    return subprocess.run([control, "-d"], check=False).returncode == 0


def stop_mps() -> None:
    """End the service that `start_mps` began."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is not None:
        subprocess.run([control], input=b"quit\n", check=False, timeout=20)


def main() -> None:
    """Run what of a plan is not done."""
    parser = argparse.ArgumentParser(description="train the models of a plan")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".proxy"))
    parser.add_argument("--out", type=Path, required=True, help="results, one JSON line a training")
    parser.add_argument("--done", type=Path, nargs="*", default=[], help="further results whose ids count as done")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--valid-windows", type=int, default=2048)
    parser.add_argument("--recipe", default=json.dumps(RECIPE), help="initialisation and learning rates, as JSON")
    parser.add_argument("--rate", type=float, default=40e12)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-graph", action="store_true")
    parser.add_argument("--mps", action="store_true")
    arguments = parser.parse_args()
    done = {
        json.loads(line)["id"]
        for path in [arguments.out, *arguments.done]
        if path.exists()
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    jobs = [json.loads(line) for line in arguments.plan.read_text(encoding="utf-8").splitlines()]
    jobs = [job for job in jobs if job["id"] not in done]
    deadline = time.time() + arguments.seconds
    unpacked = tempfile.TemporaryDirectory()
    for kind in ("train", "valid"):
        np.save(f"{unpacked.name}/{kind}.npy", load(arguments.data, kind).astype(np.int32))
    settings = Settings(
        unpacked.name, str(arguments.out), arguments.context_length, arguments.batch, arguments.valid_windows,
        not arguments.no_compile, not arguments.no_graph, deadline, json.loads(arguments.recipe), arguments.rate,
    )  # fmt: skip
    mps = arguments.mps and start_mps()
    print(f"{len(jobs)} jobs, {len(done)} done before; mps {mps}; {asdict(settings)}", flush=True)
    context = mp.get_context("spawn")
    claimed, lock = context.Array("b", len(jobs) or 1), context.Lock()
    workers = [
        context.Process(target=worker, args=(i, jobs, settings, arguments.device, claimed, lock))
        for i in range(arguments.workers)
    ]
    try:
        for process in workers:
            process.start()
        for process in workers:
            process.join()
    finally:
        if mps:
            stop_mps()
        unpacked.cleanup()


if __name__ == "__main__":
    main()
