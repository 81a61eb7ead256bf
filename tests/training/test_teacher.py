"""Learning from a teacher beside the text: the loss as computed by hand, and a training like any other around it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import read_checkpoint
from merino_edge.cli.train import command
from merino_edge.errors import DataError, InvalidFileError, MerinoEdgeError, TrainingError, UsageError
from merino_edge.files import read_json, sha256_file, write_json
from merino_edge.flows.subject import resolve_subject
from merino_edge.training import train as module
from merino_edge.training.evaluate import evaluate_checkpoint, load_model
from merino_edge.training.loop import PackedTokens
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM, distillation_loss, next_token_loss
from merino_edge.training.teacher import Teacher
from merino_edge.training.train import TrainRequest, train

LARGER = Architecture((Block(32, 2, 1), Block(32, 3, 1)), embedding_width=32, vocab_size=300, head_dim=8)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Path:
    """A larger model that has read the text several times."""
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    return train(TrainRequest(LARGER, folder, **{**settings, "steps": 200})).checkpoint


def weights(folder: Path) -> dict[str, np.ndarray]:
    return read_checkpoint(folder).tensors


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all((tensor == second[name]).all() for name, tensor in first.items())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def test_the_loss_is_the_mean_over_positions_computed_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 2, 5, 7)) * 3
    labels = rng.integers(0, 7, (2, 5))
    share, losses = 0.3, []
    for row in range(2):
        for t in range(4):  # the last position foretells nothing that is there
            mine, theirs = log_softmax(logits[row, t]), np.exp(log_softmax(teacher[row, t]))
            losses.append((1 - share) * -mine[labels[row, t + 1]] + share * -(theirs * mine).sum())
    found = distillation_loss(*(torch.from_numpy(a) for a in (logits, labels, teacher)), share)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)


def test_labels_that_ask_nothing_count_for_neither() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 2, 5, 7, generator=generator)
    labels = torch.randint(0, 7, (2, 5), generator=generator)
    labels[:, 3:] = -100
    shorter = distillation_loss(logits[:, :3], labels[:, :3], teacher[:, :3], 0.5)
    torch.testing.assert_close(distillation_loss(logits, labels, teacher, 0.5), shorter)


def test_a_teacher_sure_of_the_text_is_the_text() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 6, 7, generator=generator), torch.randint(0, 7, (2, 6), generator=generator)
    sure = 1e4 * torch.nn.functional.one_hot(torch.roll(labels, -1, dims=1), 7).float()
    torch.testing.assert_close(distillation_loss(logits, labels, sure, 0.7), next_token_loss(logits, labels))


def test_a_student_equal_to_its_only_teacher_has_nothing_to_learn(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = MerinoForCausalLM(MerinoConfig(architecture=architecture.to_json())).double()
    ids = torch.randint(0, 300, (2, 16))
    looked_at = Teacher(model, 1.0, "").look(ids)
    assert not looked_at[0].requires_grad
    model(ids, labels=ids, loss_only=True, teacher=looked_at).loss.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-6
    model(ids, labels=ids, loss_only=True, teacher=(looked_at[0], 0.5)).loss.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) > 1e-3  # the text has something to say


def test_the_first_recorded_loss_is_that_of_the_untrained_student(taught: Path, request_for: Any) -> None:
    """The order of the data, the micro-batches and the share, all the way through the Trainer."""
    request = request_for(steps=1, teacher=taught, teacher_share=0.25, micro_batch=2)
    loss = train(request).curve[0]["loss"]
    tokens = next(request.token_folder.glob(f"{_digest(request)[:16]}/train.bin"))
    windows = PackedTokens(np.fromfile(tokens, np.uint16), 32, 0, 8)
    ids = torch.stack([windows[i]["input_ids"] for i in range(8)])
    torch.manual_seed(0)
    student = MerinoForCausalLM(MerinoConfig(architecture=request.architecture.to_json(), max_position_embeddings=32))
    logits = [log_softmax(model(ids).logits.detach().double().numpy()) for model in (student, load_model(taught))]
    mine, theirs = logits[0][:, :-1], np.exp(logits[1][:, :-1])
    to_text = -np.take_along_axis(mine, ids.numpy()[:, 1:, None], -1).mean()
    assert loss == pytest.approx(0.75 * to_text - 0.25 * (theirs * mine).sum(-1).mean(), abs=1e-4)


def _digest(request: TrainRequest) -> str:
    digest: str = read_json(request.output / "training.json")["data"]["digest"]
    return digest


def test_a_taught_student_comes_nearer_to_its_teacher(taught: Path, request_for: Any) -> None:
    ids = torch.from_numpy(np.load(taught / "validation_tokens.npy")[:1024].astype(np.int64)).view(-1, 32)

    def distance(folder: Path) -> float:
        with torch.no_grad():
            return float(distillation_loss(load_model(folder)(ids).logits, ids, load_model(taught)(ids).logits, 1.0))

    alone = train(request_for("alone", steps=60)).checkpoint
    distilled = train(request_for("distilled", steps=60, teacher=taught, teacher_share=1.0)).checkpoint
    assert distance(distilled) < distance(alone) - 0.01


def test_the_checkpoint_has_the_tensors_of_a_plain_one_and_says_what_the_teacher_was(
    taught: Path, request_for: Any, tmp_path: Path
) -> None:
    plain, distilled = train(request_for("plain")), train(request_for("distilled", teacher=taught))
    shapes = [{name: t.shape for name, t in weights(r.checkpoint).items()} for r in (plain, distilled)]
    assert shapes[0] == shapes[1]
    assert not same(plain.checkpoint, distilled.checkpoint)
    assert sorted(p.name for p in plain.checkpoint.iterdir()) == sorted(p.name for p in distilled.checkpoint.iterdir())
    assert evaluate_checkpoint(distilled.checkpoint).loss == pytest.approx(distilled.validation_loss, abs=1e-6)
    records = [read_json(r.checkpoint / "training.json") for r in (plain, distilled)]
    assert records[0]["teacher"] is None
    assert records[1]["teacher"] == {
        "sha256": sha256_file(taught / "model.safetensors"), "architecture": LARGER.describe(),
        "parameters": LARGER.unique_parameters, "trained_tokens": 200 * 256, "share": 0.5,
    }  # fmt: skip
    assert str(tmp_path.parent) not in json.dumps(records)


def test_teacher_and_optimizer_keep_apart(taught: Path, request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, held = sha256_file(taught / "model.safetensors"), []
    original = module.make_optimizer

    def noted(model: torch.nn.Module, **options: Any) -> torch.optim.AdamW:
        optimizer = original(model, **options)
        held.append(sum(p.numel() for group in optimizer.param_groups for p in group["params"]))
        return optimizer

    monkeypatch.setattr(module, "make_optimizer", noted)
    request = request_for(teacher=taught)
    train(request)
    assert held == [request.architecture.unique_parameters]
    assert sha256_file(taught / "model.safetensors") == before


def test_micro_batches_give_the_loss_of_the_whole_batch(taught: Path, request_for: Any) -> None:
    whole, parts = (train(request_for(str(n), teacher=taught, micro_batch=n)) for n in (8, 2))
    assert parts.validation_loss == pytest.approx(whole.validation_loss, abs=1e-4)


def test_too_large_micro_batch_is_halved(taught: Path, request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = torch.nn.Embedding.forward

    def limited(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if len(ids) > 2 and not torch.is_grad_enabled() and self.embedding_dim == 32:  # the teacher does not fit
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", limited)
    notes: list[str] = []
    train(request_for(micro_batch=8, teacher=taught), lambda facts: notes.append(facts.get("note", "")))
    assert [note for note in notes if note][-1].endswith("micro-batches of 2")


CHILD = """
import json, sys
from pathlib import Path
from merino_edge.architecture import Architecture
from merino_edge.training.train import TrainRequest, train
options = json.loads(sys.argv[1])
for name in ("output", "token_folder", "teacher"):
    options[name] = Path(options[name])
options["architecture"] = Architecture.from_json(options["architecture"])
train(TrainRequest(**{**options, "data": tuple(options["data"])}))
"""


def child_options(request: TrainRequest, settings: dict[str, Any]) -> str:
    options = {name: getattr(request, name) for name in (*settings, "save_seconds", "teacher", "output")}
    return json.dumps({**options, "architecture": request.architecture.to_json()}, default=str)


def test_killed_training_goes_on_to_the_same_weights(
    taught: Path, request_for: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = train(request_for("whole", steps=300, teacher=taught))
    request = request_for("killed", steps=300, teacher=taught, save_seconds=0.0)
    child = subprocess.Popen([sys.executable, "-c", CHILD, child_options(request, settings)])
    work, deadline = tmp_path / ".killed.training", time.monotonic() + 90
    while not any(work.glob("checkpoint-*/complete.json")) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not request.output.exists()
    steps: list[int] = []
    resumed = train(request, lambda facts: steps.append(facts["step"]))
    assert steps[0] > 10
    assert resumed.validation_loss == whole.validation_loss
    assert same(resumed.checkpoint, whole.checkpoint)


def test_an_unfinished_training_goes_on_with_no_other_teacher_and_share(
    taught: Path, request_for: Any, interrupt: Any
) -> None:
    request = request_for(teacher=taught, tokenizer=str(taught / "tokenizer.json"))
    interrupt(request)
    other = train(request_for("other", tokenizer=request.tokenizer)).checkpoint
    with pytest.raises(TrainingError, match=r"settings lies in .*: teacher differ"):
        train(replace(request, teacher=other))
    with pytest.raises(TrainingError, match=r": teacher_share differ"):
        train(replace(request, teacher_share=0.9))
    with pytest.raises(TrainingError, match=r": teacher, teacher_share differ") as caught:
        train(replace(request, teacher=None))
    assert "--no-resume" in str(caught.value.hint)
    assert train(replace(request, teacher_share=0.5)).steps == 12


def test_the_teachers_tokenizer_is_taken(taught: Path, request_for: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("quite another text. " * 2000)
    student = train(request_for(data=(str(other),), teacher=taught)).checkpoint
    assert (student / "tokenizer.json").read_text() == (taught / "tokenizer.json").read_text()


def test_another_tokenizer_is_refused(taught: Path, request_for: Any, tmp_path: Path) -> None:
    own = tmp_path / "tokenizer.json"
    content = json.loads((taught / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last, one_before = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[last], vocabulary[one_before] = vocabulary[one_before], vocabulary[last]
    own.write_text(json.dumps(content))
    with pytest.raises(DataError, match="has another tokenizer than the training text") as caught:
        train(request_for(teacher=taught, tokenizer=str(own)))
    assert f"--tokenizer {taught / 'tokenizer.json'}" in str(caught.value.hint)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_another_layout_of_the_same_tokenizer_is_the_same(taught: Path, request_for: Any, tmp_path: Path) -> None:
    own = tmp_path / "tokenizer.json"
    own.write_text(json.dumps(json.loads((taught / "tokenizer.json").read_text()), indent=1))
    assert own.read_bytes() != (taught / "tokenizer.json").read_bytes()
    assert train(request_for(teacher=taught, tokenizer=str(own), steps=1)).steps == 1


def test_another_vocabulary_is_refused_before_the_text_is_read(taught: Path, tmp_path: Path) -> None:
    student = Architecture((Block(16, 2, 1),), 16, 400, head_dim=8)
    with pytest.raises(DataError, match="vocabulary of 300, the architecture 400") as caught:
        train(TrainRequest(student, tmp_path / "checkpoint", data=("missing.txt",), teacher=taught))
    assert "--vocab 300" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("config", "has no config.json"), ("foreign", "describes no MeRino model"), ("weights", "has no model.safet"),
        ("tokenizer", "has no tokenizer.json"), ("cut", "truncated or not a safetensors file"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_whole_checkpoint_is_refused(
    harm: str, words: str, taught: Path, request_for: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(taught, folder)
    removed = {"config": "config.json", "weights": "model.safetensors", "tokenizer": "tokenizer.json"}
    if harm in removed:
        (folder / removed[harm]).unlink()
    elif harm == "foreign":
        (folder / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 300}')
    else:
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InvalidFileError, match=words) as caught:
        train(request_for(teacher=folder))
    assert caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused_at_the_door(share: float, request_for: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        request_for(teacher=tmp_path, teacher_share=share)


def test_a_share_without_a_teacher_is_refused_at_the_door(request_for: Any) -> None:
    with pytest.raises(UsageError, match="nothing without a teacher"):
        request_for(teacher_share=0.5)


def test_a_shorter_context_of_the_teacher_is_told(taught: Path, request_for: Any) -> None:
    notes: list[str] = []
    train(request_for(teacher=taught, context_length=64, steps=1), lambda facts: notes.append(facts.get("note", "")))
    assert "the teacher was trained on contexts of 32, less than 64" in notes


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--teacher", "nowhere"], 2, "--teacher: 'nowhere' is no run, checkpoint folder"),
        (["--teacher", "empty"], 2, "--teacher: the folder 'empty' is no run, checkpoint or bundle"),
        (["--teacher", "student"], 2, "--teacher: 'student' has no trained weights"),
        (["--teacher-share", "0.5"], 2, "--teacher-share is nothing without a teacher"),
        (["--teacher", "foreign"], 1, "the teacher cannot be used: foreign/config.json describes no MeRino model"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], code: int, message: str, architecture: Architecture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERINO_EDGE_RUNS", str(tmp_path / "runs"))
    Path("empty").mkdir()
    Path("foreign").mkdir()
    Path("foreign/config.json").write_text('{"model_type": "gpt2"}')
    write_json(Path("student.json"), architecture.to_json())
    resolve_subject("student.json")  # makes the run
    error = CliRunner().invoke(command, ["student", *words]).exception
    assert isinstance(error, MerinoEdgeError)
    assert (error.exit_code, error.message.startswith(message), bool(error.hint)) == (code, True, True), error.message
