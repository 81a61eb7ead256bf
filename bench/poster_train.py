"""Train the rows of the poster's table on one token stream with one recipe, and judge them.

    bench/poster_train.py --plan .poster                     the rows into .poster/rows.jsonl, the test texts beside
    bench/poster_train.py --tokens .poster CORPUS            text into token files (GPT-2's BPE, and one of 8,192)
    bench/poster_train.py --train .poster --out rows.jsonl [--rows NAME,NAME]     on a machine with a GPU
    bench/poster_train.py --loop merino-61m .poster/gpt2 --out loop.jsonl         MFU of the package's own loop
    bench/poster_train.py --collect rows.jsonl --loops loop.jsonl --device "NVIDIA H100"   into bench/results/

Several rows are in flight: one trains, the others compile or are judged meanwhile. A result is written
as soon as a row ends; the same command goes on with the rows that are not in the results.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import lzma
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

PEAK = 989e12  # FLOP/s of an H100 or H200, dense bf16
EXPECTED = 250e12  # before a row's own speed is known
RESERVE = 8.0  # seconds to judge a row


def write_plan(folder: Path) -> None:
    """Write the rows, the tokenizer and the tests' tokens, all that the machine with the GPU lacks."""
    from poster.rows import VOCAB_SIZE, poster_rows, small_rows

    from merino_edge.training.data import load_tokenizer

    folder.mkdir(exist_ok=True, parents=True)
    rows = [*poster_rows(), *small_rows()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = load_tokenizer("gpt2", VOCAB_SIZE)
    tokenizer.save(str(folder / "gpt2.json"))
    data = Path(os.environ["MERINO_EDGE_DATA"])
    files = {"wikitext2": data / "wikitext2" / "wiki.test.raw.xz", "ptb": data / "ptb" / "ptb.test.txt.xz"}
    texts = {name: lzma.decompress(file.read_bytes()).decode() for name, file in files.items()}
    for name, text in texts.items():
        np.save(folder / f"{name}.npy", np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.uint16))
    counts = {
        name: {"bytes": len(text.encode()), "words": len(text.split()) + text.count("\n")}
        for name, text in texts.items()
    }
    (folder / "tests.json").write_text(json.dumps(counts), encoding="utf-8")
    for row in rows:
        print(f"{row['id']:40s} {row['flops'] / 1e9:7.1f} G {row['flops_with_head'] / 1e9:7.1f} G  {row['describe']}")


def write_tokens(folder: Path, corpus: list[str], kinds: list[str]) -> None:
    """Make token files of the corpus, one folder a tokenizer."""
    from merino_edge.training.data import prepare_data

    sizes = {"gpt2": (50_257, str(folder / "gpt2.json")), "bpe8192": (8_192, None)}
    for kind in kinds:
        began = time.monotonic()
        size, tokenizer = sizes[kind]
        data = prepare_data(
            corpus, vocab_size=size, tokenizer=tokenizer, context_length=1024, seed=0, folder=folder / "made" / kind
        )
        (folder / kind).unlink(missing_ok=True)
        (folder / kind).symlink_to(data.folder.resolve())
        print(f"{kind}: {data.train_tokens} tokens in {time.monotonic() - began:.0f} s", flush=True)


def load_texts(folder: Path, kind: str) -> Any:
    """Map the tokens of a kind, and with GPT-2's the tests."""
    from poster.trainer import Texts
    from tokenizers import Tokenizer

    from merino_edge.training.data import prepare_data

    facts = json.loads((folder / kind / "data.json").read_text(encoding="utf-8"))
    data = prepare_data(
        [str(folder / kind)], vocab_size=facts["vocab_size"], tokenizer=None, context_length=1024, seed=0, folder=folder
    )
    validation = np.asarray(data.validation())
    text = Tokenizer.from_file(str(data.tokenizer)).decode(validation.tolist(), skip_special_tokens=True)
    tests, counts = {}, {}
    if kind == "gpt2":
        counts = json.loads((folder / "tests.json").read_text(encoding="utf-8"))
        tests = {name: np.load(folder / f"{name}.npy") for name in counts}
    sizes = {"validation": len(text.encode()), **{name: c["bytes"] for name, c in counts.items()}}
    return Texts(data.train(), validation, tests, sizes, {name: c["words"] for name, c in counts.items()})  # type: ignore[arg-type]


@contextmanager
def gpu_turn(path: Path) -> Iterator[None]:
    """Train one row at a time."""
    with open(path, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def append(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line; several processes may do so."""
    with open(path, "a", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(json.dumps(record) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def run_row(row: dict[str, Any], options: argparse.Namespace, deadline: float) -> None:
    """Sweep, train and judge one row; several seeds one after the other."""
    import torch
    from poster.trainer import RATES, SWEEP_TOKENS, RowTrainer

    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    gpu = torch.cuda.is_available()
    tokens = min(options.row_tokens or row["tokens"], row["tokens"])
    lock = options.train / "turn"
    began = time.monotonic()
    trainer = RowTrainer(row, load_texts(options.train, row["data"]), "cuda" if gpu else "cpu", gpu)
    compile_s = trainer.warm_up()
    if gpu:
        torch.cuda.empty_cache()
    per_token = 3 * row["flops_with_head"] / 1024
    with gpu_turn(lock):
        if time.time() + per_token * (tokens + len(RATES) * SWEEP_TOKENS) / EXPECTED + RESERVE > deadline:
            return append(options.out, {"id": row["id"], "skipped": "no device time left"})
        tries = trainer.sweep()
        best = min(tries, key=lambda t: t["validation_loss"])
        results = []
        for seed in row["seeds"]:
            if time.time() + 1.03 * tokens / best["tokens_per_s"] + RESERVE > deadline:
                return append(options.out, {"id": row["id"], "skipped": "no device time left", "sweep": tries})
            results.append(trainer.train(tokens, best["learning_rate"], seed))
            if len(row["seeds"]) > 1:
                results[-1]["judged"] = trainer.judge()
        peak_bytes = torch.cuda.max_memory_allocated() if gpu else 0
        if gpu:
            torch.cuda.empty_cache()
    if len(row["seeds"]) == 1:
        results[0]["judged"] = trainer.judge()
    unique = {id(p): p.numel() for p in trainer.model.parameters()}
    for result in results:
        result["model_flops_utilisation"] = per_token * result["tokens_per_s"] / PEAK
        facts = {"sweep": tries, "compile_s": compile_s, "wall_s": time.monotonic() - began, "peak_bytes": peak_bytes}
        append(options.out, {**row, "parameters": sum(unique.values()), **facts, **result})
        told = result["judged"]["validation"]["loss"], result["tokens_per_s"], result["model_flops_utilisation"]
        rates = " ".join(f"{t['validation_loss']:.3f}" for t in tries)
        print(
            f"{row['id']}: loss {told[0]:.4f} {told[1] / 1e3:.0f}k tokens/s MFU {told[2]:.3f} sweep {rates} "
            f"compile {compile_s:.0f} s train {result['seconds']:.0f} s wall {facts['wall_s']:.0f} s",
            flush=True,
        )


def worker(options: argparse.Namespace, rows: list[dict[str, Any]], taken: Any, deadline: float) -> None:
    """Take rows in order until there are none."""
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(rows):
            return
        try:
            run_row(rows[number], options, deadline)
        except Exception as error:  # noqa: BLE001  one row must not stop the others; the record says why it is missing
            append(options.out, {"id": rows[number]["id"], "failed": f"{type(error).__name__}: {error}"[:500]})
            print(f"{rows[number]['id']}: {type(error).__name__}: {error}"[:600], flush=True)


def train(options: argparse.Namespace) -> None:
    """Train what is not done, several rows in flight."""
    import torch.multiprocessing as mp

    deadline = time.time() + options.seconds
    done = set()
    if options.out.exists():
        records = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
        done = {record["id"] for record in records if "judged" in record}
    rows = [json.loads(line) for line in (options.train / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = options.rows.split(",") if options.rows else [row["id"] for row in rows]
    rows = [row for name in wanted for row in rows if row["id"] == name and name not in done]
    context = mp.get_context("spawn")
    taken = context.Value("i", 0)
    workers = [context.Process(target=worker, args=(options, rows, taken, deadline)) for _ in range(options.workers)]
    for process in workers:
        process.start()
        time.sleep(1.0)  # the first row first
    for process in workers:
        process.join()


def time_loop(preset: str, data: str, tokens: int, out: Path) -> None:
    """Train a preset by the package's own loop, as the command does, and note how well it uses the GPU."""
    began = time.monotonic()
    import tempfile

    from poster.rows import PRESET_FILES

    from merino_edge.architecture import Architecture
    from merino_edge.files import read_json
    from merino_edge.search.cost import count_flops
    from merino_edge.training.train import TrainRequest
    from merino_edge.training.train import train as run_training

    architecture = Architecture.from_json(read_json(PRESET_FILES / f"{preset}.json")["architecture"])
    with tempfile.TemporaryDirectory() as folder:
        request = TrainRequest(
            architecture, Path(folder) / "checkpoint", data=(data,), context_length=1024, tokens=tokens,
            tokens_per_batch=131_072, flops_per_token=count_flops(architecture, head=True) / 1024,
        )  # fmt: skip
        imported = time.monotonic() - began
        result = run_training(request)
    names = ("steps", "tokens", "validation_loss", "steady_tokens_per_s", "mfu", "startup_seconds", "seconds")
    facts = {name: getattr(result, name) for name in (*names, "memory_bytes")}
    append(out, {"what": f"{preset}, {tokens / 1e6:.0f} M tokens", "import_seconds": imported, **facts})


def collect(paths: list[Path], loops: list[Path], device: str, versions: str, corpus: str) -> None:
    """Write what was brought back into the recorded results; a row trained twice shows how well it repeats."""
    from poster import trainer
    from record import write_result

    records = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    repeats = []
    for record in records:
        if "judged" not in record:
            continue
        key = record["id"], record["seed"]
        if key in rows:
            losses = [r["judged"]["validation"]["loss"] for r in (rows[key], record)]
            repeats.append({"id": record["id"], "seed": record["seed"], "validation_losses": losses})
        else:
            rows[key] = {name: value for name, value in record.items() if name not in ("shape", "wall_s")}
    have = {name for name, _ in rows}
    missing = {r["id"]: r.get("skipped") or r.get("failed") for r in records if r["id"] not in have}
    document = {
        "device": device,
        "versions_there": versions,
        "corpus": corpus,
        "recipe": {"text": trainer.__doc__, "rates": trainer.RATES, "sweep_tokens": trainer.SWEEP_TOKENS},
        "training_loop": [json.loads(line) for path in loops for line in path.read_text(encoding="utf-8").splitlines()],
        "rows": list(rows.values()),
        "repeats": repeats,
        "missing": missing,
    }
    print(write_result("poster_train", document))


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, metavar="FOLDER")
    parser.add_argument("--tokens", type=Path, metavar="FOLDER")
    parser.add_argument("--kinds", default="gpt2,bpe8192")
    parser.add_argument("corpus", nargs="*")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("rows.jsonl"))
    parser.add_argument("--rows", default="", help="names of rows, in the order to take them")
    parser.add_argument("--loop", nargs=2, metavar=("PRESET", "TOKENS"))
    parser.add_argument("--loop-tokens", type=int, default=24_000_000)
    parser.add_argument("--row-tokens", type=int, help="train every row on so many instead of the plan's")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3600, help="start nothing that would end later")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="RESULTS.jsonl")
    parser.add_argument("--loops", type=Path, nargs="*", default=[], help="results of the package's own training loop")
    parser.add_argument("--device", default="")
    parser.add_argument("--corpus-name", default="")
    parser.add_argument("--versions", default="")
    options = parser.parse_args()
    if options.plan:
        write_plan(options.plan)
    elif options.tokens:
        write_tokens(options.tokens, options.corpus, options.kinds.split(","))
    elif options.train:
        train(options)
    elif options.loop:
        time_loop(*options.loop, options.loop_tokens, options.out)
    elif options.collect:
        collect(options.collect, options.loops, options.device, options.versions, options.corpus_name)
    else:
        parser.error("give one of --plan, --tokens, --train, --collect")


if __name__ == "__main__":
    main()
