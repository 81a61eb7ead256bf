"""Token files: exact vocabulary, held-out text, found again, refused with both numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from merino_edge.errors import DataError
from merino_edge.files import read_json
from merino_edge.training.data import TokenData, load_tokenizer, prepare_data, train_tokenizer, write_validation
from merino_edge.training.text import SEPARATOR


def prepare(text: Path, folder: Path, **options: Any) -> TokenData:
    settings: dict[str, Any] = {"vocab_size": 300, "tokenizer": None, "context_length": 32, "seed": 0}
    return prepare_data([str(text)], folder=folder, **{**settings, **options})


def test_vocabulary_is_exactly_the_one_asked_for(text_file: Path, tmp_path: Path) -> None:
    data = prepare(text_file, tmp_path, vocab_size=333)
    assert Tokenizer.from_file(str(data.tokenizer)).get_vocab_size() == 333


def test_tokens_decode_to_the_text(text_file: Path, token_folder: Path) -> None:
    data = prepare(text_file, token_folder)
    tokenizer = Tokenizer.from_file(str(data.tokenizer))
    ids = np.concatenate([data.train(), data.validation()]).tolist()
    decoded = tokenizer.decode(ids, skip_special_tokens=True)  # held-out pieces at the end
    assert sorted(decoded.replace(".", ". ").split()) == sorted(
        text_file.read_text().replace(f"{SEPARATOR}", "").split()
    )


def test_same_text_and_seed_give_the_same_files(text_file: Path, tmp_path: Path) -> None:
    one, two = prepare(text_file, tmp_path / "1"), prepare(text_file, tmp_path / "2")
    for name in ("train.bin", "validation.bin", "tokenizer.json"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_other_seed_holds_out_other_text(text_file: Path, tmp_path: Path) -> None:
    one, two = prepare(text_file, tmp_path), prepare(text_file, tmp_path, seed=1)
    assert one.digest != two.digest
    assert one.validation().tolist() != two.validation().tolist()


def test_files_are_found_again(text_file: Path, token_folder: Path) -> None:
    stages: list[str] = []
    prepare(text_file, token_folder)
    prepare(text_file, token_folder, progress=lambda facts: stages.append(facts["stage"]))
    assert stages == []


def test_damaged_files_are_made_again(text_file: Path, tmp_path: Path) -> None:
    data = prepare(text_file, tmp_path)
    whole = (data.folder / "train.bin").read_bytes()
    (data.folder / "train.bin").write_bytes(whole[:-2])
    prepare(text_file, tmp_path)
    assert (data.folder / "train.bin").read_bytes() == whole


def test_tokenizer_of_another_size_is_refused_with_both_numbers(text_file: Path, token_folder: Path) -> None:
    data = prepare(text_file, token_folder)
    with pytest.raises(DataError, match="has 300 tokens, the architecture 400"):
        prepare(text_file, token_folder, tokenizer=str(data.tokenizer), vocab_size=400)


@pytest.mark.parametrize("content", ["", "{}", "no json", '{"version": "1.0"}'])
def test_unreadable_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(str(path), 300)


def test_missing_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_tokenizer("nowhere.json", 300)


def test_a_folder_given_as_tokenizer_is_told_which_file_is_meant(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder") as caught:
        load_tokenizer(str(tmp_path), 300)
    assert str(caught.value.hint).endswith(f"--tokenizer {tmp_path}/tokenizer.json")


def test_text_with_too_few_merges_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"yields a vocabulary of 2.., the architecture has 8192"):
        train_tokenizer(["a small text, a small text"], 8192)


def test_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="256 cannot hold the 257"):
        train_tokenizer(["text"], 256)


def test_any_bytes_survive_the_tokenizer() -> None:
    tokenizer = train_tokenizer(["plain words only"], 262)
    text = "naïve \u6f22\U0001f411\x00\t\r\n end"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("text", ["", " \n\n\t\n"])
def test_empty_text_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt holds no text"):
        prepare(tmp_path / "a.txt", tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_text_shorter_than_a_context_is_refused_with_both_numbers(text_file: Path, token_folder: Path) -> None:
    with pytest.raises(DataError, match=r"holds \d+ training tokens, less than one context of 1000000"):
        prepare(text_file, token_folder, context_length=1_000_000)


def test_validation_of_a_checkpoint_counts_its_text(text_file: Path, token_folder: Path, tmp_path: Path) -> None:
    data = prepare(text_file, token_folder)
    write_validation(data, tmp_path)
    token_ids = np.load(tmp_path / "validation_tokens.npy")
    facts = read_json(tmp_path / "validation.json")
    text = Tokenizer.from_file(str(data.tokenizer)).decode(token_ids.tolist())
    assert token_ids.dtype == np.int32
    assert facts == {
        "tokens": len(token_ids),
        "bytes": len(text.encode()),
        "words": len(text.split()),
        "source": text_file.name,
    }


def test_gpt2_encodes_as_it_is_known_to() -> None:
    if not os.environ.get("MERINO_EDGE_DATA"):
        pytest.skip("MERINO_EDGE_DATA is not set: no GPT-2 vocabulary here")
    assert load_tokenizer("gpt2", 50257).encode("Hello world").ids == [15496, 995]


def test_importing_the_data_module_imports_no_torch() -> None:
    code = "import sys, merino_edge.training.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
