"""What this machine is, read from /proc and /sys (or from a recorded tree of them).

Whatever a machine does not tell is None, never a guess and never 0.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import struct
import sys
import sysconfig

from merino_edge.agent import sensors
from merino_edge.agent.machine import Machine as Machine

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cpu_list(text: str | None) -> list[int]:
    """Parse a kernel CPU list: `0-3,6`."""
    cpus: list[int] = []
    for part in (text or "").split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if match:
            cpus.extend(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
    return cpus


def _caches(machine: Machine) -> list[dict[str, object]]:
    result: list[dict[str, object]] = []
    for folder in machine.paths("/sys/devices/system/cpu/cpu0/cache/index*"):
        base = "/" + str(folder.relative_to(machine.root))
        match = re.fullmatch(r"(\d+)([KMG])", machine.text(base + "/size") or "")
        if match:
            result.append(
                {
                    "level": machine.number(base + "/level"),
                    "type": machine.text(base + "/type"),
                    "bytes": int(match.group(1)) * _UNITS[match.group(2)],
                    "shared_by": len(cpu_list(machine.text(base + "/shared_cpu_list"))),
                }
            )
    return result


def last_level_cache_bytes(caches: list[dict[str, object]]) -> int | None:
    """Return the size of the outermost data or unified cache."""
    found = [(c["level"], c["bytes"]) for c in caches if c["type"] != "Instruction" and isinstance(c["level"], int)]
    return int(str(max(found)[1])) if found else None


def cpu_cache_bytes(machine: Machine) -> int | None:
    """Return the size of this machine's last-level cache, None where the kernel does not say."""
    return last_level_cache_bytes(_caches(machine))


def _cpu(machine: Machine) -> dict[str, object]:
    info = machine.text("/proc/cpuinfo") or ""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    caches = _caches(machine)
    return {
        "model": fields.get("model name") or _arm_core(fields.get("cpu part")),
        "cores": len(cpu_list(machine.text("/sys/devices/system/cpu/online"))) or os.cpu_count(),
        "performance_cores": len(performance_cores(machine)),
        "flags": (fields.get("flags") or fields.get("features") or "").split(),
        "caches": caches,
        "last_level_cache_bytes": last_level_cache_bytes(caches),
        "max_frequency_khz": machine.number("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"),
    }


def _arm_core(part: str | None) -> str | None:
    """Return the name of an Arm core by its part number (Arm's Main ID Register)."""
    names = {
        "0xd03": "Cortex-A53",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd0b": "Cortex-A76",
        "0xd42": "Cortex-A78AE",
    }
    return names.get((part or "").lower(), part)


def performance_cores(machine: Machine) -> list[int]:
    """Return one logical CPU of each fast physical core that this process may use."""
    allowed = set(os.sched_getaffinity(0)) if machine.real and hasattr(os, "sched_getaffinity") else None
    online = cpu_list(machine.text("/sys/devices/system/cpu/online")) or list(range(os.cpu_count() or 1))
    base = "/sys/devices/system/cpu/cpu{}/"
    cores: dict[str, tuple[int, int]] = {}
    for cpu in online:
        if allowed is not None and cpu not in allowed:
            continue
        siblings = machine.text(base.format(cpu) + "topology/thread_siblings_list") or str(cpu)
        capacity = machine.number(base.format(cpu) + "cpu_capacity") or 0
        cores.setdefault(siblings, (capacity, cpu))
    best = max((capacity for capacity, _ in cores.values()), default=0)
    return sorted(cpu for capacity, cpu in cores.values() if capacity * 10 >= best * 9) or [0]


def memory(machine: Machine) -> dict[str, int | None]:
    """Return total and available bytes, and swap in use."""
    table = machine.table("/proc/meminfo")
    swap = None
    if "SwapTotal" in table and "SwapFree" in table:
        swap = table["SwapTotal"] - table["SwapFree"]
    return {"total": table.get("MemTotal"), "available": table.get("MemAvailable"), "swap_used": swap}


def governor(machine: Machine) -> str | None:
    """Return the frequency governor, joined by `+` where cores differ."""
    paths = machine.paths("/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")
    found = {machine.text("/" + str(p.relative_to(machine.root))) for p in paths}
    return "+".join(sorted(g for g in found if g)) or None


def clocks_khz(machine: Machine) -> list[int] | None:
    """Return the clock of each group of cores as the kernel has asked for it, None where it asks for none."""
    paths = machine.paths("/sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq")
    clocks = (machine.number("/" + str(path.relative_to(machine.root))) for path in paths)
    return [clock for clock in clocks if clock is not None] or None


def power_mode(machine: Machine) -> str | None:
    """Return the power mode: NVIDIA's `nvpmodel`, else the governor."""
    answer = machine.command("nvpmodel", "-q") or ""
    match = re.search(r"NV Power Mode:\s*(\S+)", answer)
    return match.group(1) if match else governor(machine)


def temperature_c(machine: Machine) -> float | None:
    """Return the highest temperature of any thermal zone, in degrees Celsius."""
    found = []
    for path in machine.paths("/sys/class/thermal/thermal_zone*/temp"):
        value = machine.number("/" + str(path.relative_to(machine.root)))
        if value is not None and -50_000 < value < 200_000:
            found.append(value / 1000)
    return max(found) if found else None


def throttled_bits(machine: Machine) -> int | None:
    """Return the firmware's throttle bits (`vcgencmd get_throttled`): 0 to 3 now, 16 to 19 since boot."""
    match = re.search(r"throttled=0x([0-9a-fA-F]{1,8})", machine.command("vcgencmd", "get_throttled") or "")
    return int(match.group(1), 16) if match else None


def os_image(machine: Machine) -> str:
    """Return kernel and distribution: what must be equal for two measurements to compare."""
    kernel = machine.text("/proc/sys/kernel/osrelease") or platform.release()
    for line in (machine.text("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line[12:].strip("\"'") + ", kernel " + kernel
    return f"{platform.system()}, kernel {kernel}"


def device_id(machine: Machine) -> str:
    """Return a stable name of this machine that tells nothing else about it."""
    for path in ("/proc/device-tree/serial-number", "/etc/machine-id", "/sys/class/dmi/id/product_uuid"):
        text = machine.text(path)
        if text:
            return hashlib.sha256(f"merino-edge {text}".encode()).hexdigest()[:16]
    return hashlib.sha256(f"merino-edge {platform.node()}".encode()).hexdigest()[:16]


def python_tags() -> dict[str, object]:
    """Return what decides which wheels fit this interpreter (not the kernel: 64-bit kernels run 32-bit Pythons)."""
    libc, version = platform.libc_ver()
    return {
        "executable": sys.executable,
        "version": ".".join(str(n) for n in sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "platform": sysconfig.get_platform(),
        "bits": struct.calcsize("P") * 8,
        "libc": libc,
        "libc_version": version,
    }


def load1(machine: Machine) -> float | None:
    """Return the load average of the last minute."""
    match = re.match(r"(\d+\.\d+) ", machine.text("/proc/loadavg") or "")
    return float(match.group(1)) if match else None


def gather(machine: Machine) -> dict[str, object]:
    """Return everything that can be said of this machine without running a model."""
    bits = throttled_bits(machine)
    found: dict[str, object] = {
        "device_id": device_id(machine),
        "os_image": os_image(machine),
        "board_model": machine.text("/proc/device-tree/model") or machine.text("/sys/class/dmi/id/product_name"),
        "emulated": sensors.emulated(machine),
        "jetson": sensors.jetson(machine),
        "architecture": platform.machine(),
        "cpu": _cpu(machine),
        "memory": memory(machine),
        "python": python_tags(),
        "governor": governor(machine),
        "power_mode": power_mode(machine) or "unknown",  # part of a measurement's key
        "clocks_khz": clocks_khz(machine),
        "measured_clock_khz": sensors.measured_clock_khz(machine),
        "temperature_c": temperature_c(machine),
        "throttled": sensors.cooled_down(machine) if bits is None else bool(bits & 0xF),
        "throttled_bits": bits,
        "load1": load1(machine),
        **sensors.power(machine),
    }
    return {**found, "unknown": sensors.reasons(found)}
