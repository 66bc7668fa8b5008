"""RunConfig: the one home of every setting of a run, and the doors through which settings come in."""

import argparse
import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

# What does not change the weights. Anything not named here does: a setting that somebody forgets to add
# costs a needless training, never the reuse of a wrong adapter.
NOT_OF_TRAINING = frozenset(
    {
        # in the run fingerprint as digests of files and rows
        *("model_name", "dataset_path", "eval_path", "val_split", "split_seed", "overlap", "entity_fields"),
        *("overlong", "allowed_decisions", "max_refused_share", "label_audit"),
        # how often a training reports and saves
        *("logging_steps", "save_steps", "eval_steps", "save_total_limit", "per_device_eval_batch_size"),
        # how a finished adapter is judged
        *("max_eval_rows", "eval_batch_size", "eval_max_new_tokens", "group_by", "favourable_decisions"),
        *("min_eval_rows", "slice_fields", "answer_audit", "min_usable", "min_improvement", "max_favourable_rise"),
        *("max_refused_rise", "require_approval"),
        # where things lie and happen
        *("registered_model_name", "output_dir", "cache_dir", "train_on", "max_queue_hours"),
    }
)


class SettingsError(ValueError):
    """One or more settings cannot be used; the message holds one line per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"The settings have {count}:", *(f"  - {line}" for line in self.problems)]))


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RunConfig:
    """Every setting of one fine-tuning run. Nothing else has defaults.

    Defaults suit Qwen2.5-1.5B on one GPU. Raises pydantic's ``ValidationError`` with all bad fields at once;
    ``read_settings`` turns that into one ``SettingsError`` in plain words.
    """

    # Model
    model_name: str = Field(
        "Qwen/Qwen2.5-1.5B-Instruct",
        min_length=1,
        description="Base model: a folder, one that ships with the project (samples/tiny_qwen), or a name on the hub.",
    )

    # Data
    dataset_path: str = Field(
        "data/train.jsonl",
        min_length=1,
        description="Training rows: a file, glob, folder or URL; JSONL, a JSON array or Parquet, also compressed.",
    )
    eval_path: str | None = Field(
        None, description="Rows to hold out for evaluation; empty: a share of the training rows (val_split)."
    )
    val_split: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of every decision's rows held out when eval_path is empty.",
    )
    split_seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of the choice of held-out rows; another one gives a comparison on other rows.",
    )
    entity_fields: tuple[str, ...] = Field(
        ("order_id", "user_id", "customer_id"),
        description="Fields of the case that name somebody or something; []: none. Rows that share a value, "
        "be it a placeholder such as n/a, stay on one side of the split.",
    )
    overlap: Literal["error", "drop", "allow"] = Field(
        "error",
        description="With eval_path: a training row whose case or entity is there too ends the run, is dropped, "
        "or is kept. Unless kept, no held-out row is scored that candidate or champion was trained on.",
    )
    max_seq_length: int = Field(
        2048, ge=16, description="Longest row, in tokens, prompt and answer together. No answer is ever cut."
    )
    overlong: Literal["drop", "trim_policy", "error"] = Field(
        "drop",
        description="A row above max_seq_length, held-out ones too, is dropped and listed, "
        "loses sections of its policy, or ends the run.",
    )
    allowed_decisions: tuple[str, ...] = Field(
        (), description="Decisions a row may hold; empty: all that occur, rare ones are pointed out."
    )
    max_refused_share: float = Field(
        0.1, ge=0, le=1, description="Share of unusable lines above which the rows are not fit to train on."
    )
    label_audit: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Your rules as code, module:function: it gets a row and returns the right decision, or None.",
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of the order of rows and the adapter's first weights; split_seed chooses the held-out rows.",
    )

    # LoRA
    lora_r: int = Field(16, ge=1, description="Rank of the adapter matrices.")
    lora_alpha: int = Field(32, ge=1, description="Scale of the adapter: its output is multiplied by alpha / r.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the adapter matrices.")
    target_modules: str = Field(
        "auto", min_length=1, description="Layers that get an adapter: auto, or names separated by commas."
    )

    # Training
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int = Field(0, ge=0, description="Stop after this many optimiser steps; 0: num_train_epochs decides.")
    per_device_train_batch_size: int = Field(
        4,
        ge=1,
        description="Rows a device handles at once in training; times gradient_accumulation_steps: "
        "the rows of an optimiser step, on however many GPUs.",
    )
    per_device_eval_batch_size: int = Field(
        4, ge=1, description="Rows a device handles at once when the held-out loss is taken."
    )
    gradient_accumulation_steps: int = Field(
        8, ge=1, description="Batches summed up before an optimiser step; several GPUs share them."
    )
    learning_rate: float = Field(2e-4, gt=0, description="Highest learning rate.")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="How the learning rate falls after the warmup."
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the optimiser.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = Field(
        "adamw_torch_fused", description="Optimiser; the 8-bit and paged ones save GPU memory."
    )
    packing: bool = Field(True, description="Train rows one after the other without padding, kept apart exactly.")
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    logging_steps: int = Field(10, ge=1, description="Most steps between two points of the loss curve.")
    save_steps: int = Field(
        100,
        ge=1,
        description="Most steps between two checkpoints; short runs write at least three all the same.",
    )
    eval_steps: int = Field(100, ge=1, description="Most steps between two measurements of the held-out loss.")
    save_total_limit: int = Field(3, ge=2, description="Checkpoints kept; older ones are deleted.")

    # Evaluation
    max_eval_rows: int = Field(500, ge=1, description="Most held-out rows that are answered and scored.")
    eval_batch_size: int = Field(16, ge=1, description="Rows answered at once.")
    eval_max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens, that is waited for.")
    group_by: str = Field(
        "issue_type",
        description="Field of the case for the score per group and for the lookup-table baseline.",
    )
    favourable_decisions: tuple[str, ...] = Field(
        ("Eligible",),
        description="Decisions in the customer's favour; given against the policy they cost money.",
    )
    min_eval_rows: int = Field(100, ge=1, description="Fewest held-out rows on which an adapter can become champion.")
    slice_fields: tuple[str, ...] = Field(
        (),
        description="More fields of the case whose values are slices: in none of them, nor in a group (group_by) "
        "or a policy, may an adapter be significantly worse.",
    )
    answer_audit: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Your checks of answers as code, module:function: it gets a row and a usable answer and returns "
        "a list of problems, empty if there are none.",
    )
    min_usable: float = Field(
        0.98,
        ge=0,
        le=1,
        description="Share of a champion's answers that must be usable: one JSON object with exactly the row's "
        "fields, each of its type and not empty.",
    )

    # Results
    registered_model_name: str = Field(
        "sft-flow-qwen", min_length=1, pattern=r"^[^/:]+$", description="Name in the model registry."
    )
    min_improvement: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decision accuracy an adapter must be ahead of base, baselines and champion to become champion.",
    )
    max_favourable_rise: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="Largest rise in false approvals, as a share of all rows, that a new champion may have; "
        "the 95% confidence bound must be below it.",
    )
    max_refused_rise: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="Largest rise in false refusals, as a share of all rows, that a new champion may have; "
        "the 95% confidence bound must be below it.",
    )
    require_approval: bool = Field(
        False, description="An adapter that passes every test waits until a person promotes it."
    )
    output_dir: str = Field("runs", min_length=1, description="Folder of everything a run writes.")
    cache_dir: str | None = Field(None, description="Folder for downloaded base models; empty: the hub's own.")

    # Where it trains
    train_on: str | None = Field(
        None,
        pattern=r"^[^/]+/[^/]+$",
        description="Deployment that trains, on its own pool, such as train-flow/gpu; empty: this very process.",
    )
    max_queue_hours: float = Field(
        24.0, gt=0, description="With train_on: longest wait for a worker to take the training, in hours."
    )

    def training_settings(self) -> dict[str, Any]:
        """The settings that shape the weights, for the run fingerprint."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in NOT_OF_TRAINING}

    def save(self, folder: Path | str) -> Path:
        """Write ``run_config.json`` into a folder and return its path."""
        path = Path(folder) / "run_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path | str) -> "RunConfig":
        """Read a YAML or JSON file, or the ``run_config.json`` of a folder.

        Raises ``SettingsError`` naming every unknown key and every bad value.
        """
        return read_settings(read_settings_file(path))


def settings_info() -> dict[str, FieldInfo]:
    """Each setting's type, bounds, default and help by its name, in RunConfig's order."""
    return dict(RunConfig.__pydantic_fields__)  # type: ignore[attr-defined]


def read_settings_file(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML or JSON file, unjudged.

    Raises ``SettingsError`` when there is no such file or it holds no mapping.
    """
    path = Path(path)
    path = path / "run_config.json" if path.is_dir() else path
    if not path.is_file():
        raise SettingsError([f"config: {str(path)!r} is not a file; give a YAML file with settings"])
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError([f"config: {path} cannot be read: {error}"]) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError([f"config: {path} holds a {type(values).__name__}; it must hold `setting: value` lines"])
    return {str(name): value for name, value in values.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's own loader lets the last of two equal keys win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} stands twice; keep one of the two")
        return super().construct_mapping(node, deep)


def read_settings(values: dict[str, Any]) -> RunConfig:
    """Judge values from YAML, flags or a form; raises ``SettingsError`` with every problem."""
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise SettingsError(describe_problems(error)) from error


def describe_problems(error: ValidationError) -> list[str]:
    """One line per bad setting: its name, its value and what would be right."""
    return [_describe(str(problem["loc"][0]), problem) for problem in error.errors()]


def _describe(name: str, problem: Any) -> str:
    if problem["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(name, settings_info(), n=1)
        return f"{name}: there is no such setting" + (f"; did you mean {close[0]}?" if close else "")
    return f"{name}: {problem['input']!r} cannot be used: {problem['msg']}"


def config_from_command_line(arguments: Sequence[str], prog: str, *, takes_rows: bool = False) -> dict[str, Any]:
    """Settings given as ``--config FILE.yaml`` and ``--setting value`` flags; flags win.

    Every setting is a flag; values are read by the rules of YAML. With ``takes_rows`` a path without a flag is the
    ``dataset_path``. The result is unjudged: pass it to ``read_settings``. What cannot be understood ends the process
    with exit code 2, as argparse does.
    """
    usage = f"{prog}{' ROWS' * takes_rows} [--config FILE.yaml] [--setting value …]"
    parser = argparse.ArgumentParser(prog=prog, usage=usage, allow_abbrev=False)
    if takes_rows:
        parser.add_argument("ROWS", nargs="*", help="The rows to check; the same as --dataset_path.")
    parser.add_argument("--config", metavar="FILE.yaml", help="Settings that differ from the defaults.")
    for name, info in settings_info().items():
        text = f"{info.description} Default: {info.default}".replace("%", "%%")
        parser.add_argument(f"--{name}", metavar="", default=argparse.SUPPRESS, help=text)
    flags = vars(parser.parse_intermixed_args(arguments))
    rows = flags.pop("ROWS", [])
    if len([*rows, *flags.keys() & {"dataset_path"}]) > 1:
        parser.error("rows have one path: give their folder, or a pattern in quotes such as 'data/*.jsonl'")
    flags |= dict(zip(("dataset_path",), rows, strict=False))
    config_file = flags.pop("config")
    from_file = read_settings_file(config_file) if config_file else {}
    return from_file | {name: _flag_value(name, text) for name, text in flags.items()}


def _flag_value(name: str, text: str) -> Any:
    """Texts are taken to the letter; anything else is read as YAML would."""
    kind = settings_info()[name].annotation
    if kind == str | None:
        return None if text in ("", "null") else text
    if kind is str:
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
