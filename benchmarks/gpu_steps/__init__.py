"""The steps of `python -m benchmarks.gpu`: what has to be true on a GPU, by the product's own functions.

A step is a generator of checks. `STEPS` names each step's function and the seconds after which it is ended.
"""

from typing import NamedTuple


class Step(NamedTuple):
    """A function `Bench -> Iterator[Check]` as module:function, and its limit in seconds."""

    function: str
    limit: int


STEPS = {
    "env": Step("benchmarks.gpu_steps.environment:environment", 60),
    "dtypes": Step("benchmarks.gpu_steps.dtypes:dtypes", 75),
    "flex": Step("benchmarks.gpu_steps.attention:flex", 120),
    "kernel": Step("benchmarks.gpu_steps.attention:kernel", 60),
    "gradient": Step("benchmarks.gpu_steps.speed:gradient", 75),
    "resume": Step("benchmarks.gpu_steps.recovery:resume", 120),
    "parity": Step("benchmarks.gpu_steps.recovery:parity", 120),
    "speed": Step("benchmarks.gpu_steps.speed:speed", 180),
    "7B": Step("benchmarks.gpu_steps.memory:seven_billion", 180),
    "memory": Step("benchmarks.gpu_steps.memory:out_of_memory", 75),
    "fp16": Step("benchmarks.gpu_steps.memory:half_precision", 60),
    "sharding": Step("benchmarks.gpu_steps.sharded:sharding", 180),
}
