"""One team for all tests that need one: it takes most of a minute to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.up import Servers, team


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which each worker has one of its own."""
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="session")
def servers(home: Path) -> Iterator[Servers]:
    """Servers, deployments and workers."""
    with team(home) as found:
        yield found
