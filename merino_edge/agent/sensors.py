"""What a board can tell of power, throttling and its own kind, and why it cannot where it cannot.

Everything is read without root. Sources: NVIDIA's INA3221 by hwmon (JetPack 5 and later) or iio
(JetPack 4); the Raspberry Pi 5's power chip and the firmware's throttle bits by `vcgencmd`; the
kernel's cooling devices. A value that cannot be read is None, and `reasons` says why.
"""

from __future__ import annotations

import re
from pathlib import Path

from merino_edge.agent.machine import Machine

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VDD_5V_IN", "5V_IN")  # what the whole module draws, under its names
_JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}  # by the major version of L4T
_MAX_WATTS = 500.0  # no board of this size draws more: a garbled reading


def _inside(machine: Machine, path: Path) -> str:
    return "/" + str(path.relative_to(machine.root))


def _named_rails(machine: Machine) -> dict[str, float]:
    """Return the power of each rail of an INA3221 in watts, by the rail's name."""
    rails = {}
    for label in machine.paths("/sys/bus/i2c/devices/*/hwmon/hwmon*/in*_label"):
        base, number = _inside(machine, label.parent), label.name[2:-6]
        millivolts = machine.number(f"{base}/in{number}_input")
        milliamperes = machine.number(f"{base}/curr{number}_input")
        if millivolts is not None and milliamperes is not None:
            rails[machine.text(_inside(machine, label)) or ""] = millivolts * milliamperes / 1e6
    for label in machine.paths("/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*"):
        milliwatts = machine.number(f"{_inside(machine, label.parent)}/in_power{label.name[10:]}_input")
        if milliwatts is not None:
            rails[machine.text(_inside(machine, label)) or ""] = milliwatts / 1e3
    return {name: watts for name, watts in rails.items() if name and 0 <= watts < _MAX_WATTS}


def _pmic_rails(answer: str) -> dict[str, float]:
    """Return the power of each rail that `vcgencmd pmic_read_adc` gives both voltage and current of."""
    values = {}
    for name, kind, number in re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([0-9.]{1,16})[AV]", answer):
        try:
            values[name, kind] = float(number)
        except ValueError:
            continue
    both = [name for name, kind in values if kind == "A" and (name, "V") in values]
    rails = {name: values[name, "A"] * values[name, "V"] for name in both}
    return {name: watts for name, watts in rails.items() if 0 <= watts < _MAX_WATTS}


def power(machine: Machine) -> dict[str, object]:
    """Return what the board draws now.

    Returns:
        `power_w`, `power_sensor` and `power_reason`: watts and the sensor's name, or why there are none.
    """
    rails = _named_rails(machine)
    total = next((name for name in TOTAL_RAILS if name in rails), None)
    if total is not None:
        return {"power_w": rails[total], "power_sensor": f"INA3221, rail {total}", "power_reason": None}
    if rails:
        reason = f"an INA3221 without a rail of the whole board, only {', '.join(sorted(rails))}"
        return {"power_w": None, "power_sensor": None, "power_reason": reason}
    model = machine.text("/proc/device-tree/model") or ""
    if model.startswith(("Raspberry Pi 5", "Raspberry Pi Compute Module 5", "Raspberry Pi 500")):
        pmic = _pmic_rails(machine.command("vcgencmd", "pmic_read_adc") or "")
        if pmic:
            sensor = f"power chip, {len(pmic)} rails; USB, HAT and its own losses apart"
            return {"power_w": sum(pmic.values()), "power_sensor": sensor, "power_reason": None}
        reason = "its power chip is read with vcgencmd, which is missing here or refused (group video)"
    elif model.startswith("Raspberry Pi"):
        reason = "this Raspberry Pi has no power sensor"
    elif jetson(machine) is not None:
        reason = "no INA3221 under /sys/bus/i2c: this carrier board may have none"
    else:
        reason = "no power sensor is known for this machine"
    return {"power_w": None, "power_sensor": None, "power_reason": reason}


def cooled_down(machine: Machine) -> bool | None:
    """Say whether the kernel slows the processor for its heat; None where no cooling device of it is known."""
    found = None
    for folder in machine.paths("/sys/class/thermal/cooling_device*"):
        base = _inside(machine, folder)
        kind = (machine.text(base + "/type") or "").lower()
        state = machine.number(base + "/cur_state")
        if state is not None and ("cpufreq" in kind or kind.startswith(("cpu", "processor"))):
            found = bool(found) or state > 0
    return found


def jetson(machine: Machine) -> dict[str, str | None] | None:
    """Return L4T's version and the JetPack it belongs to, None where this is no Jetson."""
    text = machine.text("/etc/nv_tegra_release")
    if text is None:
        return None
    match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if match is None:
        return {"l4t": None, "jetpack": None}
    return {"l4t": f"{match.group(1)}.{match.group(2)}", "jetpack": _JETPACKS.get(match.group(1))}


def emulated(machine: Machine) -> str | None:
    """Return what emulates this machine, None where nothing says so. Its times are no board's."""
    compatible = machine.text("/proc/device-tree/compatible") or ""
    return "QEMU's virt machine" if "linux,dummy-virt" in compatible.split("\0") else None


def measured_clock_khz(machine: Machine) -> int | None:
    """Return the clock that a Raspberry Pi's firmware measures: the kernel only knows what it asked for."""
    match = re.search(r"frequency\(\d+\)=(\d{1,12})", machine.command("vcgencmd", "measure_clock", "arm") or "")
    return int(match.group(1)) // 1000 if match else None


def reasons(found: dict[str, object]) -> dict[str, str]:
    """Say for each thing the machine does not tell why that is.

    Args:
        found: The facts.
    """
    texts = {
        "board_model": "neither a device tree nor DMI names the machine",
        "governor": "the kernel has no frequency driver for this processor (no cpufreq in /sys)",
        "clocks_khz": "the kernel has no frequency driver for this processor (no cpufreq in /sys)",
        "measured_clock_khz": "no vcgencmd that answers; only a Raspberry Pi has one",
        "temperature_c": "no thermal zone in /sys/class/thermal gives a temperature",
        "throttled": "no vcgencmd that answers, and no cooling device of the processor in /sys/class/thermal",
        "power_w": str(found.get("power_reason")),
        "load1": "no /proc/loadavg",
    }
    return {name: text for name, text in texts.items() if found.get(name) is None}
