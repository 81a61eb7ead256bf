"""Taking everything back from a device: the agents that run there end, and the folder goes with all in it."""

from __future__ import annotations

import json
import sys
from typing import Any

from merino_edge.device.provision import INTERPRETERS, REMOTE_ROOT
from merino_edge.device.records import clean_text
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.transport import Transport
from merino_edge.errors import DeviceBusyError, DeviceError

_OURS = "agent-*.pyz objects releases runtimes stage current journal lock"

# Ends our agents and their children, then removes the folder, unless it is not ours or somebody is at work in it.
_PROGRAM = r"""
import fcntl,json,os,shutil,signal,sys,time
root=os.path.realpath(os.path.expanduser(sys.argv[1]))
def end(**found):
    print(json.dumps(dict(found,purge=1))); sys.exit(0)
if not os.path.isdir(root): end(removed=False)
names=os.listdir(root)
ours=all(n in ('objects','releases','runtimes','stage','current','current.tmp','journal','journal.tmp','lock')
    or (n.startswith('agent-') and n.endswith('.pyz')) or n.startswith('.put-') for n in names)
if not ours or os.lstat(root).st_uid!=os.getuid(): end(removed=False,foreign=sorted(names)[:5])
try: lock=os.open(os.path.join(root,'lock'),os.O_RDWR|os.O_CREAT,0o600)
except OSError as e: end(removed=False,refused=e.strerror)
try: fcntl.flock(lock,fcntl.LOCK_EX|fcntl.LOCK_NB)
except OSError: end(removed=False,busy=os.pread(lock,400,0).decode('utf-8','replace'))
mark=(root+'/agent-').encode(); ended=[]
for p in os.listdir('/proc') if os.path.isdir('/proc') else []:
    if p.isdigit() and int(p)!=os.getpid():
        try:
            words=open('/proc/'+p+'/cmdline','rb').read().split(b'\0')
            if any(w.startswith(mark) for w in words) and os.stat('/proc/'+p).st_uid==os.getuid():
                os.kill(int(p),signal.SIGKILL); ended.append(int(p))
        except OSError: pass
time.sleep(0.1 if ended else 0)
try: shutil.rmtree(root)
except OSError as e: end(removed=False,refused=e.strerror)
end(removed=True,ended=len(ended))
"""


def purge_device(transport: Transport, entry: DeviceEntry) -> dict[str, Any]:
    """Remove the agent's folder and processes from a device.

    Returns:
        `removed` (False where nothing was there) and `ended`, how many processes.

    Raises:
        DeviceError: somebody is at work there, or the folder holds what is not ours.
    """
    root = entry.root or REMOTE_ROOT
    interpreters = [sys.executable] if entry.transport == "local" else list(INTERPRETERS)
    script = (
        'code=$1 root=$2; shift 2; for p; do command -v "$p" >/dev/null && exec "$p" -c "$code" "$root"; done; exit 3'
    )
    done = transport.run(["sh", "-c", script, "purge", _PROGRAM, root, *interpreters], timeout_s=120.0)
    found: dict[str, Any] = {}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.get("purge") == 1:
            found = value
    where = transport.description
    by_hand = f"on the device, remove what is ours: cd {root} && rm -rf {_OURS}"  # never the folder: it may be a home
    if not found or "refused" in found:
        said = (
            clean_text(found.get("refused", ""), 100)
            or clean_text(done.stderr.decode("utf-8", "replace"), 300)
            or f"exit code {done.exit_code}"
        )
        raise DeviceError(f"{where}: {root} cannot be removed: {said}", hint=by_hand)
    if "busy" in found:
        raise DeviceBusyError(
            f"{where}: somebody is at work there ({clean_text(found['busy'], 200)})", hint="wait until it has ended"
        )
    if "foreign" in found:
        raise DeviceError(
            f"{where}: {root} holds what is not ours: {clean_text(', '.join(map(str, found['foreign'])), 200)}",
            hint=by_hand,
        )
    return {"removed": found.get("removed") is True, "ended": found.get("ended") if found.get("ended") else 0}
