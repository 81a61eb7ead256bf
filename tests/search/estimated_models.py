"""The models that a Raspberry Pi 4 is estimated by: for searches held against a look at every member."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from merino_edge.device.board import load_board
from merino_edge.search.latency import estimate_latency, estimate_memory
from merino_edge.units import Limit

RECIPE = "dynamic_wi8_afp32"
ESTIMATE = load_board("pi4").estimate
MODELS: dict[str, Any] = {
    "latency": {"tg": estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=1 << 20)},
    "memory": estimate_memory(ESTIMATE, recipe=RECIPE, context_length=1024),
}
NAMES = ["latency_ms", "memory_bytes", "parameters", "flops", "file_bytes"]


def draw_limit(data: st.DataObject, values: Any, kinds: tuple[str, ...]) -> Limit:
    """Draw a limit on a column of all members: one of `at most`, `range`, `gap` (between two values), `beyond`."""
    values = np.unique(values)
    low, high = sorted(data.draw(st.integers(0, len(values) - 1)) for _ in range(2))
    kind = data.draw(st.sampled_from(kinds))
    after = values[min(low + 1, len(values) - 1)] - values[low]
    return {
        "at most": Limit(float(values[high])),
        "range": Limit(float(values[high]), float(values[low])),
        "gap": Limit(float(values[low] + 0.8 * after), float(values[low] + 0.3 * after)),
        "beyond": Limit(0.9 * float(values[0])),
    }[kind]
