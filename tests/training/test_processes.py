"""Two processes train one model: the same steps as one process, and only the first of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from merino_edge.architecture import Architecture
from merino_edge.checkpoint import read_checkpoint
from merino_edge.files import read_json
from merino_edge.training.train import TrainRequest, train

CHILD = """
import json, os, sys
from pathlib import Path
from merino_edge.architecture import Architecture
from merino_edge.training import save, train as training
options = json.loads(sys.argv[1])
teacher = options.pop("teacher")
rank, written = os.environ["RANK"], []
original = save._replacing
def noted(folder):
    written.append(str(folder))
    return original(folder)
save._replacing = noted
request = training.TrainRequest(Architecture.from_json(options.pop("architecture")), Path(options.pop("output")),
    data=tuple(options.pop("data")), token_folder=Path(options.pop("token_folder")),
    teacher=None if teacher is None else Path(teacher), **options)
heard = []
result = training.train(request, lambda facts: heard.append(facts["step"]))
Path(sys.argv[2] + rank).write_text(json.dumps(
    {"written": len(written), "heard": len(heard), "loss": result.validation_loss, "steps": result.steps}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
def test_two_processes_train_as_one_and_one_writes(
    taught: bool, text_file: Path, token_folder: Path, architecture: Architecture, tmp_path: Path
) -> None:
    settings = {"context_length": 32, "tokens_per_batch": 256, "steps": 12, "threads": 1, "learning_rate": 1e-2}
    plain = TrainRequest(
        architecture, tmp_path / "alone", data=(str(text_file),), token_folder=token_folder, **settings
    )  # type: ignore[arg-type]
    teacher = train(replace(plain, output=tmp_path / "teacher", seed=1)).checkpoint if taught else None
    alone = train(replace(plain, teacher=teacher))
    options = {
        **settings, "save_seconds": 0.0, "architecture": architecture.to_json(), "data": [str(text_file)],
        "token_folder": str(token_folder), "output": str(tmp_path / "together" / "checkpoint"),
        "teacher": None if teacher is None else str(teacher),
    }  # fmt: skip
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    launch += [str(child), json.dumps(options), str(tmp_path / "rank")]
    done = subprocess.run(
        launch, capture_output=True, text=True, timeout=110, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1))
    assert (first["written"], second["written"]) == (1, 0)
    assert first["heard"] > 0 == second["heard"]
    assert first["loss"] == second["loss"] == pytest.approx(alone.validation_loss, abs=2e-3)
    assert [p.name for p in (tmp_path / "together").iterdir()] == ["checkpoint"]
    together = read_checkpoint(tmp_path / "together" / "checkpoint")
    assert together.trained_tokens == alone.tokens == 12 * 256
    assert read_json(tmp_path / "together" / "checkpoint" / "training.json")["processes"] == 2
