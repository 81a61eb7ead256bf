"""Every recipe's file on emulated Arm cores: right numbers, and how many instructions a token takes.

    .venv/bin/python bench/arm.py [--cpu cortex-a72 ...] [--runtime onnxruntime-1.32.0 ...] [--recipe NAME ...]
    .venv/bin/python bench/arm.py --instructions           counts: one core, the clock counts instructions
    .venv/bin/python bench/arm.py --instructions --check   exits 7 where a count grew by more than 1 %

A small model is exported in every form of every recipe, run here and on the board by the same code,
token by token; the largest difference of a logit is held against what the bundle itself allows on
another CPU, and against the reference. What a runtime refuses is recorded with its words.

Everything is emulated by QEMU: the numbers computed are those of the core's instructions, times are no
board's. An instruction count is "virtual ns (instructions), emulated": one nanosecond each, without
caches, memory or pipeline; equal cores with equal instructions give equal counts. Recorded in
`bench/results/arm.json` and `bench/results/arm_instructions.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import RESULTS, write_result

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tools" / "board"))

import emulator  # noqa: E402
from image import listed  # noqa: E402

from merino_edge.architecture import Architecture, Block  # noqa: E402
from merino_edge.device.provision import agent_program  # noqa: E402
from merino_edge.errors import MerinoEdgeError  # noqa: E402
from merino_edge.exporting import ExportOptions  # noqa: E402
from merino_edge.flows.export import load_exporter  # noqa: E402
from merino_edge.reference import forward, random_tensors  # noqa: E402

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
PROMPT, CONTINUATION = 24, 8
REPEATS = 15  # single tokens timed in a count
TOLERANCE = 0.01  # of a count against the recorded one: seen apart by 0.05 % at most
REGRESSION = 7
KEYS = ("cpu", "qemu", "runtime", "format", "recipe", "form")
# Blocks of 128 divide every width; two layers share; the vocabulary is odd. 0.3 M parameters.
MODEL = Architecture((Block(128, 2, 2), Block(256, 1, 1)), embedding_width=128, vocab_size=257, head_dim=32)


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: `FORMAT-RECIPE-FORM`.
        format: `onnx` or `tflite`.
        recipe: Of the exporter.
        form: Of the exporter.
        tolerance: What its bundle allows a logit to differ by on another CPU.
        reference: `(1 + CONTINUATION, V)` logits of the reference with the file's weights; None for TFLite.
    """

    name: str
    format: str
    recipe: str
    form: str
    tolerance: float
    reference: npt.NDArray[np.float32] | None


def pairs(formats: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yield every format, recipe and form that an exporter here writes for a processor."""
    from merino_edge.exporters import recipes, tflite_recipes

    for format_name, table in (("onnx", recipes.RECIPES), ("tflite", tflite_recipes.RECIPES)):
        if format_name in formats:
            for recipe in table.values():
                if "16" not in recipe.name:  # those are for GPU providers
                    yield from ((format_name, recipe.name, form) for form in recipe.forms)


def tokens() -> tuple[list[int], list[int]]:
    """Return what is fed in one piece, and what then token by token."""
    drawn = np.random.default_rng(7).integers(0, MODEL.vocab_size, PROMPT + CONTINUATION).tolist()
    return drawn[:PROMPT], drawn[PROMPT:]


def export_all(folder: Path, wanted: Iterable[tuple[str, str, str]]) -> list[Case]:
    """Export each into a folder of its own, with as much of a manifest as a session needs."""
    from merino_edge.exporters import recipes

    tensors = random_tensors(MODEL, 0, scale=0.05)
    prompt, continuation = tokens()
    (folder / "prompt.json").write_text(json.dumps({"prompt": prompt, "continuation": continuation}))
    cases = []
    for format_name, recipe, form in wanted:
        name = f"{format_name}-{recipe}-{form}"
        place = folder / name
        place.mkdir()
        options = ExportOptions(form=form, context_length=256)
        try:
            result = load_exporter(format_name)(MODEL, tensors, place, recipe, options)
        except MerinoEdgeError as error:
            print(f"{name}: not written: {error.message}")
            shutil.rmtree(place)
            continue
        written = {"format": format_name, "runtime": result.runtime, "form": result.form, "recipe": recipe}
        manifest = {**written, "files": [{"name": n} for n in result.files]}
        (place / "manifest.json").write_text(json.dumps(manifest))
        reference = None
        if format_name == "onnx":
            rounded = {n: recipes.RECIPES[recipe].rounded(t) for n, t in tensors.items()}
            reference = forward(MODEL, rounded, np.array(prompt + continuation))[PROMPT - 1 :].astype(np.float32)
        cases.append(Case(name, format_name, recipe, result.form, float(result.check.tolerance), reference))
    return cases


def run_here(folder: Path) -> None:
    """Run all on this machine, by the code that runs on the board."""
    command = [sys.executable, str(HERE / "emulated" / "run_bundles.py"), str(folder), "0"]
    subprocess.run(command, check=True)


def run_there(board: emulator.Board, folder: Path, runtime: str, repeats: int) -> Path:
    """Send all to a board, run them there with one of its runtimes, and fetch what came out."""
    program, _ = agent_program()
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "work"
        shutil.copytree(folder, bundle, ignore=shutil.ignore_patterns("logits.npy", "answer.json", "result.json"))
        (bundle / "agent.pyz").write_bytes(program)
        shutil.copy(HERE / "emulated" / "run_bundles.py", bundle)
        ssh = ["ssh", "-F", str(board.ssh_config), emulator.HOST]
        numpy_folder = "numpy-1" if runtime.startswith("tflite") else "numpy-2"
        path = f"$W/agent.pyz:/opt/runtimes/{numpy_folder}:/opt/runtimes/{runtime}"
        own = f"XDG_CACHE_HOME=$(mktemp -d) PYTHONHASHSEED=0 PYTHONPATH={path}"
        inner = f"cd $W && {own} setarch -R python3 run_bundles.py . {repeats} 1>&2"
        script = f"W=$HOME/conformance; rm -rf $W; mkdir $W; tar -C $W -xf -; {inner}"
        script += " && tar -C $W -cf - $(ls -d */*.npy) result.json; code=$?; rm -rf $W; exit $code"
        packed = subprocess.run(["tar", "-C", str(bundle), "-cf", "-", "."], check=True, capture_output=True).stdout
        done = subprocess.run([*ssh, script], input=packed, capture_output=True, timeout=1800)
        if done.returncode:
            raise emulator.BoardError(f"{board.name}, {runtime}: {done.stderr.decode()[-800:]}")
        answer = Path(tempfile.mkdtemp(prefix=f"{board.name}-", dir=folder.parent))
        subprocess.run(["tar", "-C", str(answer), "-xf", "-"], input=done.stdout, check=True)
    return answer


def compare(case: Case, here: Path, there: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the record: how far the board's logits lie from this machine's and the reference's."""
    about = {"format": case.format, "recipe": case.recipe, "form": case.form}
    if not row["ok"]:
        return {**about, "runs": False, "message": row["message"]}
    mine, board = np.load(here / case.name / "logits.npy"), np.load(there / case.name / "logits.npy")
    worst = float(np.abs(mine - board).max()) if np.isfinite(board).all() else float("inf")
    found = {
        **about,
        "runs": True,
        "max_abs_diff_to_x86": worst,
        "tolerance": case.tolerance,
        "right": worst <= case.tolerance,
        "logits_std": float(mine.std()),
        "provider": row["provider"],
    }
    if case.reference is not None:
        found["max_abs_diff_to_reference"] = float(np.abs(case.reference - board).max())
    if row["decode_ns"]:
        found["virtual_ns_instructions_p50"] = statistics.median(row["decode_ns"])
    return found


def conform(
    board: emulator.Board, folder: Path, cases: list[Case], runtimes: Iterable[str], repeats: int = 0
) -> list[dict[str, Any]]:
    """Run all files with each runtime of a board and compare; `folder` has run here already."""
    rows = []
    for runtime in runtimes:
        fitting = [c for c in cases if (c.format == "tflite") != runtime.startswith("onnxruntime")]
        if not fitting:
            continue
        there = run_there(board, folder, runtime, repeats)
        answers = json.loads((there / "result.json").read_text())
        about = {"emulated": True, "cpu": board.cpu, "qemu": board.qemu, "runtime": runtime}
        rows += [{**about, **compare(case, folder, there, answers[case.name])} for case in fitting]
    return rows


def board_runtimes() -> list[str]:
    """Return the runtimes of the board's image, by their folders' names."""
    names = [line.split()[0] for line in listed("wheels.txt")]
    return [name for name in names if not name.startswith("numpy")]


def show(row: dict[str, Any]) -> None:
    """Print one row."""
    label = f"{row['cpu']:11} {row['runtime']:20} {row['format']}-{row['recipe']}-{row['form']}"
    if not row["runs"]:
        print(f"{label}: does not run: {row['message'][:120]}", flush=True)
        return
    count = f", {row['virtual_ns_instructions_p50']:.0f} virtual ns" if "virtual_ns_instructions_p50" in row else ""
    verdict = "right" if row["right"] else "WRONG"
    print(f"{label}: {verdict}, off by {row['max_abs_diff_to_x86']:.2g} of {row['tolerance']:.2g}{count}", flush=True)


def keep(rows: list[dict[str, Any]], instructions: bool) -> Path:
    """Record rows beside those of other cores and runtimes recorded before for the same model."""
    name = "arm_instructions" if instructions else "arm"
    unit = "virtual ns (instructions), emulated" if instructions else None
    about = {"emulated": True, "unit": unit, "model": MODEL.to_json()}
    about |= {"prompt_tokens": PROMPT, "fed_token_by_token": CONTINUATION}
    old: list[dict[str, Any]] = []
    if (RESULTS / f"{name}.json").exists():
        recorded = json.loads((RESULTS / f"{name}.json").read_text())["result"]
        if all(recorded[key] == value for key, value in about.items()):
            old = recorded["rows"]
    new = {tuple(row[key] for key in KEYS) for row in rows}
    kept = [row for row in old if tuple(row[key] for key in KEYS) not in new]
    return write_result(name, {**about, "rows": sorted(kept + rows, key=lambda r: [str(r[key]) for key in KEYS])})


def grown(rows: list[dict[str, Any]]) -> list[str]:
    """Return which counts grew beyond the tolerance since they were recorded."""
    recorded = json.loads((RESULTS / "arm_instructions.json").read_text())["result"]["rows"]
    before = {tuple(r[k] for k in KEYS): r.get("virtual_ns_instructions_p50") for r in recorded}
    worse = []
    for row in rows:
        old, new = before.get(tuple(row[k] for k in KEYS)), row.get("virtual_ns_instructions_p50")
        if old and new and new > (1 + TOLERANCE) * old:
            label = f"{row['cpu']} {row['runtime']} {row['recipe']}-{row['form']}"
            worse.append(f"{label}: {old:.0f} -> {new:.0f} virtual ns")
    return worse


def main() -> int:
    """Run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="append", choices=emulator.CPUS)
    parser.add_argument("--runtime", action="append", choices=board_runtimes())
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--format", action="append", choices=("onnx", "tflite"))
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    asked = parser.parse_args()
    runtimes = asked.runtime or board_runtimes()
    wanted = [p for p in pairs(asked.format or ("onnx", "tflite")) if asked.recipe is None or p[1] in asked.recipe]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundles"
        folder.mkdir()
        cases = export_all(folder, wanted)
        run_here(folder)
        for cpu in asked.cpu or CPUS:
            name = f"arm-{cpu.removeprefix('cortex-')}{'-count' if asked.instructions else ''}"
            board = emulator.up(name, cpu, icount=asked.instructions)
            try:
                found = conform(board, folder, cases, runtimes, REPEATS if asked.instructions else 0)
            finally:
                emulator.down(name)
            for row in found:
                show(row)
            rows += found
            if not (asked.check or asked.dry_run):
                print(keep(found, asked.instructions))
    if asked.check:
        worse = grown(rows)
        print("\n".join(worse) or "no count grew by more than 1 %")
        return REGRESSION if worse else 0
    return 0 if all(row["right"] for row in rows if row["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
