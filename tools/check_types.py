"""Type-check the installed package, and prove that mypy saw every file of this tree.

mypy runs on what `pip install` put into `.venv`, as a user's mypy would. An editable install, or a
package forgotten in `pyproject.toml`, would hide files from it without a word; so the sources that
mypy's log names are compared with the files of the tree.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "merino_edge": "merino_edge",
    "merino_edge.exporters": "exporters",
    "merino_edge.device_profiles": "device_profiles",
}


def modules_of_the_tree() -> dict[str, Path]:
    """Return the name each Python file of the tree must have when installed."""
    modules = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder)
            if package == "merino_edge" and inside.parts[0] in ("exporters", "device_profiles"):
                continue  # a developer's link to the folders beside
            parts = [package, *inside.with_suffix("").parts]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def run_mypy() -> tuple[int, set[str]]:
    """Run mypy away from the tree; return its exit code and the modules it took as sources."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--verbose", "-p", "merino_edge"]
    print("$", " ".join(command), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        mypy = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    log = mypy.stderr.splitlines()
    sys.stderr.writelines(f"{line}\n" for line in log if not line.startswith("LOG:"))
    pattern = r"Found source: .*path='[^']*\.py', module='([\w.]+)'"  # a folder of data files has no .py
    seen = {match[1] for line in log if (match := re.search(pattern, line))}
    return mypy.returncode, seen


def main() -> int:
    """Compare what mypy saw with the tree."""
    code, seen = run_mypy()
    tree = modules_of_the_tree()
    installed = Path(sysconfig.get_paths()["purelib"]) / "merino_edge"
    unseen = sorted(set(tree) - seen)
    for name in unseen:
        print(f"error: mypy did not see {name} ({tree[name].relative_to(ROOT)})")
    for name in sorted(seen - set(tree)):
        print(f"error: {name} is installed and not in the tree: remove {installed}, then make check")
        unseen.append(name)
    if unseen:
        print("  next: is its package named in [tool.setuptools] packages of pyproject.toml?")
    else:
        print(f"mypy saw all {len(seen)} modules of {installed}")
    return 1 if code or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
