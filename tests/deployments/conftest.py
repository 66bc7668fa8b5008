"""One team set-up for all tests that need one: it takes most of a minute to start."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.up import Servers, team


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The parent of all workers' folders. Not in pytest's folders, to which PostgreSQL's user has no access when root
    runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def servers(home: Path) -> Iterator[Servers]:
    """Servers, deployments and workers."""
    with team(home) as found:
        yield found
