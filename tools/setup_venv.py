"""Make `.venv` and install what this project needs, saying first how much will be downloaded.

    python3 tools/setup_venv.py create .venv          any Python 3.11 or newer
    .venv/bin/python tools/setup_venv.py install      asks pip what is missing, tells its size, installs it

Standard library only. Versions are those of `constraints.txt`. Where the index offers only a torch
with CUDA (gigabytes), the size is said and the user asked; where nobody can be asked, it stops.
`--torch-index URL` takes torch from there, without a question.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
TORCH_RECORD = Path(sys.prefix) / ".torch-index"  # the index torch was last taken from
EXTRAS = "train,tflite,serve,report,docs,dev"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


class SetupError(Exception):
    """Setting up cannot go on; the text says what to do."""


@dataclass(frozen=True)
class Download:
    """One distribution that pip would install.

    Attributes:
        name: Of the project.
        version: As resolved.
        url: Where pip would take it from.
        size_bytes: To be downloaded; 0 for a local file, None where the server does not say.
    """

    name: str
    version: str
    url: str
    size_bytes: int | None

    @property
    def is_cuda(self) -> bool:
        """Whether it is there for the sake of an NVIDIA GPU."""
        return re.match(r"(nvidia|cuda)-|triton$", self.name) is not None


def create(folder: Path) -> None:
    """Make a virtual environment with pip in it."""
    say(f"making {folder} with Python {sys.version.split()[0]}")
    try:
        venv.create(folder, with_pip=True, clear=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except (subprocess.CalledProcessError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise SetupError(
            f"cannot make {folder}: {error}\n  next: on Debian and Ubuntu: apt install python3-venv; then make again"
        ) from error


def install(torch_index: str) -> None:
    """Install the dependencies that are missing."""
    if not is_installed("pip"):
        raise SetupError(f"{sys.prefix} is incomplete: it has no pip\n  next: make purge; then make again")
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line)
    tools = [f"{name}=={pins[name]}" for name in ("pip", "setuptools")]
    if not all(is_installed(name, pins[name]) for name in ("pip", "setuptools")):
        say("downloading pip and setuptools: 3 MB at most")
        run_pip(["install", "--quiet", *tools])
    if torch_index and (not TORCH_RECORD.exists() or TORCH_RECORD.read_text() != torch_index):
        where = ["--index-url", torch_index, "--no-deps", "--force-reinstall"]
        fetch(resolve([f"torch=={pins['torch']}"], where), where)
        TORCH_RECORD.write_text(torch_index)
    downloads = resolve([f"{ROOT}[{EXTRAS}]"], ["--no-build-isolation", "--constraint", str(CONSTRAINTS)])
    if not torch_index:
        ask_about_cuda(downloads)
    fetch(downloads, ["--no-deps"])


def is_installed(name: str, pinned: str | None = None) -> bool:
    """Say whether this environment holds a distribution, and that very version if one is given."""
    try:
        return version(name) == (pinned or version(name))
    except PackageNotFoundError:
        return False


def resolve(requirements: Sequence[str], options: Sequence[str]) -> list[Download]:
    """Ask pip what it would install, and the servers how large that is."""
    say("asking the package index what is needed ...")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run_pip(["install", "-qq", "--dry-run", "--report", str(report), *options, *requirements])
        items = json.loads(report.read_text())["install"]
    found = [(i["metadata"]["name"], i["metadata"]["version"], i["download_info"]["url"]) for i in items]
    found = [(name.lower().replace("_", "-"), version, url) for name, version, url in found]
    found = [item for item in found if item[0] != "merino-edge"]  # this tree: `make` installs it last
    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda item: size_bytes(item[2]), found)
        return [Download(*item, size) for item, size in zip(found, sizes, strict=True)]


def size_bytes(url: str) -> int | None:
    """Return the bytes behind a URL: 0 for a local file, None where the server does not say."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        return 0
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def ask_about_cuda(downloads: Sequence[Download]) -> None:
    """Stop, or ask on a terminal, before gigabytes of CUDA are downloaded."""
    if not any(d.is_cuda for d in downloads):
        return
    command = f"make {os.environ.get('GOALS') or 'demo'} TORCH_INDEX=URL"
    say(
        f"The torch of this index comes with CUDA: {describe(downloads)}.\n"
        f"A CPU build is some 200 MB and enough for everything here: {command}, with the index of the CPU builds"
    )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SetupError(
            f"stopped before downloading CUDA, since nobody can be asked here\n  next: {command}\n"
            "        (an index named by TORCH_INDEX=URL is taken without a question)"
        )
    if input("Download the CUDA build all the same? [y/N] ").strip().lower() not in ("y", "yes"):
        raise SetupError(f"nothing was downloaded\n  next: {command}")


def describe(downloads: Sequence[Download]) -> str:
    """Return ``84 packages, 412 MB to download``."""
    known = sum(d.size_bytes or 0 for d in downloads)
    unknown = sum(d.size_bytes is None for d in downloads)
    text = f"{len(downloads)} packages, {known / 1e6:,.0f} MB to download"
    return text + (f" and {unknown} of unknown size" if unknown else "")


def fetch(downloads: Sequence[Download], options: Sequence[str]) -> None:
    """Say the size, download and install."""
    if not downloads:
        return
    say(f"{describe(downloads)} (less what pip has in its cache)")
    total = sum(d.size_bytes or 0 for d in downloads)
    pins = [f"{d.name}=={d.version}" for d in downloads]
    command = [*PIP, "install", "--progress-bar", "raw", *options, *pins]
    bar = Bar(total)
    history: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            bar.take(line.strip())
            history.append(line)
    bar.close()
    if pip.returncode:
        raise SetupError("".join(history[-15:]) + "pip failed\n  next: see above, then make again")


class Bar:
    """Draws pip's raw progress as one bar; on anything but a terminal a line now and then."""

    def __init__(self, total_bytes: int) -> None:
        """Begin at nothing.

        Args:
            total_bytes: All that may be downloaded.
        """
        self.total_bytes = max(total_bytes, 1)
        self.done_bytes = self.part_bytes = 0
        self.text, self.spoke, self.terminal = "", time.monotonic(), sys.stderr.isatty()

    def take(self, line: str) -> None:
        """Read one line of `pip install --progress-bar raw`."""
        if match := re.match(r"Progress (\d+) of (\d+)", line):
            self.part_bytes = int(match[1])
        elif match := re.match(r"(?:Downloading|Using cached|Collecting|Processing) (\S+)", line):
            self.done_bytes += self.part_bytes
            self.part_bytes = 0
            self.text = match[1].rsplit("/", 1)[-1].split("-")[0].split("==")[0]
        elif line.startswith("Installing collected"):
            self.done_bytes, self.part_bytes, self.text = self.total_bytes, 0, "unpacking, a minute or so"
            self.spoke = 0.0
        self.draw()

    def draw(self) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now - self.spoke < (0.2 if self.terminal else 15):
            return
        self.spoke = now
        done = min(self.done_bytes + self.part_bytes, self.total_bytes)
        filled = round(30 * done / self.total_bytes)
        amount = f"{done / 1e6:,.0f} / {self.total_bytes / 1e6:,.0f} MB" if self.total_bytes > 1 else "local files"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K  [{'#' * filled}{'.' * (30 - filled)}] {amount}  {self.text}")
        else:
            sys.stderr.write(f"  {amount}  {self.text}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the line."""
        if self.terminal:
            sys.stderr.write("\r\x1b[K")


def run_pip(arguments: Sequence[str]) -> None:
    """Run pip; its errors go to the terminal as they are."""
    if subprocess.run([*PIP, *arguments]).returncode:
        raise SetupError("pip failed\n  next: see above, then make again")


def say(text: str) -> None:
    """Tell the person in front of the terminal."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("create").add_argument("folder", type=Path)
    commands.add_parser("install").add_argument("--torch-index", default="")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    try:
        create(arguments.folder) if arguments.command == "create" else install(arguments.torch_index)
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; make goes on from here next time")


if __name__ == "__main__":
    main()
