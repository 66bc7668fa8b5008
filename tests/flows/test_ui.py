"""`ui` shows the servers of the environment, and starts those that are missing; a run names one that it lacks."""

from pathlib import Path

import pytest

from flows import cli
from training_core.config import SettingsError


def test_ui_shows_the_addresses_of_servers_and_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.signal, "pause", interrupted)
    monkeypatch.setattr(cli, "require_servers", lambda _: None)
    for server in ("prefect_server", "mlflow_server"):
        monkeypatch.setattr(cli, server, None)  # calling it would fail
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    cli.ui(["--output_dir", str(tmp_path)])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Prefect: http://prefect.example:4200/runs"
    assert shown[1].startswith("MLflow:  http://mlflow.example:5000/#/")


def test_ui_of_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a folder of runs, found none"):
        cli.ui(["--output_dir", str(tmp_path / "typo")])
    assert not list(tmp_path.iterdir())


def test_training_on_another_pool_needs_the_server_of_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    cli.require_servers(tmp_path)
    with pytest.raises(SettingsError, match=r"train_on: .*set PREFECT_API_URL to their Prefect server"):
        cli.require_servers(tmp_path, needs_prefect=True)
