"""The site builds with every warning an error, and its pages ask nobody for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make setup")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site_and_in_its_menu(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    menu = set(re.findall(r'href="([\w-]+)\.html"', (site / "troubleshooting.html").read_text(encoding="utf-8")))
    assert {path.stem for path in site.glob("*.html")} - {"404"} == pages
    assert pages - {"troubleshooting"} <= menu


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="(https?:[^"]+)"', text)
        fetched += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="(https?:[^"]+)"', text)
        assert fetched == [], page.name


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    text = (site / "how-search-works.html").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "how-search-works.md").read_text(encoding="utf-8")
    assert text.count('<div class="formula"><math') == source.count("```math")
    assert "-kept" not in text
    assert "$`" not in text
