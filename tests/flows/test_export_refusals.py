"""What cannot be exported is refused in one line with the next step, and leaves nothing half-written."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

import merino_edge
from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import CONFIG, WEIGHTS
from merino_edge.errors import ExportError, InvalidFileError, MerinoEdgeError, UsageError
from merino_edge.flows import export as flow
from merino_edge.flows.export import ExportWish, Weights, current_bundle, export
from merino_edge.flows.subject import resolve_subject
from merino_edge.reference import random_tensors
from merino_edge.run import create_run, runs_root
from merino_edge.testing import tiny_architecture

TINY = tiny_architecture()
SEVERAL = Architecture((Block(64, 2, 2), Block(128, 1, 2), Block(64, 4, 2)), 64, 257, head_dim=32)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"architecture": TINY.to_json(), "trained_tokens": 5, "max_position_embeddings": 64}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(random_tensors(TINY, 0, scale=0.05), folder / WEIGHTS)
    return folder


def refuse(checkpoint: Path, words: str, wish: ExportWish | None = None) -> MerinoEdgeError:
    """Export must fail with these words; return the error. No bundle, whole or part, may be there."""
    with pytest.raises(MerinoEdgeError, match=words) as caught:
        export(str(checkpoint), wish or ExportWish(recipe="fp32"))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    folder = runs_root() / "model" / "export"
    assert not folder.exists() or list(folder.iterdir()) == []
    return caught.value


def with_tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def flip(folder: Path, at: int) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[at] ^= 0xFF
    (folder / WEIGHTS).write_bytes(content)


def deeper(folder: Path) -> None:
    value = json.loads((folder / CONFIG).read_text())
    value["architecture"]["blocks"][0]["width"] = 64
    (folder / CONFIG).write_text(json.dumps(value))


def small_tokenizer(folder: Path) -> None:
    vocabulary = {chr(0x4E00 + number): number for number in range(20)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))


def tokenizer_with_a_gap(folder: Path) -> None:
    vocabulary = {chr(0x4E00 + number): number for number in [*range(255), 300]}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: flip(folder, 30), "truncated or not a safetensors file"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]), "truncated"),
        (with_tensors(lambda t: t.pop("blocks.0.key.weight")), r"'blocks\.0\.key\.weight' is missing"),
        (with_tensors(lambda t: t.update(stranger=np.zeros(1, np.float32))), "'stranger' belongs to no part"),
        (with_tensors(lambda t: t["blocks.0.norms"].fill(np.nan)), r"'blocks\.0\.norms' holds NaN"),
        (deeper, "the architecture says"),
        (small_tokenizer, "has 20 entries, the architecture's vocabulary has 256"),
        (tokenizer_with_a_gap, "has 256 entries and ids up to 300, the architecture's vocabulary has 256"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer .* cannot be read"),
        (lambda folder: (folder / CONFIG).write_text('{"architecture": 3}'), "must be a JSON object"),
        (lambda folder: (folder / CONFIG).write_text("{}"), "describes no MeRino model"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(
    checkpoint: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(checkpoint)
    assert isinstance(refuse(checkpoint, words), InvalidFileError)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (ExportWish(recipe="fp23"), "did you mean 'fp32'"),
        (ExportWish(form="standart"), "did you mean 'standard'"),
        (ExportWish(format="onix"), "did you mean 'onnx'"),
        (ExportWish(quantizer="gtpq"), "did you mean 'gptq'"),
        (ExportWish(recipe="weight_only_wi4_b128_afp32"), "blocks of 128 do not divide"),
    ],
)
def test_an_unknown_name_is_a_wrong_call_with_the_nearest(checkpoint: Path, wish: ExportWish, words: str) -> None:
    assert isinstance(refuse(checkpoint, words, wish), UsageError)


def test_a_text_that_is_not_there_is_named(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={chr(0x4E00 + number): number for number in range(256)}, merges=[]))
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    refuse(checkpoint, "nowhere.txt does not exist", ExportWish(recipe="fp32", text=str(tmp_path / "nowhere.txt")))
    (checkpoint / "tokenizer.json").unlink()
    refuse(checkpoint, "no tokenizer lies beside the weights", ExportWish(recipe="fp32", text=__file__))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("options", "words"), [("size=64k", "No space left"), ("size=64k,ro", "Read-only")])
def test_a_full_or_locked_disk_leaves_nothing(checkpoint: Path, options: str, words: str) -> None:
    folder = runs_root() / "model" / "export"
    folder.mkdir(parents=True)
    with mounted(folder, options):
        refuse(checkpoint, words)


def test_a_disk_that_fills_while_the_fp32_side_is_written_leaves_nothing(checkpoint: Path) -> None:
    np.save(checkpoint / "validation_tokens.npy", np.arange(2048, dtype=np.int32) % 256)
    (checkpoint / "validation.json").write_text('{"tokens": 2048, "bytes": 2048}')
    folder = runs_root() / "model" / "export"
    folder.mkdir(parents=True)
    with mounted(folder, "size=160k"):  # room for the int8 file, not for fp32 beside it
        refuse(checkpoint, "No space left", ExportWish())


class Bomb:
    """Unpickling this fails the test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was read",))


def test_a_checkpoint_of_pickles_is_no_checkpoint(checkpoint: Path) -> None:
    bomb = pickle.dumps(Bomb())
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (checkpoint / name).write_bytes(bomb)
    (checkpoint / WEIGHTS).write_bytes(bomb)
    refuse(checkpoint, "not a safetensors file")
    (checkpoint / WEIGHTS).unlink()
    refuse(checkpoint, "does not exist")


def test_no_source_imports_pickle_or_lets_numpy_read_one() -> None:
    wrong = []
    for file in Path(merino_edge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                wrong += [f"{file}: imports {n}" for n in names if n.split(".")[0] in ("pickle", "dill", "joblib")]
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                safe = node.arg == "weights_only"  # torch reads tensors alone then
                if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                    wrong.append(f"{file}: {node.arg} is not {safe}")
    assert wrong == []


def test_random_weights_never_replace_a_trained_bundle_whose_checkpoint_is_elsewhere(checkpoint: Path) -> None:
    export(str(checkpoint), ExportWish(recipe="fp32"))
    manifest = runs_root() / "model" / "export" / "onnx-fp32" / "manifest.json"
    before = manifest.read_bytes()
    assert json.loads(before)["trained"]
    for recipe in ("fp32", "dynamic_wi8_afp32"):
        with pytest.raises(UsageError, match="holds trained weights in onnx-fp32") as caught:
            export("model", ExportWish(recipe=recipe))
        assert "export FOLDER" in str(caught.value.hint)
    assert [p.name for p in manifest.parent.parent.iterdir()] == ["onnx-fp32"]
    assert manifest.read_bytes() == before


def test_the_same_call_means_the_same_checkpoint_when_it_is_repeated(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    for name in ("model", "./model", "model"):
        assert export(name, ExportWish(recipe="fp32"))["trained"]
        assert resolve_subject(name).checkpoint == Path(name)


def test_a_run_that_another_checkpoint_of_its_name_lies_beside_is_named_by_its_path(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    run = create_run("model", "local")
    run.set_architecture(Architecture(TINY.blocks[:1], TINY.embedding_width, 99, TINY.head_dim))
    with pytest.raises(UsageError, match="holds another architecture") as caught:
        resolve_subject("model")
    assert str(run.folder) in str(caught.value.hint)
    assert resolve_subject(str(run.folder)).architecture.vocab_size == 99


def test_a_preset_can_be_named_again_after_its_run_was_cut_short() -> None:
    create_run("merino-52m", "local")  # and the disk was full: no architecture.json
    assert resolve_subject("merino-52m").run is not None
    assert resolve_subject("merino-52m").architecture == resolve_subject("merino-52m", make_run=False).architecture


@pytest.mark.parametrize(
    ("wish", "words", "nearest"),
    [
        (ExportWish(recipe="dynamic_wi4_b32_afp32"), "cannot be written as ONNX", "--format tflite"),
        (ExportWish("tflite", "fp16"), "it is for GPU providers", "--recipe fp32"),
        (ExportWish("tflite", "dynamic_wi8_head_b64_afp32"), "only onnxruntime", "--recipe dynamic_wi8_afp32"),
        (ExportWish("tflite", "weight_only_wi4_b32_head8_afp32"), "to 8 bits", "--recipe dynamic_wi4_b32_afp32"),
        (ExportWish("tflite", "fp32", "fast"), "unknown form 'fast'", "--form standard"),
        (ExportWish(recipe="fp16", form="standard"), "in the form 'standard'", "form 'unrolled'"),
    ],
)
def test_an_impossible_pair_is_refused_with_the_nearest_possible_one(
    checkpoint: Path, wish: ExportWish, words: str, nearest: str
) -> None:
    error = refuse(checkpoint, words, wish)
    assert isinstance(error, UsageError)
    assert nearest in str(error.hint)


def test_random_weights_that_do_not_survive_a_recipe_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def too_large(architecture: Architecture, context_length: int, seed: int = 0) -> Weights:
        seeds.append(seed)
        return Weights(random_tensors(architecture, seed, scale=1.5 if seed < 2 else 0.02), context_length)

    monkeypatch.setattr(flow, "random_weights", too_large)
    run = create_run("wild", "local")
    run.set_architecture(SEVERAL)
    document = export("wild", ExportWish(recipe="dynamic_wi8_afp32"))
    assert seeds == [0, 1, 2]
    assert document["parity"]["max_abs_diff"] <= 0.2 * document["parity"]["logits_std"]
    monkeypatch.setattr(flow, "RANDOM_DRAWS", 2)
    with pytest.raises(ExportError, match="rounding activations to 8 bits alone"):
        export("wild", ExportWish(recipe="dynamic_wi8_afp32"))


def test_a_trained_bundle_whose_checkpoint_is_elsewhere_is_deployed_as_it_is(checkpoint: Path) -> None:
    export(str(checkpoint), ExportWish(recipe="fp32"))
    subject = resolve_subject("model")
    assert current_bundle(subject, "onnx", "fp32").manifest.trained
