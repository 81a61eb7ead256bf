"""A bundle that may be asked for text: a tiny model with a tokenizer, marked as trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import TOKENIZER, Bundle, describe_file, write_manifest
from merino_edge.exporting import Exporter
from merino_edge.testing import write_bundle

VOCAB = 300
TEXT = "Once upon a time the board on the desk said what it had been told to say, and then it said no more. " * 40
ARCHITECTURE = Architecture((Block(32, 2, 2), Block(64, 1, 1)), embedding_width=48, vocab_size=VOCAB, head_dim=16)


def write_tokenizer(path: Path) -> Tokenizer:
    """Write a byte-level BPE of `VOCAB` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(str(path))
    return tokenizer


def write_talking_bundle(folder: Path, export: Exporter, recipe: str = "fp32", form: str = "standard") -> Bundle:
    """Export the tiny model and put a tokenizer beside it."""
    bundle = write_bundle(folder, export, ARCHITECTURE, recipe, context_length=512, form=form, seed=3)
    write_tokenizer(folder / TOKENIZER)
    files = (*bundle.manifest.files, describe_file(folder, TOKENIZER))
    return write_manifest(folder, dataclasses.replace(bundle.manifest, trained=True, trained_tokens=1, files=files))
