"""Does the default score find the better decoder, where each is trained as `merino-edge train` does it today?

    bench/shared_study.py --plan .poster                     the trainings into .poster/shared.jsonl
    bench/shared_study.py --train .poster --out shared.jsonl --gpus 4     on a machine with GPUs
    bench/shared_study.py --collect shared.jsonl --device "NVIDIA H100"   into bench/results/shared_study.json
    bench/shared_study.py --stats                            what follows from the recorded trainings, again

The folder is that of `bench/poster_train.py`, with `all8192/`. Recipe, text and held-out text are those of its rows
named `board`: the embedding skip, a learning rate of 1.1 / width, steps of 32,768 tokens. The models are chosen before
any is trained, by the rule of the proxy study (`bench/proxy/plan.py`) with another seed and vocabulary: 64 of the
poster's space, 28 of them at equal FLOPs, and 24 of the default space at equal FLOPs, the head counted, as a board's
rows have. No score is fitted to any of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

VOCAB_SIZE = 8_192
TOKENS = 48_000_000
PLAN_SEED = 1
FREE, FREE_FLOPS = 24, (60.0e9, 64.0e9)  # of the default space, the head counted
DRAWN = 60_000  # of it, to choose from
TURNS = 2  # trainings at a time on a GPU: one alone leaves it waiting
RESULT = Path(__file__).parent / "results" / "shared_study.json"
GROUPS = {
    "all": ("equal", "equal-large", "free", "default-space"),
    "the poster's space": ("equal", "equal-large", "free"),
    "the poster's space, equal FLOPs": ("equal",),
    "the poster's space, equal FLOPs, larger": ("equal-large",),
    "the default space, equal FLOPs with the head": ("default-space",),
}
EQUAL = (("equal",), ("equal-large",), ("default-space",))


def choose_default_space() -> list[Any]:
    """Return members of the default space at equal FLOPs, any number of blocks as likely as another."""
    from proxy.plan import spread

    from merino_edge.architecture import Architecture, Block
    from merino_edge.search.cost import count_flops

    rng = random.Random(PLAN_SEED)  # noqa: S311  no secret
    found: dict[str, Architecture] = {}
    for _ in range(DRAWN):
        width = rng.randrange(256, 1025, 64)
        blocks = tuple(Block(width, rng.choice((2, 4)), rng.choice((1, 2))) for _ in range(rng.randint(2, 16)))
        one = Architecture(blocks, width, VOCAB_SIZE)
        if FREE_FLOPS[0] <= count_flops(one, head=True) <= FREE_FLOPS[1]:
            found.setdefault(one.digest, one)
    return spread(list(found.values()), FREE)


def write_plan(folder: Path) -> None:
    """Write the trainings, the longest first, second seeds last."""
    from poster.rows import rate_by_width
    from proxy.plan import choose

    from merino_edge.search.cost import count_flops

    chosen = choose(PLAN_SEED, VOCAB_SIZE)
    del chosen["steps"]
    chosen["default-space"] = choose_default_space()
    jobs = []
    for group, shapes in chosen.items():
        for shape in shapes:
            made = replace(shape, embedding_skip=True)
            jobs.append({
                "id": f"{group}: {made.describe()}", "group": group, "model": {"architecture": made.to_json()},
                "flops_with_head": count_flops(made, head=True), "seed": 0, "learning_rate": rate_by_width(made),
                "tokens": TOKENS,
            })  # fmt: skip
    again = [*jobs[:6], *[job for job in jobs if job["group"] == "free"][:4]]
    jobs.sort(key=lambda job: -job["flops_with_head"])
    jobs += [{**job, "id": f"{job['id']}, seed 1", "seed": 1} for job in again]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shared.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    for job in jobs:
        print(f"{job['flops_with_head'] / 1e9:6.1f} G {job['learning_rate']:.2g} {job['id']}")


def train_job(job: dict[str, Any], options: argparse.Namespace, gpu: int, turn: int) -> None:
    """Train and judge one model."""
    from poster.trainer import CONTEXT
    from poster_train import append, deadline, gpu_turn, load_texts, ready_trainer

    trainer, _ = ready_trainer(job, load_texts(options.train, "all8192"))
    with gpu_turn(options.train / f"shared-{gpu}-{turn}"):
        if time.time() + options.reserve > deadline(options):
            return
        found = trainer.train(options.tokens or job["tokens"], job["learning_rate"], job["seed"])
        loss = trainer.score(trainer.texts.validation, CONTEXT).loss
    kept = ("steps", "tokens", "seconds", "train_loss", "curve")
    facts = {name: value for name, value in job.items() if name != "tokens"}
    append(options.out, {**facts, **{name: found[name] for name in kept}, "validation_loss": loss})
    print(f"{job['id']}: {loss:.4f} in {found['seconds']:.0f} s, gpu {gpu}", flush=True)


def train(options: argparse.Namespace) -> None:
    """Train what is not done, several models in flight on each GPU."""
    from poster_train import finished, in_flight

    options.until = time.time() + options.seconds
    done = finished(options.out)
    jobs = [json.loads(line) for line in (options.train / "shared.jsonl").read_text(encoding="utf-8").splitlines()]
    places = [(number % options.gpus, number // options.gpus % TURNS) for number in range(options.workers)]
    in_flight(options, [job for job in jobs if job["id"] not in done], train_job, places, apart=0.5)


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how every score orders every group, the default against each, and what another first weight moves."""
    import numpy as np
    from proxy import ordering
    from proxy.table import SIMPLE, describe

    from merino_edge.architecture import Architecture
    from merino_edge.flows.verify import DEFAULT_SCORE
    from merino_edge.search.regime import STUDY_BETA
    from merino_edge.search.scores import ScoreOptions, score_architecture

    options = {"entropy": ScoreOptions("entropy", beta=STUDY_BETA), "entropy-poster": ScoreOptions("entropy-poster")}

    def score_all(several: list[dict[str, Any]]) -> dict[str, Any]:
        shapes = [Architecture.from_json(row["model"]["architecture"]) for row in several]
        facts = [describe(shape) for shape in shapes]
        formulas = {name: np.array([score_architecture(s, o) for s in shapes]) for name, o in options.items()}
        return {**{name: score(facts) for name, score in SIMPLE.items()}, **formulas}

    found: dict[str, Any] = {}
    inside: list[dict[str, Any]] = []  # of each group of equal FLOPs: every score's Spearman, and on resamples of it
    for name, groups in GROUPS.items():
        several = [row for row in rows if row["group"] in groups and row["seed"] == 0]
        quality = -np.array([row["validation_loss"] for row in several])
        scores, draws = score_all(several), ordering.resamples(len(several))
        size = scores["total-parameters"]
        point = {n: ordering.spearman(v, quality) for n, v in scores.items()}
        sampled = {n: ordering.spearman_rows(v[draws], quality[draws]) for n, v in scores.items()}
        if groups in EQUAL:
            inside.append({n: np.append(point[n], sampled[n]) for n in scores})
        found[name] = {
            "choice_above_best": {
                score: float(quality.max() - quality[int(np.argmax(v))]) for score, v in scores.items()
            },
            "scores": {score: ordering.summarise(v, quality, size, draws) for score, v in scores.items()},
            "default_less_other": {
                score: {
                    "difference": point[DEFAULT_SCORE] - point[score],
                    "interval": list(ordering.interval(sampled[DEFAULT_SCORE] - sampled[score])),
                }
                for score in scores
                if score != DEFAULT_SCORE
            },
        }
    first = {row["id"]: row["validation_loss"] for row in rows if row["seed"] == 0}
    pairs = [(first.get(r["id"].removesuffix(", seed 1")), r["validation_loss"]) for r in rows if r["seed"]]
    moved = [abs(a - b) for a, b in pairs if a is not None]
    means = {score: np.mean([group[score] for group in inside], axis=0) for score in inside[0]}
    less = {score: means[DEFAULT_SCORE] - several for score, several in means.items() if score != DEFAULT_SCORE}
    return {
        "default": DEFAULT_SCORE,
        "groups": found,
        "mean_inside_budgets": {
            "spearman": {score: float(several[0]) for score, several in means.items()},
            "default_less_other_95": {score: list(ordering.interval(several[1:])) for score, several in less.items()},
        },
        "seeds_differ_by": {"mean": float(np.mean(moved)), "n": len(moved)},
    }


def collect(paths: list[Path], device: str, planned: Path) -> None:
    """Write what was brought back, and what follows from it."""
    from poster import trainer
    from record import write_result

    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    failed = {row["id"]: row["failed"] for row in rows if "failed" in row}
    rows = [row for row in rows if "failed" not in row]
    plan = [json.loads(line)["id"] for line in (planned / "shared.jsonl").read_text(encoding="utf-8").splitlines()]
    have = {row["id"] for row in rows}
    missing = {name: failed.get(name, "no device time left") for name in plan if name not in have}
    recipe = {"text": trainer.__doc__, "learning_rate": "1.1 / width", "embedding_skip": True}
    document = {"device": device, "recipe": recipe, "rows": rows, "missing": missing, "judged": judge(rows)}
    print(write_result("shared_study", document))


def show(judged: dict[str, Any]) -> None:
    """Print the figures as tables."""
    for name, group in judged["groups"].items():
        print(f"\n{name}")
        for score, figure in group["scores"].items():
            above = group["choice_above_best"][score]
            value, (low, high) = figure["spearman"]["value"], figure["spearman"]["interval"]
            less = group["default_less_other"].get(score)
            told = ""
            if less is not None:
                least, most = less["interval"]
                told = f"  default ahead by {less['difference']:+.3f} [{least:.3f}, {most:.3f}]"
            chosen = f"choice {above:.3f} above the best"
            print(f"  {score:28s} {value:6.3f} [{low:.2f}, {high:.2f}] {figure['n']} {chosen}{told}")
    print("\nmean over the three groups of equal FLOPs")
    for score, value in judged["mean_inside_budgets"]["spearman"].items():
        less = judged["mean_inside_budgets"]["default_less_other_95"].get(score, "")
        print(f"  {score:28s} {value:6.3f}  default ahead by {less}")
    print(f"\nanother first weight: {judged['seeds_differ_by']}")


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, metavar="FOLDER")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("shared.jsonl"))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4, help="models in flight, compiling ones included")
    parser.add_argument("--seconds", type=float, default=3600, help="all must be over then")
    parser.add_argument("--reserve", type=float, default=60, help="seconds that a training may take")
    parser.add_argument("--tokens", type=int, help="instead of the plan's")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="SHARED.jsonl")
    parser.add_argument("--planned", type=Path, default=Path(".poster"), metavar="FOLDER", help="with --collect")
    parser.add_argument("--device", default="")
    parser.add_argument("--stats", action="store_true")
    options = parser.parse_args()
    if options.plan:
        write_plan(options.plan)
    elif options.train:
        train(options)
    elif options.collect:
        collect(options.collect, options.device, options.planned)
    elif options.stats:
        from record import write_result

        recorded = json.loads(RESULT.read_text(encoding="utf-8"))["result"]
        judged = judge(recorded["rows"])
        show(judged)
        print(write_result("shared_study", {**recorded, "judged": judged}))
    else:
        parser.error("give one of --plan, --train, --collect, --stats")


if __name__ == "__main__":
    main()
