"""What is watched while a model runs: a board that must cool first, what comes and goes, heat that stays, power.

A snapshot before and one after miss what came and went between them, so there are some between the
passes as well, never inside one. Energy is measured in a pass of its own, which is not timed.
"""

from __future__ import annotations

import threading
import time
from typing import Callable

from merino_edge.agent import conditions, core_distance, sensors
from merino_edge.agent.facts import Machine

LOOK_EVERY_S = 0.5
COOL_LIMIT_S = 180.0  # that a hot board is waited for
COOL_STEP_S = 2.0
SAY_EVERY_S = 5.0
STEADY_LIMIT_S = 300.0  # for a board to become as hot as it gets
STEADY_S = 30.0
STEADY_RISE_C = 1.0  # within `STEADY_S`: no longer rising
POWER_EVERY_S = 0.05
LEAST_READINGS = 5
MOVED_LIMIT_S = 60.0  # that the host of a virtual machine is waited for, in one measurement
MOVED_STEP_S = 0.5
MOST_LOOKS = 64  # that a record keeps


class Watch:
    """Looks at the machine between the passes of one test.

    Args:
        machine: Where to look.
        distance: Measures how far apart the cores stand, None where that cannot be told.
    """

    def __init__(self, machine: Machine, distance: core_distance.Distance = lambda: None) -> None:
        self._machine = machine
        self._distance = distance
        self.distances: list[float] = []
        self._measure_distance()
        self._looked = time.monotonic()
        self.before = conditions.snapshot(machine)
        self.during: list[dict[str, object]] = []

    def between(self) -> None:
        """Look again, unless that was done a moment ago."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self.during.append(conditions.snapshot(self._machine))
            self._measure_distance()
            self._looked = time.monotonic()

    def _measure_distance(self) -> None:
        found = self._distance()
        if found is not None:
            self.distances.append(found)

    def reason(
        self, queued_share: float | None, sustained: bool, usual_ns: float | None = None
    ) -> tuple[str | None, dict[str, object]]:
        """Look for the last time; return why the test does not count, and what was seen.

        Args:
            queued_share: Of the time that a thread stood in the queue for a core, where known.
            sustained: The hot state is what was asked for.
            usual_ns: How far apart the cores usually stand; None where nobody knows yet.
        """
        after = conditions.snapshot(self._machine)
        self._measure_distance()
        reasons = (
            conditions.invalid_reason(self.before, after, queued_share, self.during, sustained),
            core_distance.moved(self.distances, usual_ns),
        )
        reason = "; ".join(r for r in reasons if r) or None
        seen: dict[str, object] = {"before": self.before, "after": after, "queued_share": queued_share}
        seen["core_distances_ns"] = self.distances[-MOST_LOOKS:]
        if self.during:
            seen["during"] = self.during[-8:] if reason is None else self.during[-MOST_LOOKS:]
        seen["state"] = "sustained" if sustained else "cold start"
        return reason, seen


def wait_until_cool(machine: Machine, say: Callable[[str], None], check: Callable[[], None]) -> float:
    """Wait for a board that is too hot to measure, at most `COOL_LIMIT_S`; returns the seconds it took."""
    started = time.monotonic()
    while time.monotonic() - started < COOL_LIMIT_S:
        now = conditions.snapshot(machine)
        if not conditions.is_hot(now):
            break
        check()
        left = COOL_LIMIT_S - (time.monotonic() - started)
        heat = now.get("temperature_c")
        degrees = f"at {heat:.0f} C" if isinstance(heat, float) else "throttled"
        say(f"the board is too hot ({degrees}): waiting for it to cool, at most {left:.0f} s more")
        time.sleep(min(COOL_STEP_S, max(0.0, left)))
    return time.monotonic() - started


def wait_until_back(
    distance: core_distance.Distance,
    usual_ns: float | None,
    limit_s: float,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> float:
    """Wait until the host of a virtual machine puts its processors where they usually are; returns the seconds.

    Args:
        distance: Measures how far apart the cores stand.
        usual_ns: What it usually tells; None waits for nothing.
        limit_s: At most so long.
        say: Hears how it goes.
        check: Raises where the host takes the request back.
    """
    started = time.monotonic()
    said = started - SAY_EVERY_S
    while usual_ns is not None:
        found, waited = distance(), time.monotonic() - started
        reason = core_distance.moved([found] if found is not None else [], usual_ns)
        if reason is None or waited >= limit_s:
            break
        check()
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"{reason}: waiting for it to move them back, at most {limit_s - waited:.0f} s more")
        time.sleep(MOVED_STEP_S)
    return time.monotonic() - started


def run_until_steady(
    machine: Machine,
    run: Callable[[], object],
    say: Callable[[str], None],
    check: Callable[[], None],
    before_c: object = None,
) -> float:
    """Run a model until its board gets no hotter, at most `STEADY_LIMIT_S`; returns the seconds it took.

    Args:
        machine: Where to look.
        run: Runs the model for a moment.
        say: Hears how it goes.
        check: Raises where the host takes the request back.
        before_c: How hot the board was when it was steady a while ago: it need only become so again.
    """
    started = marked = time.monotonic()
    said = started - SAY_EVERY_S
    coolest = hottest = conditions.snapshot(machine).get("temperature_c")
    while time.monotonic() - started < STEADY_LIMIT_S:
        check()
        run()
        now = conditions.snapshot(machine).get("temperature_c")
        if isinstance(now, float) and isinstance(coolest, float) and isinstance(hottest, float):
            hottest = max(hottest, now)
            if hottest - coolest > STEADY_RISE_C:
                coolest, marked = hottest, time.monotonic()
        waited = time.monotonic() - marked
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            heat = f"{now:.0f} C" if isinstance(now, float) else "no sensor"
            say(f"heating up to a steady state: {heat}, steady for {waited:.0f} of {STEADY_S:.0f} s")
        as_before = isinstance(now, float) and isinstance(before_c, float) and now >= before_c - STEADY_RISE_C
        if as_before or waited >= STEADY_S:
            break
    return time.monotonic() - started


class Meter:
    """Reads the power sensor while something runs, and adds up.

    Args:
        machine: Whose sensor.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._readings: list[tuple[float, float]] = []
        self._stop = threading.Event()
        first = sensors.power(machine)
        self.sensor = first["power_sensor"]
        self.reason = None if first["power_w"] is not None else str(first["power_reason"])

    def __enter__(self) -> Meter:
        """Begin to read."""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Read for the last time."""
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while True:
            watts = sensors.power(self._machine)["power_w"]
            if isinstance(watts, float):
                self._readings.append((time.monotonic(), watts))
            if self._stop.wait(POWER_EVERY_S):
                return

    def energy_mj(self) -> float | None:
        """Return the energy between the first and the last reading in millijoules, by the trapezoid rule.

        None, with `reason`, where there were too few.
        """
        if len(self._readings) < LEAST_READINGS:
            self.reason = self.reason or f"the power sensor answered {len(self._readings)} times only"
            return None
        pairs = zip(self._readings, self._readings[1:])
        return 1e3 * sum((t2 - t1) * (w1 + w2) / 2 for (t1, w1), (t2, w2) in pairs)

    def seconds(self) -> float:
        """Return the time between the first and the last reading."""
        return self._readings[-1][0] - self._readings[0][0] if self._readings else 0.0
