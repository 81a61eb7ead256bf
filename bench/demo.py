"""The main job from end to end on this machine, by the commands a user would type: what `make demo` runs.

    profile -> search -> train -> export -> deploy -> generate -> bench -> search again -> report

Everything the demo makes lies in `build/demo` (its own runs, its own device folder), so that nothing
of yours is touched; `make clean` removes it. The limits are chosen from what the profile found here,
so that the demo fits any machine; the training gets what is left of ten minutes.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "build" / "demo"
COMMAND = Path(sys.executable).with_name("merino-edge")
BUDGET_S = 560.0  # the ten minutes less a margin
PROFILE_S = 75
AFTER_TRAINING_S = 130.0  # export, deploy, generate, bench and the second search need so much
TRAINING_S = (45.0, 180.0)  # at least, at most
LIMIT_FACTORS = (2.0, 2.8, 4.0)  # times the least that the profile predicts; the next if nothing fits
NOTHING_FITS, NOT_VALID = 3, 5  # exit codes
RUN, AGAIN, VOCAB = "demo", "demo-again", 8192


class StepFailed(Exception):
    """A command ended with another code than it should."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"`{command}` ended with exit code {code}")
        self.code = code


@dataclass
class Demo:
    """The steps done so far.

    Attributes:
        started: Seconds of the monotonic clock.
        rows: Step, result and seconds: the table at the end.
    """

    started: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, str, float]] = field(default_factory=list)

    def run(self, *words: str, save: str | None = None, may_fail_with: int | None = None) -> int:
        """Run one command as a user would, echoing it first.

        Args:
            words: After `merino-edge`.
            save: File of the state folder that takes stdout.
            may_fail_with: An exit code that is returned; any other than 0 raises.
        """
        typed = shlex.join(["merino-edge", *words]) + (f" > {shown(STATE / save)}" if save else "")
        print(f"\n$ {typed}", flush=True)
        started = time.monotonic()
        if save is None:
            code = subprocess.run([COMMAND, *words]).returncode
        else:
            with open(STATE / save, "wb") as stream:
                code = subprocess.run([COMMAND, *words], stdout=stream).returncode
        self.rows.append((words[0], "", time.monotonic() - started))
        if code not in (0, may_fail_with):
            raise StepFailed(typed, code)
        return code

    def result(self, text: str) -> None:
        """Say what the step just done has given, for the table."""
        step, _, seconds = self.rows[-1]
        self.rows[-1] = (step, text, seconds)

    @property
    def left_s(self) -> float:
        """Seconds of the budget not yet spent."""
        return BUDGET_S - (time.monotonic() - self.started)


def shown(path: Path) -> str:
    """Return a path as short as it can be typed here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def prepare() -> None:
    """Make the demo's own folders, and the file that lets a shell go on with them."""
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    own = {
        "XDG_DATA_HOME": STATE / "data",
        "XDG_CONFIG_HOME": STATE / "config",
        "XDG_CACHE_HOME": STATE / "cache",
        "MERINO_EDGE_RUNS": STATE / "runs",
    }
    lines = [f"export {name}={shlex.quote(str(path))}" for name, path in own.items()]
    lines.append(f'export PATH={shlex.quote(str(COMMAND.parent))}:"$PATH"')
    (STATE / "env.sh").write_text("\n".join(lines) + "\n")
    for name, path in own.items():
        os.environ[name] = str(path)
    os.environ.pop("MERINO_EDGE_DEVICE", None)  # the demo's device is this machine
    print(f"The demo keeps everything it makes in {shown(STATE)}/ and takes ten minutes at most.", flush=True)


def read(*parts: str) -> dict[str, Any]:
    """Read a JSON file of the state folder."""
    document: dict[str, Any] = json.loads(STATE.joinpath(*parts).read_text())
    return document


def read_manifest(recipe: str) -> dict[str, Any]:
    """Read the manifest of the run's bundle of a recipe, in whichever form this machine runs fastest."""
    (path,) = (STATE / "runs" / RUN / "export").glob(f"onnx-{recipe}*/manifest.json")
    return read(*path.relative_to(STATE).parts)


def quantity(value: float, unit: str) -> str:
    """Round up to two digits, with the unit, as one would type it."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step) * step:.6g}{unit}"


def profile(demo: Demo) -> dict[str, Any]:
    """Measure this machine; where it is too busy for that, say so and start from the shipped estimate."""
    words = ("profile", "--vocab", str(VOCAB), "--json")
    code = demo.run(*words, "--time", f"{PROFILE_S}s", save="profile.json", may_fail_with=NOT_VALID)
    if code == NOT_VALID:
        demo.result("NOT VALID: other programs disturbed it")
        print("This machine is too busy to be measured; going on with an estimate. Times below may not be valid.")
        demo.run(*words, "--estimate", save="profile.json")
    document = read("profile.json")
    small, large = document["reach"]
    print(f"smallest of the space: {small['tg_ms']:.2f} ms a token; largest: {large['tg_ms']:.2f} ms a token")
    if document["estimate"]:
        demo.result("an estimate, not measured")
    else:
        error = 100 * document["latency_model"]["mape"]
        demo.result(f"{document['models']} models measured; mean error of held-out predictions {error:.1f} %")
    return document


def search(demo: Demo, least: dict[str, Any], run: str, factors: tuple[float, ...]) -> float:
    """Search under limits near the least this machine can do; return the factor that had an answer."""
    for factor in factors:
        latency, memory = quantity(factor * least["tg_ms"], "ms"), quantity(factor * least["memory_bytes"] / 1e6, "MB")
        may_fail = None if factor == factors[-1] else NOTHING_FITS
        limits = ("--latency", latency, "--memory", memory)
        if demo.run("search", *limits, "--vocab", str(VOCAB), "--run", run, may_fail_with=may_fail) == 0:
            break
        demo.result("nothing fits so tight a limit: once more with a wider one")
    found = read("runs", run, "search.json")
    scored = f"{found['evaluated']:,} scored in {found['seconds']['search']:.2f} s"
    tg, predicted = (found["measured"] or {}).get("tg_ms"), found["predicted"]["tg_ms"]
    promise = f"tg predicted {predicted:.2f} ms" + (f", measured {tg:.2f} ms" if tg else "")
    demo.result(f"{found['parameters'] / 1e6:.1f} M parameters; {scored}; {promise}")
    return factor


def use(demo: Demo) -> None:
    """Train, export twice, deploy, generate."""
    seconds = min(TRAINING_S[1], max(TRAINING_S[0], demo.left_s - AFTER_TRAINING_S))
    demo.run("train", RUN, "--time", f"{seconds:.0f}s", "--json", save="train.json")
    trained = read("train.json")
    demo.result(f"{trained['tokens'] / 1e6:.2f} M tokens; perplexity of held-out text {trained['perplexity']:.1f}")
    print(f"perplexity of held-out text {trained['perplexity']:.1f} after {trained['tokens']:,} tokens")
    for recipe in ("fp32", "dynamic_wi8_afp32"):
        demo.run("export", RUN, "--format", "onnx", "--recipe", recipe)
        manifest = read_manifest(recipe)
        difference = manifest["parity"]["max_abs_diff"]
        demo.result(f"{recipe}: {manifest['file_bytes'] / 1e6:.1f} MB; largest difference {difference:.1g}")
    demo.run("deploy", RUN)
    demo.result("verified, tested and switched on this machine")
    demo.run("generate", "The history of the", "--max-tokens", "48")
    demo.result("48 tokens at most, streamed through the agent")


def measure(demo: Demo) -> None:
    """Bench both bundles side by side."""
    demo.run("bench", RUN, "--json", save="bench.json")
    rows = read("bench.json")["rows"]
    columns = ("recipe", "test", "p50 ms", "p90 ms", "p99 ms", "tokens/s", "load ms", "peak MB", "file MB", "ppl")
    table = [
        (
            row["recipe"],
            f"tg@{row['depth']}" if row["test"] == "tg" else row["test"],
            *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            *(f"{row[key]:.0f}" for key in ("tokens_per_s", "load_ms")),
            *(f"{row[key] / 1e6:.1f}" for key in ("peak_memory_bytes", "file_bytes")),
            "-" if row["perplexity"] is None else f"{row['perplexity']:.1f}",
        )
        for row in rows
    ]
    print_table(columns, table)
    for row in rows:
        if not row["valid"]:
            print(f"not valid: {row['recipe']} {row['test']}: {row['invalid_reason']}")
    tg = {row["recipe"]: row["p50_ms"] for row in rows if row["test"] == "tg"}
    demo.result("; ".join(f"tg {ms:.2f} ms {recipe}" for recipe, ms in tg.items()))


def tell(demo: Demo) -> None:
    """Write the run as a page."""
    demo.run("report", RUN, "--json", save="report.json")
    written = read("report.json")
    demo.result(f"{written['verdict']['headline']}: {shown(Path(written['page']))}")
    print(f"the run as a page, for a browser: {shown(Path(written['page']))}")


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print columns: the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, tuple("-" * width for width in widths), *rows):
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  " + "  ".join(cells).rstrip())


def finish(demo: Demo) -> None:
    """Print the table of all steps and what to try next."""
    total = time.monotonic() - demo.started
    print("\nThe ring, once round:\n")
    print_table(("step", "result", "seconds"), [(s, text, f"{seconds:.0f}") for s, text, seconds in demo.rows])
    print(f"\n{total:.0f} seconds in all. Next, three commands to try:\n")
    print(f"  . {shown(STATE / 'env.sh')} && merino-edge generate 'In the year' --max-tokens 100")
    print(f"  {shown(COMMAND)} profile pi4 --estimate")
    print(f"  {shown(COMMAND)} search --device pi4 --latency 50ms")


def main() -> int:
    """Run the demo; the exit code is that of the step that failed."""
    demo = Demo()
    try:
        prepare()
        profiled = profile(demo)
        least = profiled["reach"][0]
        factor = search(demo, least, RUN, LIMIT_FACTORS[1 if profiled["estimate"] else 0 :])
        use(demo)
        measure(demo)
        print("\nThe same question again; the profile now holds what the winner itself measured:")
        search(demo, least, AGAIN, tuple(f for f in LIMIT_FACTORS if f >= factor))
        tell(demo)
        finish(demo)
    except StepFailed as error:
        print(f"\nerror: {error}\n  next: see above; what was done lies in {shown(STATE)}/", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was done lies in {shown(STATE)}/", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
