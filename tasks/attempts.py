"""An end to runs that die again and again."""

from prefect.runtime import flow_run

MOST_ATTEMPTS = 8


def limit_attempts() -> None:
    """Raises ``RuntimeError`` when this run has been started too often; crashes and retries both count."""
    if flow_run.run_count > MOST_ATTEMPTS:
        raise RuntimeError(
            f"this run has been started {MOST_ATTEMPTS} times without coming to an end; its log says how far it came. "
            "A new run with the same settings goes on from the last checkpoint"
        )
