"""Which shape learns best at equal FLOPs? Plain decoders, the vocabulary table's product counted, trained alike.

    bench/shape_study.py --plan .shapes                      the trainings into .shapes/shapes.jsonl
    bench/shape_study.py --train .shapes --out shapes.jsonl --gpus 2      on a machine with GPUs
    bench/shape_study.py --collect shapes.jsonl --device "NVIDIA H100"    into bench/results/shape_study.json

The folder holds `bpe8192/`, the corpus as `bench/poster_train.py --tokens .shapes --kinds bpe8192 CORPUS`
makes it. Every shape is trained on `SHORT` tokens with each of `RATES`, then, where the plan says so, on
`LONG` with the better one; the recipe is that of `bench/poster/trainer.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

VOCAB_SIZE = 8_192
SHORT, LONG = 24_000_000, 64_000_000
RATES = (0.001, 0.002)
TURNS = 2  # trainings at a time on a GPU: one alone leaves it waiting
LARGE = (  # width and FFN ratios, first layer first: 60 to 63 GFLOPs of 1,024 tokens
    (704, (2, 3, 3, 3)), (768, (3, 3, 4)), (640, (4, 4, 4, 4)), (576, (3, 4, 4, 4, 4)), (896, (4, 4)),
    (512, (3, 3, 3, 3, 3, 3, 4)), (704, (1, 2, 4, 4)), (768, (1, 1, 1, 4)), (704, (4, 4, 2, 1)),
    (448, (3, 4, 4, 4, 4, 4, 4, 4)), (640, (1, 1, 1, 2, 2, 2)), (896, (1, 2, 2)), (576, (1, 1, 2, 2, 2, 2, 2)),
    (384, (3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4)),
)  # fmt: skip
SMALL = (  # 30 to 32 GFLOPs
    (448, (3, 3, 3, 3)), (512, (3, 3, 3)), (576, (4, 4)), (384, (2, 2, 2, 2, 2, 3)), (512, (1, 1, 1, 2)),
    (576, (1, 2, 2)), (320, (2, 2, 2, 2, 3, 3, 3, 3)), (448, (1, 1, 2, 2, 2)),
)  # fmt: skip
AGAIN = 4  # of the large ones, with a second seed


def write_plan(folder: Path) -> None:
    """Write the trainings, those that matter most first."""
    from merino_edge.architecture import Architecture, Block
    from merino_edge.search.cost import count_flops

    jobs = []
    for scale, shapes in (("large", LARGE), ("small", SMALL)):
        for width, ratios in shapes:
            shape = Architecture(tuple(Block(width, ratio, 1) for ratio in ratios), width, VOCAB_SIZE)
            jobs.append({
                "id": f"{width} r{'-'.join(map(str, ratios))}", "scale": scale, "architecture": shape.to_json(),
                "model": {"architecture": shape.to_json()}, "flops": count_flops(shape),
                "flops_with_head": count_flops(shape, head=True), "parameters": shape.unique_parameters,
                "seeds": [0], "long": scale == "large",
            })  # fmt: skip
    jobs += [{**job, "seeds": [1]} for job in jobs[:AGAIN]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shapes.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    for job in jobs:
        print(f"{job['scale']} {job['id']:32s} {job['flops_with_head'] / 1e9:5.1f} G {job['parameters'] / 1e6:5.1f} M")


def train_job(job: dict[str, Any], options: argparse.Namespace, gpu: int, turn: int) -> None:
    """Train one shape: each rate, then long."""
    import torch
    from poster.trainer import CONTEXT, RowTrainer
    from poster_train import append, gpu_turn, load_texts

    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    cuda = torch.cuda.is_available()
    trainer = RowTrainer(job, load_texts(options.train, "bpe8192"), "cuda" if cuda else "cpu", cuda)
    trainer.warm_up()
    facts = {name: value for name, value in job.items() if name not in ("model", "seeds", "long")}
    tries: list[tuple[float, float]] = []
    plan = [(options.short, rate) for rate in (RATES if job["seeds"] == [0] else RATES[:1])]
    for tokens, rate in [*plan, *([(options.long, 0.0)] if job["long"] else [])]:
        if time.time() > options.until:
            return
        rate = rate or min(tries)[1]
        with gpu_turn(options.train / f"turn-{gpu}-{turn}"):
            found = trainer.train(tokens, rate, job["seeds"][0])
            loss = trainer.score(trainer.texts.validation, CONTEXT).loss
        if tokens == options.short:
            tries.append((loss, rate))
        kept = ("steps", "tokens", "learning_rate", "seed", "seconds", "train_loss", "curve")
        append(options.out, {**facts, **{name: found[name] for name in kept}, "validation_loss": loss})
        print(f"{job['id']} {found['tokens'] / 1e6:.0f} M {rate:g}: {loss:.4f} in {found['seconds']:.0f} s", flush=True)


def worker(options: argparse.Namespace, jobs: list[dict[str, Any]], taken: Any, gpu: int, turn: int) -> None:
    """Take jobs in order until there are none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(jobs):
            return
        try:
            train_job(jobs[number], options, gpu, turn)
        except Exception as error:  # noqa: BLE001  one shape must not stop the others
            print(f"{jobs[number]['id']}: {type(error).__name__}: {error}"[:600], flush=True)


def train(options: argparse.Namespace) -> None:
    """Train the plan, several shapes in flight on each GPU."""
    import torch.multiprocessing as mp

    options.until = time.time() + options.seconds
    jobs = [json.loads(line) for line in (options.train / "shapes.jsonl").read_text(encoding="utf-8").splitlines()]
    context = mp.get_context("spawn")
    taken = context.Value("i", 0)
    places = [(number % options.gpus, number // options.gpus % TURNS) for number in range(options.workers)]
    workers = [context.Process(target=worker, args=(options, jobs, taken, *place)) for place in places]
    for process in workers:
        process.start()
        time.sleep(0.5)
    for process in workers:
        process.join()


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, metavar="FOLDER")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("shapes.jsonl"))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--workers", type=int, default=6, help="shapes in flight, compiling ones included")
    parser.add_argument("--seconds", type=float, default=3600, help="start no training later")
    parser.add_argument("--short", type=int, default=SHORT)
    parser.add_argument("--long", type=int, default=LONG)
    options = parser.parse_args()
    if options.plan:
        write_plan(options.plan)
    elif options.train:
        train(options)
    else:
        parser.error("give one of --plan, --train")


if __name__ == "__main__":
    main()
