"""The page in headless Chromium: light, dark, on a phone, printed; by pointer, by keyboard, and without a script.

Skipped, and said so, where there is no Chromium: it is some 500 MB with all it needs, too much for every run of CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium  # type: ignore[import-not-found]
from stages import STAGES, Ring  # type: ignore[import-not-found]

from merino_edge.flows.report import ReportOptions, report

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in $CHROMIUM")
    with Browser(program) as found:
        yield found


@pytest.fixture
def page(ring: Ring, tmp_path: Path) -> Path:
    return write(ring, "benched", tmp_path)


def write(ring: Ring, stage: str, tmp_path: Path) -> Path:
    return Path(report(str(ring.stage(stage, tmp_path)), ReportOptions())["page"])


@pytest.mark.parametrize("stage", [*STAGES, "unlimited"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_fits_its_screen_and_complains_of_nothing(
    browser: Browser, ring: Ring, stage: str, width: int, tmp_path: Path
) -> None:
    browser.errors.clear()
    browser.requests.clear()
    page = write(ring, stage, tmp_path)
    browser.open(page, width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.errors == []
    assert browser.requests == [page.resolve().as_uri()]


@pytest.mark.parametrize("width", [360, 1280])
def test_no_text_of_a_chart_is_cut_off(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    cut = """[...document.querySelectorAll('svg.chart')].filter(s => s.getBoundingClientRect().width).flatMap(s => {
      const all = s.getBoundingClientRect();
      return [...s.querySelectorAll('text')].filter(t => {
        const b = t.getBoundingClientRect();
        return b.left < all.left - 1 || b.right > all.right + 1 || b.top < all.top - 1 || b.bottom > all.bottom + 1;
      }).map(t => t.textContent);
    })"""
    assert browser.value(cut) == []


@pytest.mark.parametrize("width", [360, 1280])
def test_type_in_charts_keeps_its_size(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    scale = """Math.min(...[...document.querySelectorAll('svg.chart')].map(s => [s.getBoundingClientRect().width,
      s.viewBox.baseVal.width]).filter(([shown]) => shown).map(([shown, drawn]) => shown / drawn))"""
    assert browser.value(scale) > 0.85  # of 12 px


def test_colours_follow_the_scheme_and_paper_is_light(browser: Browser, page: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    browser.open(page)
    light = browser.value(background)
    browser.open(page, dark=True)
    dark = browser.value(background)
    browser.open(page, dark=True, media="print")
    assert light == browser.value(background) == "rgb(255, 255, 255)"
    assert dark != light


def test_the_pointer_is_told_the_architecture(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.value("document.querySelector('.panel-0 svg.wide').scrollIntoView({block: 'center'})")
    browser.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")  # scrolled, and drawn
    at = browser.value(
        "(() => { const b = document.querySelector('.panel-0 svg.wide .winner.point').getBoundingClientRect();"
        "return [b.left + b.width / 2 + 6, b.top + b.height / 2 + 5]; })()"
    )
    browser.point(*at)
    assert browser.value("document.getElementById('tip').hidden") is False
    told = browser.value("document.getElementById('tip').textContent")
    assert told.startswith("found\n") and "score" in told
    browser.point(2, 2)
    assert browser.value("document.getElementById('tip').hidden") is True


def test_the_keyboard_walks_through_a_chart(browser: Browser, page: Path) -> None:
    browser.open(page)
    focus = "document.activeElement.getAttribute('aria-label')"
    seen = []
    for _ in range(60):
        browser.press("Tab")
        seen.append(browser.value("document.activeElement.getAttribute('class') || document.activeElement.tagName"))
        if browser.value("!!document.activeElement.closest('.panel svg')"):
            break
    assert "winner" in seen[-1], seen
    first = browser.value(focus)
    assert browser.value("document.getElementById('tip').hidden") is False
    browser.press("Home")
    leftmost = browser.value(focus)
    browser.press("ArrowRight")
    second = browser.value(focus)
    browser.press("ArrowLeft")
    assert browser.value(focus) == leftmost != second
    assert first.startswith("found, ")
    browser.press("Escape")
    assert browser.value("document.getElementById('tip').hidden") is True
    browser.press("Tab")
    assert browser.value("!!document.activeElement.closest('svg')") is False  # one stop a chart


@pytest.mark.parametrize("width", [360, 1280])
def test_the_keys_go_from_left_to_right_in_a_chart_that_was_hidden(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.value("document.getElementById('axis-1').click()")
    chart = f"document.querySelector('.panel-1 svg.{'narrow' if width < 600 else 'wide'}')"
    browser.value(f"{chart}.querySelector('.winner.point').focus()")
    browser.press("Home")
    place = "(b => b.left + b.width / 2)(document.activeElement.getBoundingClientRect())"
    places = [browser.value(place)]
    for _ in range(browser.value(f"{chart}.querySelectorAll('[data-tip]').length") - 1):
        browser.press("ArrowRight")
        places.append(browser.value(place))
    assert places == sorted(places) and places[0] < places[-1]


def test_the_other_costs_are_a_key_away_and_need_no_script(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    shown = "[...document.querySelectorAll('.panel')].map(p => getComputedStyle(p).display)"
    browser.call("Emulation.setScriptExecutionDisabled", value=False)  # to ask; the page's own has not run
    assert browser.value("document.querySelector('[tabindex=\"-1\"]')") is None
    assert browser.value(shown)[:2] == ["block", "none"]
    browser.value("document.getElementById('axis-0').focus()")
    browser.press("ArrowRight")
    assert browser.value(shown)[:2] == ["none", "block"]


def test_a_name_that_is_markup_stays_text(browser: Browser, ring: Ring, tmp_path: Path) -> None:
    ring.stage("searched", tmp_path)
    folder = (tmp_path / "ring").rename(tmp_path / "<img src=x onerror=document.title='gone'>")
    page = Path(report(str(folder), ReportOptions(output=tmp_path / "page.html"))["page"])
    browser.open(page)
    assert browser.value("document.images.length") == 0
    assert browser.value("document.querySelector('h1').textContent") == folder.name


def test_the_printed_page_is_a_few_sheets(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    browser.print_pdf(tmp_path / "page.pdf")
    sheets = (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n")
    assert 1 <= sheets <= 6
