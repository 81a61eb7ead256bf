"""Fake boards whose sensors and firmware say anything: what disturbed a run is flagged, and nothing else is."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import Campaign

from merino_edge.agent import conditions, watch
from merino_edge.agent.facts import Machine
from merino_edge.device.client import TestSpec, open_device
from merino_edge.device.registry import local_entry
from merino_edge.errors import MeasurementError
from merino_edge.exporters.to_onnx import export
from merino_edge.testing import tiny_architecture, write_bundle

pytestmark = pytest.mark.alone

PROMISED = 60

PI4: dict[str, str] = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/meminfo": "MemTotal:  3884000 kB\nMemAvailable:  3400000 kB\nSwapTotal:  102396 kB\nSwapFree:  102396 kB\n",
    "proc/vmstat": "pswpin 10\npswpout 20\n",
    "proc/stat": "cpu  1000 0 500 90000 10 0 5 0 0 0\n",
    "proc/loadavg": "0.08 0.03 0.01 1/150 999\n",
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1500000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1500000\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "commands/vcgencmd_get_throttled": "throttled=0x0\n",
}
JETSON: dict[str, str] = {
    **{k: v for k, v in PI4.items() if not k.startswith("commands")},
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 1\n",
    "commands/nvpmodel_-q": "NV Power Mode: MAXN\n0\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "97000\n",
    "sys/class/thermal/cooling_device0/type": "thermal-cpufreq-0\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "2\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
}
BARE: dict[str, str] = {"proc/meminfo": "MemTotal: 400000 kB\nMemAvailable: 300000 kB\n"}

GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
HIGHEST = "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"
CLOCK = "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq"
HEAT = "sys/class/thermal/thermal_zone0/temp"
BITS = "commands/vcgencmd_get_throttled"
COOLING = "sys/class/thermal/cooling_device0/cur_state"
MODE = "commands/nvpmodel_-q"
MEMORY, VMSTAT, STAT = "proc/meminfo", "proc/vmstat", "proc/stat"

Files = dict[str, str | None]
Case = tuple[dict[str, str], list[Files], float | None, str | None]
"""The board, what its files say in each snapshot (a name without a text is gone), the queue, a word of the reason."""


def bits(value: int) -> Files:
    return {BITS: f"throttled=0x{value:x}\n"}


def swap(used_kib: int) -> Files:
    return {MEMORY: PI4[MEMORY].replace("SwapFree:  102396", f"SwapFree:  {102396 - used_kib}")}


def flagged() -> dict[str, Case]:
    """Return the cases that must not count."""
    cases: dict[str, Case] = {}
    words = {0: "stronger power supply", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
    for bit, word in words.items():
        now, since = 1 << bit, 1 << (bit + 16)
        cases[f"bit {bit} set before"] = (PI4, [bits(now), bits(now)], 0.0, word)
        cases[f"bit {bit} set after"] = (PI4, [{}, bits(now | since)], 0.0, word)
        cases[f"bit {bit} gone after"] = (PI4, [bits(now | since), bits(since)], 0.0, word)
        cases[f"bit {bit} only remembered"] = (PI4, [{}, bits(since)], 0.0, word)
        cases[f"bit {bit} between passes, remembered from before"] = (
            PI4, [bits(since), bits(now | since), bits(since)], 0.0, word,
        )  # fmt: skip
        cases[f"bit {bit} beside an older one"] = (PI4, [bits(0x80000000 >> 12), bits(now | since)], 0.0, word)
    cases["all bits at once"] = (PI4, [{}, bits(0xF000F)], 0.0, "stronger power supply")
    for board, name in ((PI4, "a Pi"), (JETSON, "a Jetson")):
        cases[f"governor changed on {name}"] = (board, [{}, {GOVERNOR: "powersave\n"}], 0.0, "changed from ondemand")
        cases[f"governor changed and changed back on {name}"] = (
            board, [{}, {GOVERNOR: "performance\n"}, {}], 0.0, "performance",
        )  # fmt: skip
        cases[f"governor gone on {name}"] = (board, [{}, {GOVERNOR: None}], 0.0, "changed")
        cases[f"highest clock lowered on {name}"] = (board, [{}, {HIGHEST: "600000\n"}], 0.0, "highest clock")
        cases[f"highest clock lowered for a while on {name}"] = (board, [{}, {HIGHEST: "600000"}, {}], 0.0, "highest")
        cases[f"swapping out on {name}"] = (board, [{}, {VMSTAT: "pswpin 10\npswpout 9020\n"}], 0.0, "swapped")
        cases[f"swapping in on {name}"] = (board, [{}, {VMSTAT: "pswpin 9010\npswpout 20\n"}], 0.0, "swapped")
        cases[f"more swap in use on {name}"] = (board, [{}, swap(65536)], 0.0, "swapped 64 MiB")
        cases[f"others in the queue on {name}"] = (board, [{}, {}], 0.4, "other programs")
        cases[f"others all the time on {name}"] = (board, [{}, {}], 1.0, "100%")
    cases["a hot Pi before"] = (PI4, [{HEAT: "82000"}, {}], 0.0, "hot")
    cases["a hot Pi after"] = (PI4, [{}, {HEAT: "85000"}], 0.0, "85 C hot")
    cases["a hot Pi between"] = (PI4, [{}, {HEAT: "81000"}, {}], 0.0, "81 C hot")
    cases["at the limit"] = (PI4, [{}, {HEAT: "80000"}], 0.0, "hot")
    cases["a hot Jetson"] = (JETSON, [{}, {HEAT: "97500"}], 0.0, "97 C slow it")
    cases["another zone is hot"] = (PI4, [{}, {"sys/class/thermal/thermal_zone1/temp": "90000"}], 0.0, "90 C hot")
    cases["the kernel cools a Jetson before"] = (JETSON, [{COOLING: "2"}, {COOLING: "2"}], 0.0, "slowed")
    cases["the kernel cools a Jetson after"] = (JETSON, [{}, {COOLING: "1"}], 0.0, "slowed")
    cases["the kernel cools a Jetson between"] = (JETSON, [{}, {COOLING: "1"}, {}], 0.0, "slowed")
    cases["the power mode of a Jetson"] = (JETSON, [{}, {MODE: "NV Power Mode: 5W\n1\n"}], 0.0, "from MAXN to 5W")
    cases["the power mode of a Jetson between"] = (JETSON, [{}, {MODE: "NV Power Mode: 5W\n1\n"}, {}], 0.0, "5W")
    cases["too little current"] = (JETSON, [{}, {"sys/class/hwmon/hwmon1/oc1_event_cnt": "3"}], 0.0, "power supply")
    cases["others, where nobody tells of the queue"] = (
        PI4, [{}, {STAT: "cpu  901000 0 500 90000 10 0 5 0 0 0\n"}], None, "other programs",
    )  # fmt: skip
    cases["stolen by another guest"] = (PI4, [{}, {STAT: "cpu  1000 0 500 90000 10 0 5 800000 0 0"}], None, "other")
    return cases


def clean() -> dict[str, Case]:
    """Return the cases that must count."""
    cases: dict[str, Case] = {}
    for board, name in ((PI4, "a Pi"), (JETSON, "a Jetson"), (BARE, "a bare machine")):
        cases[f"quiet on {name}"] = (board, [{}, {}], 0.01, None)
        cases[f"quiet on {name}, no word on the queue"] = (board, [{}, {}], None, None)
        cases[f"a sensor without sense on {name}"] = (board, [{}, {HEAT: "hot"}], 0.0, None)
        cases[f"a sensor of another world on {name}"] = (board, [{}, {HEAT: "999999999"}], 0.0, None)
    for bit in range(4):
        cases[f"bit {bit} from before"] = (PI4, [bits(1 << (bit + 16))] * 3, 0.0, None)
    cases["all bits from before"] = (PI4, [bits(0xF0000), bits(0xF0000)], 0.0, None)
    cases["bits nobody knows"] = (PI4, [bits(0), bits(0x100)], 0.0, None)
    cases["bits without sense"] = (PI4, [{}, {BITS: "error=1"}], 0.0, None)
    cases["no vcgencmd any more"] = (PI4, [{}, {BITS: None}], 0.0, None)
    cases["warm, but not hot"] = (PI4, [{HEAT: "60000"}, {HEAT: "79900"}], 0.0, None)
    cases["a Jetson below its own limit"] = (JETSON, [{}, {HEAT: "90000"}], 0.0, None)
    cases["a fan turns faster"] = (JETSON, [{}, {"sys/class/thermal/cooling_device1/cur_state": "7"}], 0.0, None)
    cases["the clock moves, as ondemand lets it"] = (PI4, [{CLOCK: "600000"}, {CLOCK: "1500000"}, {}], 0.0, None)
    cases["a little swapped"] = (PI4, [{}, {VMSTAT: "pswpin 12\npswpout 25\n"}], 0.0, None)
    cases["swap was full before"] = (PI4, [swap(102396), swap(102396)], 0.0, None)
    cases["swap becomes less"] = (PI4, [swap(65536), swap(10)], 0.0, None)
    cases["a little queueing"] = (PI4, [{}, {}], 0.2, None)
    cases["busy before, by ourselves"] = (PI4, [{"proc/loadavg": "4.00 2.00 1.00 1/150 9"}] * 2, 0.0, None)
    cases["the sensor vanishes"] = (PI4, [{}, {HEAT: None}], 0.0, None)
    cases["always powersave"] = (PI4, [{GOVERNOR: "powersave"}, {GOVERNOR: "powersave"}], 0.0, None)
    cases["counters start anew"] = (JETSON, [{VMSTAT: "pswpin 99999\npswpout 99999\n"}, {}], 0.0, None)
    return cases


def write(root: Path, board: dict[str, str], change: Files) -> Machine:
    """Lay the files of a board out."""
    for name, text in {**dict.fromkeys(change), **board, **change}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    return Machine(root)


def told(root: Path, case: Case, sustained: bool = False) -> str | None:
    """Return the reason why the case does not count."""
    board, steps, queued, _ = case
    seen = [conditions.snapshot(write(root, board, step)) for step in steps]
    for number, one in enumerate(seen):
        one.update(at_s=10.0 * number, own_s=1.0)
    return conditions.invalid_reason(seen[0], seen[-1], queued, seen[1:-1], sustained)


def naive(root: Path, case: Case) -> bool:
    """Say what most scripts do: ask once, at the end, whether the board is throttled now."""
    board, steps, _, _ = case
    now = conditions.snapshot(write(root, board, steps[-1]))["throttled_bits"]
    return isinstance(now, int) and bool(now & 0xF)


def test_every_disturbance_is_flagged_and_nothing_else(scratch: Path) -> None:
    campaign = Campaign("boards", PROMISED)
    campaign.share = 1.0  # they take moments
    missed = 0
    both = {**flagged(), **clean()}
    order = list(both)
    campaign.random.shuffle(order)
    for number, name in enumerate(order):
        case = both[name]
        root = scratch / f"board{number}"
        reason, word = told(root, case), case[3]
        campaign.hit("flagged" if word else "clean")
        if word and (reason is None or word not in reason):
            campaign.fail(f"{name}: not flagged with '{word}', but: {reason}")
        if word is None and reason is not None:
            campaign.fail(f"{name}: falsely flagged: {reason}")
        missed += word is not None and not naive(scratch / f"naive{number}", case)
    assert missed >= 10, "the negative control was not caught"
    campaign.facts = {"naive_missed_of": [missed, len(flagged())]}
    campaign.finish()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("a hot Pi after", True), ("the kernel cools a Jetson between", True), ("bit 2 set before", True),
        ("bit 0 set before", False), ("swapping in on a Pi", False), ("governor changed on a Pi", False),
    ],
)  # fmt: skip
def test_heat_counts_where_the_sustained_state_is_asked_for(name: str, counts: bool, scratch: Path) -> None:
    assert (told(scratch, flagged()[name], sustained=True) is None) == counts


def test_a_hot_board_is_waited_for_and_that_is_shown(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, said = write(scratch, PI4, {HEAT: "84000"}), []
    heat = iter(["78000", "71000", "69000"])

    def sleep(seconds: float) -> None:
        write(scratch, PI4, {HEAT: next(heat)})

    monkeypatch.setattr(watch.time, "sleep", sleep)
    watch.wait_until_cool(machine, said.append, lambda: None)
    assert [text.split("(")[1].split(")")[0] for text in said] == ["at 84 C", "at 78 C", "at 71 C"]


def test_a_board_that_stays_hot_is_not_waited_for_without_end(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "COOL_LIMIT_S", 0.2)
    monkeypatch.setattr(watch, "COOL_STEP_S", 0.05)
    assert 0.2 <= watch.wait_until_cool(write(scratch, PI4, {HEAT: "90000"}), lambda text: None, lambda: None) < 5


@pytest.mark.parametrize("seed", range(3))
def test_energy_is_the_integral_of_what_the_sensor_says(
    seed: int, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    steps = [(0.1 * n, draw.uniform(2.0, 12.0)) for n in range(50)]
    clock = iter([at for at, _ in steps] * 2)
    power = iter([watts for _, watts in steps] * 2)
    say: Callable[..., dict[str, object]] = lambda machine: {  # noqa: E731
        "power_w": next(power), "power_sensor": "s", "power_reason": None
    }  # fmt: skip
    monkeypatch.setattr(watch.sensors, "power", lambda machine: {"power_w": 1.0, "power_sensor": "s"})
    meter = watch.Meter(Machine(scratch))
    monkeypatch.setattr(watch.sensors, "power", say)
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(clock))
    stops = iter([False] * 49 + [True])
    monkeypatch.setattr(meter._stop, "wait", lambda seconds: next(stops))
    meter._read()
    truth = 1e3 * sum(0.1 * (a + b) / 2 for (_, a), (_, b) in itertools.pairwise(steps))
    assert meter.energy_mj() == pytest.approx(truth, rel=1e-6)


PI5: dict[str, str] = {
    **PI4,
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "commands/vcgencmd_pmic_read_adc": " VDD_CORE_A current(7)=3.00000000A\n VDD_CORE_V volt(15)=1.00000000V\n",
}


def test_a_whole_agent_waits_for_a_hot_board_and_measures_its_energy(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle", export, tiny_architecture())
    write(scratch, PI5, {HEAT: "84000"})
    monkeypatch.setenv("MERINO_EDGE_MACHINE", str(scratch))
    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        write(scratch, PI5, {HEAT: "50000"})

    with open_device(dataclasses.replace(local_entry(), root=str(tmp_path / "root"))) as device:
        device.on_note = note
        (found,) = device.measure(bundle, [TestSpec("tg", 16)], budget_s=0.2)
    assert said
    assert said[0].startswith("the board is too hot (at 84 C): waiting for it to cool, at most")
    assert found.conditions["cooled_for_s"] > 0
    assert found.energy_mj is not None
    slowest_s = 100.0  # on a loaded machine; 3 W for that long
    assert 0 < found.energy_mj < 3 * 1e3 * slowest_s


def test_a_model_that_does_not_fit_the_free_memory_is_never_loaded(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle", export, tiny_architecture())
    write(scratch, PI5, {MEMORY: "MemTotal:  3884000 kB\nMemAvailable:  20000 kB\n"})
    monkeypatch.setenv("MERINO_EDGE_MACHINE", str(scratch))
    with (
        open_device(dataclasses.replace(local_entry(), root=str(tmp_path / "root"))) as device,
        pytest.raises(MeasurementError, match="19 MiB are free on the device"),
    ):
        device.measure(bundle, [TestSpec("tg", 16)], budget_s=0.2)


def test_a_board_without_a_sensor_gives_no_energy_and_says_why(scratch: Path) -> None:
    meter = watch.Meter(write(scratch, PI4, {}))
    assert meter.reason == "this Raspberry Pi has no power sensor"
