"""All that a run's folder says, read once and checked: what `report` draws from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.bundle import Manifest, read_bundle
from merino_edge.errors import InvalidFileError, UsageError, next_step
from merino_edge.files import parse_json, read_json, read_text
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, Conditions
from merino_edge.flows.measuring import Known, gather, shared_key
from merino_edge.flows.report_reading import Record
from merino_edge.measurement import Measurement, read_measurements
from merino_edge.run import Run
from merino_edge.search.latency import LatencyModel
from merino_edge.search.memory import MemoryModel
from merino_edge.search.problem import LIMITS
from merino_edge.search.scores import ScoreOptions, is_sum, score_architecture
from merino_edge.units import Limit

SEARCH_AGAIN = "search again with: merino-edge search"
MEASURE_AGAIN = "measure again with: merino-edge bench"
TRAIN_AGAIN = "copy the checkpoint again, or train again"


@dataclass(frozen=True)
class RunFacts:
    """A run as its files tell it.

    Attributes:
        run: The folder.
        device: That it was made for.
        created_at: Seconds since 1970.
        architecture: What was found or given.
        searched: `search.json`, None where nothing was searched.
        conditions: What the limits mean.
        limits: By name.
        records: All measurements the run keeps.
        key: What the search's records have in common; that of the newest record of this model where none is kept.
        known: What valid records under that key say, by architecture digest.
        manifests: Of the complete bundles.
        training: `training.json` of the checkpoint.
        log: Where a training is unfinished, the log of its last save.
    """

    run: Run
    device: str
    created_at: float
    architecture: Architecture
    searched: Record | None
    conditions: Conditions
    limits: Mapping[str, Limit]
    records: tuple[Measurement, ...]
    key: Mapping[str, Any]
    known: Mapping[str, Known]
    manifests: tuple[Manifest, ...]
    training: Record | None
    log: Record | None

    @property
    def mine(self) -> Known | None:
        """What is known of this run's architecture."""
        return self.known.get(self.architecture.digest)

    @cached_property
    def latency_models(self) -> dict[str, LatencyModel]:
        """The models of the search by test; none where it kept none."""
        predictor = self.searched.maybe("predictor") if self.searched else None
        if predictor is None:
            return {}
        models = predictor.inside("latency")
        with next_step(SEARCH_AGAIN):
            return {t: LatencyModel.from_json(value, f"{models.where}, {t}") for t, value in models.value.items()}

    @cached_property
    def memory_model(self) -> MemoryModel | None:
        """The model of memory, None where the search kept none."""
        predictor = self.searched.maybe("predictor") if self.searched else None
        if predictor is None:
            return None
        with next_step(SEARCH_AGAIN):
            return MemoryModel.from_json(predictor.value.get("memory"), f"{predictor.where}, memory")

    @cached_property
    def score_options(self) -> ScoreOptions | None:
        """What was maximised, None where nothing was searched."""
        if self.searched is None:
            return None
        options = self.searched.inside("score_options")
        try:
            return ScoreOptions(**options.value)
        except (TypeError, ValueError, UsageError) as error:
            raise InvalidFileError(f"{options.where}: {error}", hint=SEARCH_AGAIN) from error

    def score(self, architecture: Architecture) -> float | None:
        """Return the score of another architecture, None where only a network could tell."""
        options = self.score_options
        try:
            return score_architecture(architecture, options) if options and is_sum(options) else None
        except UsageError:  # a score of a package that is not installed here
            return None

    def mine_in(self, valid: bool) -> list[Measurement]:
        """Return the records of this model, oldest first, under the search's key where any is."""
        mine = [r for r in self.records if r.key.architecture_digest == self.architecture.digest and r.valid == valid]
        return [r for r in mine if shared_key(r) == self.key] or mine

    @cached_property
    def memory_record(self) -> Measurement | None:
        """The newest record that tells the memory of this model, at the context asked for where there is one."""
        means = self.conditions
        found = [
            record
            for record in self.mine_in(valid=True)
            if self.searched is None or (record.key.format, record.key.recipe) == (means.format, means.recipe)
        ]
        asked = [record for record in found if record.context_length == means.context_length]
        return next(reversed((asked if self.searched else []) or found), None)

    @property
    def other_context(self) -> int | None:
        """The context that memory was measured at, where it is not the one that was asked for."""
        record = self.memory_record
        if self.searched is None or record is None or record.context_length == self.conditions.context_length:
            return None
        return record.context_length


def train_command(facts: RunFacts) -> str:
    """Return what trains a run with the context that its search asked for."""
    return shlex.join(["merino-edge", "train", facts.run.name, "--context", str(facts.conditions.context_length)])


def read_run(run: Run) -> RunFacts:
    """Read a run at any stage.

    Raises:
        InvalidFileError: a file in it is damaged, or two do not belong together.
    """
    info = Record(run.info(), f"run {run.folder / 'run.json'}", SEARCH_AGAIN)
    if not run.architecture_file.exists():
        raise InvalidFileError(f"run {run.folder} has no architecture yet", hint=SEARCH_AGAIN)
    architecture = run.architecture()
    found = run.search()
    searched = Record(found, f"search {run.search_file}", SEARCH_AGAIN) if found is not None else None
    if searched and _architecture(searched, "architecture") != architecture:
        raise InvalidFileError(
            f"{searched.where}: it found another architecture than {run.architecture_file.name} holds",
            hint=SEARCH_AGAIN,
        )
    conditions = _conditions(searched, architecture)
    with next_step(MEASURE_AGAIN):
        records = tuple(read_measurements(run.measurements_file))
    key = _key(searched, records, architecture, conditions)
    with next_step(MEASURE_AGAIN):
        known = gather(records, key, conditions) if key else {}
    training, log = _training(run.checkpoint)
    return RunFacts(
        run=run,
        device=info.text("device"),
        created_at=info.optional("created_at") or 0.0,
        architecture=architecture,
        searched=searched,
        conditions=conditions,
        limits=_limits(searched),
        records=records,
        key=key,
        known=known,
        manifests=tuple(read_bundle(folder, verify=False).manifest for folder in run.bundle_folders()),
        training=training,
        log=log,
    )


def _architecture(record: Record, key: str) -> Architecture:
    with next_step(record.hint):
        return Architecture.from_json(record.inside(key).value, record.where)


def _conditions(searched: Record | None, architecture: Architecture) -> Conditions:
    if searched is None:
        return DEFAULT_CONDITIONS.with_(vocab_size=architecture.vocab_size)
    kept = searched.inside("conditions")
    with next_step(SEARCH_AGAIN):
        return Conditions.from_json(kept.value, kept.where)


def _limits(searched: Record | None) -> dict[str, Limit]:
    if searched is None:
        return {}
    limits = searched.inside("limits")
    unknown = [name for name in limits.value if name not in LIMITS]
    if unknown:
        raise InvalidFileError(f"{limits.where}: unknown limit '{unknown[0]}'", hint=SEARCH_AGAIN)
    each = {name: limits.inside(name) for name in limits.value}
    return {name: Limit(limit.number("upper"), limit.optional("lower")) for name, limit in each.items()}


def _key(
    searched: Record | None, records: tuple[Measurement, ...], architecture: Architecture, conditions: Conditions
) -> dict[str, Any]:
    """Return what records must share to speak of the promise: the search's key, else that of the newest of them."""
    predictor = searched.maybe("predictor") if searched else None
    if predictor is not None and predictor.inside("key").value:
        return dict(predictor.inside("key").value)
    wanted = conditions.format, conditions.recipe
    for record in reversed(records):
        same = (
            record.key.architecture_digest == architecture.digest and (record.key.format, record.key.recipe) == wanted
        )
        if record.valid and same and conditions.threads in (None, record.key.threads):
            return shared_key(record)
    return {}


def _training(checkpoint: Path) -> tuple[Record | None, Record | None]:
    """Return the record of a finished training, and the log of one that stopped on its way."""
    file = checkpoint / "training.json"
    if file.is_file():
        return Record(read_json(file, "training"), f"training {file}", TRAIN_AGAIN), None
    saves = (checkpoint.parent / f".{checkpoint.name}.training").glob("checkpoint-*/trainer_state.json")
    numbered = sorted(saves, key=lambda path: int(path.parent.name.rpartition("-")[2]))
    for path in reversed(numbered):
        if (path.parent / "complete.json").is_file():
            return None, Record(parse_json(read_text(path, "log"), f"log {path}"), f"log {path}", TRAIN_AGAIN)
    return None, None
