"""The page: one HTML file that fetches nothing, reads in light, dark, on a phone, printed, and without a script.

Charts are SVG written here in Python rather than by plotly.js: that library is 3 to 4 MB inline, needs its script to
show anything, and its charts cannot be walked through by keyboard. Drawn here, a whole page takes some 100 to 300 kB,
every chart is there without scripts and on paper, the same drawing is the image for a paper, and 70 lines of plain
script add what a pointer and the arrow keys ask for. Each chart is drawn twice, for a desk and for a phone, so that its
type keeps its size; the page's style shows one of them.

A run may be called anything: all text goes through `drawing.element`, which escapes it, the data for machines is JSON
without `<`, `>` and `&`, and a content security policy names the two digests of style and script that may act.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources

from merino_edge.report.bars import breakdown_chart, promise_chart
from merino_edge.report.blocks import architecture_chart
from merino_edge.report.contents import BROKEN, ESTIMATED, KEPT, PREDICTED, Contents, Facts, Missing
from merino_edge.report.curves import quality_chart, training_chart
from merino_edge.report.drawing import NARROW, WIDE, Chart, element, framed
from merino_edge.report.pareto import pareto_chart
from merino_edge.report.theme import DARK, LIGHT, chart_rules, variables

SIGNS = {KEPT: "✓", BROKEN: "✗", PREDICTED: "≈", ESTIMATED: "≈"}
HALF = 560  # width in px of a chart that shares its row


def charts_of(contents: Contents) -> list[Chart]:
    """Return every chart that the contents have data for, as images for a paper."""
    found = [promise_chart(contents.promises)] if contents.promises else []
    found.append(architecture_chart(contents.shape))
    if not isinstance(contents.landscape, Missing):
        found += [pareto_chart(contents.landscape, axis) for axis in contents.landscape.axes]
    if not isinstance(contents.latency, Missing):
        found += [breakdown_chart(breakdown) for breakdown in contents.latency]
    if not isinstance(contents.memory, Missing):
        found.append(breakdown_chart(contents.memory))
    if not isinstance(contents.training, Missing):
        found.append(training_chart(contents.training))
    if not isinstance(contents.quality, Missing):
        found.append(quality_chart(contents.quality))
    return found


def render(contents: Contents) -> str:
    """Return the page."""
    sections = [
        _section("limits", "Does it keep its limits?", _limits(contents)),
        _section("scores", "What was searched", _searched(contents)),
        _section(
            "found",
            "The architecture" if isinstance(contents.searched, Missing) else "What was found",
            _found(contents),
        ),
        _pair(
            _section("latency", "Where the time goes", _latency(contents)),
            _section("memory", "Where the memory goes", _memory(contents)),
        ),
        _pair(
            _section("training", "Training", _training(contents)),
            _section("quality", "Quality against size", _quality(contents)),
        ),
        _section("conditions", "How it was measured", _facts(contents.conditions)),
        _section("commands", "The commands", _commands(contents)),
    ]
    body = [
        element("header", *_head(contents)),
        element("main", *sections),
        element("footer", text="Written by merino-edge report. The data of this page is in it, as JSON, for machines."),
        element("div", id="tip", role="status", aria_live="polite", hidden=""),
    ]
    return _document(contents, "\n".join(body))


def _document(contents: Contents, body: str) -> str:
    style, script = _style(), _resource("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(contents.to_json(), allow_nan=False)
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    head = (
        '<meta charset="utf-8">'
        + element("meta", http_equiv="Content-Security-Policy", content=policy).removesuffix("</meta>")
        + '<meta name="viewport" content="width=device-width, initial-scale=1">'
        + '<meta name="color-scheme" content="light dark">'
        + '<link rel="icon" href="data:,">'
        + element("title", text=f"{contents.run}: {contents.verdict.headline}")
        + f"<style>{style}</style>"
    )
    end = f'<script type="application/json" id="data">{data}</script><script>{script}</script>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}\n{end}</body></html>\n'


def _style() -> str:
    """Return the style sheet: colours of both themes, charts, page; printed in light."""
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    return f":root{{{variables(LIGHT)}}}{dark}\n{chart_rules(lambda name: f'var(--{name})')}\n{_resource('page.css')}"


def _resource(name: str) -> str:
    return resources.files("merino_edge.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _head(contents: Contents) -> list[str]:
    verdict = contents.verdict
    told = [element("strong", text=verdict.headline), element("p", text=verdict.sentence)]
    if verdict.command:
        told.append(element("p", element("span", text="next: "), element("code", text=verdict.command)))
    return [
        element("h1", text=contents.run),
        element("p", text=f"on {contents.device}, {contents.stage}; begun {contents.created}", class_="lead"),
        element(
            "div",
            element("span", text=SIGNS.get(verdict.state, "–"), class_="sign", aria_hidden="true"),
            element("div", *told),
            class_=f"verdict {verdict.state}",
            role="group",
            aria_label="verdict",
        ),
    ]


def _section(key: str, title: str, content: Sequence[str]) -> str:
    return element(
        "section", element("h2", text=title, id=f"{key}-title"), *content, id=key, aria_labelledby=f"{key}-title"
    )


def _pair(*sections: str) -> str:
    return element("div", *sections, class_="pair even")


def _beside(*content: str) -> str:
    """Return a chart and what belongs to it, beside each other where there is room."""
    return element("div", *content, class_="beside")


def _missing(missing: Missing) -> list[str]:
    return [
        element(
            "p",
            element("span", text=f"{missing.reason}; next: "),
            element("code", text=missing.command),
            class_="missing",
        )
    ]


def _figure(chart: Chart, width: float = WIDE, title: bool = False) -> str:
    head = [element("h3", text=chart.title)] if title else []
    return element("figure", *head, framed(chart, width, "wide"), framed(chart, NARROW, "narrow"), _table(chart))


def _table(chart: Chart) -> str:
    head = element("tr", *(element("th", text=c, scope="col") for c in chart.table.columns))
    rows = [element("tr", *(element("td", text=cell) for cell in row)) for row in chart.table.rows]
    table = element("table", element("thead", head), element("tbody", *rows), aria_label=f"{chart.title}, as a table")
    scroll = element("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"table: {chart.title}")
    return element("details", element("summary", text="as a table"), scroll)


def _facts(facts: Facts | Missing) -> list[str]:
    if isinstance(facts, Missing):
        return _missing(facts)
    return [element("dl", *(element("dt", text=name) + element("dd", text=value) for name, value in facts))]


def _limits(contents: Contents) -> list[str]:
    if not contents.promises:
        return [element("p", text="No limit was asked.", class_="missing")]
    means = [element("p", text=contents.means, class_="note")] if contents.means else []
    return [_beside(*means, _figure(promise_chart(contents.promises)))]


def _searched(contents: Contents) -> list[str]:
    found = _facts(contents.searched)
    if isinstance(contents.landscape, Missing):
        return found if isinstance(contents.searched, Missing) else found + _missing(contents.landscape)
    axes = contents.landscape.axes
    charts = [pareto_chart(contents.landscape, axis) for axis in axes]
    panels = [_figure(chart, title=True) for chart in charts]
    if contents.landscape.left_out:
        words = f"{contents.landscape.left_out:,} more architectures of the front are in pareto.csv and not drawn."
        panels = [panel + element("p", text=words, class_="note") for panel in panels]
    figures = [_switch([axis.label for axis in axes], panels)]
    return [_beside(*found, *figures)]


def _switch(names: Sequence[str], panels: Sequence[str]) -> str:
    """Return panels of which one is shown, chosen by radio buttons that need no script."""
    picks = []
    for i, name in enumerate(names):
        checked = ' checked="checked"' if i == 0 else ""
        picks.append(f'<input class="pick" type="radio" name="axis" id="axis-{i}"{checked}>')
        picks.append(element("label", text=name, for_=f"axis-{i}"))
    shown = [element("div", panel, class_=f"panel panel-{i}") for i, panel in enumerate(panels)]
    lead = element("span", text="against", class_="lead", aria_hidden="true")
    return element(
        "div", lead, *picks, *shown, class_="tabs", role="group", aria_label="cost that scores are drawn against"
    )


def _found(contents: Contents) -> list[str]:
    return [_beside(*_facts(contents.found), _figure(architecture_chart(contents.shape)))]


def _latency(contents: Contents) -> list[str]:
    if isinstance(contents.latency, Missing):
        return _missing(contents.latency)
    figures = [_figure(breakdown_chart(breakdown), HALF, title=True) for breakdown in contents.latency]
    return [*figures, element("p", text=contents.latency[0].note, class_="note")]


def _memory(contents: Contents) -> list[str]:
    if isinstance(contents.memory, Missing):
        return _missing(contents.memory)
    figure = _figure(breakdown_chart(contents.memory), HALF, title=True)
    return [figure, element("p", text=contents.memory.note, class_="note")]


def _training(contents: Contents) -> list[str]:
    if isinstance(contents.training, Missing):
        return _missing(contents.training)
    return [_figure(training_chart(contents.training), HALF), *_facts(contents.training.facts)]


def _quality(contents: Contents) -> list[str]:
    quality = contents.quality
    if isinstance(quality, Missing):
        return _missing(quality)
    words = f"Perplexity of the exported files on {quality.tokens:,} tokens ({quality.text})."
    return [element("p", text=words, class_="note"), _figure(quality_chart(quality), HALF)]


def _commands(contents: Contents) -> list[str]:
    lead = element(
        "p", text="These made this run; a device and a text of your own give figures of your own.", class_="note"
    )
    return [lead, element("pre", text="\n".join(contents.commands), tabindex=0, aria_label="commands")]
