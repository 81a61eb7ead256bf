"""Weights in large pages: what is there already is moved together, and nothing more becomes resident."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from merino_edge.agent import large_pages

LARGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
CHILD = """
import json, mmap, re, sys
from merino_edge.agent.large_pages import use_large_pages

def held():
    text = open("/proc/self/smaps_rollup").read()
    return {n: int(re.search(rf"^{n}:\\s+(\\d+)", text, re.M)[1]) * 1024 for n in ("Anonymous", "AnonHugePages")}

large = int(sys.argv[1])
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
full, empty, half = (mmap.mmap(-1, 8 * large, flags) for _ in range(3))
full[:] = b"x" * len(full)
for at in range(0, len(half), 8192):
    half[at] = 1
before = held()
done = use_large_pages()
print(json.dumps({"before": before, "after": held(), "done": done, "same": full[:] == b"x" * len(full)}))
"""


def test_only_what_is_wholly_in_memory_becomes_large_and_nothing_grows() -> None:
    if not LARGE.exists():
        pytest.skip("this kernel has no transparent huge pages")
    large = int(LARGE.read_text())
    ran = subprocess.run([sys.executable, "-c", CHILD, str(large)], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    if found["before"]["AnonHugePages"] > large:
        pytest.skip("this system gives large pages to everybody already")
    if not found["done"]:
        pytest.skip("this kernel does not put pages together on request: Linux 6.1 does")
    grown = found["after"]["AnonHugePages"] - found["before"]["AnonHugePages"]
    assert found["same"]
    assert 6 * large <= grown <= found["done"]
    assert found["after"]["Anonymous"] - found["before"]["Anonymous"] < large


@pytest.mark.parametrize("said", [None, "much", "0"])
def test_without_the_kernels_help_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    place = tmp_path / "hpage_pmd_size"
    if said is not None:
        place.write_text(said)
    monkeypatch.setattr(large_pages, "_LARGE", str(place))
    assert large_pages.use_large_pages() == 0
