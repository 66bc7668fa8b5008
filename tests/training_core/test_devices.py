"""Training, answers and replays make every tensor on the model's device, and read none of it as NumPy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, write_base

from training_core.base_model import PROJECT


@pytest.mark.slow
def test_models_on_another_device_compute_what_they_compute_on_the_cpu(tiny_base: Path, tmp_path: Path) -> None:
    """A stand-in for a GPU, which refuses tensors of another device; a dense base, and one with gated DeltaNets."""
    hybrid, out = tmp_path / "hybrid", tmp_path / "differences.json"
    torch.manual_seed(0)
    write_base(tiny_model("qwen3_5", vocab_size=1_100), tiny_base, hybrid)
    environment = {"PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "computed_on_a_card", str(out), str(tiny_base), str(hybrid)]
    subprocess.run(command, env=environment, check=True)
    assert json.loads(out.read_text()) == {str(tiny_base): [], str(hybrid): []}
