"""Names that a shell may complete: devices, runs, presets, recipes, spaces, scores."""

from __future__ import annotations

from importlib.metadata import entry_points

from merino_edge.device.board import board_names
from merino_edge.device.registry import Registry
from merino_edge.flows.export import EXPORTERS, FAMILIES, FORMS_BY_SPEED
from merino_edge.flows.subject import preset_names
from merino_edge.run import list_runs
from merino_edge.search.cost import RECIPES
from merino_edge.search.scores import score_names
from merino_edge.search.space import space_names


def device_names() -> list[str]:
    """Your devices."""
    return Registry().names()


def device_and_board_names() -> list[str]:
    """Your devices, and the boards that ship: what may be estimated."""
    return list(dict.fromkeys([*device_names(), *board_names()]))


def subject_names() -> list[str]:
    """Runs, the newest first, and presets."""
    return [*(run.name for run in reversed(list_runs())), *preset_names()]


def recipe_names() -> list[str]:
    """Recipes, and families of them."""
    families = [name for family in FAMILIES.values() for name in family]
    return list(dict.fromkeys([*RECIPES, *families]))


def format_names() -> list[str]:
    """Formats that an installed exporter writes."""
    return sorted(point.name for point in entry_points(group=EXPORTERS))


def form_names() -> list[str]:
    """Forms of an ONNX graph."""
    return list(FORMS_BY_SPEED)


NAMES = {
    "board": lambda: list(board_names()),
    "device": device_names,
    "device-or-board": device_and_board_names,
    "form": form_names,
    "format": format_names,
    "recipe": recipe_names,
    "score": score_names,
    "space": space_names,
    "subject": subject_names,
}
