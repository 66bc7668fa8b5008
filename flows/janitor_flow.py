"""Every few minutes: runs that nobody looks after any more, whatever events were lost on the way."""

from prefect import flow

from tasks.janitor import find_abandoned, settle


@flow(name="janitor-flow")
def janitor_flow() -> int:
    """Give up silent runs, resume crashed ones, end those that crash for ever; returns how many were settled."""
    abandoned = find_abandoned()
    for run in abandoned:
        settle(run)
    return len(abandoned)
