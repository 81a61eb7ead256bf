"""Train the rows of the poster's table on one token stream with one recipe, and judge them.

    bench/poster_train.py --plan .poster                     the rows into .poster/rows.jsonl, the test texts beside
    bench/poster_train.py --tokens .poster CORPUS            text into token files (GPT-2's BPE)
    bench/poster_train.py --tokens .poster --kinds bpe8192 enwiki2018_part.txt.xz wikinews_en.txt.xz
    bench/poster_train.py --tokens .poster --kinds all8192,all32768    the same text with smaller vocabularies
    bench/poster_train.py --train .poster --out rows.jsonl [--rows NAME,NAME] [--gpus 2]     on a machine with GPUs
    bench/poster_train.py --tasks .poster --out tasks.jsonl [--rows NAME,NAME]   14 zero-shot tasks
    bench/poster_train.py --loop merino-61m .poster/gpt2 --out loop.jsonl         MFU of the package's own loop
    bench/poster_train.py --collect rows.jsonl --asked tasks.jsonl --loops loop.jsonl --device "NVIDIA H100"
                                                                          into bench/results/
    bench/poster_train.py --add rows.jsonl --loops loop.jsonl              what was run again, to what is recorded
    bench/poster_train.py --page                             the recorded rows into docs/training.md

Several rows are in flight on a GPU: one trains, the others compile or are judged meanwhile. A result is
written as soon as a row ends; the same command goes on with the rows that are not in the results. The
weights stay in `weights/` of the folder.

What is recorded (`bench/results/poster_train.json`, under `result`): `device`, `versions_there`, `corpus`,
`recipe`, `training_loop`, `missing` (name: why it was not trained), `repeats`, and `rows`, one for each name
and seed:

    id, group      name; preset, uniform (plain decoder of equal FLOPs), twin, choice, baseline, small, vocabulary,
                   control (as many tokens as GPT-2's, made from the text)
    also           other names of the same architecture
    model          {"architecture": ...} of ours, or {"transformers": the configuration of a baseline}
    describe       the shape in words; for a baseline the decoder of its widths, depth, FFN and vocabulary
    flops, flops_with_head              of one forward pass over 1,024 tokens
    parameters, executed_parameters     of the model itself; of the shape, shared layers counted at every use
    data, tokens, steps, epochs, seed, learning_rate, sweep, seconds, tokens_per_s, model_flops_utilisation
    train_loss, curve                   mean of the last 5 % of the steps; [step, loss] pairs
    judged         for validation, wikitext2, ptb: loss (nats a token), perplexity, bits_per_byte,
                   word_perplexity (the two tests), tokens, context, stride
    tasks          where asked: task, documents, accuracy, stderr, accuracy_norm, chance, majority; beside it
                   `average` and `limit`; `asked_loss`, of the weights that were asked, where the same command had
                   run again
    device         where it was trained, if not the first of `device`
    command, date
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import json
import lzma
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

PEAK = 989e12  # FLOP/s of an H100 or H200, dense bf16
EXPECTED = 250e12  # before a row's own speed is known
RESERVE = 8.0  # seconds to judge a row


def write_plan(folder: Path) -> None:
    """Write the rows, the tokenizer and the tests' tokens, all that the machine with the GPU lacks."""
    from poster.page import RESULTS
    from poster.rows import (
        VOCAB_SIZE,
        board_rows,
        control_rows,
        default_rows,
        free_rows,
        further_rows,
        poster_rows,
        small_rows,
    )

    from merino_edge.training.data import load_tokenizer

    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))["result"]["rows"] if RESULTS.exists() else []

    folder.mkdir(exist_ok=True, parents=True)
    rows = poster_rows()
    rows += free_rows(rows)
    rows += [*further_rows(rows, recorded), *board_rows(), *default_rows(), *control_rows(), *small_rows()]
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

    sizes = {
        "gpt2": 50_257,
        "bpe8192": 8_192,
        "all8192": 8_192,
        "all16384": 16_384,
        "all32768": 32_768,
        "all50257": 50_257,
    }
    for kind in kinds:
        began = time.monotonic()
        size, tokenizer = sizes[kind], str(folder / "gpt2.json") if kind == "gpt2" else None
        if kind.startswith("all"):
            corpus = [str(write_text(folder))]
        data = prepare_data(
            corpus, vocab_size=size, tokenizer=tokenizer, context_length=1024, seed=0, folder=folder / "made" / kind
        )
        if kind.startswith("all"):
            spell_validation(folder, data.folder)
        (folder / f"{kind}.new").unlink(missing_ok=True)
        (folder / f"{kind}.new").symlink_to(data.folder.resolve())
        (folder / f"{kind}.new").rename(folder / kind)
        print(f"{kind}: {data.train_tokens} tokens in {time.monotonic() - began:.0f} s", flush=True)


def write_text(folder: Path) -> Path:
    """Write the training text that GPT-2's tokens spell, as a file."""
    from tokenizers import Tokenizer

    path = folder / "text.txt"
    if path.exists():
        return path
    tokenizer = Tokenizer.from_file(str(folder / "gpt2.json"))
    facts = json.loads((folder / "gpt2" / "data.json").read_text(encoding="utf-8"))
    ids = np.fromfile(folder / "gpt2" / "train.bin", np.uint16)[: facts["train_tokens"]]
    ends = np.flatnonzero(ids == tokenizer.token_to_id("<|endoftext|>"))
    documents = [part[part != ids[ends[0]]].tolist() for part in np.split(ids, ends)]
    with open(path.with_suffix(".new"), "w", encoding="utf-8") as stream:
        for at in range(0, len(documents), 1000):
            for text in tokenizer.decode_batch(documents[at : at + 1000]):
                stream.write(text.strip("\n") + "\n<|endoftext|>\n")
    path.with_suffix(".new").rename(path)
    return path


def spell_validation(folder: Path, made: Path) -> None:
    """Put the held-out text of GPT-2's tokens, spelled anew, in the place of what was held out here."""
    from tokenizers import Tokenizer

    old = Tokenizer.from_file(str(folder / "gpt2.json"))
    facts = json.loads((folder / "gpt2" / "data.json").read_text(encoding="utf-8"))
    ids = np.fromfile(folder / "gpt2" / "validation.bin", np.uint16)[: facts["validation_tokens"]]
    text = old.decode(ids.tolist(), skip_special_tokens=False)
    spelled = Tokenizer.from_file(str(made / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    np.asarray(spelled, np.uint16).tofile(made / "validation.bin")
    facts = json.loads((made / "data.json").read_text(encoding="utf-8"))
    (made / "data.json").write_text(json.dumps({**facts, "validation_tokens": len(spelled)}), encoding="utf-8")


def load_texts(folder: Path, kind: str) -> Any:
    """Map the tokens of a kind, and with GPT-2's the tests."""
    from poster.trainer import Texts
    from tokenizers import Tokenizer

    from merino_edge.training.data import prepare_data

    while not (folder / kind / "data.json").exists():
        time.sleep(1.0)  # being made
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


def finished(path: Path) -> set[str]:
    """Return the names of the jobs whose results a file holds, neither failed nor skipped."""
    if not path.exists():
        return set()
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {record["id"] for record in records if "failed" not in record and "skipped" not in record}


def deadline(options: argparse.Namespace) -> float:
    """Return when all must be over, by the clock; the file `deadline` in the folder moves it."""
    path = options.train / "deadline"
    return float(path.read_text()) if path.exists() else float(options.until)


def weights_file(folder: Path, name: str) -> Path:
    """Return where the weights of a row are kept."""
    return folder / "weights" / f"{name.replace(' ', '_')}.pt"


def ready_trainer(row: dict[str, Any], texts: Any, kind: Any = None) -> tuple[Any, float]:
    """Return a trainer of a row, on the GPU and compiled where there is one, and the seconds that compiling took.

    Its class is `kind`, or `RowTrainer`. What warming up took of the GPU's memory is given back.
    """
    import torch
    from poster.trainer import RowTrainer

    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64
    cuda = torch.cuda.is_available()
    trainer = (kind or RowTrainer)(row, texts, "cuda" if cuda else "cpu", cuda)
    compile_s = trainer.warm_up()
    if cuda:
        torch.cuda.empty_cache()
    return trainer, compile_s


def run_row(row: dict[str, Any], options: argparse.Namespace, gpu: int) -> None:
    """Sweep, train and judge one row; several seeds one after the other."""
    import torch
    from poster.trainer import RATES, SWEEP_TOKENS

    cuda = torch.cuda.is_available()
    tokens = min(options.row_tokens or row["tokens"], row["tokens"])
    began = time.monotonic()
    trainer, compile_s = ready_trainer(row, load_texts(options.train, row["data"]))
    per_token = 3 * row["flops_with_head"] / 1024
    with gpu_turn(options.train / f"turn-{gpu}"):
        known = "sweep" in row or "learning_rate" in row
        sweeps = 0 if known else len(RATES)
        needed = per_token * (len(row["seeds"]) * tokens + sweeps * SWEEP_TOKENS) / EXPECTED + RESERVE
        if time.time() + needed > deadline(options):
            return append(options.out, {"id": row["id"], "skipped": f"needs {needed:.0f} s of a GPU more"})
        tries = row.get("sweep") or ([] if known else trainer.sweep())
        given = {"learning_rate": row.get("learning_rate"), "tokens_per_s": EXPECTED / per_token}
        best = min(tries, key=lambda t: t["validation_loss"], default=given)
        results = []
        for seed in row["seeds"]:
            needed = 1.03 * tokens / best["tokens_per_s"] + RESERVE
            if time.time() + needed > deadline(options):
                return append(
                    options.out, {"id": row["id"], "skipped": f"needs {needed:.0f} s of a GPU more", "sweep": tries}
                )
            results.append(trainer.train(tokens, best["learning_rate"], seed))
            if len(row["seeds"]) > 1:
                results[-1]["judged"] = trainer.judge()
        peak_bytes = torch.cuda.max_memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.empty_cache()
    if len(row["seeds"]) == 1:
        file = weights_file(options.train, row["id"])
        file.parent.mkdir(exist_ok=True)
        torch.save(trainer.model.state_dict(), file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)
        results[0]["judged"] = trainer.judge()
    unique = {id(p): p.numel() for p in trainer.model.parameters()}
    facts = {"sweep": tries, "compile_s": compile_s, "wall_s": time.monotonic() - began, "peak_bytes": peak_bytes}
    facts |= {"device": torch.cuda.get_device_name() if cuda else "CPU"}
    facts |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    facts |= {"command": f"bench/poster_train.py --train .poster --out rows.jsonl --rows '{row['id']}'"}
    for result in results:
        result["model_flops_utilisation"] = per_token * result["tokens_per_s"] / PEAK
        append(options.out, {**row, "parameters": sum(unique.values()), **facts, **result})
        told = result["judged"]["validation"]["loss"], result["tokens_per_s"], result["model_flops_utilisation"]
        rates = " ".join(f"{t['learning_rate']:.4g}:{t['validation_loss']:.3f}" for t in tries)
        print(
            f"{row['id']}: loss {told[0]:.4f} {told[1] / 1e3:.0f}k tokens/s MFU {told[2]:.3f} sweep {rates} "
            f"compile {compile_s:.0f} s train {result['seconds']:.0f} s wall {facts['wall_s']:.0f} s gpu {gpu}",
            flush=True,
        )


def worker(
    options: argparse.Namespace, jobs: list[dict[str, Any]], taken: Any, run: Callable[..., None], gpu: int, *place: int
) -> None:
    """Take jobs in order until there are none: `run(job, options, gpu, *place)`."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(jobs):
            return
        try:
            run(jobs[number], options, gpu, *place)
        except Exception as error:  # noqa: BLE001  one job must not stop the others; the record says why it is missing
            append(options.out, {"id": jobs[number]["id"], "failed": f"{type(error).__name__}: {error}"[:500]})
            print(f"{jobs[number]['id']}: {type(error).__name__}: {error}"[:600], flush=True)


def in_flight(
    options: argparse.Namespace,
    jobs: list[dict[str, Any]],
    run: Callable[..., None],
    places: list[tuple[int, ...]],
    apart: float = 1.0,
) -> None:
    """Work through jobs in order, a process for each place (its GPU first), begun so many seconds apart."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    taken = context.Value("i", 0)
    workers = [context.Process(target=worker, args=(options, jobs, taken, run, *place)) for place in places]
    for process in workers:
        process.start()
        time.sleep(apart)  # the first job first
    for process in workers:
        process.join()


def wanted_rows(folder: Path, names: str, done: set[str]) -> list[dict[str, Any]]:
    """Return the rows of the plan that were named, in that order, less those that are done."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    known = [row["id"] for row in rows]
    several = names.split(";" if ";" in names else ",") if names else known
    wanted = [names] if names in known else several  # a name may hold a comma
    return [row for name in wanted for row in rows if row["id"] == name and name not in done]


def train(options: argparse.Namespace) -> None:
    """Train what is not done, several rows in flight."""
    options.until = time.time() + options.seconds
    rows = wanted_rows(options.train, options.rows, finished(options.out))
    in_flight(options, rows, run_row, [(gpu,) for _ in range(options.workers) for gpu in range(options.gpus)])


def ask_tasks(options: argparse.Namespace) -> None:
    """Ask the trained rows the zero-shot tasks, one after the other, waiting for their weights."""
    import torch
    from poster.trainer import make_model
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from merino_edge.training.data import end_of_text_id
    from merino_edge.training.zero_shot import TASKS, average, run_tasks

    torch.set_float32_matmul_precision("high")
    tokenizer = Tokenizer.from_file(str(options.tasks / "gpt2.json"))
    end = tokenizer.id_to_token(end_of_text_id(tokenizer))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)  # type: ignore[no-untyped-call]
    for row in wanted_rows(options.tasks, options.rows, set()):
        while not weights_file(options.tasks, row["id"]).exists():
            time.sleep(1.0)
        began = time.monotonic()
        model = make_model(row)
        model.load_state_dict(torch.load(weights_file(options.tasks, row["id"]), map_location="cpu"))
        model.train(False).to("cuda" if torch.cuda.is_available() else "cpu")
        scores = []
        for name in TASKS:  # one by one, so that a log says how far this is
            scores += run_tasks(model, wrapped, [name], options.limit, batch_size=options.batch)
            print(f"{row['id']}: {name} {scores[-1].accuracy:.3f} after {time.monotonic() - began:.0f} s", flush=True)
        found = {"id": row["id"], "tasks": [asdict(score) for score in scores], "average": average(scores)}
        append(options.out, {**found, "seconds": time.monotonic() - began, "limit": options.limit})
        print(f"{row['id']}: {found['average']} in {time.monotonic() - began:.0f} s", flush=True)


def time_loop(preset: str, data: str, tokens: int, out: Path) -> None:
    """Train a preset by the package's own loop, as the command does, and note how well it uses the GPU."""
    kept = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"/tmp/torchinductor_{getpass.getuser()}")  # noqa: S108
    compiled_before = kept.exists() and any(kept.iterdir())
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
    facts |= {"import_seconds": imported, "compiled_before": compiled_before}
    append(out, {"what": f"{preset}, {tokens / 1e6:.0f} M tokens", **facts})


def collect(options: argparse.Namespace) -> None:
    """Write what was brought back into the recorded results; a row trained twice shows how well it repeats."""
    from poster import trainer
    from record import write_result

    records = [json.loads(line) for path in options.collect for line in path.read_text(encoding="utf-8").splitlines()]
    plan = [json.loads(line) for line in options.planned.read_text(encoding="utf-8").splitlines()]
    also = {row["id"]: row.get("also", []) for row in plan}
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    losses: dict[tuple[str, int, int], list[float]] = {}
    places, trained = {}, {}
    for record in records:
        if "judged" not in record:
            continue
        planned = record["id"]
        record["id"] = record.pop("row", planned)
        key = record["id"], record["seed"], record["tokens"]
        places.setdefault(planned, key)
        trained[planned] = record["judged"]["validation"]["loss"]
        losses.setdefault(key, []).append(trained[planned])
        if key not in rows:
            rows[key] = {name: value for name, value in record.items() if name not in ("shape", "wall_s")}
            rows[key]["also"] = also.get(record["id"], record.get("also", []))
    repeats = [
        {"id": name, "seed": seed, "tokens": tokens, "validation_losses": several}
        for (name, seed, tokens), several in losses.items()
        if len(several) > 1
    ]
    for path in options.asked:
        for line in path.read_text(encoding="utf-8").splitlines():
            answers = json.loads(line)
            row = rows[places[answers["id"]]]
            row.update({name: answers[name] for name in ("tasks", "average", "limit")})
            if trained[answers["id"]] != row["judged"]["validation"]["loss"]:
                row["asked_loss"] = trained[answers["id"]]
    have = set(places)
    missing = dict.fromkeys([name for name in also if name not in have], "no device time left")
    missing |= {r["id"]: r["failed"] for r in records if r["id"] not in have and "failed" in r}
    document = {
        "device": options.device,
        "versions_there": options.versions,
        "corpus": options.corpus_name,
        "recipe": {"text": trainer.__doc__, "rates": trainer.RATES, "sweep_tokens": trainer.SWEEP_TOKENS},
        "training_loop": [
            json.loads(line) for path in options.loops for line in path.read_text(encoding="utf-8").splitlines()
        ],
        "rows": list(rows.values()),
        "repeats": repeats,
        "missing": missing,
    }
    print(write_result("poster_train", document))


def add(options: argparse.Namespace) -> None:
    """Add what was run again to the recorded results: how well rows repeat, and timings of the package's own loop."""
    from poster.page import RESULTS
    from record import write_result

    document = json.loads(RESULTS.read_text(encoding="utf-8"))["result"]
    known = {(row["id"], row["seed"], row["tokens"]): row for row in document["rows"]}
    repeats = {(row["id"], row["seed"], row["tokens"]): row for row in document["repeats"]}
    for path in options.add:
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            key = record.get("row", record["id"]), record["seed"], record["tokens"]
            if key not in repeats:
                first = {"validation_losses": [known[key]["judged"]["validation"]["loss"]]}
                repeats[key] = {"id": key[0], "seed": key[1], "tokens": key[2], **first}
                document["repeats"].append(repeats[key])
            losses, loss = repeats[key]["validation_losses"], record["judged"]["validation"]["loss"]
            losses += [loss] * (loss not in losses)
    for path in options.loops:
        timings = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        document["training_loop"] += [timing for timing in timings if timing not in document["training_loop"]]
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
    parser.add_argument("--rows", default="", help="names of rows, in the order to take them; between ; or commas")
    parser.add_argument("--loop", nargs=2, metavar=("PRESET", "TOKENS"))
    parser.add_argument("--loop-tokens", type=int, default=24_000_000)
    parser.add_argument("--row-tokens", type=int, help="train every row on so many instead of the plan's")
    parser.add_argument("--workers", type=int, default=2, help="rows in flight on each GPU")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--tasks", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=int, help="with --tasks: questions of each task")
    parser.add_argument("--batch", type=int, default=64, help="with --tasks: sequences of one forward pass")
    parser.add_argument("--seconds", type=float, default=3600, help="start nothing that would end later")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="RESULTS.jsonl")
    parser.add_argument(
        "--add", type=Path, nargs="*", metavar="RESULTS.jsonl", help="of rows that are recorded already"
    )
    parser.add_argument("--asked", type=Path, nargs="*", default=[], metavar="TASKS.jsonl", help="with --collect")
    parser.add_argument("--planned", type=Path, default=Path(".poster/rows.jsonl"), help="with --collect: the plan")
    parser.add_argument("--page", action="store_true", help="write the table of docs/training.md")
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
    elif options.tasks:
        ask_tasks(options)
    elif options.loop:
        time_loop(*options.loop, options.loop_tokens, options.out)
    elif options.collect:
        collect(options)
    elif options.add is not None:
        add(options)
    elif options.page:
        from poster.page import write_page

        write_page()
    else:
        parser.error("give one of --plan, --tokens, --train, --tasks, --loop, --collect, --add, --page")


if __name__ == "__main__":
    main()
