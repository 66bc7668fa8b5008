"""Packed training equals training on separate rows: same loss, same gradients, same steps."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from packed_training import (
    VOCABULARY,
    adapted,
    build,
    largest_difference,
    packed,
    planned,
    random_rows,
    relative_error,
    train_apart,
    train_packed,
)
from peft import PeftModel, prepare_model_for_kbit_training
from tiny_models import ARCHITECTURES, SIZES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from training_core.packing.attention import use_shared_prefix_attention
from training_core.packing.pieces import tokens_of
from training_core.packing.plan import (
    collate_pack,
    packed_dataset,
    plan_packing,
)
from training_core.training.activation_checkpointing import checkpointing_arguments, enable_checkpointing


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def assert_same_gradients(model: PeftModel, rows: Dataset, packs: Dataset) -> None:
    loss_apart, apart = train_apart(model, rows)
    loss_packed, together = train_packed(model, packs)
    assert loss_packed == pytest.approx(loss_apart, rel=1e-6)
    assert largest_difference(together, apart) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(6))
def test_packing_has_the_gradients_of_separate_rows(architecture: str, seed: int) -> None:
    rows = random_rows(seed)
    plan = planned(rows, seed=seed, token_budget=200 + 100 * seed)
    packs = packed_dataset(rows, plan.packs)
    assert plan.gain > 1.1
    assert_same_gradients(adapted(build(architecture), seed), rows, packs)


def test_packing_without_shared_prefixes_has_equal_gradients() -> None:
    rows = random_rows(0, policies=9, cases=1)
    rows = rows.map(lambda row, i: {"input_ids": [i, *row["input_ids"][1:]]}, with_indices=True)
    packs = packed(rows)
    plan = planned(rows)
    assert (plan.gain, plan.sharing_rows) == (1.0, 0)
    assert "plain packing" in plan.reason
    assert_same_gradients(adapted(build("qwen3")), rows, packs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_has_equal_gradients_in_nf4_with_checkpointing(architecture: str, tmp_path: Path) -> None:
    build(architecture).save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=nf4, dtype=torch.float32)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    enable_checkpointing(base)
    model = adapted(base).train()
    assert any(getattr(block, "gradient_checkpointing", False) for block in base.modules())
    rows = random_rows(3)
    assert_same_gradients(model, rows, packed(rows))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", range(3))
def test_packing_in_bf16_errs_no_more_than_rows(architecture: str, seed: int) -> None:
    """A sum in bf16 depends on its order: both are measured by fp32 with the same, rounded weights."""
    rows = random_rows(seed)
    model = adapted(build(architecture), seed).bfloat16()
    loss, exact = train_apart(copy.deepcopy(model).float(), rows)
    loss_apart, apart = train_apart(copy.deepcopy(model), rows)
    loss_packed, together = train_packed(model, packed(rows))
    assert loss_apart == pytest.approx(loss, rel=1e-3)
    assert loss_packed == pytest.approx(loss, rel=1e-3)
    assert relative_error(together, exact) < 1.2 * relative_error(apart, exact)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_row_does_not_see_its_neighbours(architecture: str) -> None:
    """Change one case: every other row's logits stay equal bit for bit."""
    rows = random_rows(5, policies=1, cases=12)
    plan = planned(rows, rows_per_step=2 * len(rows), token_budget=4000)
    (piece,) = plan.packs[0]
    assert piece.prefix_tokens
    changed = len(piece.rows) // 2
    model = adapted(build(architecture)).eval()
    use_shared_prefix_attention(model)
    inputs = collate_pack([packed_dataset(rows, plan.packs)[0]])
    start, end = inputs["segments"][:, 0].cumsum(0)[changed : changed + 2].tolist()
    before = model(**inputs).logits[0]
    inputs["input_ids"][0, start:end] = (inputs["input_ids"][0, start:end] + 1) % VOCABULARY
    after = model(**inputs).logits[0]
    mine = (inputs["label_positions"] >= start) & (inputs["label_positions"] < end)
    assert torch.equal(before[~mine], after[~mine])
    assert not torch.equal(before[mine], after[mine])


def test_prefix_ends_before_the_labels() -> None:
    """Rows equal up to their last answer token may share the prompt but its last token."""
    ids = [*range(50), 1, 2, 3]
    rows = Dataset.from_list(
        [{"input_ids": [*ids, last], "labels": [-100] * 50 + [1, 2, 3, last]} for last in range(6)]
    )
    plan = planned(rows)
    packs = packed_dataset(rows, plan.packs)
    assert {piece.prefix_tokens for pack in plan.packs for piece in pack} == {49}
    inputs = collate_pack([packs[0]])
    first_tokens = inputs["segments"][:, 0].cumsum(0) - inputs["segments"][:, 0]
    assert (inputs["labels"][0, first_tokens] == -100).all()
    assert_same_gradients(adapted(build("qwen2")), rows, packs)


@pytest.mark.parametrize("seed", range(20))
def test_packing_plan_covers_every_row_within_the_budget(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random_rows(seed, policies=int(random.integers(1, 30)), cases=int(random.integers(1, 12)))
    budget, per_step = int(random.integers(60, 900)), int(random.integers(1, 33))
    plan = plan_packing(rows, budget, per_step, seed)
    packs = packed_dataset(rows, plan.packs)
    assert sorted(row for pack in plan.packs for piece in pack for row in piece.rows) == list(range(len(rows)))
    assert plan.row_tokens == sum(map(len, rows["input_ids"]))
    assert plan.computed_tokens == sum(len(pack["input_ids"]) for pack in packs)
    for pack, content in zip(plan.packs, packs, strict=True):
        held = sum(len(piece.rows) for piece in pack)
        assert len(content["input_ids"]) <= budget or held == 1
        assert len({piece.group for piece in pack if piece.depth}) == len([piece for piece in pack if piece.depth])
    if len(rows) > 8 * per_step:
        assert len(rows) / len(plan.packs) * plan.packs_per_step == pytest.approx(per_step, rel=0.12)


def test_pack_may_hold_several_policies_and_single_rows() -> None:
    rows = random_rows(2, policies=4, cases=8)
    plan = planned(rows, rows_per_step=2 * len(rows), token_budget=10_000)
    (pack,) = plan.packs
    assert len({piece.prefix_tokens for piece in pack}) > 1
    assert_same_gradients(adapted(build("qwen3")), rows, packed_dataset(rows, plan.packs))


def test_packing_spreads_rows_of_a_policy_over_steps() -> None:
    """32 rows of each of 4 policies, 8 rows a step: no pack is made of one policy alone."""
    rows = random_rows(1, policies=4, cases=1)
    many = concatenate_datasets([rows] * 32)
    plan = planned(many, rows_per_step=8, token_budget=10_000)
    assert plan.packs_per_step == 1
    alone = sum(len({row % len(rows) for piece in pack for row in piece.rows}) == 1 for pack in plan.packs)
    assert alone <= len(plan.packs) // 4


def one_policy() -> Dataset:
    rows = [[*range(90), *range(90), row, row + 1, 5] for row in range(48)]
    return Dataset.from_list([{"input_ids": ids, "labels": [-100] * 181 + ids[181:]} for ids in rows])


def test_pack_has_a_prefix_once() -> None:
    """One policy: at most half a step's rows are kept together, but all of them are in one pack."""
    rows = one_policy()
    plan = planned(rows, rows_per_step=16, token_budget=10_000)
    assert plan.packs_per_step == 1
    assert all(len(pack) == 1 and len(pack[0].rows) > 8 for pack in plan.packs)
    assert_same_gradients(adapted(build("qwen3")), rows, packed_dataset(rows, plan.packs))


def test_pack_has_room_for_pieces_that_share_a_prefix() -> None:
    """Two copies of the prefix would not fit."""
    rows = one_policy()
    once = max(tokens_of(pack) for pack in planned(rows, rows_per_step=16, token_budget=10_000).packs)
    plan = planned(rows, rows_per_step=16, token_budget=once + 20)
    assert plan.packs_per_step == 1
    assert plan.computed_tokens == planned(rows, rows_per_step=16, token_budget=10_000).computed_tokens


def test_packing_plan_depends_on_the_seed_only() -> None:
    rows = random_rows(6, policies=12)
    assert plan_packing(rows, 500, 8, 1) == plan_packing(rows, 500, 8, 1)
    assert plan_packing(rows, 500, 8, 1) != plan_packing(rows, 500, 8, 2)


def test_packing_plan_says_what_sharing_saves() -> None:
    rows = random_rows(7, policies=6, cases=30, policy_tokens=300)
    plan = plan_packing(rows, 4000, 16, 0)
    assert plan.gain > 3
    assert plan.reason.endswith(f"{plan.gain:.1f}x fewer tokens")
    assert plan_packing(rows, 4000, 16, 0, rows_per_prefix=1).gain == 1


def test_packing_rejects_a_row_without_labels() -> None:
    rows = Dataset.from_list(
        [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [1, 2], "labels": [-100, -100]}]
    )
    with pytest.raises(ValueError, match="got none in row 1"):
        plan_packing(rows, 100, 4, 0)


def test_packing_rejects_a_model_with_sliding_windows() -> None:
    model = build("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="sliding_attention"):
        use_shared_prefix_attention(model)


def test_packing_rejects_a_model_with_other_convolutions() -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    config = Lfm2Config(**sizes, vocab_size=VOCABULARY, layer_types=["conv", "full_attention"])
    with pytest.raises(ValueError, match="Lfm2ForCausalLM has conv; set packing false"):
        use_shared_prefix_attention(Lfm2ForCausalLM(config))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_prepared_for_packs_computes_plain_batches_unchanged(architecture: str) -> None:
    """Evaluation and generation use the same model: left padding, no segments."""
    plain = build(architecture).eval()
    switched = copy.deepcopy(plain)
    use_shared_prefix_attention(switched)
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    }
    assert torch.equal(plain(**batch).logits, switched(**batch).logits)
    tokens = [model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0) for model in (plain, switched)]
    assert torch.equal(*tokens)


def make_trainer(model: PeftModel, rows: Dataset, folder: Path, **settings: object) -> SFTTrainer:
    words = {str(token): token for token in range(VOCABULARY)}
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "remove_unused_columns": False,
        **checkpointing_arguments(enabled=False),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
    }
    packs = "segments" in rows[0]
    return SFTTrainer(
        model=model,
        args=SFTConfig(**(arguments | settings)),
        train_dataset=rows,
        data_collator=collate_pack if packs else None,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
        ),
    )


def lora_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def test_packed_optimiser_step_equals_the_unpacked_one(tmp_path: Path) -> None:
    """All rows in one step of plain gradient descent, as several packs and as padded batches of two."""
    rows = random_rows(8)
    packs = packed(rows, rows_per_step=len(rows), token_budget=250)
    assert len(packs) > 1
    start = adapted(build("qwen3"))
    descent = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    after = []
    for data, batch, name in ((rows, 2, "apart"), (packs, 1, "packed")):
        model = copy.deepcopy(start)
        steps = -(-len(data) // batch)
        if name == "packed":
            use_shared_prefix_attention(model)
        trainer = make_trainer(
            model,
            data,
            tmp_path / name,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            **descent,
        )
        trainer.train()
        after.append({n: w - lora_weights(start)[n] for n, w in lora_weights(model).items()})
    assert largest_difference(after[1], after[0]) < 1e-5


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def test_packed_training_resumes_bit_identically(tmp_path: Path) -> None:
    rows = random_rows(9, policies=8)
    plan = planned(rows, rows_per_step=4)
    packs = packed_dataset(rows, plan.packs)
    start = adapted(build("qwen2"))
    settings = {
        "max_steps": 4,
        "gradient_accumulation_steps": plan.packs_per_step,
        "learning_rate": 1e-3,
    }

    def trainer(name: str, **more: object) -> SFTTrainer:
        model = copy.deepcopy(start)
        use_shared_prefix_attention(model)
        return make_trainer(model, packs, tmp_path / name, **settings, **more)

    whole = trainer("whole")
    whole.train()
    stopped = trainer("stopped", save_strategy="steps", save_steps=2)
    stopped.add_callback(_StopAt(2))
    stopped.train()
    resumed = trainer("stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    pairs = itertools.zip_longest(lora_weights(whole.model).items(), lora_weights(resumed.model).items())
    assert all(ours[0] == theirs[0] and torch.equal(ours[1], theirs[1]) for ours, theirs in pairs)
    assert not torch.equal(*(next(iter(lora_weights(m).values())) for m in (start, whole.model)))
