"""Recovers stuck runs every few minutes, for events that the automations never received."""

from prefect import flow

from tasks.janitor import find_stuck_runs, recover_run
from tasks.run_names import name_by_time


@flow(name="janitor-flow", flow_run_name=name_by_time)
def janitor_flow() -> int:
    """Crash silent runs, resume crashed ones, and fail runs that crash again and again; returns their number."""
    stuck = find_stuck_runs()
    for run in stuck:
        recover_run(run)
    return len(stuck)
