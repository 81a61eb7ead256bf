"""`report`: a run as one page, and its charts as images: what was searched and found, and does it keep the promise."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merino_edge.errors import MerinoEdgeError, UsageError
from merino_edge.files import write_atomic
from merino_edge.flows.devices import Ask
from merino_edge.flows.part_times import measure_parts, variants
from merino_edge.flows.report_breakdowns import make_latency, make_memory, parts_command
from merino_edge.flows.report_commands import device_commands, export_command, search_command, train_command
from merino_edge.flows.report_promises import make_promises, make_verdict
from merino_edge.flows.report_run import RunFacts, read_run
from merino_edge.flows.report_sections import (
    date_text,
    make_conditions,
    make_found,
    make_landscape,
    make_quality,
    make_searched,
    make_shape,
    make_training,
    means_text,
)  # fmt: skip
from merino_edge.progress import SILENT, Progress
from merino_edge.report.contents import Contents, Missing
from merino_edge.report.drawing import Chart, standalone
from merino_edge.report.page import charts_of, render
from merino_edge.run import open_run

PNG_ZOOM = 3  # of 760 px: 2,280 px, 300 dpi on a page's width
SECTIONS = ("searched", "landscape", "latency", "memory", "training", "quality", "conditions")


@dataclass(frozen=True)
class ReportOptions:
    """What the command line says.

    Attributes:
        output: The page; None for `report.html` in the run.
        svg: Folder that takes each chart as SVG; None writes none.
        png: Folder that takes each chart as PNG; None writes none.
        measure_parts: Measure first, on the run's device, how long the parts of the model take.
    """

    output: Path | None = None
    svg: Path | None = None
    png: Path | None = None
    measure_parts: bool = False


def report(
    name: str | None, options: ReportOptions, ask: Ask | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write the page of a run.

    Returns:
        The document of `merino-edge report --json`.

    Raises:
        UsageError: there is no such run.
        InvalidFileError: a file of it is damaged; nothing is written.
    """
    if name is not None and Path(name).is_dir() and not (Path(name) / "run.json").is_file():
        raise UsageError(f"{name} is a folder, but no run: it has no run.json", hint="make one: merino-edge search")
    to_png = _png_writer() if options.png is not None else None
    run = open_run(name)
    if options.measure_parts:
        measure_parts(read_run(run), ask, progress)
    contents = gather(read_run(run))
    path = options.output or run.folder / "report.html"
    page = render(contents)
    images = [] if options.svg is None and options.png is None else charts_of(contents)
    write_atomic(path, page)
    return {
        "run": run.name,
        "page": str(path),
        "bytes": len(page.encode()),
        "stage": contents.stage,
        "verdict": {"state": contents.verdict.state, "headline": contents.verdict.headline},
        "promises": contents.to_json()["promises"],
        "missing": {
            key: getattr(contents, key).command for key in SECTIONS if isinstance(getattr(contents, key), Missing)
        },
        "svg": _write_images(images, options.svg, "svg", lambda svg: svg.encode()),
        "png": _write_images(images, options.png, "png", to_png) if to_png else [],
    }


def gather(facts: RunFacts) -> Contents:
    """Turn what a run's files say into what its page says."""
    promises = make_promises(facts)
    return Contents(
        run=facts.run.folder.resolve().name,
        device=facts.device,
        created=date_text(facts.created_at),
        stage=_stage(facts),
        verdict=make_verdict(facts, promises),
        promises=promises,
        means=means_text(facts),
        shape=make_shape(facts),
        found=make_found(facts),
        searched=make_searched(facts),
        landscape=make_landscape(facts),
        latency=make_latency(facts),
        memory=make_memory(facts),
        training=make_training(facts),
        quality=make_quality(facts),
        conditions=make_conditions(facts),
        commands=_commands(facts),
    )


def _stage(facts: RunFacts) -> str:
    """Say how far round the ring the run has come."""
    files = len(facts.manifests)
    done = {
        "searched": facts.searched is not None,
        "trained": facts.training is not None,
        f"exported ({files} file{'s' if files > 1 else ''})": files > 0,
        "measured": bool(facts.mine_in(valid=True)),
    }
    return ", ".join(word for word, is_so in done.items() if is_so) or "an architecture, nothing done with it yet"


def _commands(facts: RunFacts) -> tuple[str, ...]:
    name, commands = facts.run.name, []
    if facts.searched is not None:
        commands.append(search_command(name, facts.device, facts.searched, facts.limits, facts.conditions))
    if facts.training is not None:
        commands.append(train_command(name, facts.training))
    commands += [export_command(name, manifest) for manifest in facts.manifests]
    commands += device_commands(name, facts.device, facts.manifests)
    measured = all(architecture.digest in facts.known for architecture, _ in variants(facts.architecture).values())
    return (*commands, parts_command(facts) if measured else shlex.join(["merino-edge", "report", name]))


def _png_writer() -> Callable[[str], bytes]:
    """Return what turns an SVG into a PNG."""
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as error:
        raise MerinoEdgeError(
            "images as PNG need the package 'resvg_py', which is not installed",
            hint="pip install 'merino-edge[report]', or take --svg",
        ) from error
    return lambda svg: bytes(svg_to_bytes(svg_string=svg, zoom=PNG_ZOOM))


def _write_images(charts: list[Chart], folder: Path | None, kind: str, write: Callable[[str], bytes]) -> list[str]:
    if folder is None:
        return []
    paths = [folder / f"{chart.key}.{kind}" for chart in charts]
    for chart, path in zip(charts, paths, strict=True):
        write_atomic(path, write(standalone(chart)))
    return [str(path) for path in paths]
