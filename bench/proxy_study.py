"""Does a training-free score find the better block-shared decoder? The study, from text to figures.

    bench/proxy_study.py                        recompute every figure from the shipped table (no GPU, under a minute)
    bench/proxy_study.py --stats TABLE.csv      the same from another table
    bench/proxy_study.py --prepare CORPUS       text into .proxy/: tokenizer and token chunks
    bench/proxy_study.py --plan 3e6 8e6 32e6    the trainings into .proxy/study.jsonl (low, main, high budget)
    PYTHONPATH=. python bench/proxy/train.py --plan .proxy/study.jsonl --out results.jsonl   on a machine with a GPU
    bench/proxy_study.py --collect results.jsonl --device "NVIDIA H200"   results into bench/results/proxy_study.csv
    bench/proxy_study.py --rescore              every column that follows from the architecture (half an hour on a core)
    bench/proxy_study.py --measure local        the latency of each architecture's int8 file there (ten minutes)

The figures land in bench/results/proxy_stats.json; the recipe in bench/results/proxy_study.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from proxy import judge, plan, table
from record import write_result

TABLE = Path(__file__).parent / "results" / "proxy_study.csv"
WORK = Path(".proxy")


def prepare(corpus: Path) -> None:
    """Make tokenizer and token chunks."""
    from proxy import data

    data.prepare(corpus, WORK, plan.VOCAB_SIZE)


def write_plan(low: float, main: float, high: float) -> None:
    """Write the trainings, one JSON line each."""
    WORK.mkdir(exist_ok=True)
    jobs = plan.study_plan(low, main, high)
    (WORK / "study.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs), encoding="utf-8")
    print(f"{len(jobs)} trainings in {WORK / 'study.jsonl'}")


def collect(paths: list[Path], tries: list[Path], device: str, versions: str) -> None:
    """Write the table, and the recipe and what led to it beside it; only here torch is needed."""
    from proxy.recipe import RECIPE, RECIPE_NOTES

    results = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    count = table.write_table(TABLE, results)
    recipe = {**RECIPE_NOTES, "values": RECIPE}
    training = {
        "trainings": count,
        "training_flops": float(f"{sum(r['training_flops'] for r in results):.3g}"),
        "gpu_seconds_of_steps": round(sum(r["seconds"]["steps"] for r in results)),
        "device": device,
        "versions_there": versions,
        "recipe_tries": [table.make_try(json.loads(line)) for path in tries for line in path.read_text().splitlines()],
    }
    print(write_result("proxy_study", {"recipe": recipe, **training}))


def rescore() -> None:
    """Fill the table's columns that follow from the architecture, network scores among them."""
    from proxy.rescore import rescore as fill

    rows = table.read_table(TABLE)
    seconds = fill(rows, WORK / "scores.jsonl")
    table.write_rows(TABLE, rows)
    print(json.dumps({"cpu_seconds_each": seconds}))


def measure(device: str) -> None:
    """Fill the table's columns of measured latency, and record how they were measured."""
    from proxy.latency import fill_latency

    rows = table.read_table(TABLE)
    how = fill_latency(rows, device, WORK / "latency" / f"{device}.jsonl")
    table.write_rows(TABLE, rows)
    print(write_result("proxy_latency", how))


def show(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    for name, group in figures["groups"].items():
        print(f"\n{name}: {group['n']} architectures, {group['tokens'] / 1e6:.0f} M tokens each")
        print(f"  {'score':30} {'Spearman':>24} {'Kendall':>8} {'in 10 %':>22}")
        for score, figure in group["scores"].items():
            rho, tau, near = figure["spearman"], figure["kendall"], figure["in_10pct"]
            print(f"  {score:30} {_cell(rho):>24} {tau['value']:8.3f} {_cell(near):>22}")
    print(f"\nrecommended: {json.dumps(figures['recommended'])}")
    print("\nbest beta by tokens, within the domain (equal FLOPs, the same architectures at every budget)")
    for row in figures["beta_by_tokens"]["rows"]:
        low, high = row["interval"]
        print(
            f"  {row['tokens'] / 1e6:6.1f} M: beta {row['beta']:.3f} [{low:.3f}, {high:.3f}]"
            f" Spearman {row['spearman']:.3f};"
            f" unbounded {row['unbounded_beta']:.3f}; depth alone {row['minus_depth_spearman']:.3f}"
        )
    print(f"best p in unique parameters / depth^p: {json.dumps(figures['beta_by_tokens']['depth_power'])}")
    print(f"\nnoise: {json.dumps(figures['noise'])}")
    for key in ("beta_by_scale", "held_out", "paired", "recipe_checks", "width_steps", "domain"):
        print(f"\n{key}: {json.dumps(figures[key], indent=1)}")


def _cell(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.3f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Do the step asked for; the statistics where none is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stats", type=Path, default=TABLE, metavar="TABLE.csv")
    parser.add_argument("--prepare", type=Path, metavar="CORPUS")
    parser.add_argument("--plan", type=float, nargs=3, metavar=("LOW", "MAIN", "HIGH"))
    parser.add_argument("--collect", type=Path, nargs="+", metavar="RESULTS.jsonl")
    parser.add_argument("--tries", type=Path, nargs="*", default=[], metavar="SWEEP.jsonl", help="with --collect")
    parser.add_argument("--rescore", action="store_true")
    parser.add_argument("--measure", metavar="DEVICE")
    parser.add_argument("--device", default="not stated")
    parser.add_argument("--versions", default="not stated")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare)
    elif arguments.plan:
        write_plan(*arguments.plan)
    elif arguments.rescore:
        rescore()
    elif arguments.measure:
        measure(arguments.measure)
    elif arguments.collect:
        collect(arguments.collect, arguments.tries, arguments.device, arguments.versions)
    else:
        figures = judge.judge(table.read_table(arguments.stats))
        if arguments.json:
            print(json.dumps(figures, indent=1))
        else:
            show(figures)
        if arguments.stats.resolve() == TABLE.resolve():
            write_result("proxy_stats", figures)


if __name__ == "__main__":
    main()
