"""The table of kernels says what computes here, and what it names computes as the plain reference does."""

import importlib.machinery

import pytest
import torch
from packed_training import adapted, build
from torch.nn.functional import cross_entropy
from trl.trainer.utils import add_fused_lm_head

from training_core.packing import capabilities
from training_core.packing.capabilities import kernels


def test_kernels_of_a_cpu_are_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed: fla, Triton and flash-attn need a GPU."""
    monkeypatch.setattr(capabilities, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    plain, hybrid = (kernels(adapted(build(name)), packing=True) for name in ("qwen2", "qwen3_5"))
    assert plain["attention"] == "SDPA, one call per segment"
    assert plain["loss"].endswith("PyTorch")
    assert hybrid["gated DeltaNet"] == "PyTorch; convolution: PyTorch"
    assert "gated DeltaNet" not in plain
    assert plain["installed, not used"] == "flash_attn, liger_kernel"


def test_kernels_without_packing_attend_to_whole_rows() -> None:
    assert kernels(adapted(build("qwen2")), packing=False)["attention"] == "SDPA, every row whole"


def test_fused_head_has_the_loss_and_gradients_of_plain_logits() -> None:
    """With more than one tile of the vocabulary; only some tokens have a label."""
    torch.manual_seed(0)
    model = adapted(build("qwen2", vocab_size=33_000))
    tokens = torch.randint(0, 33_000, (1, 40))
    labels = tokens.masked_fill(torch.arange(40) < 30, -100)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    logits = model(input_ids=tokens).logits[0, :-1]
    plain = cross_entropy(logits, labels[0, 1:])
    expected = torch.autograd.grad(plain, weights)
    add_fused_lm_head(model.get_base_model())
    fused = model(input_ids=tokens, labels=labels, fused_lm_head=True).loss
    torch.testing.assert_close(fused, plain)
    for ours, theirs in zip(torch.autograd.grad(fused, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
