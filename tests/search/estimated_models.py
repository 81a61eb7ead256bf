"""The models that a Raspberry Pi 4 is estimated by: for searches held against a look at every member."""

from __future__ import annotations

from typing import Any

from merino_edge.device.board import load_board
from merino_edge.search.latency import estimate_latency, estimate_memory

RECIPE = "dynamic_wi8_afp32"
ESTIMATE = load_board("pi4").estimate
MODELS: dict[str, Any] = {
    "latency": {"tg": estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=1 << 20)},
    "memory": estimate_memory(ESTIMATE, recipe=RECIPE, context_length=1024),
}
NAMES = ["latency_ms", "memory_bytes", "parameters", "flops", "file_bytes"]
