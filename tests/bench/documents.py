"""Recorded documents, compared number by number."""

from __future__ import annotations

from typing import Any


def leaves(tree: Any, path: str = "") -> dict[str, float]:
    """Return the numbers of a document by their paths."""
    if isinstance(tree, dict | list):
        parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {name: leaf for key, part in parts for name, leaf in leaves(part, f"{path}/{key}").items()}
    return {path: tree}
