"""Text for the proxy study: documents, a byte-level BPE, token chunks small enough to carry.

Every 40th document of the short-document files and a few whole books are held out: no window of the
validation set shares a document with training. Chunks are xz-compressed uint16.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

END = "<|endoftext|>"
CHUNK_TOKENS = 4_000_000
Tokens = npt.NDArray[np.uint16]

# file, bytes of its documents to use, one document of so many is held out
SOURCES = (
    ("enwiki2018_part", 1 << 40, 40),
    ("wikinews_en", 1 << 40, 40),
    ("eltec_eng", 1 << 40, 25),
    ("books_classic_1", 62_000_000, 40),
)


def read_documents(path: Path, max_bytes: int) -> Iterator[str]:
    """Yield the documents of one corpus file until `max_bytes` of text have been read."""
    lines: list[str] = []
    read = 0
    with lzma.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            if line.strip() == END:
                yield "".join(lines).strip()
                lines = []
                if read > max_bytes:
                    return
            else:
                lines.append(line)
                read += len(line.encode())
    if lines:
        yield "".join(lines).strip()


def is_held_out(document: str, one_of: int) -> bool:
    """Decide by the document's own checksum, so that its place in the file does not matter."""
    return zlib.crc32(document[:2000].encode()) % one_of == 0


def prepare(
    corpus: Path, folder: Path, vocab_size: int, *, sources: tuple[tuple[str, int, int], ...] = SOURCES
) -> None:
    """Train the BPE, and write `train-NN.xz`, `valid.xz` and `tokenizer.json` into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    training: list[str] = []
    held_out: list[str] = []
    for name, max_bytes, one_of in SOURCES:
        for document in read_documents(corpus / f"{name}.txt.xz", max_bytes):
            (held_out if is_held_out(document, one_of) else training).append(document)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    sample = [document[:100_000] for document in training[:: max(1, len(training) // 4000)]]
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    for kind, documents in (("train", training), ("valid", held_out)):
        order = np.random.default_rng(0).permutation(len(documents))
        pieces = [piece for i in order for piece in _pieces(documents[i])]
        ids: list[npt.NDArray[np.uint16]] = []
        for start in range(0, len(pieces), 512):
            for encoding in tokenizer.encode_batch(pieces[start : start + 512]):
                ids.append(np.array([*encoding.ids, end], np.uint16))
        stream = np.concatenate(ids)
        characters = sum(len(d.encode()) for d in documents)
        print(f"{kind}: {len(documents)} documents, {characters} bytes, {len(stream)} tokens", flush=True)
        _write(folder, kind, stream)


def _pieces(document: str) -> list[str]:
    """Cut long books at line ends so that encoding runs in parallel and in little memory."""
    if len(document) < 200_000:
        return [document]
    cuts = [0]
    while len(document) - cuts[-1] > 200_000:
        cut = document.find("\n", cuts[-1] + 150_000)
        if cut < 0:
            break
        cuts.append(cut)
    return [document[a:b] for a, b in zip(cuts, [*cuts[1:], len(document)], strict=True)]


def _write(folder: Path, kind: str, stream: Tokens) -> None:
    chunks = [stream[i : i + CHUNK_TOKENS] for i in range(0, len(stream), CHUNK_TOKENS)]

    def save(item: tuple[int, Tokens]) -> None:
        number, chunk = item
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1}]
        (folder / f"{kind}-{number:02}.xz").write_bytes(lzma.compress(chunk.tobytes(), filters=filters))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(save, enumerate(chunks)))


def load(folder: Path, kind: str) -> Tokens:
    """Return the tokens of `train` or `valid`, chunks unpacked in parallel."""
    paths = sorted(folder.glob(f"{kind}-*.xz"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {kind}-*.xz: run `bench/proxy_study.py --prepare` first")
    with ThreadPoolExecutor(16) as pool:  # lzma lets go of the interpreter lock
        chunks = pool.map(lambda path: lzma.decompress(path.read_bytes()), paths)
        return np.concatenate([np.frombuffer(chunk, np.uint16) for chunk in chunks])
