"""Training: repeats by its seed, goes on after a kill, ends in a whole checkpoint or in one clear error."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import read_checkpoint
from merino_edge.errors import TrainingError, UsageError
from merino_edge.files import read_json, write_json
from merino_edge.training import loop
from merino_edge.training.evaluate import evaluate_checkpoint
from merino_edge.training.loop import PackedTokens, Plan
from merino_edge.training.request import with_defaults
from merino_edge.training.train import TrainRequest, train


def weights(folder: Path) -> dict[str, np.ndarray]:
    return read_checkpoint(folder).tensors


def test_loss_falls(request_for: Any) -> None:
    result = train(request_for(steps=120))
    assert result.curve[0]["loss"] > 5.5
    assert result.train_loss < 4.9
    assert result.validation_loss < 5.2


def test_same_seed_gives_the_same_loss_and_weights(request_for: Any) -> None:
    one, two = train(request_for("1")), train(request_for("2"))
    assert one.curve == two.curve
    assert one.validation_loss == two.validation_loss
    assert all((tensor == weights(two.checkpoint)[name]).all() for name, tensor in weights(one.checkpoint).items())


def test_other_seed_gives_another_loss(request_for: Any) -> None:
    assert train(request_for("1")).validation_loss != train(request_for("2", seed=1)).validation_loss


def test_micro_batches_give_the_loss_of_the_whole_batch(request_for: Any) -> None:
    whole, parts = train(request_for("1", micro_batch=8)), train(request_for("2", micro_batch=2))
    assert parts.validation_loss == pytest.approx(whole.validation_loss, abs=1e-4)


def test_checkpoint_is_a_whole_hugging_face_folder(request_for: Any, architecture: Architecture) -> None:
    result = train(request_for())
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.architecture == architecture
    assert checkpoint.trained_tokens == result.tokens == 12 * 256
    assert checkpoint.context_length == 32
    tokenizer = AutoTokenizer.from_pretrained(result.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    assert len(tokenizer) == architecture.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 0
    made = model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=4)
    assert isinstance(tokenizer.decode(made[0]), str)
    held_out = read_json(result.checkpoint / "validation.json")
    assert len(np.load(result.checkpoint / "validation_tokens.npy")) == held_out["tokens"]


def test_reported_loss_is_that_of_the_checkpoint(request_for: Any) -> None:
    result = train(request_for())
    assert evaluate_checkpoint(result.checkpoint).loss == pytest.approx(result.validation_loss, abs=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.validation_loss))


def test_record_names_nothing_of_the_host(request_for: Any, tmp_path: Path) -> None:
    result = train(request_for(flops_per_token=1e6))
    for name in ("training.json", "config.json", "validation.json", "tokenizer_config.json"):
        assert str(tmp_path) not in (result.checkpoint / name).read_text()
        assert "/tmp" not in (result.checkpoint / name).read_text()
    record = read_json(result.checkpoint / "training.json")
    assert record["curve"] == [dict(point) for point in result.curve]
    assert record["model_flops_per_s"] == pytest.approx(3e6 * result.tokens_per_s)


def test_nothing_but_the_checkpoint_is_left(request_for: Any, tmp_path: Path) -> None:
    train(request_for())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_nothing_is_printed(request_for: Any, capfd: pytest.CaptureFixture[str]) -> None:
    train(request_for(save_seconds=0.0))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_progress_tells_how_far_it_is(request_for: Any) -> None:
    heard: list[dict[str, Any]] = []
    train(request_for(steps=40), lambda facts: heard.append(dict(facts)))
    training = [facts for facts in heard if facts["stage"] == "training"]
    assert {"step", "steps", "tokens", "loss", "tokens_per_s", "seconds_left"} <= training[-1].keys()
    assert (training[-1]["step"], training[-1]["steps"], training[-1]["tokens"]) == (40, 40, 40 * 256)
    assert training[-1]["loss"] > 0
    assert heard[-1]["stage"] == "validation"


CHILD = """
import json, os, sys
from pathlib import Path
from merino_edge.architecture import Architecture
from merino_edge.training.train import TrainRequest, train
options = json.loads(sys.argv[1])
request = TrainRequest(Architecture.from_json(options.pop("architecture")), Path(options.pop("output")),
    data=tuple(options.pop("data")), token_folder=Path(options.pop("token_folder")), **options)
train(request, lambda facts: print(facts["stage"], facts["step"], flush=True))
"""


def child_options(request: TrainRequest) -> str:
    names = ("context_length", "tokens_per_batch", "steps", "threads", "learning_rate", "save_seconds")
    options = {name: getattr(request, name) for name in names}
    options |= {"architecture": request.architecture.to_json(), "output": str(request.output)}
    options |= {"data": request.data, "token_folder": str(request.token_folder)}
    return json.dumps(options)


def test_killed_training_goes_on_to_the_same_weights(request_for: Any, tmp_path: Path) -> None:
    whole = train(request_for("whole", steps=400))
    options = child_options(request_for("killed", steps=400, save_seconds=0.0))
    child = subprocess.Popen([sys.executable, "-c", CHILD, options], stdout=subprocess.DEVNULL)
    work = tmp_path / ".killed.training"
    deadline = time.monotonic() + 90
    while not any(work.glob("checkpoint-*/complete.json")) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)  # somewhere in a later step, or in a save
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed").exists()
    steps: list[int] = []
    resumed = train(request_for("killed", steps=400), lambda facts: steps.append(facts["step"]))
    assert steps[0] > 10
    assert resumed.validation_loss == whole.validation_loss
    assert [p["loss"] for p in resumed.curve] == [p["loss"] for p in whole.curve]
    assert all((t == weights(whole.checkpoint)[name]).all() for name, t in weights(resumed.checkpoint).items())


def test_half_written_save_is_passed_over(tmp_path: Path) -> None:
    for step, complete in ((10, True), (20, True), (30, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            write_json(tmp_path / f"checkpoint-{step}" / loop.COMPLETE, {"step": step})
    assert loop.last_save(tmp_path) == tmp_path / "checkpoint-20"
    assert not (tmp_path / "checkpoint-30").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "complete.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_save_is_told_and_an_earlier_one_gone_on_from(
    name: str, harm: str, saved: Path, request_for: Any, tmp_path: Path
) -> None:
    work = tmp_path / ".checkpoint.training"
    shutil.copytree(saved, work)
    newest = loop.last_save(work)
    assert newest is not None and newest.name == "checkpoint-3"
    file = newest / name
    content = file.read_bytes()
    middle = len(content) // 2
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:middle] + (bytes([content[middle] ^ 1]) + content[middle + 1 :]) * (harm == "flip"))
    notes: list[str] = []
    assert loop.last_save(work, notes.append) == work / "checkpoint-2"
    assert notes or name == "complete.json"
    assert not newest.exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, text_file: Path, token_folder: Path, architecture: Any) -> Path:
    """The folder of a training that stopped after its third save."""
    folder = tmp_path_factory.mktemp("saved")
    request = TrainRequest(
        architecture, folder / "checkpoint", data=(str(text_file),), token_folder=token_folder, context_length=32,
        tokens_per_batch=256, steps=12, threads=1, save_seconds=0.0,
    )  # fmt: skip

    def stop(facts: Any) -> None:
        if (folder / ".checkpoint.training" / "checkpoint-3" / loop.COMPLETE).exists():
            raise KeyboardInterrupt

    clock = iter(range(10**9))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("merino_edge.training.loop.time.monotonic", lambda: float(next(clock)))  # told of every step
        train(request, stop)
    return folder / ".checkpoint.training"


def test_a_damaged_plan_names_the_way_out(request_for: Any, interrupt: Any) -> None:
    interrupt(request_for(steps=400))
    work = request_for().output.parent / ".checkpoint.training"
    (work / "plan.json").write_text("{")
    with pytest.raises(TrainingError, match=r"plan\.json is not valid JSON") as caught:
        train(request_for(steps=400))
    assert "--no-resume" in str(caught.value.hint)
    assert train(request_for(resume=False)).steps == 12


def test_a_disk_that_fills_within_a_save_is_named(request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 203968 vs 203860")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="cannot save") as caught:
        train(request_for(save_seconds=0.0))
    assert "free some space" in str(caught.value.hint)


def test_unfinished_training_of_other_settings_is_not_lost(request_for: Any, interrupt: Any) -> None:
    interrupt(request_for())
    with pytest.raises(TrainingError, match="learning_rate differ"):
        train(request_for(learning_rate=1e-3))


def test_unfinished_training_is_dropped_when_told(request_for: Any, interrupt: Any) -> None:
    interrupt(request_for())
    assert train(request_for(learning_rate=1e-3, resume=False)).steps == 12


def test_interrupted_training_leaves_the_old_checkpoint(request_for: Any, interrupt: Any) -> None:
    before = weights(train(request_for()).checkpoint)
    interrupt(request_for(seed=1))
    after = weights(request_for().output)
    assert all((before[name] == after[name]).all() for name in before)


def test_training_goes_on_from_a_checkpoint_with_its_tokenizer(request_for: Any, tmp_path: Path) -> None:
    first = train(request_for("1", steps=60))
    other = tmp_path / "other.txt"
    other.write_text("quite another text. " * 2000)
    second = train(request_for("2", data=(str(other),), start_from=first.checkpoint))
    one, two = (Tokenizer.from_file(str(r.checkpoint / "tokenizer.json")).get_vocab() for r in (first, second))
    assert one == two
    assert read_checkpoint(second.checkpoint).trained_tokens == (60 + 12) * 256


def test_checkpoint_of_another_architecture_is_refused(request_for: Any, tmp_path: Path) -> None:
    first = train(request_for("1"))
    other = Architecture((Block(16, 2, 1),), 16, 300, head_dim=8)
    with pytest.raises(TrainingError, match="another architecture"):
        train(TrainRequest(other, tmp_path / "2", start_from=first.checkpoint, steps=1))


@pytest.mark.alone
def test_time_budget_is_kept(request_for: Any) -> None:
    train(request_for("warm", steps=2))
    started = time.monotonic()
    result = train(request_for(seconds=6.0, steps=None))
    assert result.steps > 20
    assert time.monotonic() - started < 12
    assert result.curve[-1]["learning_rate"] < 0.3 * max(point["learning_rate"] for point in result.curve)


@pytest.mark.parametrize(
    ("step_seconds", "reserved"), [(0.01, 5.0), (1.0, 12.8), (10.0, 20.0)]
)  # a twentieth at least, what scoring takes, a fifth at most
def test_a_time_budget_leaves_time_for_the_held_out_tokens(step_seconds: float, reserved: float) -> None:
    plan = Plan(None, 100.0, None, "cosine", reserve=0.05, scored=8192)
    plan.refit(0, 0.0, step_seconds, 256)
    assert plan.reserved == pytest.approx(reserved)
    assert plan.steps == int((100.0 - reserved) / step_seconds)


def test_without_a_budget_it_is_one_epoch(request_for: Any) -> None:
    result = train(request_for(steps=None))
    record = read_json(result.checkpoint / "training.json")
    assert result.steps == math.ceil(record["data"]["train_tokens"] / 256)


@pytest.mark.parametrize("in_a_file", [False, True])
def test_the_chat_template_beside_a_tokenizer_comes_into_the_checkpoint(
    in_a_file: bool, request_for: Any, tmp_path: Path
) -> None:
    first = train(request_for("1", steps=1)).checkpoint
    given = tmp_path / "given"
    given.mkdir()
    shutil.copyfile(first / "tokenizer.json", given / "tokenizer.json")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config: dict[str, Any] = {"eos_token": {"content": "<|endoftext|>"}, "bos_token": "a", "model_max_length": 7}
    if in_a_file:
        (given / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    (given / "tokenizer_config.json").write_text(json.dumps(config))  # as others write it: nothing of ours in it
    second = train(request_for("2", steps=1, tokenizer=str(given / "tokenizer.json"))).checkpoint
    third = train(request_for("3", steps=1, start_from=second)).checkpoint
    for folder in (second, third):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
        assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.model_max_length) == ("a", "<|endoftext|>", 32)
    assert AutoTokenizer.from_pretrained(first).chat_template is None


def test_loss_that_is_no_number_is_an_error(request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merino_edge.training.model.next_token_loss", lambda logits, _: logits.sum() * math.nan)
    with pytest.raises(TrainingError, match="loss became nan"):
        train(request_for())


def test_full_disk_is_an_error_and_leaves_no_checkpoint(request_for: Any) -> None:
    request = request_for(save_seconds=0.0)
    shutil.rmtree(train(request).checkpoint)  # the token files are there now
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    arguments = [sys.executable, "-c", limit + CHILD, child_options(request)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "TrainingError" in done.stderr.strip().splitlines()[-1]
    assert not request.output.exists()


def test_too_large_micro_batch_is_halved(request_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = torch.nn.Embedding.forward

    def limited(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if len(ids) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", limited)
    notes: list[str] = []
    result = train(request_for(micro_batch=8), lambda facts: notes.append(facts.get("note", "")))
    assert result.steps == 12
    assert [note for note in notes if note][-1].endswith("micro-batches of 2")


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"steps": -1}, {"steps": 1, "tokens": 1}, {"seconds": math.nan, "steps": None},
        {"context_length": 1}, {"schedule": "cosin"}, {"seed": -1}, {"learning_rate": math.inf}, {"micro_batch": 0},
    ],
)  # fmt: skip
def test_bad_request_is_refused_at_the_door(request_for: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        request_for(**options)


def test_each_epoch_takes_every_window_once_in_its_own_order() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    data = PackedTokens(tokens, 10, seed=0, length=10_000)
    epochs = [[int(data[e * data.windows + i]["input_ids"][0]) for i in range(data.windows)] for e in range(2)]
    for starts in epochs:
        assert np.diff(sorted(starts)).tolist() == [10] * (data.windows - 1)
    assert epochs[0] != epochs[1]
    again = PackedTokens(tokens, 10, seed=0, length=10_000)
    assert int(again[data.windows + 3]["input_ids"][0]) == epochs[1][3]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedule_rises_and_ends_at_a_tenth(schedule: str) -> None:
    plan = Plan(steps=200, seconds=None, warmup=None, schedule=schedule)
    factors = [plan.factor(step) for step in range(201)]
    assert factors[0] < 0.1
    assert max(factors) == 1.0
    assert factors[200] == pytest.approx(0.1)
    assert factors[40:] == sorted(factors[40:], reverse=True)


@pytest.mark.parametrize(
    ("steps", "given", "expected"),
    [(2441, None, 122), (200, None, 40), (20, None, 5), (2, None, 0), (None, None, 40), (200, 7, 7), (200, 0, 0)],
)
def test_warms_up_for_a_twentieth_and_forty_steps_where_there_are_enough(
    steps: int | None, given: int | None, expected: int
) -> None:
    plan = Plan(steps=steps, seconds=None, warmup=given, schedule="cosine")
    assert next(step for step in range(3000) if plan.factor(step) == 1.0) == expected


@pytest.mark.parametrize(("width", "batch", "rate"), [
    (256, 1 << 15, 0.0043), (512, 1 << 15, 0.00215), (768, 1 << 17, 0.0014333), (128, 1 << 15, 0.0043),
    (512, 1 << 14, 0.0015), (64, 1 << 10, 0.003),
])  # fmt: skip
def test_the_rate_goes_by_the_widest_block_and_is_lower_for_small_steps(width: int, batch: int, rate: float) -> None:
    blocks = (Block(64, 4, 1), Block(width, 4, 2), Block(64, 4, 1))
    asked = TrainRequest(Architecture(blocks, 64, 8192), Path("out"), tokens_per_batch=batch, context_length=1024)
    assert with_defaults(asked, epoch_tokens=1 << 20, cuda=False).learning_rate == pytest.approx(rate, rel=2e-3)


def test_environment_is_left_as_it_was(request_for: Any) -> None:
    threads, environment = torch.get_num_threads(), dict(os.environ)
    train(request_for(threads=1, steps=1))
    assert torch.get_num_threads() == threads
    assert dict(os.environ) == environment
