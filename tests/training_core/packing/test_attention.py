"""What attention does otherwise on a GPU."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from training_core.packing.attention import attend_in_segments, without_groups


def test_gpu_gets_as_many_heads_of_keys_as_of_queries() -> None:
    """Or it keeps all scores. On fake tensors, which need no GPU."""
    with FakeTensorMode():
        for device, heads in (("cuda", 28), ("cpu", 4)):
            query, key = torch.empty(2, 28, 300, 128, device=device), torch.empty(2, 4, 300, 128, device=device)
            assert [states.shape[1] for states in without_groups(query, key, key)] == [heads, heads]


def test_repeated_heads_have_the_attention_of_grouped_ones() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 50, 16), torch.randn(1, 2, 50, 16), torch.randn(1, 2, 50, 16)
    segments = torch.tensor([[20, -1], [30, 0]])
    repeated = (states.repeat_interleave(3, dim=1) for states in (key, value))
    found = attend_in_segments(query, *repeated, segments, scaling=0.25)
    torch.testing.assert_close(found, attend_in_segments(query, key, value, segments, scaling=0.25))
