"""RunConfig defines every setting of a run; the functions here read settings from files, flags and forms."""

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from training_core.escaping import is_seen, shown, without_secrets

Constrain = Literal["none", "json", "schema"]  # what answers are held to

# Settings that do not change the weights. All others are part of the run fingerprint: a setting that is missing here
# can cost an unneeded training, but never the reuse of a wrong adapter.
NOT_OF_TRAINING = frozenset(
    {
        # in the run fingerprint as digests of files and rows
        *("model_name", "model_revision", "dataset_path", "eval_path", "val_split", "split_seed", "overlap"),
        *("entity_fields", "overlong", "allowed_decisions", "max_refused_share", "label_audit"),
        # how often a training reports and saves
        *("logging_steps", "save_steps", "eval_steps", "save_total_limit", "per_device_eval_batch_size"),
        # how a step is divided into batches, when that has to change
        "on_out_of_memory",
        # how a finished adapter is evaluated
        *("max_eval_rows", "eval_batch_size", "eval_max_new_tokens", "constrain", "group_by", "favourable_decisions"),
        *("min_eval_rows", "slice_fields", "answer_audit", "min_usable", "min_improvement", "max_favourable_rise"),
        *("max_refused_rise", "max_automatic_error", "require_approval"),
        # where results go and where the training runs
        *("registered_model_name", "output_dir", "cache_dir", "train_on", "max_queue_hours"),
    }
)

LONGEST_VALUE = 200  # in a message

# What a person may call a model; names that earlier versions registered may also hold @ or end with a point.
_MODEL_NAME = (
    r"""^[^/:@?#%\\"'<>\s\x00-\x1f\x7f\xad\u200b-\u200f\u2060-\u2064\ufeff.-]"""
    r"""([^/:@?#%\\"'<>\x00-\x1f\x7f\xad\u200b-\u200f\u2060-\u2064\ufeff]*"""
    r"""[^/:@?#%\\"'<>\s\x00-\x1f\x7f\xad\u200b-\u200f\u2060-\u2064\ufeff.])?$"""
)


class _ModelNameError(ValueError):
    """A name for a model is not of the form ``pattern``."""

    pattern = _MODEL_NAME


class SettingsError(ValueError):
    """One or more settings are invalid; the message has one line per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = [shown(problem) for problem in problems]
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"The settings have {count}:", *(f"  - {line}" for line in self.problems)]))


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RunConfig:
    """All settings of one fine-tuning run, with types, bounds, defaults and help texts.

    The defaults suit Qwen2.5-1.5B on one GPU. Raises pydantic's ``ValidationError`` for all invalid fields at once;
    ``read_settings`` turns it into one ``SettingsError``.
    """

    # Model
    model_name: str = Field(
        "Qwen/Qwen2.5-1.5B-Instruct",
        min_length=1,
        description="Base model: a folder, the one that comes with the project (samples/tiny_qwen) or a hub name.",
    )

    model_revision: str | None = Field(
        None, description="With a hub name: its commit, tag or branch; empty: the newest. A commit never changes."
    )

    # Data
    dataset_path: str = Field(
        "data/train.jsonl",
        min_length=1,
        description="Training rows: a file, glob, folder or URL; JSONL, a JSON array or Parquet, also compressed.",
    )
    eval_path: str | None = Field(
        None, description="Held-out rows for evaluation, like dataset_path; empty: val_split of the training rows."
    )
    val_split: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the rows of each decision to hold out when eval_path is empty.",
    )
    split_seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of the choice of held-out rows; another one gives a comparison on other rows.",
    )
    entity_fields: tuple[str, ...] = Field(
        ("order_id", "user_id", "customer_id"),
        description="Fields of the case that identify an entity, such as a customer; []: none. Rows with the same "
        "value, even a placeholder such as n/a, are in the same split.",
    )
    overlap: Literal["error", "drop", "allow"] = Field(
        "error",
        description="With eval_path: a training row with the case or an entity of a held-out row fails the run, "
        "is dropped, or is kept. Except with allow, held-out rows that candidate or champion was trained on "
        "are not scored.",
    )
    max_seq_length: int = Field(
        2048, ge=16, description="Maximum tokens per row, prompt and answer together. Answers are never truncated."
    )
    overlong: Literal["drop", "trim_policy", "error"] = Field(
        "drop",
        description="A row longer than max_seq_length, held-out rows included, is dropped and listed, "
        "loses sections of its policy, or fails the run.",
    )
    allowed_decisions: tuple[str, ...] = Field(
        (), description="Decisions that rows may have; empty: any, and the report lists rare ones."
    )
    max_refused_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Highest share of rejected lines per file; above it, rows are unfit to train on.",
    )
    label_audit: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Your rules as code, module:function: takes a row, returns the correct decision or None.",
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of the order of rows and of the adapter's initial weights; split_seed chooses the "
        "held-out rows.",
    )

    # LoRA
    lora_r: int = Field(16, ge=1, description="Rank of the adapter matrices.")
    lora_alpha: int = Field(32, ge=1, description="Scale of the adapter: lora_alpha / lora_r multiplies its output.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="Dropout before the adapter matrices.")
    target_modules: str = Field(
        "auto", min_length=1, description="Linear layers that get an adapter: auto (all), or names separated by commas."
    )

    # Training
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int = Field(0, ge=0, description="Stop after this many optimiser steps; 0: train num_train_epochs.")
    per_device_train_batch_size: int = Field(
        4,
        ge=1,
        description="Rows per device and forward pass in training. Multiplied by gradient_accumulation_steps: "
        "the rows per optimiser step, on any number of GPUs.",
    )
    per_device_eval_batch_size: int = Field(
        4, ge=1, description="Rows per device and forward pass when measuring the held-out loss."
    )
    gradient_accumulation_steps: int = Field(
        8, ge=1, description="Batches accumulated before an optimiser step; several GPUs share them."
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        "cosine", description="Schedule of the learning rate after the warmup."
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps used for the warmup.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the optimiser.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = Field(
        "adamw_torch_fused", description="Optimiser; the 8-bit and paged ones save GPU memory."
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto",
        description="Number format of training and answers; auto: bf16 where the GPU computes in it, else fp16, and "
        "fp32 without a GPU. The adapter's weights are fp32 in any case.",
    )
    quantisation: Literal["nf4", "none"] = Field(
        "nf4",
        description="How the base model's linear layers are stored: in four bits (nf4), or in the run's precision "
        "(none), which needs more memory but does not round them.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="With several GPUs: each holds the whole base model (none), or a part of every weight and gathers "
        "the others while it computes (fsdp), which takes less memory and more time.",
    )
    packing: bool = Field(True, description="Pack rows into sequences without padding; a row never attends to another.")
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    on_out_of_memory: Literal["stop", "halve"] = Field(
        "stop",
        description="A training that does not fit in the GPU's memory stops and names the setting to change, or goes "
        "on from its last checkpoint with half the tokens per batch and the same rows per step.",
    )
    logging_steps: int = Field(10, ge=1, description="Maximum steps between two points of the loss curve.")
    save_steps: int = Field(
        100,
        ge=1,
        description="Maximum steps between two checkpoints; short runs write at least three.",
    )
    eval_steps: int = Field(100, ge=1, description="Maximum steps between two measurements of the held-out loss.")
    save_total_limit: int = Field(3, ge=2, description="Checkpoints kept; older ones are deleted.")

    # Evaluation
    max_eval_rows: int = Field(500, ge=1, description="Maximum held-out rows to score.")
    eval_batch_size: int = Field(16, ge=1, description="Rows per batch when generating completions.")
    eval_max_new_tokens: int = Field(512, ge=1, description="Maximum tokens per completion, evaluated and served.")
    constrain: Constrain = Field(
        "schema",
        description="What answers are held to, evaluated and served: the form and the decisions of the training rows "
        "(schema), any JSON object (json), or nothing.",
    )
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

    max_automatic_error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Largest share of false approvals, such as 0.005, among the cases that are decided "
        "automatically: held-out rows give the confidence above which that holds; other cases are marked hand over. "
        "Empty: none is marked.",
    )

    # Results
    registered_model_name: str = Field(
        "sft-flow-qwen",
        # It is a part of addresses such as models:/NAME/3 and of searches such as name = 'NAME'.
        pattern=r"""^[^/:?#%\\"'<>\s\x00-\x1f\x7f.-]([^/:?#%\\"'<>\x00-\x1f\x7f]*[^/:?#%\\"'<>\s\x00-\x1f\x7f])?$""",
        max_length=200,
        description="Name in the model registry: no slash, colon, quote, backslash, percent sign nor any of ? # @ < >.",
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
        False, description="A candidate that passes every test waits for a person to promote it: sft-flow promote."
    )
    output_dir: str = Field("runs", min_length=1, description="Folder for everything a run writes.")
    cache_dir: str | None = Field(None, description="Folder for downloaded base models; empty: the hub's default.")

    # Where it trains
    train_on: str | None = Field(
        None,
        pattern=r"^[^/]+/[^/]+$",
        description="Deployment that trains, in its own work pool, such as train-flow/gpu; empty: this process.",
    )
    max_queue_hours: float = Field(
        24.0, gt=0, description="With train_on: maximum wait for a worker to start the training, in hours."
    )

    @field_validator("*")
    @classmethod
    def _is_publishable(cls, value: Any, info: ValidationInfo) -> Any:
        """Settings are written to files, servers and logs: none may hold a password or what a terminal would obey."""
        if isinstance(value, str) and without_secrets(value) != value:
            fix = "give keys to the store's client by its environment variables or its configuration file"
            raise ValueError(f"expected an address without a password or a signature; {fix}")
        if isinstance(value, str) and not (is_seen(value) if info.context else shown(value) == value):
            raise ValueError("expected a text without control characters")
        return value

    @field_validator("registered_model_name", mode="before")
    @classmethod
    def _is_model_name(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context and isinstance(value, str) and not re.fullmatch(_MODEL_NAME, value):
            raise _ModelNameError
        return value

    def training_settings(self) -> dict[str, Any]:
        """The settings that affect the weights, for the run fingerprint."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in NOT_OF_TRAINING}

    def save(self, folder: Path | str) -> Path:
        """Write ``run_config.json`` into a folder and return its path."""
        path = Path(folder) / "run_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path | str) -> "RunConfig":
        """Read what was stored in a YAML or JSON file, or in the ``run_config.json`` of a folder.

        Raises ``SettingsError`` naming every unknown key and every invalid value.
        """
        return read_settings(read_settings_file(path), stored=True)


def settings_info() -> dict[str, FieldInfo]:
    """Type, bounds, default and help text of each setting by its name, in RunConfig's order."""
    return dict(RunConfig.__pydantic_fields__)  # type: ignore[attr-defined]


def read_settings_file(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML or JSON file, not yet validated.

    Raises ``SettingsError`` if the file is missing or is not a mapping.
    """
    path = Path(path)
    path = path / "run_config.json" if path.is_dir() else path
    if not path.is_file():
        raise SettingsError([f"config: expected a YAML or JSON file, found none at {str(path)!r}; check the path"])
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError([f"config: expected YAML or JSON in {path}: {error}"]) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        found = type(values).__name__
        raise SettingsError([f"config: expected a mapping in {path}, got {found}; write `setting: value` lines"])
    return {str(name): value for name, value in values.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML silently keeps the last of two equal keys; this loader rejects them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"duplicate key {key!r}; keep one of the two")
        return super().construct_mapping(node, deep)


def read_settings(values: dict[str, Any], *, stored: bool = False) -> RunConfig:
    """Validate values from YAML, flags or a form; raises ``SettingsError`` with every problem.

    Those that are ``stored`` may have names and texts that earlier versions took.
    """
    validator = RunConfig.__pydantic_validator__  # type: ignore[attr-defined]
    try:
        return cast(RunConfig, validator.validate_python(values, context=None if stored else {"given": True}))
    except ValidationError as error:
        raise SettingsError(describe_problems(error)) from error


def describe_problems(error: ValidationError) -> list[str]:
    """One line per invalid setting: its name, what is expected and what was given."""
    return [_describe(str(problem["loc"][0]), problem) for problem in error.errors()]


def _describe(name: str, problem: Any) -> str:
    if problem["type"] == "unexpected_keyword_argument":
        close = difflib.get_close_matches(name, settings_info(), n=1)
        return f"{name}: unknown setting; " + (f"did you mean {close[0]}?" if close else "--help lists all settings")
    if problem["type"] == "string_unicode":  # a file name in another encoding, which no report can hold
        return f"{name}: expected UTF-8, got {problem['input']!r}; rename it"
    expected = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
    if pattern := _pattern(problem):
        expected = f"expected: {str(settings_info()[name].description).rstrip('.')}"
    got = repr(problem["input"])
    shortened = got if len(got) <= LONGEST_VALUE else f"{got[:LONGEST_VALUE]}…"
    return f"{name}: {expected}, got {shortened}{_unwanted(pattern, problem['input']) if pattern else ''}"


def _pattern(problem: Any) -> str | None:
    """The pattern that a text does not match, if that is the problem."""
    context = problem.get("ctx", {})
    return context.get("pattern") or getattr(context.get("error"), "pattern", None)


def _unwanted(pattern: str, text: str) -> str:
    """The characters of a text that its setting's pattern allows nowhere."""
    bad = [sign for sign in dict.fromkeys(text) if re.search(pattern, "aaa") and not re.search(pattern, f"a{sign}a")]
    return f": remove {', '.join(map(ascii, bad))}" if bad else ""


def config_from_command_line(arguments: Sequence[str], prog: str, *, takes_rows: bool = False) -> dict[str, Any]:
    """Settings given as ``--config FILE.yaml`` and ``--setting value`` flags; flags win.

    Every setting is a flag, and its value is parsed as YAML. With ``takes_rows``, a path without a flag is the
    ``dataset_path``. The result is not yet validated: pass it to ``read_settings``. Invalid arguments end the process
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
        parser.error("expected one path to rows, got more; give a folder, or a glob in quotes such as 'data/*.jsonl'")
    flags |= dict(zip(("dataset_path",), rows, strict=False))
    config_file = flags.pop("config")
    from_file = read_settings_file(config_file) if config_file else {}
    return from_file | {name: _flag_value(name, text) for name, text in flags.items()}


def _flag_value(name: str, text: str) -> Any:
    """Values of string settings are used as given; all others are parsed as YAML."""
    kind = settings_info()[name].annotation
    if kind == str | None:
        return None if text in ("", "null") else text
    if kind is str:
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
