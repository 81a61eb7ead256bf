"""How fast a file reaches a device, beside `scp` over the same sshd on loopback, taking turns.

.venv/bin/python bench/upload.py               # 64 MB and 256 MB, seven turns; writes results/upload.json
.venv/bin/python bench/upload.py --megabytes 8 --turns 2 --dry-run
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "device")]

from record import write_result  # noqa: E402
from sshd_server import Client, Server  # noqa: E402

from merino_edge.device.agent_link import AgentLink  # noqa: E402
from merino_edge.device.provision import start_agent  # noqa: E402
from merino_edge.device.registry import DeviceEntry  # noqa: E402
from merino_edge.device.releases import push_files  # noqa: E402
from merino_edge.device.ssh import open_ssh  # noqa: E402

WAYS = ("scp", "paramiko", "openssh")


class Environment:
    """What pytest's monkeypatch does for `Client`."""

    def setenv(self, name: str, value: str) -> None:
        """Set a variable of this process."""
        os.environ[name] = value


def flush(path: Path) -> None:
    """Bring a file to the disk: what `scp` leaves in memory; an upload to the agent ends with that."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def clear(folder: Path) -> None:
    """Remove what was sent before: else the next transfer of each way begins with that."""
    for old in (folder / "sent", *folder.glob("*/objects/*")):
        old.unlink(missing_ok=True)


def send(way: str, path: Path, folder: Path, server: Server, client: Client) -> tuple[float, float]:
    """Send a file; return the seconds of the transfer alone (the login is done before, except scp's), and a fact.

    The fact is of scp how long it takes with what it wrote flushed, and of the others how many bytes were sent.
    """
    if way == "scp":
        words = ["scp", "-q", "-F", str(client.config), "-P", str(server.port), str(path), f"127.0.0.1:{folder}/sent"]
        started = time.perf_counter()
        subprocess.run(words, check=True)
        seconds = time.perf_counter() - started
        flush(folder / "sent")
        return seconds, time.perf_counter() - started
    entry = DeviceEntry("b", f"127.0.0.1:{server.port}", "local", str(folder / way), way)  # type: ignore[arg-type]
    transport = open_ssh(entry)
    link: AgentLink = start_agent(transport, entry)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        started = time.perf_counter()
        sent = push_files(link, {digest: path}).bytes_sent
        return time.perf_counter() - started, sent
    finally:
        link.close()
        transport.close()


def login_s(server: Server, client: Client) -> float:
    """Return how long `ssh` takes for nothing: what to take off scp's time, to its favour."""
    words = ["ssh", "-F", str(client.config), "-p", str(server.port), "127.0.0.1", "true"]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(words, check=True)
        times.append(time.perf_counter() - started)
    return min(times)


def measure(megabytes: int, turns: int, folder: Path, server: Server, client: Client) -> dict[str, Any]:
    """Let all ways take turns; every file is another one, so that nothing is there already."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    again, flushed = 0, []
    for turn in range(turns):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            path = folder / "file"
            path.write_bytes(os.urandom(1 << 20) * (megabytes - 1) + os.urandom(1 << 20))
            clear(folder)
            flush(path)  # else whoever flushes what arrives may wait for this file as well
            took, fact = send(way, path, folder, server, client)
            seconds[way].append(took)
            if way == "scp":
                flushed.append(fact)
            else:
                again = max(again, int(send(way, path, folder, server, client)[1]))
    login = login_s(server, client)
    rates = {w: [megabytes * 1.048576 / (s - (login if w == "scp" else 0.0)) for s in seconds[w]] for w in WAYS}
    medians = {w: statistics.median(r) for w, r in rates.items()}
    safe = megabytes * 1.048576 / (statistics.median(flushed) - login)
    return {
        "megabytes": megabytes,
        "login_s": login,
        "mb_per_s": rates,
        "median_mb_per_s": medians,
        "of_scp": {w: medians[w] / medians["scp"] for w in WAYS if w != "scp"},
        "median_mb_per_s_of_scp_flushed": safe,
        "of_scp_flushed": {w: medians[w] / safe for w in WAYS if w != "scp"},
        "bytes_sent_again": again,
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true", help="do not write the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="merino-upload-") as name:
        folder = Path(name)
        server = Server(folder / "sshd")
        client = Client(folder / "client", Environment())  # type: ignore[arg-type]
        client.allow(server)
        client.know(server)
        try:
            rows = [measure(size, arguments.turns, folder, server, client) for size in arguments.megabytes]
        finally:
            server.stop()
    for row in rows:
        shown = ", ".join(f"{w} {v:.0f} MB/s" for w, v in row["median_mb_per_s"].items())
        print(
            f"{row['megabytes']} MiB: {shown}; of scp: "
            + ", ".join(f"{w} {v:.2f}" for w, v in row["of_scp"].items())
            + "; of scp with its file flushed: "
            + ", ".join(f"{w} {v:.2f}" for w, v in row["of_scp_flushed"].items())
        )
    if not arguments.dry_run:
        print(write_result("upload", {"sizes": rows}))


if __name__ == "__main__":
    main()
