"""Addresses with a password are hidden where they are shown, and refused where they would be stored; links are for
people."""

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.utilities.urls import url_for

from tasks import tracking
from tasks.artifact_store import store_problems
from tasks.commands import mlflow_command
from tasks.tracking import run_page, tracking_uri
from training_core.config import RunConfig, SettingsError

DATABASE = "postgresql://me:secret@host/mlflow"


def test_login_in_the_address_of_mlflow_is_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    with pytest.raises(SettingsError, match=r"set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as caught:
        tracking_uri(config)
    assert "secret" not in str(caught.value)


def test_password_of_a_database_is_used_and_not_shown(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    assert tracking_uri(config) == DATABASE, "MLflow has no other place for it"
    command = mlflow_command(DATABASE, "runs", "restore", "--run-id", "1")
    assert command == "mlflow runs restore --run-id 1", "the environment has the address"
    assert mlflow_command("sqlite:///a b", "gc") == "MLFLOW_TRACKING_URI='sqlite:///a b' mlflow gc"
    assert "secret" not in str(SettingsError([f"{DATABASE} does not answer"]))


def test_password_in_the_address_of_the_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_FLOW_STORE", "s3://key:secret@bucket/store")
    (problem,) = store_problems(needed=True)
    assert problem.startswith("SFT_FLOW_STORE: expected an address without a password, got 's3://***@bucket/store'")


def test_links_lead_to_the_addresses_of_browsers(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a container network reach the servers by names that a browser does not know."""
    client = tracking.connect(config)
    run = client.create_run(tracking.experiment_id(client, config)).info.run_id
    assert run_page(config, run) is None, "a SQLite file has no page"
    monkeypatch.setenv("SFT_FLOW_MLFLOW_URL", "http://public.example:5000/")
    page = run_page(config, run)
    assert page and page.startswith("http://public.example:5000/#/experiments/")
    settings = {PREFECT_API_URL: "http://prefect:4200/api", PREFECT_UI_URL: "http://public.example:4200"}
    with temporary_settings(settings):
        assert url_for("flow-run", run) == f"http://public.example:4200/runs/flow-run/{run}"
