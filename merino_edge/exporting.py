"""What an exporter takes and gives. Exporters are found by the entry-point group `merino_edge.exporters`.

An exporter is a function `export(architecture, tensors, folder, recipe, options) -> ExportResult`,
registered under its format's name. It writes the graph and weights into `folder`, runs what it
wrote, compares that with `reference.py`, and says what it found; the flow around it adds the
tokenizer and the manifest, and moves the folder into place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.architecture import Architecture
from merino_edge.bundle import OutputCheck, Piece

Tensors = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class ExportOptions:
    """How to export, beyond format and recipe.

    Attributes:
        form: How the graph is written; `standard` gives way to what the recipe needs, and to what is fastest
            where the runtime is known.
        form_is_asked: The form was asked for by name: no other is written in its place, `standard` either.
        context_length: Tokens the cache may hold; goes into the manifest and tests, not the graph.
        parity: Run the file and compare it with the reference (only speed measurements of random
            weights may leave it out, and their manifest says so).
        seed: Of the prompts used for parity.
        quantizer: How integers and scales are chosen; `auto` is the exporter's best for the recipe
            and the text at hand.
        calibration: `(N,)` token ids of text the model was made for; None where there is none.
        runtime_version: Of the runtime on the device that the file is for, None for no device in
            particular: where no form is asked for, it decides which is written.
        tokenizer: The `tokenizer.json` that goes with the model, None for none; it is not copied.
    """

    form: str = "standard"
    form_is_asked: bool = False
    context_length: int = 1024
    parity: bool = True
    seed: int = 0
    quantizer: str = "rtn"
    calibration: npt.NDArray[np.integer] | None = None
    runtime_version: str | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """What an exporter wrote.

    Attributes:
        files: Names inside the folder, graph first.
        form: The form written.
        exporter_version: Raised with every change of the emitted graphs.
        runtime: Package that runs the file.
        runtime_min_version: Lowest version that can.
        unique_bytes: Each unique tensor once, as the recipe stores it.
        parity: `max_abs_diff`, `logits_std`, `bound` (share of the standard deviation), `prompts`; or
            `{"checked": False}`.
        check: For the device to repeat.
        notes: Anything a reader of the manifest should know.
        layout: By file name, for files that hold nothing but weights: what lies where, so that a device can
            make weights of the same shapes itself. A file that is not here can only be sent.
        quantizer: What chose the integers and scales; None where the file holds none.
    """

    files: tuple[str, ...]
    form: str
    exporter_version: int
    runtime: str
    runtime_min_version: str
    unique_bytes: int
    parity: dict[str, Any]
    check: OutputCheck
    notes: tuple[str, ...] = field(default_factory=tuple)
    layout: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    quantizer: str | None = None


Exporter = Callable[[Architecture, Tensors, Path, str, ExportOptions], ExportResult]
