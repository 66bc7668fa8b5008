"""The disk space of a run is known before it starts."""

from pathlib import Path

from training_core.config import RunConfig
from training_core.model_setup import load_model_and_tokenizer
from training_core.training.disk_space import adapter_parameters, bytes_of_a_run


def test_adapter_size_is_exact_for_any_target_modules(tiny_base: Path) -> None:
    for names in ("auto", "q_proj,down_proj"):
        config = RunConfig(model_name=str(tiny_base), target_modules=names, lora_r=4)
        trained, _ = load_model_and_tokenizer(config).model.get_nb_trainable_parameters()
        assert adapter_parameters(config, tiny_base) == trained


def test_disk_space_counts_kept_checkpoints_where_training_runs(tiny_base: Path) -> None:
    few, many = (RunConfig(model_name=str(tiny_base), save_total_limit=kept) for kept in (2, 5))
    checkpoint = 12 * adapter_parameters(few, tiny_base)
    more = bytes_of_a_run(many, tiny_base, trained_here=True) - bytes_of_a_run(few, tiny_base, trained_here=True)
    assert 3 * checkpoint < more
    assert bytes_of_a_run(few, tiny_base, trained_here=False) == bytes_of_a_run(many, tiny_base, trained_here=False)
