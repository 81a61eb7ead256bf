"""Make the demo model: a small trained model as one file that any board can be given at once.

    make demo-model                        train on the corpus in MERINO_EDGE_DATA (minutes on a GPU, days on a CPU)
    make demo-model CHECKPOINT=FOLDER      pack a checkpoint that was trained elsewhere by the same command

What comes out lies in build/demo-model: the int8 bundle as `merino-demo.tar.gz`, the same bytes every
time from the same checkpoint; `MODEL_CARD.md`; `SHA256SUMS`. It is put on a board by
`merino-edge deploy --bundle build/demo-model/merino-demo.tar.gz --sha256 HEX`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from record import write_result

from merino_edge.files import sha256_file, write_atomic

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "demo-model"
COMMAND = Path(sys.executable).with_name("merino-edge")
ARCHITECTURE = Path(__file__).parent / "demo_model.json"
CORPUS = ("eltec_eng.txt.xz", "enwiki2018_part.txt.xz", "wikinews_en.txt.xz")
TRAINING = ("--context", "512", "--tokens", "100M", "--batch-tokens", "65536", "--learning-rate", "2e-3")
RECIPE = "dynamic_wi8_afp32"
PROMPT = "The house stood at the end of the road, and"
CORPUS_LICENCES = (
    "76 novels of ELTeC (public domain), 27 thousand articles of the English Wikipedia of 2018 (CC BY-SA), "
    "12.6 thousand of Wikinews (CC BY 2.5)"
)
CARD = """# merino-demo

A decoder language model of {parameters:.1f} M parameters ({describe}), trained from scratch so that a board
has something to say in its first ten minutes. It continues English text; it follows no instructions.

| | |
| --- | --- |
| file | `merino-demo.tar.gz`, {bytes:.1f} MB, SHA-256 `{sha256}` |
| weights | {recipe}: 8-bit weights, 8-bit dynamic activations; ONNX |
| context | {context} tokens; byte-level BPE of {vocab:,} tokens, made from the same text |
| training text | {source}: {corpus} |
| trained on | {tokens:.0f} M tokens of it, {epochs:.1f} epochs, {device}, {seconds:.0f} s |
| licence of the weights | CC BY-SA 4.0, for what they owe to Wikipedia; the code is Apache-2.0 |

## Results

Perplexity on the first {scored:,} tokens of each test text, windows of {context} tokens, stride {stride};
by word as blanks and line ends count them. Perplexities of other tokenizers are not comparable, bits per byte are.

{texts}

The exported file against its checkpoint, on {held_out:,} held-out tokens: perplexity {exported:.2f} against
{checkpoint:.2f} ({change:+.2f} %), {bpb:.3f} bits per byte.

## Limits

It is small and has read little, old novels and an encyclopedia: it states falsehoods fluently, repeats
itself, and carries the prejudices of that text.
Nothing in it was made safe. It is for trying a board, not for any use where its words matter.
"""


def run(*words: str) -> dict[str, Any]:
    """Run one command as a user would; return its document."""
    print("$ merino-edge " + " ".join(words), flush=True)
    environment = {**os.environ, "MERINO_EDGE_RUNS": str(OUT / "runs"), "XDG_DATA_HOME": str(OUT / "data")}
    done = subprocess.run([COMMAND, *words, "--json"], stdout=subprocess.PIPE, check=False, env=environment)
    document: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        sys.exit(f"merino-edge {words[0]} ended with exit code {done.returncode}: {document['error']['message']}")
    return document


def pack(bundle: Path) -> Path:
    """Write the archive: sorted names, no owners, no times, so that the same bundle gives the same bytes."""
    target = OUT / "merino-demo.tar.gz"
    with (
        open(target, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as stream,
    ):
        for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
            info = tarfile.TarInfo(f"merino-demo/{path.relative_to(bundle).as_posix()}")
            info.size, info.mode = path.stat().st_size, 0o644
            with open(path, "rb") as content:
                stream.addfile(info, content)
    return target


def card(archive: Path, training: dict[str, Any], found: dict[str, Any], export: dict[str, Any]) -> str:
    """Return the model card, every number from the records."""
    from merino_edge.architecture import load_architecture

    architecture = load_architecture(ARCHITECTURE)
    texts = ["| text | tokens | a token | a word | bits per byte |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in found["texts"]:
        numbers = f"{row['perplexity']:.1f} | {row['word_perplexity']:.0f} | {row['bits_per_byte']:.3f}"
        texts.append(f"| {row['text']} | {row['tokens']:,} | {numbers} |")
    exported = next(row for row in found["exports"] if RECIPE in row["bundle"])
    first = found["texts"][0]
    return CARD.format(
        parameters=architecture.unique_parameters / 1e6,
        describe=architecture.describe(),
        bytes=archive.stat().st_size / 1e6,
        sha256=sha256_file(archive),
        recipe=export["recipe"],
        context=first["context_length"],
        stride=first["stride"],
        vocab=architecture.vocab_size,
        source=training["data"]["source"].replace(".txt.xz", ""),
        corpus=CORPUS_LICENCES,
        tokens=training["result"]["tokens"] / 1e6,
        epochs=training["result"]["tokens"] / training["data"]["train_tokens"],
        device=training["device"],
        seconds=training["result"]["seconds"],
        scored=first["tokens"] + 1,
        texts="\n".join(texts),
        held_out=exported["tokens"],
        exported=exported["perplexity"],
        checkpoint=exported["checkpoint_perplexity"],
        change=100 * exported["change"],
        bpb=exported["bits_per_byte"],
    )


def main() -> None:
    """Train or take the checkpoint, export, score, pack, describe."""
    parser = argparse.ArgumentParser(description="make the demo model")
    parser.add_argument("--checkpoint", type=Path, help="trained elsewhere by the same command")
    parser.add_argument("--scored-tokens", default="4K", help="of each test text, for the card")
    options = parser.parse_args()
    if not os.environ.get("MERINO_EDGE_DATA"):
        sys.exit("make demo-model needs MERINO_EDGE_DATA, the folder of corpus/, wikitext2/ and ptb/")
    corpus = Path(os.environ["MERINO_EDGE_DATA"]) / "corpus"
    OUT.mkdir(parents=True, exist_ok=True)
    if options.checkpoint:
        subject = checkpoint = str(options.checkpoint)
    else:
        data = [word for name in CORPUS for word in ("--data", str(corpus / name))]
        checkpoint = run("train", str(ARCHITECTURE), *data, *TRAINING)["checkpoint"]
        subject = ARCHITECTURE.stem
    training = json.loads((Path(checkpoint) / "training.json").read_text(encoding="utf-8"))
    export = run("export", subject, "--recipe", RECIPE)
    bundle = Path(export["bundle"])
    found = run("evaluate", subject, "--tokens", options.scored_tokens, "--exports")
    archive = pack(bundle)
    digest = sha256_file(archive)
    write_atomic(OUT / "MODEL_CARD.md", card(archive, training, found, export).encode())
    write_atomic(OUT / "SHA256SUMS", f"{digest}  {archive.name}\n".encode())
    training.pop("curve")
    facts = {"bytes": archive.stat().st_size, "sha256": digest, "training": training, "evaluation": found}
    print(write_result("demo_model", {**facts, "architecture": json.loads(ARCHITECTURE.read_text(encoding="utf-8"))}))
    print(f"next: merino-edge deploy --bundle {archive.relative_to(ROOT)} --sha256 {digest}")
    print(f'      merino-edge generate "{PROMPT}"')


if __name__ == "__main__":
    main()
