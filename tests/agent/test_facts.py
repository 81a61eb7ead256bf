"""What the agent reads from /proc and /sys, on recorded machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from merino_edge.agent import facts
from merino_edge.agent.facts import Machine

PI4 = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/device-tree/serial-number": "10000000abcdef01\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n",
    "proc/meminfo": "MemTotal:  3884000 kB\nMemAvailable:  3400000 kB\nSwapTotal:  102396 kB\nSwapFree:  102396 kB\n",
    "proc/loadavg": "0.08 0.03 0.01 1/150 999\n",
    "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-v8\n",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
    "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
    "sys/devices/system/cpu/cpu0/cache/index0/size": "32K\n",
    "sys/devices/system/cpu/cpu0/cache/index1/level": "2\n",
    "sys/devices/system/cpu/cpu0/cache/index1/type": "Unified\n",
    "sys/devices/system/cpu/cpu0/cache/index1/size": "1024K\n",
    "sys/devices/system/cpu/cpu0/cache/index1/shared_cpu_list": "0-3\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "commands/vcgencmd_get_throttled": "throttled=0x50005\n",
}


def record(root: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root)


def test_raspberry_pi_4_is_read_from_its_files(tmp_path: Path) -> None:
    found = facts.gather(record(tmp_path, PI4))
    assert found["board_model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["os_image"] == "Debian GNU/Linux 12 (bookworm), kernel 6.6.31+rpt-rpi-v8"
    assert found["memory"] == {"total": 3884000 * 1024, "available": 3400000 * 1024, "swap_used": 0}
    assert (found["governor"], found["power_mode"], found["temperature_c"]) == ("ondemand", "ondemand", 48.312)
    assert (found["throttled"], found["throttled_bits"]) == (True, 0x50005)
    cpu = found["cpu"]
    assert isinstance(cpu, dict)
    assert (cpu["model"], cpu["cores"], cpu["last_level_cache_bytes"]) == ("Cortex-A72", 4, 1 << 20)


def test_machine_that_tells_nothing_gives_none_and_no_zero(tmp_path: Path) -> None:
    found = facts.gather(record(tmp_path, {}))
    for name in ("board_model", "governor", "temperature_c", "throttled", "throttled_bits", "load1"):
        assert found[name] is None
    assert found["power_mode"] == "unknown"
    assert found["memory"] == {"total": None, "available": None, "swap_used": None}


@pytest.mark.parametrize("text", ["", "hot", "999999999", "-273150", "\xff\xfe", "1e5"])
def test_garbage_from_a_sensor_is_no_temperature(tmp_path: Path, text: str) -> None:
    assert facts.temperature_c(record(tmp_path, {"sys/class/thermal/thermal_zone0/temp": text})) is None


def test_device_id_tells_machines_apart_and_hides_the_serial_number(tmp_path: Path) -> None:
    other = {**PI4, "proc/device-tree/serial-number": "10000000abcdef02\0"}
    ids = [facts.device_id(record(tmp_path / n, f)) for n, f in (("a", PI4), ("b", PI4), ("c", other))]
    assert ids[0] == ids[1] != ids[2]
    assert "abcdef" not in ids[0]


def test_performance_cores_are_the_fast_ones_once_each(tmp_path: Path) -> None:
    files = {"sys/devices/system/cpu/online": "0-5"}
    for cpu, (capacity, siblings) in enumerate([(400, "0"), (400, "1"), *[(1024, "2-3")] * 2, *[(1024, "4-5")] * 2]):
        files[f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = str(capacity)
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = siblings
    assert facts.performance_cores(record(tmp_path, files)) == [2, 4]


def test_jetson_power_mode_is_nvpmodels(tmp_path: Path) -> None:
    answer = "NV Power Mode: MAXN\n0\n"
    assert facts.power_mode(record(tmp_path, {"commands/nvpmodel_-q": answer})) == "MAXN"


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3", [0, 1, 2, 3]), ("0,2-3", [0, 2, 3]), ("", []), (None, []), ("x", [])]
)
def test_cpu_lists_are_the_kernels(text: str | None, cpus: list[int]) -> None:
    assert facts.cpu_list(text) == cpus


def test_this_machine_has_a_cpu_and_memory() -> None:
    found = facts.gather(Machine())
    assert isinstance(found["memory"], dict)
    assert found["memory"]["total"] is None or found["memory"]["total"] > 0
