"""The power goes at any state change of the agent's store, and what was not flushed is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import scenarios
from campaign import Campaign
from forgetful_disk import ForgetfulDisk, forgetful_disk, in_a_process, needs_fuse

PROMISED = 600
HOWS = ("all", "some", "order")
TWICE = ("upgrade", "first install", "collect", "measure")

pytestmark = [needs_fuse, pytest.mark.timeout(3600)]


@pytest.fixture
def disk(scratch: Path) -> Iterator[ForgetfulDisk]:
    with forgetful_disk(scratch / "mount") as made:
        yield made


class Trials:
    """One scenario on the disk, cut again and again from the same beginning."""

    def __init__(self, disk: ForgetfulDisk, scenario: str, seed: int) -> None:
        self.disk, self.scenario, self.seed = disk, scenario, seed
        self.root = disk.mount / "home" / "root"

    def begin(self) -> int:
        """Make the beginning, remember it; return how many state changes the uncut scenario takes."""
        self.disk.order("back")
        assert in_a_process(lambda: scenarios.prepare(self.root, self.scenario, self.seed)) is None
        self.disk.order("crash", seed=0, how="all")  # what was prepared must be safe by itself
        self.disk.order("keep")
        self.disk.order("arm", at=0)
        assert in_a_process(self.work) is None
        return int(self.disk.order("count")["count"])

    def work(self) -> None:
        """Do what is cut."""
        scenarios.run(self.root, self.scenario, self.seed)

    def cut(self, at: int, how: str, seed: str, killed_at: int = 0) -> tuple[bool, str | None]:
        """Cut the power at a state change; return whether it hit, and what is wrong afterwards.

        With `killed_at` the work is killed there first, the power staying on, and the power goes in the work after it.
        """
        self.disk.order("back")
        if killed_at:
            self.disk.order("arm", at=killed_at)
            in_a_process(self.work)
        self.disk.order("arm", at=at)
        said = in_a_process(self.work)
        hit = bool(self.disk.order("count")["hit"])
        self.disk.order("crash", seed=seed, how=how)
        expected = scenarios.allowed(self.scenario) if said else {scenarios.finished(self.scenario)}
        if hit and said is None and self.scenario != "naive put":
            return hit, "it said that all was done although the power had gone"
        if self.scenario == "naive put":
            return hit, None if scenarios.naive_is_whole(self.root, self.seed) else "neither the old nor the new model"
        if killed_at:  # what was killed may have been done already, and an installation after it is one more
            expected |= {1, 2, 3, 4} if said is None or self.scenario in ("upgrade", "first install") else set()
        return hit, scenarios.check(self.root, expected, self.seed)


def test_what_was_not_flushed_may_be_lost_and_no_release_with_it(disk: ForgetfulDisk) -> None:
    campaign = Campaign("power", PROMISED)
    disk.order("keep")  # the empty disk
    share = campaign.portion(PROMISED + 90, least=6) / len(scenarios.SCENARIOS)
    for scenario in scenarios.SCENARIOS:
        with_empty_disk(disk)
        trials = Trials(disk, scenario, campaign.seed)
        changes = trials.begin()
        for number in range(max(2, round(share))):
            at = changes + 1 if number == 0 else campaign.random.randint(1, changes)
            how = HOWS[number % len(HOWS)]
            seed = f"{campaign.seed} {number}"
            killed_at = campaign.random.randint(1, changes) if number % 4 == 3 and scenario in TWICE else 0
            hit, wrong = trials.cut(at, how, seed, killed_at)
            if hit or at > changes:
                campaign.hit(f"{scenario}, {how}" + (", after a kill" if killed_at else ""))
            if wrong:
                place = f"change {at} of {changes}, '{how}' lost" + f", killed before at {killed_at}" * bool(killed_at)
                campaign.fail(f"{scenario}, power lost at {place}: {wrong}")
    campaign.facts = {"naive_broken_of": broken_without_care(disk, campaign)}
    campaign.finish()


def with_empty_disk(disk: ForgetfulDisk) -> None:
    """Empty the disk, and remember that as what to go back to."""
    disk.order("back")
    for path in sorted(disk.mount.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    disk.order("keep")


def broken_without_care(disk: ForgetfulDisk, campaign: Campaign) -> dict[str, list[int]]:
    """Return (times broken, cuts) of each implementation without care; every one of them must fail."""
    found = {}
    for scenario in scenarios.NAIVE:
        with_empty_disk(disk)
        trials = Trials(disk, scenario, campaign.seed)
        changes = trials.begin()
        broken = tried = 0
        while tried < campaign.portion(60, least=10) or (not broken and tried < 60):
            at = changes + 1 if tried % 3 == 0 else campaign.random.randint(1, changes)
            broken += trials.cut(at, HOWS[tried % 2], f"{campaign.seed} {tried}")[1] is not None
            tried += 1
        assert broken, f"the negative control '{scenario}' was not caught"
        found[scenario] = [broken, tried]
    return found
