"""What MkDocs does here besides turning Markdown into pages; `mkdocs.yml` names this file as its hook.

* The pages in their order; a page that is not in the list yet comes under "More".
* Formulas, written as GitHub shows them (a fence `math`, or a dollar and a backtick around), become MathML, which every
  browser draws by itself.
* Links out of docs/ into the tree lead nowhere on the site: there they are their own words.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = {
    "Start": ["first-run.md", "tutorial-pi.md", "tutorial-jetson.md"],
    "Using it": ["settings.md", "training.md", "on-the-board.md", "from-your-code.md", "api.md", "troubleshooting.md"],
    "How it works": ["how-search-works.md", "how-exports-work.md", "how-devices-work.md", "peers.md"],
    "Reference": ["commands.md", "extending.md", "licences.md"],
}
FENCE = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`]+)`\$")
LINK_OUT = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
LINK_TO_FILE = re.compile(r"\[([^\]]+)\]\(examples/[^)]*\)")
_formulas: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Put the pages that are there in their order."""
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    nav: list[Any] = [{part: [page for page in pages if page in there]} for part, pages in PAGES.items()]
    rest = sorted(there - {"index.md"} - {page for pages in PAGES.values() for page in pages})
    nav[0]["Start"].insert(0, {"What is where": "index.md"})
    config["nav"] = nav + ([{"More": rest}] if rest else [])
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep formulas away from Markdown, and cut links that lead out of the site."""
    markdown = LINK_TO_FILE.sub(r"`\1`", LINK_OUT.sub(r"\1", markdown))
    markdown = FENCE.sub(lambda m: _kept(convert(m[1].strip(), display="block"), block=True), markdown)
    return INLINE.sub(lambda m: _kept(convert(m[1])), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Put the formulas back."""
    for key, formula in _formulas.items():
        html = html.replace(f"<p>{key}</p>", formula).replace(key, formula)
    return html


def _kept(formula: str, block: bool = False) -> str:
    key = f"formula-{len(_formulas)}-kept"
    _formulas[key] = f'<div class="formula">{formula}</div>' if block else formula
    return key
