"""Which shape learns best at equal FLOPs? Plain decoders, the vocabulary table's product counted, trained alike.

    bench/shape_study.py --plan .shapes                      the trainings into .shapes/shapes.jsonl
    bench/shape_study.py --train .shapes --out shapes.jsonl --gpus 2      on a machine with GPUs
    bench/shape_study.py --collect shapes.jsonl --device "NVIDIA H100"    into bench/results/shape_study.json
    bench/shape_study.py --stats                             what follows from the recorded trainings, again

The folder holds `bpe8192/`, the corpus as `bench/poster_train.py --tokens .shapes --kinds bpe8192 CORPUS`
makes it. Every shape is trained on `SHORT` tokens with each of `RATES`, then, where the plan says so, on
`LONG` with the better one; the recipe is that of `bench/poster/trainer.py`.

The recorded result judges every score on these shapes and on three further tables: the poster's rows, and the study of
block-shared decoders at its longest and its main budget. The default score is fitted to none of them but to decoders
trained later, each at a rate fit for its width (`bench/space_study.py`); `fit` says what these shapes alone choose.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
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
SCORES = (
    "balanced-parameters", "parameters-per-depth", "parameters", "decoder-parameters", "executed-parameters", "flops",
    "width", "minus-depth", "width-per-root-depth", "entropy", "entropy-poster",
)  # fmt: skip
RESAMPLES = 1000
RESULTS = Path(__file__).parent / "results"


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
    from poster.trainer import CONTEXT
    from poster_train import append, gpu_turn, load_texts, ready_trainer

    trainer, _ = ready_trainer(job, load_texts(options.train, "bpe8192"))
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


def train(options: argparse.Namespace) -> None:
    """Train the plan, several shapes in flight on each GPU."""
    from poster_train import in_flight

    options.until = time.time() + options.seconds
    jobs = [json.loads(line) for line in (options.train / "shapes.jsonl").read_text(encoding="utf-8").splitlines()]
    places = [(number % options.gpus, number // options.gpus % TURNS) for number in range(options.workers)]
    in_flight(options, jobs, train_job, places, apart=0.5)


def tables(rows: list[dict[str, Any]]) -> dict[str, list[tuple[Any, float]]]:
    """Return architectures and their losses by table; of two learning rates the better, of two seeds the first."""
    from proxy.table import read_table

    from merino_edge.architecture import Architecture

    best: dict[tuple[int, str, str], tuple[float, Any]] = {}
    for row in rows:
        key = row["tokens"], row["scale"], row["id"]
        if row["seed"] == 0 and (key not in best or row["validation_loss"] < best[key][0]):
            best[key] = row["validation_loss"], Architecture.from_json(row["architecture"])
    found: dict[str, list[tuple[Any, float]]] = {}
    for (tokens, _, _), (loss, shape) in best.items():
        found.setdefault(f"shapes, {tokens / 1e6:.0f} M tokens", []).append((shape, loss))
    recorded = json.loads((RESULTS / "poster_train.json").read_text(encoding="utf-8"))["result"]["rows"]
    found["rows of the poster's budgets, 80 M tokens"] = [
        (Architecture.from_json(row["model"]["architecture"]), row["judged"]["validation"]["loss"])
        for row in recorded
        if "architecture" in row["model"] and row["data"] == "gpt2" and row["seed"] == 0 and row["tokens"] <= 80_000_000
    ]
    study = read_table(RESULTS / "proxy_study.csv")
    usual = next(row["init"] for row in study if row["group"] == "free")
    kept = ("equal", "equal-large", "free")
    for tokens in sorted({row["tokens"] for row in study})[-2:]:
        found[f"block-shared decoders, {tokens / 1e6:.0f} M tokens"] = [
            (Architecture.from_json(json.loads(row["architecture"])), row["valid_loss"])
            for row in study
            if row["tokens"] == tokens and row["lr_factor"] == 1 and row["init"] == usual
            and row["seed"] == 0 and row["group"] in kept
        ]  # fmt: skip
    return found


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Spearman of every score on every table, and the default against each over all, by paired bootstrap."""
    import numpy as np
    from proxy.ordering import spearman

    from merino_edge.flows.verify import DEFAULT_SCORE
    from merino_edge.search.regime import STUDY_BETA
    from merino_edge.search.scores import ScoreOptions, score_architecture

    options = {name: ScoreOptions(name) for name in SCORES} | {"entropy": ScoreOptions("entropy", beta=STUDY_BETA)}
    found = tables(rows)
    quality = {name: -np.array([loss for _, loss in models]) for name, models in found.items()}
    scores = {
        score: {
            name: np.array([score_architecture(shape, options[score]) for shape, _ in models])
            for name, models in found.items()
        }
        for score in SCORES
    }

    def mean(score: str, names: list[str], draw: dict[str, Any]) -> float:
        return float(np.mean([spearman(scores[score][n][draw[n]], quality[n][draw[n]]) for n in names]))

    all_of = {name: np.arange(len(models)) for name, models in found.items()}
    groups = {"all": list(found), "without the shapes": [name for name in found if not name.startswith("shapes")]}
    rng = np.random.default_rng(0)
    draws = [{n: rng.integers(0, len(m), len(m)) for n, m in found.items()} for _ in range(RESAMPLES)]
    against: dict[str, Any] = {}
    for group, names in groups.items():
        ours = np.array([mean(DEFAULT_SCORE, names, draw) for draw in draws])
        for score in SCORES:
            if score != DEFAULT_SCORE:
                difference = ours - [mean(score, names, draw) for draw in draws]
                against.setdefault(group, {})[score] = [float(q) for q in np.quantile(difference, (0.025, 0.975))]
    return {
        "default": DEFAULT_SCORE,
        "n": {name: len(models) for name, models in found.items()},
        "spearman": {s: {n: spearman(scores[s][n], quality[n]) for n in found} for s in SCORES},
        "mean": {group: {s: mean(s, names, all_of) for s in SCORES} for group, names in groups.items()},
        "default_less_other_95": against,
    }


def fit(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return how well each aspect and weight orders the shapes: the mean over both numbers of tokens."""
    import numpy as np
    from proxy.ordering import balanced_by, spearman

    from merino_edge.search.scores import ScoreOptions, score_architecture

    shapes = {name: models for name, models in tables(rows).items() if name.startswith("shapes")}
    tried = []
    for aspect, balance in product((64.0, 96.0, 128.0, 160.0, 192.0, 256.0), (0.0, 0.125, 0.25, 0.5, 1.0)):
        with balanced_by(aspect, balance):
            orders = [
                spearman(
                    np.array([score_architecture(shape, ScoreOptions("balanced-parameters")) for shape, _ in models]),
                    -np.array([loss for _, loss in models]),
                )
                for models in shapes.values()
            ]
        tried.append({"aspect": aspect, "balance": balance, "spearman": float(np.mean(orders))})
    return tried


def collect(path: Path, device: str) -> None:
    """Write what was brought back, and what follows from it."""
    from poster import trainer
    from record import write_result

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "failed" not in row]
    recipe = {"text": trainer.__doc__, "rates": RATES}
    print(write_result("shape_study", {"device": device, "recipe": recipe, "rows": rows, **judge_all(rows)}))


def page_table(rows: list[dict[str, Any]]) -> str:
    """Return the shapes in Markdown, the best first."""
    shapes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["seed"] == 0:
            shapes.setdefault((row["scale"], row["id"]), []).append(row)

    def best(of: list[dict[str, Any]], long: bool) -> dict[str, Any] | None:
        found = [row for row in of if (row["tokens"] > 1.5 * SHORT) == long]
        return min(found, key=lambda row: row["validation_loss"], default=None)

    def told(row: dict[str, Any] | None) -> str:
        return "" if row is None else f"{row['validation_loss']:.3f} ({row['learning_rate']:g})"

    def order(of: list[dict[str, Any]]) -> tuple[Any, ...]:
        short, long = best(of, False), best(of, True)
        assert short is not None
        return of[0]["scale"], long is None, (long or short)["validation_loss"]

    lines = [
        "| width and FFN ratio of each layer | parameters, M | GFLOPs with head "
        "| loss after 24 M tokens (learning rate) | after 61 M |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for of in sorted(shapes.values(), key=order):
        width, _, ratios = of[0]["id"].partition(" r")
        sizes = f"{of[0]['parameters'] / 1e6:.1f} | {of[0]['flops_with_head'] / 1e9:.1f}"
        losses = f"{told(best(of, False))} | {told(best(of, True))}"
        lines.append(f"| {width}: {ratios.replace('-', ' ')} | {sizes} | {losses} |")
    return "\n".join(lines)


def judge_all(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return everything that follows from the trainings."""
    return {"judged": judge(rows), "fit": fit(rows)}


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
    parser.add_argument("--collect", type=Path, metavar="SHAPES.jsonl")
    parser.add_argument("--device", default="")
    parser.add_argument("--stats", action="store_true")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect, options.device)
    elif options.stats:
        from record import write_result

        recorded = json.loads((RESULTS / "shape_study.json").read_text(encoding="utf-8"))["result"]
        print(write_result("shape_study", {**recorded, **judge_all(recorded["rows"])}))
    elif options.plan:
        write_plan(options.plan)
    elif options.train:
        train(options)
    else:
        parser.error("give one of --plan, --train, --collect, --stats")


if __name__ == "__main__":
    main()
