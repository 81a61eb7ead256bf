"""What tests of the flows share."""

from __future__ import annotations

import pytest

from merino_edge.flows import devices
from merino_edge.testing import FakeDevice


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """Return a device that answers as a board would, in place of this machine."""
    device = FakeDevice("local")
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: device)
    return device
