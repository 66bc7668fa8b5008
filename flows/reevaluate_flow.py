"""The registry's candidate judged again: on new held-out rows, or against a champion that came after it."""

from prefect import flow

from flows.parameters import takes_settings
from training_core.config import RunConfig


@flow(name="reevaluate-flow")
@takes_settings
def reevaluate_flow(config: RunConfig) -> None:
    """Judge the candidate anew; promote it if it has earned that by now."""
    raise NotImplementedError
