"""The charts as images by themselves: whole SVG files in light colours, and PNG where the package for it is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from stages import Ring  # type: ignore[import-not-found]

from merino_edge.errors import MerinoEdgeError
from merino_edge.flows.report import ReportOptions, report

pytestmark = pytest.mark.timeout(300)
NAMES = {
    "limits", "architecture", "latency-tg", "latency-pp128", "memory", "training", "quality",
    "pareto-tg-ms", "pareto-memory-bytes", "pareto-parameters", "pareto-file-bytes",
}  # fmt: skip


def test_every_chart_is_an_svg_of_its_own(ring: Ring, tmp_path: Path) -> None:
    document = report(str(ring.stage("benched", tmp_path)), ReportOptions(svg=tmp_path / "charts"))
    assert {Path(path).stem for path in document["svg"]} == NAMES
    for path in document["svg"]:
        text = Path(path).read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text and "<script" not in text
        assert not re.search(r"url\(|href", text)
        assert float(root.get("width", "0")) > 300 and float(root.get("height", "0")) > 50


def test_what_is_drawn_lies_on_the_sheet(ring: Ring, tmp_path: Path) -> None:
    document = report(str(ring.stage("benched", tmp_path)), ReportOptions(svg=tmp_path / "charts"))
    for path in document["svg"]:
        root = ElementTree.parse(path).getroot()
        width, height = float(root.get("width", "0")), float(root.get("height", "0"))
        for mark in root.iter():
            x, y = (
                float(mark.get(name, "1")) for name in (("cx", "cy") if mark.tag.endswith("circle") else ("x", "y"))
            )
            assert 0 <= x <= width and -30 <= y <= height, (path, mark.attrib)


def test_png_images_have_pixels(ring: Ring, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="resvg_py is not installed: pip install 'merino-edge[report]'")
    document = report(str(ring.stage("searched", tmp_path)), ReportOptions(png=tmp_path / "charts"))
    assert document["png"]
    for path in document["png"]:
        head = Path(path).read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20], "big") == 3 * 760


def test_png_without_its_package_is_told_before_anything_is_written(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    folder = ring.stage("searched", tmp_path)
    with pytest.raises(MerinoEdgeError, match="resvg_py") as caught:
        report(str(folder), ReportOptions(png=tmp_path / "charts"))
    assert "merino-edge[report]" in str(caught.value.hint)
    assert not (folder / "report.html").exists()
