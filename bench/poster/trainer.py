"""One row trained on one GPU: the recipe that is the same for every row, whatever the model is.

AdamW (0.9, 0.95), weight decay 0.1 on matrices, gradient norm clipped to 1, no dropout; a step is 32
windows of 1,024 tokens in an order set by the seed; the learning rate rises over 5 % of the steps, 40 at
least, and falls by a cosine to a tenth; fp32 weights, bf16 products. The peak learning rate is the best of
`RATES` after `SWEEP_TOKENS` of the first `SWEEP_TEXT` tokens, judged on held-out text; where the best is
the first or last of them, the next one beyond is tried too. Each try has its own full schedule.
Layers are compiled one by one, so that a shape is compiled once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from merino_edge.training.evaluate import evaluate_tokens
from merino_edge.training.loop import PackedTokens, make_optimizer
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM, head_loss

RATES = (6e-4, 1.2e-3, 2.4e-3)
SWEEP_TOKENS = 4_915_200  # 150 steps
SWEEP_TEXT = 24_000_000  # the beginning of the stream: the same tokens for every row
SWEEP_VALIDATION = 32_769
BATCH, CONTEXT = 32, 1024
WARM_UP, LEAST_WARM_UP, FINAL = 0.05, 40, 0.1
WEIGHT_DECAY = 0.1
POINTS = 60  # of a recorded curve
Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Texts:
    """Token ids to train and judge on; for each text its bytes, and its words with line ends where they count."""

    train: Tokens
    validation: Tokens
    tests: dict[str, Tokens]
    bytes: dict[str, int]
    words: dict[str, int]


def factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step."""
    warm = max(1, round(WARM_UP * steps), min(LEAST_WARM_UP, steps // 4))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * done))


def make_model(row: dict[str, Any]) -> Any:
    """Make the model of a row, its weights by torch's current seed."""
    model = row["model"]
    if "architecture" in model:
        return MerinoForCausalLM(MerinoConfig(architecture=model["architecture"], max_position_embeddings=CONTEXT))
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**model["transformers"])
    if config.model_type == "opt":
        from transformers.models.opt import modeling_opt

        # windows hold no padding: without this some versions write out a mask and lose the fused kernel
        modeling_opt.create_causal_mask = lambda *_, **__: None  # type: ignore[assignment]
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


class RowTrainer:
    """One model on one device; `train` may be called many times, each beginning anew."""

    def __init__(self, row: dict[str, Any], texts: Texts, device: str, compiled: bool) -> None:
        """Make the model of a row, compiled layer by layer."""
        self.row, self.texts, self.device = row, texts, device
        torch.manual_seed(0)
        self.model = self.make().to(device)
        self.compiled = compiled
        self.loss_of: Callable[[Tensor], Tensor] = self._own if isinstance(self.model, MerinoForCausalLM) else self._hub
        self.head_loss: Any = torch.compile(head_loss, dynamic=False) if compiled else head_loss
        self._compile()

    def make(self) -> Any:
        """Make the model, its weights by torch's current seed."""
        return make_model(self.row)

    def _layers(self) -> Any:
        body = self.model.base_model
        body = getattr(body, "decoder", body)
        return body.h if hasattr(body, "h") else body.layers

    def _compile(self) -> None:
        if not self.compiled:
            return
        if isinstance(self.model, MerinoForCausalLM):
            self.model.compile_parts()
            return
        for layer in self._layers():
            layer.forward = torch.compile(layer.forward, dynamic=False)

    def plain(self) -> None:
        """Compute as written from now on, for windows of any length."""
        if isinstance(self.model, MerinoForCausalLM):
            self.model.plain_parts()
        elif self.compiled:
            for layer in self._layers():
                layer.__dict__.pop("forward", None)

    def _own(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.model(ids, labels=ids, loss_only=True).loss
        return loss

    def _hub(self, ids: Tensor) -> Tensor:
        x = self.model.base_model(ids, use_cache=False).last_hidden_state
        loss: Tensor = self.head_loss(x, self.model.get_output_embeddings().weight, ids)
        return loss

    def reset(self, seed: int) -> None:
        """Begin with the weights of a seed."""
        torch.manual_seed(seed)
        self.model.load_state_dict(self.make().state_dict())
        self.model.train(True)

    def step(self, ids: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One update; returns the loss, still on the device."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.device != "cpu"):
            loss = self.loss_of(ids)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def warm_up(self) -> float:
        """Compile; returns the seconds it took."""
        began = time.monotonic()
        optimizer = make_optimizer(self.model, 1e-5, WEIGHT_DECAY)
        ids = torch.from_numpy(self.texts.train[: BATCH * CONTEXT].astype(np.int64)).view(BATCH, CONTEXT)
        for _ in range(2):
            self.step(ids.to(self.device), optimizer)
        self.wait()
        return time.monotonic() - began

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def train(self, tokens: int, peak: float, seed: int, text: Tokens | None = None) -> dict[str, Any]:
        """Train from scratch; returns curve and speed."""
        text = self.texts.train if text is None else text
        steps = max(2, tokens // (BATCH * CONTEXT))
        self.reset(seed)
        optimizer = make_optimizer(self.model, peak, WEIGHT_DECAY)
        windows = PackedTokens(text, CONTEXT, seed, steps * BATCH)
        losses = torch.zeros(steps, device=self.device)
        self.wait()
        began = time.monotonic()
        for step in range(steps):
            ids = torch.stack([windows[step * BATCH + i]["input_ids"] for i in range(BATCH)])
            ids = ids.pin_memory().to(self.device, non_blocking=True) if self.device != "cpu" else ids
            for group in optimizer.param_groups:
                group["lr"] = peak * factor(step, steps)
            losses[step] = self.step(ids, optimizer)
        self.wait()
        seconds = time.monotonic() - began
        values = losses.cpu().numpy()
        marks = np.unique(np.linspace(0, steps - 1, POINTS).astype(int))
        return {
            "steps": steps,
            "tokens": steps * BATCH * CONTEXT,
            "epochs": steps * BATCH / windows.windows,
            "learning_rate": peak,
            "seed": seed,
            "seconds": seconds,
            "tokens_per_s": steps * BATCH * CONTEXT / seconds,
            "train_loss": float(values[-max(1, steps // 20) :].mean()),
            "curve": [[int(i) + 1, round(float(values[max(0, i - 4) : i + 5].mean()), 4)] for i in marks],
        }

    def sweep(self) -> list[dict[str, Any]]:
        """Try the learning rates on few tokens, from low to high."""
        tries = [self._try(rate) for rate in RATES]
        best = min(tries, key=lambda t: t["validation_loss"])
        if best is tries[0]:
            return [self._try(RATES[0] / 2), *tries]
        return [*tries, self._try(RATES[-1] * 2)] if best is tries[-1] else tries

    def _try(self, rate: float) -> dict[str, Any]:
        short = self.train(SWEEP_TOKENS, rate, 0, self.texts.train[:SWEEP_TEXT])
        short["validation_loss"] = self.score(self.texts.validation[:SWEEP_VALIDATION], CONTEXT).loss
        kept = ("learning_rate", "train_loss", "validation_loss", "tokens_per_s")
        return {key: short[key] for key in kept}

    def score(self, ids: Tokens, stride: int) -> Any:
        """Score token ids in windows of the training's context."""
        self.plain()
        try:
            return evaluate_tokens(self.model, ids, CONTEXT, stride)
        finally:
            self._compile()

    def judge(self) -> dict[str, Any]:
        """Score held-out text and tests: float32 weights, products in TF32 on a GPU."""
        found = {}
        for name, ids in {"validation": self.texts.validation, **self.texts.tests}.items():
            for stride in (CONTEXT, CONTEXT // 2) if name != "validation" else (CONTEXT,):
                result = self.score(ids, stride)
                entry = {"loss": result.loss, "perplexity": result.perplexity, "tokens": result.tokens}
                entry |= {"context": CONTEXT, "stride": stride}
                if name in self.texts.bytes:
                    entry["bits_per_byte"] = result.bits_per_byte(self.texts.bytes[name])
                if name in self.texts.words:
                    entry["word_perplexity"] = result.word_perplexity(self.texts.words[name])
                    entry["words"] = self.texts.words[name]
                found[name if stride == CONTEXT else f"{name}, stride {stride}"] = entry
        return found
