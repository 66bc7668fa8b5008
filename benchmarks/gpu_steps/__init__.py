"""The steps of `python -m benchmarks.gpu`: what has to be true on a GPU, by the product's own functions.

A step is a generator of checks. `STEPS` names each step's function and the seconds after which it is ended.
"""

from typing import NamedTuple


class Step(NamedTuple):
    """A function `Bench -> Iterator[Check]` as module:function, and its limit in seconds."""

    function: str
    limit: int


STEPS = {
    "env": Step("benchmarks.gpu_steps.basics:environment", 40),
    "dtypes": Step("benchmarks.gpu_steps.basics:dtypes", 60),
    "flex": Step("benchmarks.gpu_steps.attention:flex", 100),
    "kernel": Step("benchmarks.gpu_steps.attention:kernel", 45),
    "resume": Step("benchmarks.gpu_steps.recovery:resume", 110),
    "parity": Step("benchmarks.gpu_steps.recovery:parity", 90),
    "gradient": Step("benchmarks.gpu_steps.speed:gradient", 60),
    "speed": Step("benchmarks.gpu_steps.speed:product", 110),
    "memory": Step("benchmarks.gpu_steps.memory:out_of_memory", 60),
    "fp16": Step("benchmarks.gpu_steps.memory:half_precision", 45),
    "7B": Step("benchmarks.gpu_steps.memory:seven_billion", 150),
    "peers": Step("benchmarks.gpu_steps.speed:peers", 110),
}
