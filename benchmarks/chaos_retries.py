"""Steps that are repeated as tasks repeat them, on a clock of their own: the pauses between the tries take no time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tasks.recovery import NETWORK, may_be_gone
from tasks.versions import RegistryError

Done = TypeVar("Done")


@dataclass
class Clock:
    """Seconds that pauses would have taken."""

    now: float = 0.0


def repeat(step: Callable[[], Done], clock: Clock | None = None) -> Done:
    """What the step returns, tried again after the errors and as often as the policy of ``tasks.recovery`` says."""
    clock, delays = clock or Clock(), NETWORK["retry_delay_seconds"]
    for count in range(1, len(delays) + 1):
        try:
            return step()
        except (RegistryError, OSError) as error:
            if not may_be_gone(error, count):
                raise
        clock.now += delays[count - 1]
    return step()
