"""One team for all tests that need one: it takes most of a minute to start."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.up import Servers, team


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """The folder below which each worker has one of its own; outside pytest's folders, which PostgreSQL's user may not
    enter when root runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def servers(home: Path) -> Iterator[Servers]:
    """Servers, deployments and workers."""
    with team(home) as found:
        yield found
