"""One run taken round the ring on a device with an analytic clock, kept at each stage it passes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from merino_edge.flows import devices
from merino_edge.flows.bench import BenchOptions, bench
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.export import ExportWish, export
from merino_edge.flows.profile import ProfileOptions, profile
from merino_edge.flows.report import ReportOptions, report
from merino_edge.flows.search import search
from merino_edge.flows.train import TrainOptions, train
from merino_edge.flows.verify import SearchOptions
from merino_edge.testing import FakeDevice, write_tiny_space
from merino_edge.units import Limit

STAGES = ("searched", "trained", "exported", "benched")
RECIPES = ("fp32", "dynamic_wi8_afp32", "weight_only_wi4_b32_afp32")
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. A bird sings on the roof.\n\n"
CONDITIONS = Conditions(vocab_size=300, context_length=256)


@dataclass(frozen=True)
class Ring:
    """Copies of one run by stage; `unverified` was searched with no look at the device."""

    folder: Path

    def stage(self, name: str, to: Path) -> Path:
        """Copy the run as it was at a stage, for a test to spoil."""
        return shutil.copytree(self.folder / name, to / "ring")


def go_round(home: Path) -> Ring:
    """Search, train for moments, export three recipes and measure."""
    kept = home / "kept"
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MERINO_EDGE_RUNS"):
            patch.setenv(variable, str(home / variable))
        device = FakeDevice("local")
        patch.setattr(devices, "open_device", lambda entry, ask=None: device)
        path = write_tiny_space(home)
        path.write_text(path.read_text().replace("vocab_size = 256", "vocab_size = 300"))
        space = str(path)
        (home / "text.txt").write_text("".join(f"Chapter {n}. {TEXT}" for n in range(400)))
        reach = profile(None, ProfileOptions(seconds=60, space=space, conditions=CONDITIONS))["reach"]
        tg, memory = (sum(row[key] for row in reach) for key in ("tg_ms", "memory_bytes"))
        limits = {"latency_ms": Limit(0.5 * tg), "memory_bytes": Limit(memory)}
        runs, plain = home / "MERINO_EDGE_RUNS", SearchOptions(conditions=CONDITIONS, space=space)
        limited = replace(plain, limits=limits)
        search(replace(limited, run="unverified", verify=False))
        shutil.copytree(runs / "unverified", kept / "unverified")
        search(replace(limited, run="ring"))
        search(replace(plain, run="unlimited"))
        shutil.copytree(runs / "unlimited", kept / "unlimited")
        shutil.copytree(runs / "ring", kept / "searched")
        train("ring", TrainOptions(data=(str(home / "text.txt"),), steps=40, context_length=64, learning_rate=1e-3))
        shutil.copytree(runs / "ring", kept / "trained")
        for recipe in RECIPES:
            export("ring", ExportWish(recipe=recipe, max_perplexity_change=1.0))
        shutil.copytree(runs / "ring", kept / "exported")
        bench("ring", BenchOptions(seconds=1.0, tokens=64))
        shutil.copytree(runs / "ring", kept / "benched")
    return Ring(kept)


class Page(HTMLParser):
    """A written page, taken apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.words.append(data)

    @property
    def shown(self) -> str:
        """All text that a reader meets."""
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict[str, Any]:
        """The JSON for machines."""
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text, re.DOTALL)
        assert found
        return dict(json.loads(found[1]))

    def having(self, **wanted: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element that has these."""
        return [a for _, a in self.tags if all(a.get(k.rstrip("_").replace("_", "-")) == v for k, v in wanted.items())]

    def tips(self, kind: str) -> list[str]:
        """Return what marks of a kind tell, in the wide drawing and the narrow one."""
        classes = ((a.get("class") or "").split() for _, a in self.tags)
        return [
            a.get("data-tip") or "" for (_, a), c in zip(self.tags, classes, strict=True) if kind in c and "point" in c
        ]


def page_of(folder: Path) -> Page:
    """Write a run's page and read it."""
    document = report(str(folder), ReportOptions())
    return Page(Path(document["page"]).read_text(encoding="utf-8"))
