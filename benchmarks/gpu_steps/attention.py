"""The attention of packs on a GPU: equal to the reference, equal to itself, few graphs, and fast."""

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.gpu_steps.bench import Bench
from benchmarks.gpu_steps.checks import Check, below, figure, holds, relative_error
from training_core.packing.attention import attend_in_segments
from training_core.packing.blocks import attend_in_blocks, block_mask, pad_to_blocks

HEADS = ((12, 2), (28, 4), (32, 8))
LENGTHS = (7_723, 5_120, 3_001, 1_024, 640, 129, 128, 1)
HEAD_SIZE, REPEATS = 128, 10


def flex(bench: Bench) -> Iterator[Check]:
    """Output and gradients of packs of many lengths against SDPA in fp32, one call per segment."""
    counters.clear()
    heads, lengths = (HEADS[:1], (129, 1)) if bench.tiny else (HEADS, LENGTHS)
    for query_heads, key_heads in heads:
        worst, repeatable = 0.0, True
        for tokens in lengths:
            segments = pack_segments(tokens, bench.device)
            states = random_states(query_heads, key_heads, padded_tokens(segments), bench.device)
            first, again = in_blocks(states, segments), in_blocks(states, segments)
            repeatable &= all(torch.equal(*pair) for pair in zip(first, again, strict=True))
            exact = in_segments([state.float() for state in states], segments)
            worst = max(worst, *map(relative_error, first, exact))
            with torch.no_grad():
                worst = max(worst, relative_error(held_out(states, segments), exact[0]))
        yield below(f"worst relative error, {query_heads}/{key_heads} heads", worst, 1e-2)
        yield holds(f"two runs equal, {query_heads}/{key_heads} heads", repeatable, True)
    yield below("graphs compiled", counters["stats"]["unique_graphs"], 9)


def pack_segments(tokens: int, device: str) -> Tensor:
    """A prefix of half the tokens, two rows that share it, and a row without a prefix, as `collate_pack` gives them."""
    if tokens < 8:
        return torch.tensor([[tokens, -1]], device=device)
    shared, row = tokens // 2, tokens // 6
    lengths = [[shared, -1], [row, 0], [row, 0], [tokens - shared - 2 * row, -1]]
    return torch.tensor(lengths, device=device)


def padded(segments: Tensor) -> Tensor:
    """The segments of the pack as the model's hook pads it."""
    positions = torch.zeros(1, int(segments[:, 0].sum()), dtype=torch.long, device=segments.device)
    return pad_to_blocks({"position_ids": positions, "segments": segments})["segments"]


def padded_tokens(segments: Tensor) -> int:
    return int(padded(segments)[:, 0].sum())


def random_states(heads: int, key_heads: int, tokens: int, device: str) -> list[Tensor]:
    """Queries, keys and values in bf16."""
    torch.manual_seed(tokens)
    shapes = [(1, count, tokens, HEAD_SIZE) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, dtype=torch.bfloat16, device=device) for shape in shapes]


def held_out(states: list[Tensor], segments: Tensor) -> Tensor:
    """The output without gradients, as for the held-out loss."""
    mask = block_mask(padded(segments), states[0].shape[2])
    return attend_in_blocks(*states, mask, scaling=HEAD_SIZE**-0.5)


def in_blocks(states: list[Tensor], segments: Tensor) -> list[Tensor]:
    mask = block_mask(padded(segments), states[0].shape[2])
    return output_and_gradients(lambda *inputs: attend_in_blocks(*inputs, mask, scaling=HEAD_SIZE**-0.5), states)


def in_segments(states: list[Tensor], segments: Tensor) -> list[Tensor]:
    seen = padded(segments)
    return output_and_gradients(lambda *inputs: attend_in_segments(*inputs, seen, scaling=HEAD_SIZE**-0.5), states)


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
    tokens = 8_192
    states = random_states(28, 4, tokens, bench.device)
    for name, segments in {
        "one row": torch.tensor([[tokens, -1]], device=bench.device),
        "8 rows share 800 tokens": torch.tensor([[800, -1], *[[924, 0]] * 8], device=bench.device),
    }.items():
        mask = block_mask(segments, tokens)
        attend = lambda *inputs, mask=mask: attend_in_blocks(*inputs, mask, scaling=HEAD_SIZE**-0.5)  # noqa: E731
        milliseconds = timed(lambda attend=attend: output_and_gradients(attend, states))
        yield below(f"forward and backward, {name}, ms", milliseconds, 15.0)
        mask_time = timed(lambda segments=segments: block_mask(segments, tokens))
        yield figure(f"mask, {name}, ms", mask_time)
        yield below(f"mask, {name}, share of 28 layers' attention", mask_time / (28 * milliseconds), 0.1)


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
