"""What five boards tell of themselves, from trees of their /proc and /sys, and why where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merino_edge.agent import facts, sensors
from merino_edge.agent.facts import Machine

CPU = "sys/devices/system/cpu/"
HWMON = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/"
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/"
PMIC = """\
     3V7_WL_SW_A current(0)=0.10000000A
       VDD_CORE_A current(7)=1.50000000A
     3V7_WL_SW_V volt(8)=3.70000000V
       VDD_CORE_V volt(15)=0.80000000V
          EXT5V_V volt(24)=5.10000000V
"""


def cores(part: str, flags: str, max_khz: int, clock_khz: int) -> dict[str, str]:
    policy = CPU + "cpufreq/policy0/"
    return {
        "proc/cpuinfo": f"processor\t: 0\nFeatures\t: {flags}\nCPU part\t: {part}\n",
        CPU + "online": "0-3",
        CPU + "cpu0/cpufreq/cpuinfo_max_freq": str(max_khz),
        policy + "scaling_governor": "ondemand",
        policy + "scaling_cur_freq": str(clock_khz),
        "sys/class/thermal/thermal_zone0/temp": "51000",
    }


OLD, DOT = (
    "fp asimd evtstrm crc32 cpuid",
    "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
)
BOARDS: dict[str, dict[str, str]] = {
    "pi4": {
        **cores("0xd08", OLD, 1_800_000, 600_000),
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
        "commands/vcgencmd_get_throttled": "throttled=0x0",
        "commands/vcgencmd_measure_clock_arm": "frequency(48)=1800457088",
    },
    "pi5": {
        **cores("0xd0b", DOT, 2_400_000, 1_500_000),
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "commands/vcgencmd_get_throttled": "throttled=0x50000",
        "commands/vcgencmd_measure_clock_arm": "frequency(0)=1500000000",
        "commands/vcgencmd_pmic_read_adc": PMIC,
    },
    "pi-zero-2w": {
        **cores("0xd03", OLD, 1_000_000, 1_000_000),
        "proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0",
        "commands/vcgencmd_get_throttled": "throttled=0x80008",
    },
    "jetson-nano": {
        **cores("0xd07", OLD, 1_479_000, 1_479_000),
        "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64",
        "commands/nvpmodel_-q": "NV Power Mode: MAXN\n0",
        IIO + "rail_name_0": "POM_5V_IN",
        IIO + "in_power0_input": "2310",
        IIO + "rail_name_1": "POM_5V_GPU",
        IIO + "in_power1_input": "120",
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": "3",
        "sys/class/thermal/cooling_device1/type": "cpu-balanced",
        "sys/class/thermal/cooling_device1/cur_state": "0",
    },
    "jetson-orin-nano": {
        **cores("0xd42", DOT, 1_510_400, 1_510_400),
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
        "commands/nvpmodel_-q": "NV Power Mode: 15W\n0",
        HWMON + "in1_label": "VDD_IN",
        HWMON + "in1_input": "5000",
        HWMON + "curr1_input": "1040",
        HWMON + "in2_label": "VDD_CPU_GPU_CV",
        HWMON + "in2_input": "5000",
        HWMON + "curr2_input": "200",
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "sys/class/thermal/cooling_device0/cur_state": "2",
    },
}


def tree(root: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root)


@pytest.fixture(params=BOARDS)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    return request.param, facts.gather(tree(tmp_path, BOARDS[request.param]))


def test_board_is_recognised_and_its_core_named(named: tuple[str, dict[str, Any]]) -> None:
    from merino_edge.device.board import detect_board, load_board

    name, found = named
    assert detect_board(found) == name
    board = load_board(name)
    assert found["cpu"]["model"] == board.cpu.core
    assert ("asimddp" in found["cpu"]["flags"]) == ("dotprod" in board.cpu.instruction_sets)
    assert found["emulated"] is None


def test_power_is_measured_or_the_reason_given_as_the_boards_file_says(named: tuple[str, dict[str, Any]]) -> None:
    from merino_edge.device.board import load_board

    name, found = named
    assert (found["power_w"] is not None) == load_board(name).sensors.energy
    assert (found["power_w"] is None) == ("power_w" in found["unknown"])


@pytest.mark.parametrize(
    ("name", "watts", "sensor"),
    [
        ("pi5", 0.1 * 3.7 + 1.5 * 0.8, "power chip, 2 rails"),
        ("jetson-nano", 2.31, "POM_5V_IN"),
        ("jetson-orin-nano", 5.2, "VDD_IN"),
    ],
)
def test_power_is_that_of_the_whole_board(tmp_path: Path, name: str, watts: float, sensor: str) -> None:
    found = sensors.power(tree(tmp_path, BOARDS[name]))
    assert found["power_w"] == pytest.approx(watts)
    assert sensor in str(found["power_sensor"])


def test_pi_without_a_sensor_says_so_and_a_pi_5_without_vcgencmd_names_it(tmp_path: Path) -> None:
    assert "no power sensor" in str(sensors.power(tree(tmp_path / "4", BOARDS["pi4"]))["power_reason"])
    bare = {name: text for name, text in BOARDS["pi5"].items() if "pmic" not in name}
    assert "group video" in str(sensors.power(tree(tmp_path / "5", bare))["power_reason"])


@pytest.mark.parametrize(
    ("name", "throttled"),
    [("pi4", False), ("pi5", False), ("pi-zero-2w", True), ("jetson-nano", False), ("jetson-orin-nano", True)],
)
def test_throttling_is_what_acts_now_and_no_fan_is_taken_for_it(tmp_path: Path, name: str, throttled: bool) -> None:
    assert facts.gather(tree(tmp_path, BOARDS[name]))["throttled"] is throttled


def test_jetpack_follows_from_l4t_and_the_power_mode_from_nvpmodel(tmp_path: Path) -> None:
    nano = facts.gather(tree(tmp_path / "nano", BOARDS["jetson-nano"]))
    assert (nano["jetson"], nano["power_mode"]) == ({"l4t": "32.7.1", "jetpack": "4"}, "MAXN")
    orin = facts.gather(tree(tmp_path / "orin", BOARDS["jetson-orin-nano"]))
    assert (orin["jetson"], orin["power_mode"]) == ({"l4t": "36.4.3", "jetpack": "6"}, "15W")
    assert facts.gather(tree(tmp_path / "pi", BOARDS["pi4"]))["jetson"] is None


def test_clock_is_what_the_kernel_asked_for_and_what_the_firmware_measured(tmp_path: Path) -> None:
    found = facts.gather(tree(tmp_path, BOARDS["pi4"]))
    assert (found["clocks_khz"], found["measured_clock_khz"]) == ([600_000], 1_800_457)


@pytest.mark.parametrize("value", ["", "-5", "many", "99999999", "1e9"])
def test_garbage_from_a_power_sensor_is_no_power(tmp_path: Path, value: str) -> None:
    files = {**BOARDS["jetson-orin-nano"], HWMON + "curr1_input": value}
    assert sensors.power(tree(tmp_path, files))["power_w"] is None


def test_machine_that_tells_nothing_says_why_for_each_thing(tmp_path: Path) -> None:
    found = facts.gather(tree(tmp_path, {}))
    unknown = found["unknown"]
    assert isinstance(unknown, dict)
    for name in ("board_model", "governor", "clocks_khz", "temperature_c", "throttled", "power_w", "load1"):
        assert found[name] is None
        assert unknown[name]


def test_qemus_board_says_that_it_is_emulated(tmp_path: Path) -> None:
    assert sensors.emulated(tree(tmp_path, {"proc/device-tree/compatible": "linux,dummy-virt\0"}))
    assert sensors.emulated(tree(tmp_path / "pi", {"proc/device-tree/compatible": "raspberrypi,4-model-b\0"})) is None
