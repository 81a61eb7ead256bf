"""Zero-shot accuracy through lm-eval: 14 tasks read from local files, others by their lm-eval name or YAML file.

Each task is a list of documents made here from the files in `$MERINO_EDGE_DATA/eval`; lm-eval asks the
model and counts. A choice counts by its summed log-likelihood (`accuracy`), beside it by that over its
bytes (`accuracy_norm`). What guessing would score is computed from the documents themselves: by
`chance`, and by always giving the most frequent answer.
"""

from __future__ import annotations

import json
import logging
import lzma
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from merino_edge.errors import DataError, UsageError, did_you_mean

Doc = dict[str, Any]
YES_NO = ["no", "yes"]
SAMPLE_SEED = 0
TASK_LINE = re.compile(r"""^task:[ \t]*(?:"([^"\n]+)"|'([^'\n]+)'|([^\s#][^#\n]*))""", re.MULTILINE)
CHOICE_LETTER = re.compile(r"^[A-D]\s*[.?]?\s*")  # of LogiQA, whose full stop is sometimes missing


@dataclass(frozen=True)
class TaskScore:
    """One task's result.

    Attributes:
        task: Its name.
        documents: Questions asked.
        accuracy: Share answered rightly.
        stderr: Standard error of it.
        accuracy_norm: The same with each choice's likelihood over its bytes; None where that means nothing.
        chance: What guessing scores on average; None for tasks that are not ours.
        majority: What the most frequent answer scores; None likewise.
    """

    task: str
    documents: int
    accuracy: float
    stderr: float
    accuracy_norm: float | None
    chance: float | None
    majority: float | None


def _lines(name: str) -> list[str]:
    root = os.environ.get("MERINO_EDGE_DATA")
    path = Path(root or "") / "eval" / name
    if not root or not path.is_file():
        raise DataError(
            f"the tasks' files are not there: {path if root else 'MERINO_EDGE_DATA is not set'}",
            hint="set MERINO_EDGE_DATA to the folder that holds eval/, or name tasks of lm-eval",
        )
    try:
        return lzma.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}", hint="copy it again") from error


def _json_lines(name: str) -> list[Doc]:
    return [json.loads(line) for line in _lines(name) if line.strip()]


def _choice(context: str, choices: Sequence[str], gold: int) -> Doc:
    return {"context": context, "choices": list(choices), "gold": int(gold)}


def _hellaswag() -> list[Doc]:
    lines = _lines("hellaswag_val_full.txt.xz")
    groups = [lines[i : i + 6] for i in range(0, len(lines) - 5, 6)]
    return [_choice(group[0], group[2:], int(group[1])) for group in groups]


def _logiqa() -> list[Doc]:
    lines = [*_lines("logiqa_test.txt.xz"), ""]
    docs = []
    for i in range(0, len(lines) - 7, 8):
        answer, passage, question, *choices = lines[i + 1 : i + 8]
        letters = "\n".join(choices)
        text = f"Passage: {passage}\nQuestion: {question}\nChoices:\n{letters}\nAnswer:"
        endings = [CHOICE_LETTER.sub("", choice).strip() for choice in choices]
        docs.append(_choice(text, endings, "abcd".index(answer.strip().lower())))
    return docs


def _pubmedqa() -> list[Doc]:
    known = json.loads("\n".join(_lines("pubmedqa_ori_pqal.json.xz")))
    answers = json.loads("\n".join(_lines("pubmedqa_test_ground_truth.json.xz")))
    choices = ["yes", "no", "maybe"]
    return [
        _choice(
            "Abstract: " + "\n".join(known[key]["CONTEXTS"]) + f"\nQuestion: {known[key]['QUESTION']}\nAnswer:",
            choices,
            choices.index(answer),
        )
        for key, answer in answers.items()
    ]


def _asked(name: str, ending: str) -> list[Doc]:
    return [_choice(d["query"] + ending, d["choices"], d["gold"]) for d in _json_lines(name)]


def _boolq() -> list[Doc]:
    docs = _json_lines("BoolQ.val.jsonl.xz")
    return [_choice(f"{d['passage']}\nQuestion: {d['question']}?\nAnswer:", YES_NO, d["label"]) for d in docs]


def _cb() -> list[Doc]:
    labels = ["entailment", "contradiction", "neutral"]
    ask = "{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:"
    docs = _json_lines("CB.val.jsonl.xz")
    return [_choice(ask.format(**d), ["True", "False", "Neither"], labels.index(d["label"])) for d in docs]


def _rte() -> list[Doc]:
    labels = ["entailment", "not_entailment"]
    ask = "{premise}\nQuestion: {hypothesis} True or False?\nAnswer:"
    docs = _json_lines("RTE.val.jsonl.xz")
    return [_choice(ask.format(**d), ["True", "False"], labels.index(d["label"])) for d in docs]


def _wic() -> list[Doc]:
    ask = (
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Question: Is the word '{word}' used in the same way in the two sentences above?\nAnswer:"
    )
    return [_choice(ask.format(**d), YES_NO, d["label"]) for d in _json_lines("WiC.val.jsonl.xz")]


def _wsc() -> list[Doc]:
    ask = 'Passage: {}\nQuestion: In the passage above, does the pronoun "{}" refer to "{}"?\nAnswer:'
    docs = _json_lines("WSC.val.jsonl.xz")
    spans = [(d, d["target"]) for d in docs]
    return [_choice(ask.format(d["text"], t["span2_text"], t["span1_text"]), YES_NO, d["label"]) for d, t in spans]


TASKS: dict[str, Callable[[], list[Doc]]] = {
    "hellaswag": _hellaswag,
    "arc_easy": lambda: _asked("arc_easy.jsonl.xz", "\nAnswer:"),
    "arc_challenge": lambda: _asked("arc_challenge.jsonl.xz", "\nAnswer:"),
    "openbookqa": lambda: _asked("openbook_qa.jsonl.xz", ""),
    "winogrande": lambda: _json_lines("winogrande.jsonl.xz"),
    "wsc273": lambda: _json_lines("winograd_wsc.jsonl.xz"),
    "lambada": lambda: _json_lines("lambada_openai.jsonl.xz"),
    "boolq": _boolq,
    "cb": _cb,
    "rte": _rte,
    "wic": _wic,
    "wsc": _wsc,
    "pubmedqa": _pubmedqa,
    "logiqa": _logiqa,
}


def drawn(docs: list[Doc], limit: int | None) -> list[Doc]:
    """Return so many documents at random, always the same ones: a file may be sorted by its answers."""
    if limit is None or limit >= len(docs):
        return docs
    return [docs[at] for at in np.random.default_rng(SAMPLE_SEED).permutation(len(docs))[:limit]]


def guessing(docs: Sequence[Doc]) -> tuple[float, float]:
    """Return what chance and the most frequent answer score on documents; a word to be found has neither."""
    if "gold" not in docs[0]:
        return 0.0, 0.0
    options = [len(d.get("choices") or d["context_options"]) for d in docs]
    most = Counter(d["gold"] for d in docs).most_common(1)[0][1]
    return sum(1 / n for n in options) / len(docs), most / len(docs)


def _config(name: str, docs: list[Doc]) -> dict[str, Any]:
    """Return a task as lm-eval reads it: the documents, how they are asked, what counts."""
    from datasets import Dataset

    config: dict[str, Any] = {
        "task": f"merino_{name}",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "target_delimiter": " ",
        "metadata": {"version": 1},
    }
    if "gold" not in docs[0]:  # the last word of a passage, which must be the likeliest
        config |= {"output_type": "loglikelihood", "doc_to_text": lambda d: d["context"]}
        config |= {"doc_to_target": lambda d: " " + d["continuation"]}  # here lm-eval sets no delimiter
        config["metric_list"] = [{"metric": "acc"}]
    elif "choices" in docs[0]:
        config |= {"output_type": "multiple_choice", "doc_to_text": lambda d: d["context"]}
        config |= {"doc_to_choice": lambda d: d["choices"], "doc_to_target": lambda d: d["gold"]}
        config["metric_list"] = [{"metric": "acc"}, {"metric": "acc_norm"}]
    else:  # the same ending after each of several beginnings
        config |= {"output_type": "multiple_choice", "doc_to_text": lambda d: d["gold"]}
        config |= {"doc_to_choice": lambda d: d["context_options"], "doc_to_target": lambda d: d["continuation"]}
        config["metric_list"] = [{"metric": "acc"}]
    return config


def check_tasks(names: Sequence[str]) -> None:
    """Refuse tasks that do not exist, before a model is loaded for them.

    Raises:
        UsageError: lm-eval is missing, or knows no such task.
    """
    foreign = [name for name in names if name not in TASKS]
    if foreign:
        manager = _task_manager(foreign)
        for name in foreign:
            _foreign(name, manager)


def _task_manager(names: Sequence[str]) -> Any:
    """Return lm-eval's list of tasks, with those in files of one's own; an empty one where all are ours.

    Reading the list takes lm-eval five seconds, which ours need not wait for.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError("zero-shot tasks need lm-eval", hint="pip install 'merino-edge[eval]'") from error
    files = [Path(name) for name in names if name.endswith((".yaml", ".yml"))]
    with _silenced():
        return TaskManager(
            include_path=[str(file.parent) for file in files] or None,
            include_defaults=any(name not in TASKS for name in names),
        )


def run_tasks(
    model: Any, tokenizer: Any, names: Sequence[str], limit: int | None = None, batch_size: int = 8
) -> list[TaskScore]:
    """Ask a model the tasks.

    Args:
        model: A causal model of transformers, ours among them.
        tokenizer: Its tokenizer, as transformers has it.
        names: Of our 14, of lm-eval's own (from the hub), or paths of lm-eval YAML files.
        limit: So many documents of each: of ours a fixed random sample, of others the first.
        batch_size: Sequences of one forward pass.

    Raises:
        DataError: the tasks' files are missing or damaged.
        UsageError: lm-eval is missing, or knows no such task.
    """
    scores, manager = [], _task_manager(names)
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import get_task_dict

    with _silenced():
        language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    for name in names:
        docs = drawn(TASKS[name](), limit) if name in TASKS else None
        task = _config(name, docs) if docs is not None else _foreign(name, manager)
        with _silenced(), _explained(name, docs is None):
            tasks = get_task_dict([task], manager)
            found = evaluate(language_model, tasks, limit=limit, log_samples=False, bootstrap_iters=1)
        for label, result in found["results"].items():
            scores.append(_score(name if docs else label, result, found["n-samples"][label]["effective"], docs))
    return scores


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep lm-eval's bars and remarks off the terminal; errors still come."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(level)


@contextmanager
def _explained(name: str, foreign: bool) -> Iterator[None]:
    """Say that a task which is not ours cannot be asked: its file and its data are what the user wrote or named."""
    try:
        yield
    except Exception as error:
        if not foreign or isinstance(error, MemoryError | RuntimeError):  # those come from the model
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # of its data, the library tells the reason first
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or ["no reason was given"]
        raise UsageError(
            f"the task {name} cannot be asked: {type(cause).__name__}: {lines[0]}",
            hint="look at its file and its data: each question needs its keys, choices, and an answer among them",
        ) from error


def _foreign(name: str, manager: Any) -> str:
    """Return the lm-eval name of a task that is not ours."""
    if name.endswith((".yaml", ".yml")):
        try:
            stated = TASK_LINE.search(Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the task {name}: {getattr(error, 'strerror', error)}") from error
        if stated is None:
            raise UsageError(f"{name} names no task", hint="an lm-eval task file has a line 'task: NAME'")
        task = (stated[1] or stated[2] or stated[3]).strip()
        if task not in manager.all_tasks:
            raise UsageError(
                f"{name} is no task file that lm-eval can read", hint="is it valid YAML, with a dataset_path?"
            )
        return str(task)
    if name not in manager.all_tasks:
        raise UsageError(
            f"there is no task '{name}'{did_you_mean(name, [*TASKS, *manager.all_tasks], listed=True)}",
            hint="ours: " + ", ".join(TASKS) + "; others by lm-eval's name or --tasks FILE.yaml",
        )
    return name


def _score(name: str, result: dict[str, Any], documents: int, docs: list[Doc] | None) -> TaskScore:
    chance, majority = guessing(docs) if docs else (None, None)
    accuracy = result.get("acc,none", result.get("exact_match,none"))
    if accuracy is None:
        raise UsageError(f"task {name} has no accuracy", hint="only tasks with the metric acc or exact_match are read")
    spread = result.get("acc_stderr,none", result.get("exact_match_stderr,none"))
    if not isinstance(spread, float) or math.isnan(spread):  # one document has none
        spread = math.sqrt(accuracy * (1 - accuracy) / max(1, documents))
    return TaskScore(name, documents, accuracy, spread, result.get("acc_norm,none"), chance, majority)


def average(scores: Sequence[TaskScore]) -> dict[str, float | int | None]:
    """Return the mean accuracy over tasks with its standard error, and what guessing has on the same."""
    n = len(scores)
    chances = [s.chance for s in scores if s.chance is not None]
    majorities = [s.majority for s in scores if s.majority is not None]
    return {
        "tasks": n,
        "accuracy": sum(s.accuracy for s in scores) / n,
        "stderr": math.sqrt(sum(s.stderr**2 for s in scores)) / n,
        "chance": sum(chances) / n if len(chances) == n else None,
        "majority": sum(majorities) / n if len(majorities) == n else None,
    }
