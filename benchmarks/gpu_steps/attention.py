"""The attention of packs on a GPU: equal to the reference, equal to itself, few graphs, and fast."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask

from benchmarks.gpu_steps.bench import Bench
from benchmarks.gpu_steps.checks import Check, below, figure, holds, relative_error
from training_core.packing.attention import attend_in_segments
from training_core.packing.blocks import Heads, attend_in_blocks, block_mask, pad_to_blocks

HEADS = tuple(Heads(*counts, 128) for counts in ((12, 2), (28, 4), (32, 8)))
LENGTHS = (7_723, 5_120, 3_001, 1_024, 640, 129, 128, 1)
REPEATS = 10


def flex(bench: Bench) -> Iterator[Check]:
    """Output and gradients of packs of many lengths against SDPA in fp32, one call per segment."""
    counters.clear()
    for heads in HEADS[:1] if bench.tiny else HEADS:
        packs = [Pack.of(tokens, heads, bench.device) for tokens in ((129, 1) if bench.tiny else LENGTHS)]
        errors, repeatable = zip(*map(compare, packs), strict=True)
        name = f"{heads.queries}/{heads.keys} heads"
        yield below(f"worst relative error, {name}", max(errors), 1e-2)
        yield holds(f"two runs equal, {name}", all(repeatable), True)
    yield below("graphs compiled", counters["stats"]["unique_graphs"], 9)


class Pack(NamedTuple):
    """Queries, keys and values in bf16, and the segments, padded as the model's hook pads a pack."""

    states: list[Tensor]
    segments: Tensor

    @classmethod
    def of(cls, tokens: int, heads: Heads, device: str) -> "Pack":
        """Random states; half the tokens are a prefix that two rows share, and one row has none."""
        shared, row = tokens // 2, tokens // 6
        parts = [[shared, -1], [row, 0], [row, 0], [tokens - shared - 2 * row, -1]] if row else [[tokens, -1]]
        positions = torch.zeros(1, tokens, dtype=torch.long, device=device)
        inputs = {"position_ids": positions, "segments": torch.tensor(parts, device=device)}
        segments = pad_to_blocks(inputs, heads)["segments"]
        torch.manual_seed(tokens)
        shapes = [
            (1, count, int(segments[:, 0].sum()), heads.size) for count in (heads.queries, heads.keys, heads.keys)
        ]
        return cls([torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in shapes], segments)

    def mask(self) -> BlockMask:
        return block_mask(self.segments, self.states[0].shape[2])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend_in_blocks(query, key, value, self.mask(), scaling=query.shape[-1] ** -0.5)


def compare(pack: Pack) -> tuple[float, bool]:
    """The worst relative error, in training and without gradients, and whether two runs are equal bit by bit."""
    results = output_and_gradients if pack.segments.is_cuda else output_alone
    first, again = (results(pack.attend, pack.states) for _ in range(2))
    reference = partial(attend_in_segments, segments=pack.segments, scaling=pack.states[0].shape[-1] ** -0.5)
    exact = results(reference, [state.float() for state in pack.states])
    (held_out,) = output_alone(pack.attend, pack.states)
    equal = all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    return max(relative_error(held_out, exact[0]), *map(relative_error, first, exact)), equal


@torch.no_grad()
def output_alone(attend: Callable[..., Tensor], states: list[Tensor]) -> list[Tensor]:
    """The output without gradients; on a CPU flex_attention has none."""
    return [attend(*states)]


def output_and_gradients(attend: Callable[..., Tensor], states: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values for a fixed random gradient of the output."""
    inputs = [state.detach().requires_grad_() for state in states]
    output = attend(*inputs)
    generator = torch.Generator(output.device).manual_seed(0)
    gradient = torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def kernel(bench: Bench) -> Iterator[Check]:
    """Time of one layer's attention, 28 heads and 8,192 tokens, and of the mask of a pack."""
    if bench.device == "cpu":
        yield figure("kernel", "not measured: needs a GPU")
        return
    pack = Pack.of(8_192, HEADS[1], bench.device)
    layouts = {"one row": [[8_192, -1]], "8 rows share 800 tokens": [[800, -1], *[[924, 0]] * 8]}
    for name, parts in layouts.items():
        yield from _times(name, pack._replace(segments=torch.tensor(parts, device=bench.device)))


def _times(name: str, pack: Pack) -> Iterator[Check]:
    """A step computes the mask once, and attention in each of 28 layers."""
    mask, scaling = pack.mask(), HEADS[1].size ** -0.5
    attend = partial(attend_in_blocks, mask=mask, scaling=scaling)
    milliseconds, of_mask = timed(lambda: output_and_gradients(attend, pack.states)), timed(pack.mask)
    yield below(f"forward and backward, {name}, ms", milliseconds, 15.0)
    yield figure(f"mask, {name}, ms", of_mask)
    yield below(f"mask, {name}, share of 28 layers' attention", of_mask / (28 * milliseconds), 0.1)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds, median of repeats after two warm-ups."""
    for _ in range(2):
        work()
    laps = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        laps.append(1_000 * (time.perf_counter() - started))
    return median(laps)
