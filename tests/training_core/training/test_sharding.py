"""A sharded base is held in parts and computes as a whole one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, write_base

from training_core.base_model import PROJECT
from training_core.config import RunConfig, SettingsError
from training_core.model_setup import load_model_and_tokenizer
from training_core.training.sharding import shard_base, sharding_problems


@pytest.mark.slow
def test_sharded_base_computes_as_the_whole_one(tiny_base: Path, tmp_path: Path) -> None:
    """Two processes; of the hybrid base the head has weights of its own, and so the embeddings are sharded too."""
    hybrid = tmp_path / "hybrid"
    torch.manual_seed(0)
    write_base(tiny_model("qwen3_5", vocab_size=1_100), tiny_base, hybrid)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sharded_ranks"]
    environment = {"PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(tmp_path), str(hybrid), str(tiny_base)]
    subprocess.run(command, env=environment, check=True)
    for rank in (0, 1):
        for case, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            base, quantisation = case.split()
            assert found.pop("share") == pytest.approx(0.5, abs=0.02), case
            assert "answers are computed on one GPU: the base needs" in found.pop("too_small"), case
            assert found == {
                "dtypes": ["torch.float32"] + ["torch.uint8"] * (quantisation == "nf4"),
                "whole_in_blocks": [],
                "sharded_adapter": [],
                "embeddings": base == "hybrid",
                "equal": True,
            }, case


def test_sharding_needs_several_processes(tiny_base: Path) -> None:
    loaded = load_model_and_tokenizer(RunConfig(model_name=str(tiny_base), sharding="fsdp"))
    assert sharding_problems("none", 0) == sharding_problems("fsdp", 2) == []
    with pytest.raises(SettingsError, match=r"sharding: .* found 1; set sharding none"):
        shard_base(loaded.model)
