"""Edits of an adapter for a replay."""

import pytest
import torch

from training_core.export.edits import reduced_to


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (64, 4), (4, 64)])
def test_reduced_rank_is_the_closest_product_of_layers_of_any_width(inputs: int, outputs: int) -> None:
    """Gated DeltaNets have layers with fewer outputs than an adapter's rank: one for each head."""
    torch.manual_seed(0)
    a, b = torch.randn(16, inputs), torch.randn(outputs, 16)
    a_reduced, b_reduced = reduced_to(2)("layer", a, b)
    u, s, v = torch.linalg.svd(b @ a, full_matrices=False)
    torch.testing.assert_close(b_reduced @ a_reduced, u[:, :2] * s[:2] @ v[:2], rtol=1e-3, atol=1e-3)
