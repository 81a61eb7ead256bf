"""How long the parts of a model take on its device, told by models that differ in one part alone.

A device times whole models. A model whose feed-forward networks are half as wide, or whose vocabulary is half as
large, differs from the run's own by half of that part: twice the difference is what the part takes. The rest is
attention, launching layers, and what is constant. All are measured in turn, in fresh processes, and the median of
the passes of each counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from merino_edge.architecture import Architecture, Block
from merino_edge.device.registry import device_folder
from merino_edge.errors import InvalidFileError, MeasurementError
from merino_edge.files import write_lines
from merino_edge.flows.devices import Ask, find_entry, opened
from merino_edge.flows.measuring import MEASUREMENTS, Known, measure_architecture, what_changed
from merino_edge.flows.report_run import RunFacts
from merino_edge.flows.verify import VERIFY_SECONDS
from merino_edge.measurement import Measurement
from merino_edge.progress import SILENT, Progress

PASSES = 3  # of each model: one that is disturbed is outvoted


def variants(architecture: Architecture) -> dict[str, tuple[Architecture, float]]:
    """Return by part the model that lacks some of it, and what the difference is to be multiplied by."""
    found = {}
    half = architecture.vocab_size // 2
    if half >= 2:
        factor = architecture.vocab_size / (architecture.vocab_size - half)
        found["head"] = replace(architecture, vocab_size=half), factor
    try:
        blocks = tuple(Block(b.width, b.ffn_ratio / 2, b.depth) for b in architecture.blocks)
    except InvalidFileError:  # a network one unit wide has no half
        return found
    if all(2 * small.ffn_width == b.ffn_width for small, b in zip(blocks, architecture.blocks, strict=True)):
        found["ffn"] = replace(architecture, blocks=blocks), 2.0
    return found


def measure_parts(facts: RunFacts, ask: Ask | None = None, progress: Progress = SILENT) -> None:
    """Measure the run's model and its variants on the run's device; the records go into the device's log and the run.

    Raises:
        MeasurementError: the device is not what the run was measured on, or nothing valid came of it.
    """
    models = [facts.architecture, *(architecture for architecture, _ in variants(facts.architecture).values())]
    records: list[Measurement] = []
    log = device_folder(facts.device) / MEASUREMENTS
    with opened(find_entry(facts.device), ask) as device:
        found = device.facts()
        changed = what_changed(facts.key, found)
        if changed:
            raise MeasurementError(
                f"{facts.device} is not what this run was measured on: {changed}",
                hint=f"profile it again: merino-edge profile {facts.device}",
            )
        turns = [model for _ in range(PASSES) for model in models]
        with progress.task(f"measuring parts on {facts.device}", len(turns)) as task:
            for number, model in enumerate(turns):
                records += measure_architecture(device, found, model, facts.conditions, VERIFY_SECONDS, log)
                task.update(number + 1)
    write_lines(facts.run.measurements_file, [r.to_json() for r in (*facts.records, *records)])
    refused = [r for r in records if not r.valid]
    if len(refused) == len(records):
        raise MeasurementError(
            f"no measurement on {facts.device} is valid: {refused[-1].invalid_reason}",
            hint="stop what else runs on the device, let it cool, and measure again",
        )


def parts_tried(facts: RunFacts) -> bool:
    """Say whether the variants of the run's model were all measured, validly or not."""
    digests = {record.key.architecture_digest for record in facts.records}
    return all(architecture.digest in digests for architecture, _ in variants(facts.architecture).values())


def shares_of_parts(known: Mapping[str, Known], architecture: Architecture, test: str) -> dict[str, float] | None:
    """Return the share of each part in a measured latency, `other` for all that is left.

    Returns:
        None where the variants were not measured, or differ by less than the noise: no share can be negative.
    """
    mine = known.get(architecture.digest)
    if mine is None or test not in mine.ms:
        return None
    shares: dict[str, float] = {}
    for part, (variant, factor) in variants(architecture).items():
        other = known.get(variant.digest)
        if other is None or test not in other.ms:
            return None
        shares[part] = factor * (mine.ms[test] - other.ms[test]) / mine.ms[test]
    rest = 1.0 - sum(shares.values())
    if not shares or rest < 0 or min(shares.values()) < 0:
        return None
    return {**{part: shares[part] for part in ("ffn", "head") if part in shares}, "other": rest}
