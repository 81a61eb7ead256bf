"""Columns of the study's table that a device measures: the latency of each architecture's int8 file.

Measured as a profile measures, in passes far apart in time; each pass is kept as it ends, so that a run that was cut
short goes on where it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merino_edge.architecture import Architecture
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.devices import find_entry, opened
from merino_edge.flows.measuring import gather, measure_in_passes, shared_key
from merino_edge.measurement import read_measurements
from merino_edge.progress import SILENT

COLUMNS = {"tg": "measured_tg_ms", "pp128": "measured_pp128_ms"}
SECONDS_A_MODEL = 5.0


def fill_latency(rows: list[dict[str, Any]], device_name: str, log: Path) -> dict[str, Any]:
    """Fill the columns in place; return how it was measured.

    Args:
        rows: Of the table.
        device_name: As the command line has it.
        log: Append-only measurements of this study on this device.
    """
    architectures = list(dict.fromkeys(Architecture.from_json(json.loads(row["architecture"])) for row in rows))
    conditions = Conditions(vocab_size=architectures[0].vocab_size)
    log.parent.mkdir(parents=True, exist_ok=True)
    earlier = read_measurements(log) if log.exists() else []
    seconds = SECONDS_A_MODEL * len(architectures)
    with opened(find_entry(device_name)) as device, SILENT.task("", 1.0) as task:
        records = measure_in_passes(device, device.facts(), architectures, conditions, seconds, log, earlier, task)
    key = shared_key(records[-1])
    known = gather(records, key, conditions)
    for row in rows:
        found = known.get(Architecture.from_json(json.loads(row["architecture"])).digest)
        for test, column in COLUMNS.items():
            row[column] = round(found.ms[test], 5) if found and test in found.ms else float("nan")
    return {
        "key": key,
        "depth": conditions.depth,
        "architectures": len(architectures),
        "measured": len(known),
        "passes": sum(len(k.passes_ms["tg"]) for k in known.values()),
    }
