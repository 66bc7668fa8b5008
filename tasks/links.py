"""Links from an MLflow run to its Prefect flow run, and back."""

from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from tasks.tracking import DESCRIPTION_TAG, FLOW_RUN_TAG, run_page, tag_run
from training_core.config import RunConfig


def link_both_ways(config: RunConfig, tracking_run_id: str) -> None:
    """Put a link to the current flow run into the MLflow run's description, and one to the MLflow run, where it has a
    page, into Prefect's artifacts."""
    root = flow_run.root_flow_run_id
    description = f"[Prefect flow run {root}]({url_for('flow-run', root)})"
    tag_run(config, tracking_run_id, {FLOW_RUN_TAG: root, DESCRIPTION_TAG: description})
    page = run_page(config, tracking_run_id)
    if page:
        create_link_artifact(page, f"MLflow run {tracking_run_id}", key="mlflow-run", description="Curve and scores")
