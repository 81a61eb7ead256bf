"""Does the default score find the better decoder, where each is trained as `merino-edge train` does it today?

    bench/shared_study.py --plan .poster [--draw 2]          the trainings into .poster/shared.jsonl
    bench/shared_study.py --train .poster --out shared.jsonl --gpus 4     on a machine with GPUs
    bench/shared_study.py --collect shared.jsonl --device "NVIDIA H100"   into bench/results/shared_study.json
    bench/shared_study.py --add shared.jsonl --device "NVIDIA H200"       a later draw to what is recorded
    bench/shared_study.py --stats                            what follows from the recorded trainings, again

The folder is that of `bench/poster_train.py`, with `all8192/`. Recipe, text and held-out text are those of its rows
named `board`: the embedding skip, a learning rate of 1.1 / width, steps of 32,768 tokens. The models are chosen before
any is trained, by the rule of the proxy study (`bench/proxy/plan.py`) with another seed and vocabulary: 64 of the
poster's space, 28 of them at equal FLOPs, and 24 of the default space at equal FLOPs, the head counted, as a board's
rows have. The default score's three numbers are fitted to these and to the plain decoders of `bench/space_study.py`:
`fit` says how well, and what others would be. Later draws, which nothing is fitted to, add others by the same rule,
none of which is another with its blocks in another order, so that every beginning holds the groups in proportion: the
second 110, and six of the first again as a control, the third 34 of the default space, 24 of them at half the FLOPs.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

VOCAB_SIZE = 8_192
TOKENS = 48_000_000
PLAN_SEED = 1  # of the first draw; each later one has the next
FREE_FLOPS = {"default-space": (60.0e9, 64.0e9), "default-space-small": (29.0e9, 31.0e9)}  # the head counted
COUNTS: dict[int, dict[str, int]] = {
    1: {"equal": 28, "equal-large": 10, "free": 26, "default-space": 24},
    2: {"equal": 40, "equal-large": 10, "free": 40, "default-space": 20},
    3: {"default-space": 10, "default-space-small": 24},
}
TRIED = (  # aspects, balances and reuses of the default score
    (28.0, 32.0, 36.0, 40.0, 44.0, 48.0, 56.0, 64.0), (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
    (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
)  # fmt: skip
CONTROLS = 6  # of the first draw, from three groups, trained again beside the second
LARGEST_FLOPS = 120e9  # of a model, the head counted
DRAWN = 60_000  # members of the default space, to choose from
RESULT = Path(__file__).parent / "results" / "shared_study.json"
GROUPS = {
    "all": ("equal", "equal-large", "free", "default-space", "default-space-small"),
    "the poster's space": ("equal", "equal-large", "free"),
    "the poster's space, equal FLOPs": ("equal",),
    "the poster's space, equal FLOPs, larger": ("equal-large",),
    "the default space, equal FLOPs with the head": ("default-space",),
    "the default space, equal FLOPs with the head, smaller": ("default-space-small",),
}
EQUAL = (("equal",), ("equal-large",), ("default-space",), ("default-space-small",))


def choose_default_space(
    seed: int, count: int, taken: Collection[str], name: Callable[[Any], str], flops: tuple[float, float]
) -> list[Any]:
    """Return members of the default space at equal FLOPs, any number of blocks as likely as another."""
    from proxy.plan import spread

    from merino_edge.architecture import Architecture, Block
    from merino_edge.search.cost import count_flops

    rng = random.Random(seed)  # noqa: S311  no secret
    found: dict[str, Architecture] = {}
    for _ in range(DRAWN):
        width = rng.randrange(256, 1025, 64)
        drawn = [(rng.choice((2, 4)), rng.choice((1, 2))) for _ in range(rng.randint(2, 16))]
        if 2 * 1024 * width**2 * sum((4 + 2 * ratio) * depth for ratio, depth in drawn) > flops[1]:
            continue  # the matrices alone
        one = Architecture(tuple(Block(width, ratio, depth) for ratio, depth in drawn), width, VOCAB_SIZE)
        if flops[0] <= count_flops(one, head=True) <= flops[1] and name(one) not in taken:
            found.setdefault(name(one), one)
    return spread(list(found.values()), count)


@cache
def choose_all(draw: int) -> dict[str, list[Any]]:
    """Return the architectures of every group of a draw, without the embedding skip."""
    from proxy.plan import by_blocks, by_digest, choose

    counts, seed = COUNTS[draw], PLAN_SEED + draw - 1
    name = by_digest if draw == 1 else by_blocks
    earlier = [one for before in range(1, draw) for group in choose_all(before).values() for one in group]
    taken = {name(one) for one in earlier}
    chosen: dict[str, list[Any]] = {}
    if "equal" in counts:
        chosen = choose(seed, VOCAB_SIZE, counts, taken, name)
        del chosen["steps"]
    for group, flops in FREE_FLOPS.items():
        if group in counts:
            chosen[group] = choose_default_space(seed, counts[group], taken, name, flops)
    return chosen


def jobs_of(draw: int) -> list[dict[str, Any]]:
    """Return the trainings of a draw with one first weight each, group by group."""
    from poster.rows import rate_by_width

    from merino_edge.search.cost import count_flops

    jobs = []
    for group, shapes in choose_all(draw).items():
        for shape in shapes:
            made = replace(shape, embedding_skip=True)
            jobs.append({
                "id": f"{group}: {made.describe()}", "group": group, "model": {"architecture": made.to_json()},
                "flops_with_head": count_flops(made, head=True), "seed": 0, "learning_rate": rate_by_width(made),
                "tokens": TOKENS,
            })  # fmt: skip
    return jobs


def write_plan(folder: Path, draw: int) -> None:
    """Write the trainings: of the first draw the longest first, of a later one every group in proportion."""
    jobs = jobs_of(draw)
    if draw == 1:
        again = [*jobs[:6], *[job for job in jobs if job["group"] == "free"][:4]]
        jobs.sort(key=lambda job: -job["flops_with_head"])
        jobs += [{**job, "id": f"{job['id']}, seed 1", "seed": 1} for job in again]
    else:
        counts = COUNTS[draw]
        at = {job["id"]: (n + 0.5) / counts[group] for group in counts for n, job in enumerate(in_group(jobs, group))}
        jobs = sorted(({**job, "draw": draw} for job in jobs), key=lambda job: at[job["id"]])
    if draw == 2:
        groups, old = ("equal", "free", "default-space"), jobs_of(1)
        again = [job for group in groups for job in in_group(old, group)[: CONTROLS // len(groups)]]
        jobs[CONTROLS:CONTROLS] = [{**job, "id": f"{job['id']}, again", "control": True} for job in again]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shared.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    for job in jobs:
        print(f"{job['flops_with_head'] / 1e9:6.1f} G {job['learning_rate']:.2g} {job['id']}")


def in_group(jobs: list[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    """Return the jobs of a group, in their order."""
    return [job for job in jobs if job["group"] == group]


def train_job(job: dict[str, Any], options: argparse.Namespace, gpu: int, turn: int) -> None:
    """Train and judge one model."""
    from poster.trainer import CONTEXT
    from poster_train import append, deadline, gpu_turn, load_texts, ready_trainer

    trainer, _ = ready_trainer(job, load_texts(options.train, "all8192"))
    with gpu_turn(options.train / f"shared-{gpu}-{turn}"):
        if time.time() + options.reserve * job["flops_with_head"] / LARGEST_FLOPS > deadline(options):
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
    places = [(number % options.gpus, number // options.gpus % options.turns) for number in range(options.workers)]
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
        if not several:
            continue
        quality = -np.array([row["validation_loss"] for row in several])
        scores, draws = score_all(several), ordering.resamples(len(several))
        counts = ordering.count_members(draws)
        size = scores["total-parameters"]
        point = {n: ordering.spearman(v, quality) for n, v in scores.items()}
        sampled = {n: ordering.spearman_resampled(v, quality, counts) for n, v in scores.items()}
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
    seeds = {"seeds_differ_by": {"mean": float(np.mean(moved)), "n": len(moved)}} if moved else {}
    return {
        "default": DEFAULT_SCORE,
        "groups": found,
        "mean_inside_budgets": {
            "spearman": {score: float(several[0]) for score, several in means.items()},
            "default_less_other_95": {score: list(ordering.interval(several[1:])) for score, several in less.items()},
        },
        **seeds,
    }


def fit(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return which numbers of the default score suit plain decoders and the first draw, and how they order the later.

    `errors` are root mean squares in nats of a loss linear in the log of the score: over the plain decoders of
    `bench/space_study.py`, with a constant for each group of FLOPs, and over the first draw. The best has the least of
    both together. `depth` says of which layers: those with weights of their own, or executed ones. `alone` says what
    suits one table with shared blocks alone.
    """
    import numpy as np
    import shape_study
    import space_study
    from proxy.ordering import balanced_by, spearman

    from merino_edge.architecture import Architecture
    from merino_edge.search import scores

    plain = json.loads((RESULT.parent / "space_study.json").read_text(encoding="utf-8"))["result"]
    tables = [
        ([space_study.architecture(name) for name in group], np.array([loss for loss, _ in group.values()]))
        for group in space_study.best_rates(plain).values()
    ]
    once = [row for row in rows if row["seed"] == 0]
    draws = [[row for row in once if (row.get("draw", 1) > 1) == later] for later in (False, True)]
    first, later = (
        ([Architecture.from_json(row["model"]["architecture"]) for row in draw],
         np.array([row["validation_loss"] for row in draw]))
        for draw in draws
    )  # fmt: skip
    options = scores.ScoreOptions("balanced-parameters")

    def values(models: list[Any]) -> Any:
        return np.array([scores.score_architecture(one, options) for one in models])

    def squares(several: list[tuple[list[Any], Any]]) -> float:
        parts = [(np.log(values(models)), losses) for models, losses in several]
        x, y = (np.concatenate([part - part.mean() for part in side]) for side in zip(*parts, strict=True))
        return float(np.mean((y - x * (x @ y) / (x @ x)) ** 2))

    def judged(aspect: float, balance: float, reuse: float, depth: str) -> dict[str, Any]:
        with balanced_by(aspect, balance, reuse, executed=depth == "executed"):
            both = squares(tables), squares([first])
            counts = [sum(len(losses) for _, losses in several) for several in (tables, [first])]
            return {
                "aspect": aspect, "balance": balance, "reuse": reuse, "depth": depth,
                "error": float(np.sqrt(np.average(both, weights=counts))),
                "errors": {"plain": both[0] ** 0.5, "first draw": both[1] ** 0.5},
                "spearman": {name: spearman(values(models), -losses)
                             for name, (models, losses) in {"first draw": first, "later draws": later}.items()},
            }  # fmt: skip

    def best(depth: str) -> dict[str, Any]:
        tried = (judged(*numbers, depth) for numbers in product(*TRIED))
        return min(tried, key=lambda one: float(one["error"]))

    shapes = json.loads((RESULT.parent / "shape_study.json").read_text(encoding="utf-8"))["result"]["rows"]
    shared = {name: several for name, several in shape_study.tables(shapes).items() if name.startswith("block-shared")}
    alone = {
        name: ([one for one, _ in several], np.array([loss for _, loss in several])) for name, several in shared.items()
    }
    alone |= {"first draw": first, "later draws": later}

    def best_alone(several: tuple[list[Any], Any]) -> dict[str, float]:
        def error(numbers: tuple[float, float, float]) -> float:
            with balanced_by(*numbers):
                return squares([several])

        return dict(zip(("aspect", "balance", "reuse"), min(product(*TRIED), key=error), strict=True))

    return {
        "alone": {name: best_alone(several) for name, several in alone.items()},
        "decoders": {"plain": sum(len(losses) for _, losses in tables), **dict(
            zip(("first draw", "later draws"), map(len, draws), strict=True))},
        "shipped": judged(scores.ASPECT, scores.BALANCE, scores.REUSE, "own"),
        "best": {depth: best(depth) for depth in ("own", "executed")},
        "before": judged(48.0, 0.25, 0.0, "executed"),
    }  # fmt: skip


def trained(paths: list[Path], planned: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the trainings that ended, and for the others of the plan the reason why not."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    failed = {row["id"]: row["failed"] for row in rows if "failed" in row}
    rows = [row for row in rows if "failed" not in row]
    plan = [json.loads(line)["id"] for line in (planned / "shared.jsonl").read_text(encoding="utf-8").splitlines()]
    have = {row["id"] for row in rows}
    return rows, {name: failed.get(name, "no device time left") for name in plan if name not in have}


def write_table(rows: list[dict[str, Any]]) -> None:
    """Write the trainings as CSV: architecture, costs, scores, recipe, losses."""
    from proxy.table import describe

    from merino_edge.architecture import Architecture
    from merino_edge.search.regime import STUDY_BETA
    from merino_edge.search.scores import ScoreOptions, score_architecture

    scores = {
        "balanced_parameters": ScoreOptions("balanced-parameters"),
        "entropy": ScoreOptions("entropy", beta=STUDY_BETA),
        "entropy_poster": ScoreOptions("entropy-poster"),
    }
    lines = []
    for row in rows:
        one = Architecture.from_json(row["model"]["architecture"])
        lines.append({
            **{name: row[name] for name in ("id", "group")}, "draw": row.get("draw", 1), "seed": row["seed"],
            "blocks": one.describe(), "own_layers": len(one.blocks), **describe(one),
            **{name: float(f"{score_architecture(one, options):.6g}") for name, options in scores.items()},
            **{name: row[name] for name in ("learning_rate", "tokens", "steps")},
            **{name: round(row[name], 5) for name in ("validation_loss", "train_loss")},
        })  # fmt: skip
    with RESULT.with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def write(document: dict[str, Any]) -> dict[str, Any]:
    """Write the trainings as a table and the document with what follows from them; returns the document."""
    from record import write_result

    rows = document["rows"]
    write_table(rows)
    later = [row for row in rows if row.get("draw", 1) > 1]
    more = {"judged_later_draws": judge(later), "fit": fit(rows)} if later else {}
    document = {**document, "judged": judge(rows), **more}
    print(write_result("shared_study", document))
    return document


def collect(paths: list[Path], device: str, planned: Path) -> None:
    """Write what was brought back, and what follows from it."""
    from poster import trainer

    rows, missing = trained(paths, planned)
    recipe = {"text": trainer.__doc__, "learning_rate": "1.1 / width", "embedding_skip": True}
    document = {"device": device, "recipe": recipe, "rows": rows, "missing": missing}
    write(document)


def add(paths: list[Path], device: str, planned: Path) -> None:
    """Add a later draw to what is recorded, and beside it how its controls ended there and the first time."""
    recorded = json.loads(RESULT.read_text(encoding="utf-8"))["result"]
    rows, missing = trained(paths, planned)
    first = {row["id"]: row["validation_loss"] for row in recorded["rows"]}
    names = {row["id"].removesuffix(", again"): row["validation_loss"] for row in rows if "control" in row}
    controls = [{"id": name, "first": first[name], "again": loss} for name, loss in names.items()]
    known = {row["id"] for row in recorded["rows"]}
    new = [row for row in rows if "control" not in row and row["id"] not in known]
    document = {
        **recorded,
        "device": f"{recorded['device']}; {device}",
        "controls": [*recorded.get("controls", []), *controls],
        "rows": [*recorded["rows"], *new],
        "missing": {**recorded["missing"], **missing},
    }
    write(document)


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
    print("\nmean over the groups of equal FLOPs")
    for score, value in judged["mean_inside_budgets"]["spearman"].items():
        less = judged["mean_inside_budgets"]["default_less_other_95"].get(score, "")
        print(f"  {score:28s} {value:6.3f}  default ahead by {less}")
    print(f"\nanother first weight: {judged.get('seeds_differ_by', 'none trained')}")


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, metavar="FOLDER")
    parser.add_argument("--draw", type=int, choices=tuple(COUNTS), default=1, help="with --plan")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("shared.jsonl"))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4, help="models in flight, compiling ones included")
    parser.add_argument("--turns", type=int, default=2, help="trainings at a time on a GPU: one leaves it waiting")
    parser.add_argument("--seconds", type=float, default=3600, help="all must be over then")
    parser.add_argument("--reserve", type=float, default=200, help="seconds that the largest may take, others by FLOPs")
    parser.add_argument("--tokens", type=int, help="instead of the plan's")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="SHARED.jsonl")
    parser.add_argument("--add", type=Path, nargs="+", metavar="SHARED.jsonl")
    parser.add_argument(
        "--planned", type=Path, default=Path(".poster"), metavar="FOLDER", help="with --collect and --add"
    )
    parser.add_argument("--device", default="")
    parser.add_argument("--stats", action="store_true")
    options = parser.parse_args()
    if options.plan:
        write_plan(options.plan, options.draw)
    elif options.train:
        train(options)
    elif options.collect:
        collect(options.collect, options.device, options.planned)
    elif options.add:
        add(options.add, options.device, options.planned)
    elif options.stats:
        document = write(json.loads(RESULT.read_text(encoding="utf-8"))["result"])
        for name in ("judged", "judged_later_draws"):
            if name in document:
                print(f"\n== {name}")
                show(document[name])
    else:
        parser.error("give one of --plan, --train, --collect, --add, --stats")


if __name__ == "__main__":
    main()
