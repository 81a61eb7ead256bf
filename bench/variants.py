"""What the paper did not try, on one small block-shared decoder: does it pay?

    bench/variants.py --train .poster --out variants.jsonl              on a machine with a GPU
    bench/variants.py --collect variants.jsonl --device "NVIDIA H100"   into bench/results/variants.json

The folder is that of `bench/poster_train.py`, with `bpe8192/`. One architecture, in the manner of merino-61m:
two layers of their own, then two blocks that are called three times. The same tokens, recipe and seeds for

    alone        as it is
    distilled    the mean of the cross-entropy to the text and that to the probabilities of a teacher, the largest
                 decoder that fits; the teacher saw the whole text once
    adapters R   low-rank products of its own for each further call of a block: W + B A, A of R rows (LoRA)
    unshared     every layer its own weights, what adapters can reach at most
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

VOCAB_SIZE = 8_192
WIDTH = 448
TEACHER = ((576, 3, 1), (576, 4, 1), (576, 4, 1), (576, 4, 1), (576, 4, 1))  # width, FFN ratio, depth
STUDENT = ((WIDTH, 3, 1), (WIDTH, 3, 1), (WIDTH, 2, 3), (WIDTH, 2, 3))
TOKENS = 8_000_000
RATE = 0.002  # the better of two for shapes like these (`bench/shape_study.py`)
SHARE = 0.5  # of the teacher's probabilities
RANKS = (16, 64)
SEEDS = (0, 1, 2)
MATRICES = ("query", "key", "value", "output", "ffn_in", "ffn_out")


def plan(blocks: tuple[tuple[int, int, int], ...]) -> dict[str, Any]:
    """Return a model as the trainer takes it."""
    from merino_edge.architecture import Architecture, Block

    found = Architecture(tuple(Block(*block) for block in blocks), blocks[0][0], VOCAB_SIZE).to_json()
    return {"model": {"architecture": found}, "architecture": found}


def adapt(model: Any, rank: int) -> Any:
    """Give every call of a block but the first a low-rank product of its own beside each matrix."""
    import torch
    from torch import nn

    class Adapted(nn.Module):
        """A linear layer with one product for each call; the block says which call it is."""

        def __init__(self, shared: nn.Linear, calls: int) -> None:
            super().__init__()
            self.weight, self.call = shared.weight, 0
            wide, narrow = shared.in_features, shared.out_features
            down = [torch.randn(rank, wide) * wide**-0.5 for _ in range(calls - 1)]
            self.down = nn.ParameterList(down)  # (R, in) each
            self.up = nn.ParameterList([torch.zeros(narrow, rank) for _ in range(calls - 1)])  # (out, R) each

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = nn.functional.linear(x, self.weight)
            if self.call:
                low = nn.functional.linear(x, self.down[self.call - 1])
                y = y + nn.functional.linear(low, self.up[self.call - 1])
            return y

    for block in model.blocks:
        if block.depth == 1:
            continue
        adapted = []
        for name in MATRICES:
            adapted.append(Adapted(getattr(block, name), block.depth))
            setattr(block, name, adapted[-1])

        def forward(
            x: Any, skipped: Any, by: Any, bias: Any, cache: Any, first: int, of: Any = block, parts: Any = adapted
        ) -> Any:
            assert skipped is None  # the student has no embedding skip
            for call in range(of.depth):
                for part in parts:
                    part.call = call
                x = of.layer(x, of.norms[0], by, bias, cache, first + call)
            return x

        block.forward = forward
    return model


def train(options: argparse.Namespace) -> None:
    """Train the teacher, then the student in every way, seed by seed, as long as there is time."""
    import torch
    from poster.rows import unshared
    from poster.trainer import CONTEXT, RowTrainer, make_model
    from poster_train import append, load_texts
    from torch import Tensor

    from merino_edge.architecture import Architecture

    class Student(RowTrainer):
        """A trainer whose model may have adapters, and whose loss may look at a teacher."""

        teacher: Any = None

        def make(self) -> Any:
            model, rank = make_model(self.row), self.row.get("rank", 0)
            return adapt(model, rank) if rank else model

        def _own(self, ids: Tensor) -> Tensor:
            if self.teacher is None:
                return super()._own(ids)
            with torch.no_grad():
                soft = self.teacher(ids).logits
            loss: Tensor = self.model(ids, labels=ids, loss_only=True, teacher=(soft, SHARE)).loss
            return loss

    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    texts = load_texts(options.train, "bpe8192")
    until = time.time() + options.seconds

    def run(trainer: Any, name: str, tokens: int, seed: int) -> None:
        if time.time() > until:
            return
        found = trainer.train(tokens, RATE, seed)
        loss = trainer.score(texts.validation, CONTEXT).loss
        kept = ("steps", "tokens", "seed", "seconds", "learning_rate", "train_loss", "curve")
        facts = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
        append(options.out, {"id": name, **facts, **{k: found[k] for k in kept}, "validation_loss": loss})
        print(f"{name} {tokens} seed {seed}: {loss:.4f} in {found['seconds']:.1f} s", flush=True)

    def begun(trainer: Any) -> Any:
        trainer.warm_up()
        return trainer

    teacher = begun(RowTrainer(plan(TEACHER), texts, device, cuda))
    whole = len(texts.train) // 1024 * 1024
    run(teacher, "teacher", whole, 0)
    teacher.model.train(False)
    row = plan(STUDENT)
    alone = begun(Student(row, texts, device, cuda))
    twin = {"model": {"architecture": unshared(Architecture.from_json(row["architecture"])).to_json()}}
    ways = [("alone", alone, None), ("distilled", alone, teacher.model)]
    ways += [(f"adapters {rank}", begun(Student({**row, "rank": rank}, texts, device, cuda)), None) for rank in RANKS]
    ways += [("unshared", begun(Student(twin, texts, device, cuda)), None)]
    for tokens, seed in [*((options.tokens, seed) for seed in SEEDS), (whole, 0)]:
        for name, trainer, looked_at in ways:
            trainer.teacher = looked_at
            run(trainer, name, tokens, seed)


def collect(path: Path, device: str) -> None:
    """Write what was brought back."""
    from record import write_result

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    shapes = {"teacher": plan(TEACHER)["architecture"], "student": plan(STUDENT)["architecture"]}
    print(write_result("variants", {"device": device, "share": SHARE, **shapes, "rows": rows}))


def figure_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the README's rows: each way's parameters and held-out loss, for each number of tokens."""
    found = []
    for tokens in sorted({row["tokens"] for row in result["rows"] if row["id"] != "teacher"}):
        ways: dict[str, list[dict[str, Any]]] = {}
        for row in result["rows"]:
            if row["tokens"] == tokens and row["id"] != "teacher":
                ways.setdefault(row["id"], []).append(row)
        told = []
        for name, rows in ways.items():
            losses = [row["validation_loss"] for row in rows]
            spread = f" ± {stdev(losses):.3f}" if len(losses) > 1 else ""
            told.append(f"{name} ({rows[0]['parameters'] / 1e6:.1f} M) {mean(losses):.3f}{spread}")
        what = (
            f"a small block-shared decoder (vocabulary 8,192, {tokens / 1e6:.0f} M tokens), held-out loss: as it is; "
            "distilled from a decoder that saw the whole text; with low-rank adapters of 16 and 64 for each further "
            "call of a block; unshared"
        )
        found.append((what, "; ".join(told)))
    return found


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("variants.jsonl"))
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--seconds", type=float, default=3600, help="start no training later")
    parser.add_argument("--collect", type=Path, metavar="RESULTS.jsonl")
    parser.add_argument("--device", default="")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect, options.device)
    elif options.train:
        train(options)
    else:
        parser.error("give --train or --collect")


if __name__ == "__main__":
    main()
