"""Zero-shot tasks: read from files, asked through lm-eval, beside what guessing scores."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import DataError, UsageError
from merino_edge.flows import evaluate
from merino_edge.training import zero_shot
from merino_edge.training.data import train_tokenizer
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM
from merino_edge.training.zero_shot import TaskScore, average, guessing, run_tasks

CB = [{"premise": "It rains.", "hypothesis": "It is wet", "label": label} for label in ("entailment", "neutral") * 3]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "eval"
    folder.mkdir()
    files = {
        "CB.val.jsonl.xz": "".join(json.dumps(doc) + "\n" for doc in CB[:5]),
        "winogrande.jsonl.xz": json.dumps({"context_options": ["He", "She"], "continuation": "ran.", "gold": 1}) + "\n",
        "lambada_openai.jsonl.xz": json.dumps({"context": "to be or not to", "continuation": "be"}) + "\n",
        "hellaswag_val_full.txt.xz": "Walking: A man walks. he\n2\nsits.\nflies.\nruns on.\nsings.\n",
        "logiqa_test.txt.xz": "\nb\nA passage.\nWhat follows?\nA.One\nB Two\nC? Three\nD.Four\n",
    }
    for name, text in files.items():
        (folder / name).write_bytes(lzma.compress(text.encode()))
    monkeypatch.setenv("MERINO_EDGE_DATA", str(tmp_path))
    return folder


@pytest.fixture(scope="module")
def model() -> tuple[MerinoForCausalLM, PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    architecture = Architecture((Block(16, 2, 1),), 16, 270, head_dim=8)
    made = MerinoForCausalLM(MerinoConfig(architecture=architecture.to_json(), max_position_embeddings=64)).eval()
    tokenizer = train_tokenizer(["to be or not to be, that is the question: whether it rains"], 270)
    return made, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def test_documents_are_read_as_they_are_written(data: Path) -> None:
    assert zero_shot.TASKS["hellaswag"]()[0]["choices"][2] == "runs on."
    assert zero_shot.TASKS["hellaswag"]()[0]["gold"] == 2
    logiqa = zero_shot.TASKS["logiqa"]()[0]
    assert (logiqa["gold"], logiqa["choices"]) == (1, ["One", "Two", "Three", "Four"])


def test_guessing_is_counted_from_the_documents(data: Path) -> None:
    assert guessing(zero_shot.TASKS["cb"]()) == (pytest.approx(1 / 3), 3 / 5)
    assert guessing(zero_shot.TASKS["winogrande"]()) == (0.5, 1.0)
    assert guessing(zero_shot.TASKS["lambada"]()) == (0.0, 0.0)


def test_a_limit_draws_from_all_of_a_sorted_task_and_always_the_same() -> None:
    docs = [{"gold": number // 100} for number in range(300)]
    few = zero_shot.drawn(docs, 30)
    assert {doc["gold"] for doc in few} == {0, 1, 2}
    assert few == zero_shot.drawn(docs, 30) and len(few) == 30
    assert zero_shot.drawn(docs, 300) == zero_shot.drawn(docs, None) == docs


def test_accuracy_is_that_of_the_likeliest_choice(data: Path, model: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    scores = {score.task: score for score in run_tasks(*model, ["cb", "winogrande", "lambada"])}
    right = 0
    for doc in zero_shot.TASKS["cb"]():
        context = model[1](doc["context"])["input_ids"]
        summed = []
        for choice in doc["choices"]:
            ids = torch.tensor([context + model[1](" " + choice)["input_ids"]])
            log_p = model[0](ids[:, :-1]).logits.log_softmax(-1)[0]
            summed.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(len(context), ids.shape[1])))
        right += summed.index(max(summed)) == doc["gold"]
    assert scores["cb"].accuracy == pytest.approx(right / 5)
    assert (scores["cb"].documents, scores["winogrande"].documents, scores["lambada"].documents) == (5, 1, 1)
    assert capfd.readouterr().out == ""


def test_a_last_word_is_asked_with_the_space_before_it(data: Path) -> None:
    pytest.importorskip("datasets")
    docs = zero_shot.TASKS["lambada"]()
    config = zero_shot._config("lambada", docs)
    assert config["doc_to_text"](docs[0]) + config["doc_to_target"](docs[0]) == "to be or not to be"


def test_a_last_word_is_right_where_it_is_the_likeliest(data: Path, model: Any) -> None:
    pytest.importorskip("lm_eval")
    words = [w.replace("\u0120", " ") for w in model[1].get_vocab() if w.startswith("\u0120") and w[1:].isalpha()]
    docs, right = [], 0
    for context in ("to" + word for word in words):
        likeliest = int(model[0](torch.tensor([model[1](context)["input_ids"]])).logits[0, -1].argmax())
        for word in words:  # of one token each, the space before it included
            docs.append({"context": context, "continuation": word.strip()})
            right += model[1](word)["input_ids"] == [likeliest]
    text = "".join(json.dumps(doc) + "\n" for doc in docs)
    (data / "lambada_openai.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    assert run_tasks(*model, ["lambada"])[0].accuracy == pytest.approx(right / len(docs))
    assert right > 0


def test_average_carries_its_error() -> None:
    scores = [TaskScore("a", 10, 0.5, 0.3, None, 0.25, 0.5), TaskScore("b", 10, 0.7, 0.4, None, 0.5, 0.6)]
    found = average(scores)
    assert (found["accuracy"], found["stderr"], found["chance"]) == (pytest.approx(0.6), pytest.approx(0.25), 0.375)


def test_unknown_task_offers_the_nearest(data: Path, model: Any) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UsageError, match="hellaswag"):
        run_tasks(*model, ["helaswag"])


def test_missing_files_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERINO_EDGE_DATA", raising=False)
    with pytest.raises(DataError, match="MERINO_EDGE_DATA"):
        zero_shot.TASKS["cb"]()


def test_what_a_long_evaluation_would_lack_is_told_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    monkeypatch.setattr(evaluate, "_open", lambda *_: pytest.fail("a model was opened"))
    with pytest.raises(UsageError, match="lm-eval"):
        evaluate.evaluate("run", evaluate.EvaluateOptions(tasks=("boolq",)))


TASK_FILE = """task: "odd one"
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize(
    ("data_lines", "reason"),
    [
        ('{"q": "gr\u00f6\u00dfe", "choices": ["a", "a"], "gold": 1}\n{"q": "x", "choices": ["b"], "gold": 0}\n', None),
        ('{"q": "x", "choices": [], "gold": 0}\n', "cannot be asked: IndexError"),
        ('{"q": "x", "choices": ["a", "b"], "gold": 7}\n', "cannot be asked: IndexError"),
        ('{"q": "x", "gold": 0}\n', "cannot be asked"),
        ('q,choices\nx,y\n', "cannot be asked: ArrowInvalid"),
        ("", "cannot be asked"),
        (None, "cannot be asked: FileNotFoundError"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_task_of_ones_own_is_told_in_one_line(
    data_lines: str | None, reason: str | None, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions, task = tmp_path / "questions.jsonl", tmp_path / "t.yaml"
    if data_lines is not None:
        questions.write_text(data_lines, encoding="utf-8")
    task.write_text(TASK_FILE.replace("DATA", str(questions)))
    if reason is None:
        assert [(score.task, score.documents) for score in run_tasks(*model, [str(task)])] == [("odd one", 2)]
        return
    with pytest.raises(UsageError, match=reason) as caught:
        run_tasks(*model, [str(task)])
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"task: x\n  dataset: [\n", "is no task file"), (b"\xff", "cannot read"), (b"a: 1\n", "names no task")],
)
def test_a_file_that_is_no_task_is_refused_before_a_model_is_opened(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "t.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        zero_shot.check_tasks([str(tmp_path / "t.yaml")])
