"""A worker of the team set-up has the time that its training needs to end."""

import signal
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest

from deployments import up
from training_core.training import interruption


def test_ending_worker_waits_for_the_checkpoint_of_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = MagicMock()
    monkeypatch.setattr(up, "child_process", start)
    with up.worker("gpu", tmp_path, Mock(worker_environment=dict)):
        pass
    assert start.call_args.kwargs["seconds_to_end"] > interruption._SECONDS_TO_SAVE[signal.SIGTERM]
