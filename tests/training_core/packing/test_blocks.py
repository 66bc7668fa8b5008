"""Attention in blocks, the path of a GPU, equals attention in segments; here with the same graph, but no kernel."""

import functools
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from packed_training import (
    adapted,
    build,
    largest_difference,
    packed,
    random_rows,
    relative_error,
    train_apart,
    train_packed,
)
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from training_core.packing import attention, blocks
from training_core.packing.attention import attend_in_segments, use_shared_prefix_attention
from training_core.packing.blocks import BLOCK, Heads, attend_in_blocks, block_mask, pad_to_blocks
from training_core.packing.plan import collate_pack
from training_core.training.activation_checkpointing import enable_checkpointing

HEADS = Heads(4, 2, 16)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flex_attention refuses gradients on a CPU, where inductor has no kernel for them; its graph has them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(attention, "runs_in_blocks", lambda *_: True)
    _forget_graphs()
    yield
    _forget_graphs()


def _forget_graphs() -> None:
    torch.compiler.reset()
    for kept in (blocks._compiles, blocks._compiled):
        if isinstance(kept, functools._lru_cache_wrapper):  # not what a test has put in its place
            kept.cache_clear()


def padded_pack(tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Prefixes and their suffixes of random lengths, `tokens` in all, padded."""
    generator = torch.Generator().manual_seed(seed)
    segments: list[list[int]] = []
    while tokens:
        length = min(tokens, int(torch.randint(1, max(2, tokens // 3), (1,), generator=generator)))
        shares = segments and segments[-1][0] > 64
        segments.append([length, len(segments) - 1 if shares else -1])
        tokens -= length
    total = sum(length for length, _ in segments)
    positions = torch.zeros(1, total, dtype=torch.int64)
    return pad_to_blocks({"position_ids": positions, "segments": torch.tensor(segments)}, HEADS)


def states(heads: int, key_heads: int, tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(tokens)
    return [torch.randn(1, count, tokens, 16).to(dtype).requires_grad_() for count in (heads, key_heads, key_heads)]


def outputs_and_gradients(attend: Any, inputs: list[Tensor], mask: Any) -> list[Tensor]:
    output = attend(*inputs, mask, scaling=0.25)
    return [output, *torch.autograd.grad(output, inputs, torch.cos(output.detach()))]


@pytest.mark.parametrize(
    ("heads", "dtype", "tolerance"),
    [((12, 2), torch.float32, 1e-6), ((28, 4), torch.bfloat16, 1e-2), ((32, 8), torch.float32, 1e-6)],
)
def test_blocks_equal_segments(heads: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    """In bf16 both are measured by fp32 segments with the same inputs."""
    for tokens in (1, 500):
        pack = padded_pack(tokens)
        total = pack["position_ids"].shape[1]
        inputs = states(*heads, total, dtype)
        found = outputs_and_gradients(attend_in_blocks, inputs, block_mask(pack["segments"], total))
        exact = [state.detach().float().requires_grad_() for state in inputs]
        expected = outputs_and_gradients(attend_in_segments, exact, pack["segments"])
        assert all(
            (ours - theirs).norm() < tolerance * theirs.norm() for ours, theirs in zip(found, expected, strict=True)
        )


@pytest.mark.parametrize("seed", range(4))
def test_mask_of_blocks_follows_the_segments(seed: int) -> None:
    pack = padded_pack(2_000, seed)
    tokens = pack["position_ids"].shape[1]
    lengths, prefixes = pack["segments"].T.tolist()
    starts = [0, *itertools.accumulate(lengths)]
    assert starts.pop() == tokens
    expected = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, length, prefix in zip(starts, lengths, prefixes, strict=True):
        expected[start : start + length, start : start + length] = torch.ones(length, length).tril().bool()
        if prefix >= 0:
            expected[start : start + length, starts[prefix] : starts[prefix] + lengths[prefix]] = True
    mask = block_mask(pack["segments"], tokens)
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, tokens, tokens, device="cpu")[0, 0], expected)
    pairs = expected.view(tokens // BLOCK, BLOCK, tokens // BLOCK, BLOCK).sum((1, 3))
    assert torch.equal(mask.to_dense()[0, 0].bool(), pairs > 0)
    full = flex._ordered_to_dense(mask.full_kv_num_blocks, mask.full_kv_indices, tokens // BLOCK)[0, 0].bool()
    assert (pairs[full] == BLOCK**2).all()
    assert full.any()


class _LargestTensor(TorchDispatchMode):
    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.bytes = max(self.bytes, tensor.nbytes if isinstance(tensor, Tensor) else 0)
        return result


@pytest.mark.parametrize("tokens", [8_192, 32_768])
def test_mask_of_blocks_takes_no_tokens_squared(tokens: int) -> None:
    pack = padded_pack(tokens)
    with _LargestTensor() as largest:
        block_mask(pack["segments"], tokens)
    assert tokens <= largest.bytes <= tokens * tokens / BLOCK


def test_training_compiles_few_graphs_for_all_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each mode, and those of the trial: no further one for a pack of another size or with other segments."""
    trial = (HEADS, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(attention, "runs_in_blocks", lambda *inputs: blocks._compiles(*trial, inputs[-1]))
    model = adapted(build("qwen3"))
    enable_checkpointing(model)
    use_shared_prefix_attention(model)
    counters.clear()
    graphs = []
    for number, budget in enumerate((300, 900, 60, 500, 200)):
        pack = collate_pack([packed(random_rows(number), token_budget=budget)[0]])
        model.train()(**pack).logits.sum().backward()
        with torch.no_grad():
            model.eval()(**pack)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [4] * 5


def test_padding_has_no_label_and_is_seen_by_no_segment() -> None:
    pack = collate_pack([packed(random_rows(3))[0]])
    tokens = pack["position_ids"].shape[1]
    padded = pad_to_blocks(pack, HEADS)
    assert padded["input_ids"].shape == padded["position_ids"].shape == (1, int(padded["segments"][:, 0].sum()))
    assert padded["input_ids"].shape[1] % BLOCK == 0
    assert torch.equal(padded["segments"][:-1], pack["segments"])
    assert padded["segments"][-1].tolist() == [HEADS.padded(tokens) - tokens, -1]
    assert torch.equal(padded["label_positions"], pack["label_positions"])
    assert torch.equal(pad_to_blocks(padded, HEADS)["segments"], padded["segments"])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_packs_in_blocks_have_the_gradients_of_rows(architecture: str) -> None:
    rows = random_rows(3)
    packs, model = packed(rows), adapted(build(architecture))
    assert any(len(pack["input_ids"]) % BLOCK for pack in packs)
    loss_apart, apart = train_apart(model, rows)
    loss_packed, together = train_packed(model, packs)
    assert loss_packed == pytest.approx(loss_apart, rel=1e-6)
    assert largest_difference(together, apart) < 1e-5


def test_packs_in_blocks_err_in_bf16_no_more_than_rows() -> None:
    rows = random_rows(1)
    exact = adapted(build("qwen3")).bfloat16().float()
    _, expected = train_apart(exact, rows)
    _, apart = train_apart(exact.bfloat16(), rows)
    _, together = train_packed(exact, packed(rows))
    assert relative_error(together, expected) < 1.2 * relative_error(apart, expected)


def test_blocks_follow_autocast_as_sdpa_does() -> None:
    pack = padded_pack(300)
    tokens = pack["position_ids"].shape[1]
    inputs = states(4, 2, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        ours = attend_in_blocks(*inputs, block_mask(pack["segments"], tokens), scaling=0.25)
        theirs = attend_in_segments(*inputs, pack["segments"], scaling=0.25)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_blocks_are_tried_before_use() -> None:
    assert blocks._compiles(Heads(12, 2, 16), torch.float32, torch.device("cpu"), attend_in_segments)


@pytest.mark.parametrize("failure", ["raises", "differs"])
def test_segments_take_over_where_blocks_fail_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    def fail(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        if failure == "raises":
            raise RuntimeError("out of resource: shared memory\nRequired: 204800")
        return 2 * scaled_dot_product_attention(query, key, value, enable_gqa=True)

    monkeypatch.setattr(blocks, "_compiled", lambda: fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not blocks._compiles(HEADS, torch.float32, torch.device("cpu"), attend_in_segments)
    (message,) = caplog.messages
    assert "Attention in segments" in message
    assert ("shared memory" if failure == "raises" else "computes other values") in message


def test_cpu_computes_packs_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model, segments = build("qwen2"), torch.tensor([[4, -1]])
    assert not blocks.runs_in_blocks(model.base_model, segments, attend_in_segments)
