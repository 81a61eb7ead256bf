"""The run that all these tests look at, made once."""

from __future__ import annotations

import pytest
from stages import Ring, go_round  # type: ignore[import-not-found]


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Ring:
    """Return the stages of one run; see `go_round`."""
    return go_round(tmp_path_factory.mktemp("ring"))
