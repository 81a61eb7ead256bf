"""A disk that refuses, at any call: no traceback, no false success, the old release lives."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import board
import pytest
from campaign import Campaign
from forgetful_disk import ForgetfulDisk, forgetful_disk, needs_fuse

from merino_edge.agent.releases import Releases
from merino_edge.agent.store import Store
from merino_edge.bundle import Bundle
from merino_edge.device.agent_link import AgentLink
from merino_edge.device.releases import install_bundle
from merino_edge.errors import MerinoEdgeError
from merino_edge.exporters.to_onnx import export
from merino_edge.testing import tiny_architecture, write_bundle

PROMISED = 420
FOR_EVER = 10**9
ERRORS = {  # how often, and which calls fail
    errno.EIO: (1, "all"),
    errno.ENOSPC: (FOR_EVER, "changes"),
    errno.EDQUOT: (FOR_EVER, "changes"),
    errno.EROFS: (FOR_EVER, "changes"),
    errno.EMFILE: (1, "open"),
}

Work = Callable[[AgentLink], object]

pytestmark = [needs_fuse, pytest.mark.timeout(3600)]


@pytest.fixture
def disk(scratch: Path) -> Iterator[ForgetfulDisk]:
    with forgetful_disk(scratch / "mount") as made:
        yield made


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    old, new = (tmp_path_factory.mktemp(name) for name in ("old", "new"))
    return write_bundle(old, export, tiny_architecture()), write_bundle(new, export, tiny_architecture(), seed=1)


def counted(disk: ForgetfulDisk, work: Work, calls: str) -> int:
    """Return how many calls of a kind the work takes where nothing fails."""
    disk.order("back")
    disk.order("arm", at=0, calls=calls)
    link, _ = board.start(disk.mount / "root")
    work(link)
    link.close()
    return int(disk.order("count")["count"])


def test_a_disk_that_refuses_is_named_and_nothing_is_lost(disk: ForgetfulDisk, bundles: tuple[Bundle, Bundle]) -> None:
    campaign = Campaign("errors", PROMISED)
    old, new = bundles
    root = disk.mount / "root"
    link, _ = board.start(root)
    for bundle in (old, old, old):
        install_bundle(link, bundle, board.RUNTIME)
    link.close()
    disk.order("keep")
    works: dict[str, Work] = {
        "install": lambda link: install_bundle(link, new, board.RUNTIME),
        "rollback": lambda link: link.ask("activate", release=2),
        "collect": lambda link: link.ask("collect", keep=1),
    }
    kinds = {kind for _, kind in ERRORS.values()}
    calls = {name: {kind: counted(disk, work, kind) for kind in sorted(kinds)} for name, work in works.items()}
    for number in range(campaign.portion(PROMISED + 80, least=8)):
        code = list(ERRORS)[number % len(ERRORS)]
        name = campaign.random.choices(list(works), weights=[6, 1, 3])[0]
        at = campaign.random.randint(1, calls[name][ERRORS[code][1]])
        refuse(campaign, disk, new, name, works[name], code, at)
    campaign.facts = {"calls": calls, "naive_broken_of": broken_by_naive_put(disk, campaign)}
    campaign.finish()


def refuse(campaign: Campaign, disk: ForgetfulDisk, new: Bundle, name: str, work: Work, code: int, at: int) -> None:
    """Let one call fail, and judge what came of it."""
    times, calls = ERRORS[code]
    root, place = disk.mount / "root", f"{name}, {errno.errorcode[code]} at call {at}"
    disk.order("back")
    disk.order("arm", at=at, errno=code, calls=calls, **{"for": times})
    done, said = False, ""
    try:
        link, channel = board.start(root)
        try:
            work(link)
            done = True
        finally:
            said = channel.stderr_tail()
            link.close()
    except MerinoEdgeError as error:
        said += f" {error.details}"
        if not board.is_plain(error):
            campaign.fail(f"{place}: no plain word: {error.message!r}, next: {error.hint!r}")
    except Exception as error:  # noqa: BLE001  whatever comes out is what the campaign looks for
        campaign.fail(f"{place}: {type(error).__name__}: {error}")
    if disk.order("count")["hit"]:
        campaign.hit(f"{name}, {errno.errorcode[code]}")
    disk.order("arm", at=0)
    if "Traceback" in said:
        campaign.fail(f"{place}: a traceback: {said[-300:]}")
    if name == "rollback" and done and Releases(Store(root)).current() != 2:
        campaign.fail(f"{place}: it said that all was done")
    former = 2 if name == "rollback" and Releases(Store(root)).current() == 2 else 3
    if wrong := board.what_is_wrong(root, former, new, done and name == "install"):
        campaign.fail(f"{place}: {wrong}")


def broken_by_naive_put(disk: ForgetfulDisk, campaign: Campaign) -> list[int]:
    """Return (models left broken, refusals) of writing over the files in use; it must fail."""
    target, content = disk.mount / "model", b"new" * 1000
    broken, tried = 0, campaign.portion(20, least=4)
    for number in range(tried):
        disk.order("arm", at=0)
        target.write_bytes(b"old" * 1000)
        disk.order("arm", at=2 + number % 2, errno=errno.ENOSPC, **{"for": FOR_EVER})
        try:
            target.write_bytes(content)
        except OSError:
            disk.order("arm", at=0)
            broken += target.read_bytes() not in (content, b"old" * 1000)
    disk.order("arm", at=0)
    assert broken, "the negative control was not caught"
    return [broken, tried]


@pytest.mark.parametrize("limit", [5, 6, 7])
def test_an_agent_with_too_few_open_files_says_so(limit: int, scratch: Path, bundles: tuple[Bundle, Bundle]) -> None:
    from merino_edge.device.transport import LocalTransport

    root = scratch / "root"
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("not installed: prlimit")
    channel = LocalTransport().open([prlimit, f"--nofile={limit}", *board.agent_argv(root)])
    try:
        link = AgentLink(channel, "the board")
        install_bundle(link, bundles[0], board.RUNTIME)
        link.close()
    except MerinoEdgeError as error:
        assert error.message.isprintable()
        assert "Traceback" not in error.message
    assert board.what_is_wrong(root, None, bundles[0], said_done=False) is None
